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

static int run(const lutkern_format* format, void* packed, size_t nbytes) {
  static float w[ROWS * COLS], decoded[ROWS * COLS], x[COLS], y[ROWS];
  for (int i = 0; i < ROWS * COLS; ++i) w[i] = sinf(0.37f * (float)i);
  for (int c = 0; c < COLS; ++c) x[c] = cosf(0.11f * (float)c);

  const lutkern_matrix weights = {w, LUTKERN_F32, ROWS, COLS, COLS, LUTKERN_CPU};
  if (lutkern_pack(format->ggml_type, 1, &weights, NULL, packed, nbytes, NULL, NULL)) return failed("pack");
  lutkern_tensor tensor;
  if (lutkern_tensor_init(&tensor, format->ggml_type, LUTKERN_BLOCKS, 1, ROWS, COLS, packed, nbytes))
    return failed("tensor");
  if (lutkern_dequantize(&tensor, decoded, NULL)) return failed("dequantize");

  const lutkern_matrix input = {x, LUTKERN_F32, 1, COLS, COLS, LUTKERN_CPU};
  lutkern_options options = {0};
  options.exact = 1; /* float activations: the only difference to double is rounding */
  if (lutkern_matvec(&tensor, &input, y, &options)) return failed("matvec");

  for (int r = 0; r < ROWS; ++r) {
    double expected = 0.0, magnitude = 0.0;
    for (int c = 0; c < COLS; ++c) {
      const double weight = (double)decoded[r * COLS + c];
      const double original = (double)w[r * COLS + c];
      expected += weight * (double)x[c];
      magnitude += fabs(weight * (double)x[c]);
      if (!(fabs(weight - original) <= 0.005)) { /* half a step of 1 / 127, and the rounding of the scale */
        fprintf(stderr, "weight %d of row %d is %g, packed from %g\n", c, r, weight, original);
        return 1;
      }
    }
    if (!(fabs((double)y[r] - expected) <= 8.0 * 0x1p-24 * magnitude)) {
      fprintf(stderr, "row %d is %.9g, expected %.9g\n", r, (double)y[r], expected);
      return 1;
    }
  }
  printf("lutkern %s, kernels %s: %d rows agree\n", lutkern_version(), lutkern_current_isa(), ROWS);
  return 0;
}

int main(void) {
  lutkern_format format;
  if (lutkern_find_format("q8_0", &format)) return failed("find_format");
  const size_t nbytes = (size_t)(ROWS * lutkern_row_bytes(format.ggml_type, COLS));
  void* packed = malloc(nbytes);
  if (!packed) return 1;
  const int status = run(&format, packed, nbytes);
  free(packed);
  return status;
}
