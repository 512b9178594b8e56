// The same arithmetic on many small problems at once: one lane is one problem. Vectors of GCC and Clang, as wide as the
// instruction set row says, so the compiler emits plain vector code for every row; no operation crosses lanes, so every
// width gives the same numbers.

using FloatVec = float __attribute__((vector_size(kVectorBytes)));
using IntVec = int32_t __attribute__((vector_size(kVectorBytes)));

enum : int { kVectorLanes = kVectorBytes / 4 };

template <int kCount>
struct Ints {
  enum : int { kVectors = kCount / kVectorLanes };
  IntVec v[kVectors];

  static Ints all(int32_t x) {
    Ints out;
    for (int i = 0; i < kVectors; ++i) out.v[i] = IntVec{} + x;
    return out;
  }
  int32_t get(int lane) const { return v[lane / kVectorLanes][lane % kVectorLanes]; }
};

template <int kCount>
struct Floats {
  enum : int { kVectors = kCount / kVectorLanes };
  FloatVec v[kVectors];

  static Floats all(float x) {
    Floats out;
    for (int i = 0; i < kVectors; ++i) out.v[i] = FloatVec{} + x;
    return out;
  }
  static Floats load(const float* from) {
    Floats out;
    memcpy(out.v, from, sizeof out.v);
    return out;
  }
  void store(float* to) const { memcpy(to, v, sizeof v); }
  float get(int lane) const { return v[lane / kVectorLanes][lane % kVectorLanes]; }
  void set(int lane, float x) { v[lane / kVectorLanes][lane % kVectorLanes] = x; }
};

static inline FloatVec min(FloatVec a, FloatVec b) { return a < b ? a : b; }
static inline FloatVec max(FloatVec a, FloatVec b) { return a > b ? a : b; }
static inline IntVec bits_of(FloatVec x) { return reinterpret_cast<IntVec>(x); }
static inline FloatVec floats_of(IntVec x) { return reinterpret_cast<FloatVec>(x); }

template <int n>
static inline Floats<n> operator+(const Floats<n>& a, const Floats<n>& b) {
  Floats<n> out;
  for (int i = 0; i < Floats<n>::kVectors; ++i) out.v[i] = a.v[i] + b.v[i];
  return out;
}

template <int n>
static inline Floats<n> operator-(const Floats<n>& a, const Floats<n>& b) {
  Floats<n> out;
  for (int i = 0; i < Floats<n>::kVectors; ++i) out.v[i] = a.v[i] - b.v[i];
  return out;
}

template <int n>
static inline Floats<n> operator*(const Floats<n>& a, const Floats<n>& b) {
  Floats<n> out;
  for (int i = 0; i < Floats<n>::kVectors; ++i) out.v[i] = a.v[i] * b.v[i];
  return out;
}

template <int n>
static inline Floats<n> operator*(const Floats<n>& a, float b) {
  Floats<n> out;
  for (int i = 0; i < Floats<n>::kVectors; ++i) out.v[i] = a.v[i] * b;
  return out;
}

template <int n>
static inline Floats<n> operator/(const Floats<n>& a, const Floats<n>& b) {
  Floats<n> out;
  for (int i = 0; i < Floats<n>::kVectors; ++i) out.v[i] = a.v[i] / b.v[i];
  return out;
}

// All bits of a lane where it holds.
template <int n>
static inline Ints<n> less(const Floats<n>& a, const Floats<n>& b) {
  Ints<n> out;
  for (int i = 0; i < Floats<n>::kVectors; ++i) out.v[i] = a.v[i] < b.v[i];
  return out;
}

template <int n>
static inline Floats<n> select(const Ints<n>& mask, const Floats<n>& yes, const Floats<n>& no) {
  Floats<n> out;
  for (int i = 0; i < Floats<n>::kVectors; ++i) out.v[i] = mask.v[i] ? yes.v[i] : no.v[i];
  return out;
}

template <int n>
static inline Ints<n> select(const Ints<n>& mask, const Ints<n>& yes, const Ints<n>& no) {
  Ints<n> out;
  for (int i = 0; i < Ints<n>::kVectors; ++i) out.v[i] = mask.v[i] ? yes.v[i] : no.v[i];
  return out;
}

template <int n>
static inline bool any(const Ints<n>& mask) {
  IntVec both = mask.v[0];
  for (int i = 1; i < Ints<n>::kVectors; ++i) both |= mask.v[i];
  int32_t found = 0;
  for (int k = 0; k < kVectorLanes; ++k) found |= both[k];
  return found != 0;
}

// The sum of eight numbers, always in this order.
static inline float sum_8(const Floats<8>& x) {
  return ((x.get(0) + x.get(4)) + (x.get(2) + x.get(6))) + ((x.get(1) + x.get(5)) + (x.get(3) + x.get(7)));
}
