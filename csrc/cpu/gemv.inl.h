// Matrix times vector, written once. Included by each ISA file inside its anonymous namespace, after unpack.inl.h and
// after the words of that ISA:
//
//   Sum                                                        partial sums of one row
//   template <bool kHasOffset> void add_chunk(Sum&, const Unpacked&, int n, q, scale, sum)
//   float total(const Sum&)
//
//   for each row: for each 32 columns: sum += x.scale * (scale * (q . x.q) + offset * x.sum)

template <class Block>
static void gemv(const Rows& rows, const Activations& x, float* out) {
  Unpacked u;
  for (int64_t r = 0; r < rows.n_rows; ++r) {
    Sum sum{};
    for (int64_t chunk = 0; chunk * kChunk < rows.cols; ++chunk) {
      const int n = unpack_chunk<Block>(rows.data + r * rows.row_bytes, chunk, rows.cols, u);
      add_chunk<Block::kHasOffset != 0>(sum, u, n, x.q + chunk * kChunk, x.scale + chunk * (kChunk / kActivationGroup),
                                        x.sum + chunk * (kChunk / kSumGroup));
    }
    out[r] = total(sum);
  }
}
