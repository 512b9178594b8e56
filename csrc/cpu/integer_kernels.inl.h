// Included where an ISA has defined gemv and gemm for every format.

// The table entries of a format; a float format has no integer kernels.
template <class Block, bool kFloat = Block::kIsFloat != 0>
struct IntegerKernels {
  static constexpr GemvFn kGemv = gemv<Block>;
  static constexpr GemmFn kGemm = gemm<Block>;
};

template <class Block>
struct IntegerKernels<Block, true> {
  static constexpr GemvFn kGemv = nullptr;
  static constexpr GemmFn kGemm = nullptr;
};
