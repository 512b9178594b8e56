// Floats that leave, and the columns of float formats. Included by avx2.cpp and avx2_tiles.cpp inside their anonymous
// namespaces.

// Streamed in halves: rows begin at multiples of 16 bytes only.
template <Stores kStores>
static inline void store_f32x8(float* p, __m256 v) {
  if constexpr (kStores == Stores::streamed) {
    _mm_stream_ps(p, _mm256_castps256_ps128(v));
    _mm_stream_ps(p + 4, _mm256_extractf128_ps(v, 1));
  } else {
    _mm256_storeu_ps(p, v);
  }
}

// Streamed floats are seen by other threads from here on.
static inline void stores_done() { _mm_sfence(); }

static inline __m128i eight_halves(const void* p) { return _mm_loadu_si128(static_cast<const __m128i*>(p)); }

static inline __m256 weights8(const F32* w) { return _mm256_loadu_ps(reinterpret_cast<const float*>(w)); }
static inline __m256 weights8(const F16* w) { return _mm256_cvtph_ps(eight_halves(w)); }
static inline __m256 weights8(const Bf16* w) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(eight_halves(w)), 16));
}
