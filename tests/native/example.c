/* lutkern from C: packs a matrix, multiplies it with a vector, and compares with the decoded weights in double.
 *
 *   cc -std=c11 example.c -I INCLUDE LIBRARY -lm
 */
#include <lutkern.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

enum { ROWS = 40, COLS = 300 };

static int failed(const char* what) {
  fprintf(stderr, "%s: %s\n", what, lutkern_last_error());
  return 1;
}

int main(void) {
  static float w[ROWS * COLS], decoded[ROWS * COLS], x[COLS], y[ROWS];
  for (int i = 0; i < ROWS * COLS; ++i) w[i] = sinf(0.37f * (float)i);
  for (int c = 0; c < COLS; ++c) x[c] = cosf(0.11f * (float)c);

  lutkern_format format;
  if (lutkern_find_format("q8_0", &format) != LUTKERN_OK) return failed("find_format");
  const size_t nbytes = (size_t)(ROWS * lutkern_row_bytes(format.ggml_type, COLS));
  void* packed = malloc(nbytes);
  if (!packed) return 1;

  const lutkern_matrix weights = {w, LUTKERN_F32, ROWS, COLS, COLS};
  if (lutkern_pack(format.ggml_type, 1, &weights, NULL, packed, nbytes, NULL, NULL) != LUTKERN_OK)
    return failed("pack");
  lutkern_tensor tensor;
  if (lutkern_tensor_init(&tensor, format.ggml_type, 1, ROWS, COLS, packed, nbytes) != LUTKERN_OK)
    return failed("tensor");
  if (lutkern_dequantize(&tensor, decoded, NULL) != LUTKERN_OK) return failed("dequantize");

  const lutkern_matrix input = {x, LUTKERN_F32, 1, COLS, COLS};
  lutkern_options options = {0};
  options.exact = 1; /* float activations: the only difference to double is rounding */
  if (lutkern_matvec(&tensor, &input, y, &options) != LUTKERN_OK) return failed("matvec");

  for (int r = 0; r < ROWS; ++r) {
    double expected = 0.0, magnitude = 0.0;
    for (int c = 0; c < COLS; ++c) {
      const double term = (double)decoded[r * COLS + c] * (double)x[c];
      expected += term;
      magnitude += fabs(term);
      if (fabs((double)decoded[r * COLS + c] - (double)w[r * COLS + c]) > 0.005) {
        fprintf(stderr, "weight %d of row %d is %g, packed from %g\n", c, r, (double)decoded[r * COLS + c],
                (double)w[r * COLS + c]);
        return 1;
      }
    }
    if (!(fabs((double)y[r] - expected) <= 16.0 * 0x1p-24 * magnitude)) {
      fprintf(stderr, "row %d is %.9g, expected %.9g\n", r, (double)y[r], expected);
      return 1;
    }
  }
  free(packed);
  printf("lutkern %s, kernels %s: %d rows agree\n", lutkern_version(), lutkern_current_isa(), ROWS);
  return 0;
}
