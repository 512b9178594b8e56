// Matrix times several vectors, written once. Included by each ISA file inside its anonymous namespace, after
// unpack.inl.h and
//
//   PanelScales, load_scales(const Unpacked*, int n_rows, int n, PanelScales&)      as dot_panel wants them
//   template <bool kHasOffset>
//   void dot_panel(const Unpacked*, const PanelScales&, int n_rows, int n, q, scale, sum, float* dots)
//   what gemm_float.inl.h wants
//
// A panel of kPanel rows is unpacked chunk by chunk, and each chunk meets every token while it is in L1:
//
//   for each panel: for each chunk: unpack; for each token: out[token, rows] += dot_panel(chunk, x[token])

template <class Block>
static void gemm(const Rows& rows, const Activations& x, const int32_t* token, int64_t n_tokens, float* out,
                 int64_t out_stride) {
  Unpacked u[kPanel];
  PanelScales scales;
  float dots[kPanel];
  for (int64_t r = 0; r < rows.n_rows; r += kPanel) {
    const int n_rows = rows.n_rows - r < kPanel ? static_cast<int>(rows.n_rows - r) : kPanel;
    for (int64_t chunk = 0; chunk * kChunk < rows.cols; ++chunk) {
      int n = 0;
      for (int p = 0; p < n_rows; ++p) {
        n = unpack_chunk<Block>(rows.data + (r + p) * rows.row_bytes, chunk, rows.cols, u[p]);
      }
      load_scales(u, n_rows, n, scales);
      for (int64_t i = 0; i < n_tokens; ++i) {
        const int64_t column = token[i] * x.token_stride + chunk * kChunk;
        dot_panel<Block::kHasOffset != 0>(u, scales, n_rows, n, x.q + column, x.scale + column / kActivationGroup,
                                          x.sum + column / kSumGroup, dots);
        float* y = out + i * out_stride + r;
        for (int p = 0; p < n_rows; ++p) y[p] = chunk == 0 ? dots[p] : y[p] + dots[p];
      }
    }
  }
}

#include "gemm_float.inl.h"
