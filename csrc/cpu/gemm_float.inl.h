// Matrix times float vectors, written once. Included by each ISA file inside its anonymous namespace, after
//
//   kChunk, template <class Block> ChunkToFloat      256 weights as float: see unpack.inl.h
//   float dot_float(const float* w, const float* x, int n)

template <class Block>
static void gemm_float(const Rows& rows, const float* x, int64_t x_stride, const int32_t* token, int64_t n_tokens,
                       float* out, int64_t out_stride) {
  alignas(64) float w[kChunk];
  for (int64_t r = 0; r < rows.n_rows; ++r) {
    for (int64_t chunk = 0; chunk * kChunk < rows.cols; ++chunk) {
      const int n = ChunkToFloat<Block>::run(rows.data + r * rows.row_bytes, chunk, rows.cols, w);
      for (int64_t i = 0; i < n_tokens; ++i) {
        const float dot = dot_float(w, x + token[i] * x_stride + chunk * kChunk, n);
        float* y = out + i * out_stride + r;
        *y = chunk == 0 ? dot : *y + dot;
      }
    }
  }
}
