/* lutkern: 1-bit and 2-bit codebook weights of Mixture-of-Experts models, at memory speed. The C API.
 *
 * A weight is a view: packed bytes that the caller keeps alive, and what they mean. Nothing here owns memory. Formats
 * are named by their ggml type number, the one that GGUF files store. rows are outputs, cols are inputs; a weight of
 * experts > 1 is experts matrices one after another.
 *
 * Every function that returns lutkern_status checks its arguments before it does anything; on failure nothing is
 * written to the outputs and lutkern_last_error() holds one line of text. All functions may be called from any thread.
 */
#ifndef LUTKERN_H
#define LUTKERN_H

#include <stddef.h>
#include <stdint.h>

#define LUTKERN_VERSION "0.1.0"

#if defined(_WIN32)
#define LUTKERN_API
#else
#define LUTKERN_API __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

typedef enum lutkern_status {
  LUTKERN_OK = 0,
  LUTKERN_ERROR_VALUE = 1,  /* a shape, a value or a name is wrong */
  LUTKERN_ERROR_TYPE = 2,   /* an element type is wrong */
  LUTKERN_ERROR_DEVICE = 3, /* the processor or a device cannot do it */
  LUTKERN_ERROR_MEMORY = 4  /* no memory for scratch */
} lutkern_status;

typedef enum lutkern_dtype { LUTKERN_F32 = 0, LUTKERN_F16 = 1, LUTKERN_BF16 = 2 } lutkern_dtype;

typedef enum lutkern_layout {
  LUTKERN_BLOCKS = 0, /* the GGUF bytes */
  LUTKERN_TILES = 1   /* the order in which the kernels of the device read: the same information, faster */
} lutkern_layout;

/* Where bytes are: 0 is the memory of the CPU, LUTKERN_CUDA + i is CUDA device i, LUTKERN_METAL + i is Metal device i, whose
 * memory the CPU may read and write as well while no queued work uses it. */
typedef enum lutkern_device_kind { LUTKERN_CPU = 0, LUTKERN_CUDA = 0x100, LUTKERN_METAL = 0x200 } lutkern_device_kind;

typedef enum lutkern_operation {
  LUTKERN_DEQUANTIZE = 0,
  LUTKERN_MATVEC = 1,
  LUTKERN_MATMUL = 2,
  LUTKERN_MOE = 3,
  LUTKERN_PACK = 4
} lutkern_operation;

typedef enum lutkern_activation {
  LUTKERN_ACTIVATION_NONE = 0, /* h = g * u */
  LUTKERN_ACTIVATION_SILU = 1, /* h = g / (1 + exp(-g)) * u */
  LUTKERN_ACTIVATION_GELU = 2, /* h = g / 2 * (1 + tanh(sqrt(2 / pi) * (g + 0.044715 g^3))) * u */
  LUTKERN_ACTIVATION_RELU2 = 3 /* h = max(g, 0)^2 * u */
} lutkern_activation;

/* How long lutkern_pack may search for a smaller error. */
typedef enum lutkern_effort {
  LUTKERN_EFFORT_DEFAULT = 0,
  LUTKERN_EFFORT_FAST = 1,
  LUTKERN_EFFORT_BEST = 2
} lutkern_effort;

typedef struct lutkern_format {
  const char* name;    /* the GGUF name in lower case, "iq1_m" */
  int32_t ggml_type;   /* the number in GGUF files */
  int32_t block_size;  /* weights in a block */
  int32_t block_bytes; /* bytes of a block */
  int32_t is_float;    /* 1: bf16 f16 f32, activations are not quantised */
  int32_t can_pack;    /* 1: lutkern_pack writes it */
} lutkern_format;

/* A packed weight. In blocks a matrix is rows * row_bytes, row_bytes = ceil(cols / block_size) * block_bytes; a last
 * block that reaches past cols is padded. In tiles it is ceil(rows / 16) rows of tiles; data may have any alignment, and
 * is read fastest at a multiple of 64. */
typedef struct lutkern_tensor {
  int32_t ggml_type;
  int32_t layout; /* lutkern_layout */
  int64_t experts;
  int64_t rows;
  int64_t cols;
  const void* data;
  size_t nbytes;  /* lutkern_tensor_bytes, or lutkern_device_tensor_bytes */
  int32_t device; /* where data is: 0 or a lutkern_device_kind plus an index */
} lutkern_tensor;

/* Input numbers: rows x cols, elements of a row side by side, rows row_stride elements apart. */
typedef struct lutkern_matrix {
  const void* data;
  int32_t dtype; /* lutkern_dtype */
  int64_t rows;
  int64_t cols;
  int64_t row_stride;
  int32_t device; /* where data is. Ids, weights and results of an operation lie where its x lies: in the memory of the
                     CPU, or on the device of the weight */
} lutkern_matrix;

/* Work on the items begin <= i < end. */
typedef void (*lutkern_range_fn)(void* state, int64_t begin, int64_t end);

/* Must call fn so that every item of 0..n-1 is worked on exactly once, in ranges of any size, from any threads, and
 * return when all calls have returned; it must not throw. grain is the number of items that is worth one call. */
typedef void (*lutkern_parallel_for)(void* context, int64_t n, int64_t grain, lutkern_range_fn fn, void* state);

/* How to run. A null pointer or a zeroed struct is the default: int8 activations, all rows, the library's threads. */
typedef struct lutkern_options {
  int32_t exact;                     /* 1: float activations instead of int8 */
  int64_t row_begin;                 /* matvec, matmul: first row */
  int64_t row_end;                   /* matvec, matmul: one past the last row; 0 means all rows */
  int32_t threads;                   /* of the library's own threads; 0: lutkern_num_threads() */
  lutkern_parallel_for parallel_for; /* null: the library's threads */
  void* parallel_context;
  int32_t effort; /* pack: lutkern_effort */
  void* stream; /* of a device: the CUstream, or the stream of lutkern_stream_create, on which the work is queued; null
                     is the default stream. Work whose arrays all lie on the device is only queued; work with arrays of
                     the CPU is done on return */
} lutkern_options;

/* y[t] = sum over k of expert_weights[t, k] * down[e] h, h = activation(gate[e] x[t]) * (up[e] x[t]),
 * e = expert_ids[t, k]. gate may be null: h = activation(up[e] x[t]). gate and up are experts x inter x hidden, down is
 * experts x hidden x inter; each has its own format. */
typedef struct lutkern_moe_args {
  const lutkern_tensor* gate;
  const lutkern_tensor* up;
  const lutkern_tensor* down;
  lutkern_matrix x;            /* tokens x hidden */
  const int32_t* expert_ids;   /* tokens x k; must not change during the call */
  const float* expert_weights; /* tokens x k */
  int64_t k;
  int32_t activation; /* lutkern_activation */
  float* out;         /* tokens x hidden; overlaps no input */
  int32_t partial;    /* 1: an id of -1 names an expert that lives elsewhere, and is left out */
} lutkern_moe_args;

/* A device other than the CPU. */
typedef struct lutkern_device_info {
  char name[128];
  int64_t memory_bytes;
  int64_t free_bytes;
  int64_t cache_bytes; /* last level, 0 if unknown */
  int32_t processors;  /* streaming multiprocessors */
  int32_t capability;  /* CUDA: 10 * major + minor; Metal: the family of Apple GPUs, 7 for M1 */
} lutkern_device_info;

/* The text of the last failure on this thread; never null. */
LUTKERN_API const char* lutkern_last_error(void);
LUTKERN_API const char* lutkern_version(void);

/* ---- formats ---- */

LUTKERN_API int32_t lutkern_format_count(void);
/* index 0 .. lutkern_format_count() - 1 */
LUTKERN_API lutkern_status lutkern_format_at(int32_t index, lutkern_format* out);
LUTKERN_API lutkern_status lutkern_find_format(const char* name, lutkern_format* out);

/* ---- tensors ---- */

/* Fills *out and checks that nbytes is what the shape needs. data is borrowed. */
LUTKERN_API lutkern_status lutkern_tensor_init(lutkern_tensor* out, int32_t ggml_type, lutkern_layout layout,
                                               int64_t experts, int64_t rows, int64_t cols, const void* data,
                                               size_t nbytes);
/* Bytes that a weight needs; 0 for an unknown type or layout or a size that is out of range. */
LUTKERN_API int64_t lutkern_tensor_bytes(int32_t ggml_type, lutkern_layout layout, int64_t experts, int64_t rows,
                                         int64_t cols);
/* The same weight in another layout, on the device of the weight: out_bytes is lutkern_tensor_bytes of it, or
 * lutkern_device_tensor_bytes. Nothing is lost, from blocks to tiles or back. */
LUTKERN_API lutkern_status lutkern_repack(const lutkern_tensor* weight, lutkern_layout layout, void* out,
                                          size_t out_bytes, const lutkern_options* options);
/* Tiles are described by format, this number and shape: bytes of another version must be made anew from blocks. */
LUTKERN_API int32_t lutkern_tile_version(void);
/* A view of one expert. */
LUTKERN_API lutkern_status lutkern_tensor_expert(const lutkern_tensor* tensor, int64_t expert, lutkern_tensor* out);
/* Bytes of one row of blocks, 0 for an unknown type or cols < 1. */
LUTKERN_API int64_t lutkern_row_bytes(int32_t ggml_type, int64_t cols);

/* ---- operations ---- */

/* out: experts x rows x cols, float32, on the device of the weight. Equal to the GGUF definition to the bit. */
LUTKERN_API lutkern_status lutkern_dequantize(const lutkern_tensor* weight, float* out, const lutkern_options* options);
/* x has one row of cols; out[row] for row_begin <= row < row_end, indexed from row 0. The weight has one expert. */
LUTKERN_API lutkern_status lutkern_matvec(const lutkern_tensor* weight, const lutkern_matrix* x, float* out,
                                          const lutkern_options* options);
/* x: tokens x cols; out: tokens x rows. */
LUTKERN_API lutkern_status lutkern_matmul(const lutkern_tensor* weight, const lutkern_matrix* x, float* out,
                                          const lutkern_options* options);
LUTKERN_API lutkern_status lutkern_moe(const lutkern_moe_args* args, const lutkern_options* options);
/* w: experts * rows x cols finite numbers; importance: null, or experts x cols numbers (others than finite and positive
 * are replaced by the mean of the good ones of their expert, or by one; *replaced, if not null, receives how many);
 * out: experts * rows * row_bytes bytes, undefined after a failure. */
LUTKERN_API lutkern_status lutkern_pack(int32_t ggml_type, int64_t experts, const lutkern_matrix* w,
                                        const float* importance, void* out, size_t out_bytes, int64_t* replaced,
                                        const lutkern_options* options);
/* int8 activations as the kernels see them. x: one row; q: cols; scale: ceil(cols / 32). */
LUTKERN_API lutkern_status lutkern_quantize_activations(const lutkern_matrix* x, int8_t* q, float* scale);

/* out: experts x rows x cols numbers of dtype, rounded to nearest even, on the device of the weight. */
LUTKERN_API lutkern_status lutkern_dequantize_to(const lutkern_tensor* weight, lutkern_dtype dtype, void* out,
                                                 const lutkern_options* options);

/* ---- devices ---- */

/* How many devices of a kind there are; 0 also where the driver, or this build's kernels, are missing. */
LUTKERN_API int32_t lutkern_device_count(lutkern_device_kind kind);
/* One line: why there is no device of the kind; null if there is one. */
LUTKERN_API const char* lutkern_device_absent(lutkern_device_kind kind);
LUTKERN_API lutkern_status lutkern_get_device_info(int32_t device, lutkern_device_info* out);
/* The version of the driver, 1000 * major + 10 * minor, for Metal that of macOS; 0 where there is none. */
LUTKERN_API int32_t lutkern_driver_version(lutkern_device_kind kind);
/* What the kernels of this build are made for, "75 80 86" or "Metal 2.4", and their bytes; null if it has none. */
LUTKERN_API const char* lutkern_device_image(lutkern_device_kind kind, int64_t* nbytes);
/* Bytes that a weight needs in a layout of a device, 0 for what is unknown or has no tiles there. */
LUTKERN_API int64_t lutkern_device_tensor_bytes(int32_t device, int32_t ggml_type, lutkern_layout layout,
                                                int64_t experts, int64_t rows, int64_t cols);
/* lutkern_tensor_init for bytes on a device. */
LUTKERN_API lutkern_status lutkern_device_tensor_init(lutkern_tensor* out, int32_t device, int32_t ggml_type,
                                                      lutkern_layout layout, int64_t experts, int64_t rows,
                                                      int64_t cols, const void* data, size_t nbytes);
/* lutkern_repack to another device, from or to the CPU or between two devices of one layout. Done on return, unless both
 * sides are one device; in chunks, so that nothing is held twice. */
LUTKERN_API lutkern_status lutkern_repack_to(const lutkern_tensor* weight, lutkern_layout layout, int32_t device,
                                             void* out, size_t out_bytes, const lutkern_options* options);
/* 1 if the device has kernels for tiles of the format; otherwise its weights stay in blocks there. */
LUTKERN_API int32_t lutkern_device_has_tiles(int32_t device, int32_t ggml_type);
/* A stream of lutkern_device_free and lutkern_device_synchronize: all that the device has to do. */
#define LUTKERN_ALL_STREAMS ((void*)-1)
/* Memory of a device, ordered on the stream: what is queued there may use it. free wants the stream on which it was used
 * last, or LUTKERN_ALL_STREAMS, which waits; while a stream is captured, memory freed on it is kept until the capture has
 * ended. free accepts null, and any memory of lutkern_device_alloc in any state of the process: after fork, and while the
 * process ends, it does nothing. */
LUTKERN_API lutkern_status lutkern_device_alloc(int32_t device, size_t nbytes, void* stream, void** out);
LUTKERN_API lutkern_status lutkern_device_free(int32_t device, void* data, void* stream);
/* Memory of the CPU as memory of a device that shares it, a Metal device: nothing is copied, and any address and size will
 * do, also inside of a file that is mapped to be read; up to 16 MB of memory that Metal refuses are copied. *out is data,
 * which must stay as it is until lutkern_device_free has taken *out back: that leaves the memory to its owner. The same
 * memory may be wrapped again; each needs a free of its own. */
LUTKERN_API lutkern_status lutkern_device_wrap(int32_t device, const void* data, size_t nbytes, void** out);
/* Between the CPU and a device, or two devices, on a stream of the device that receives, or of the one that is not the
 * CPU. Done on return, but for a copy inside of one device: that is queued. A copy between two devices also waits for
 * what the other one has to do. */
LUTKERN_API lutkern_status lutkern_device_copy(void* to, int32_t to_device, const void* from, int32_t from_device,
                                               size_t nbytes, void* stream);
LUTKERN_API lutkern_status lutkern_device_synchronize(int32_t device, void* stream);
/* *out: 1 while work on the stream is kept for a graph. */
LUTKERN_API lutkern_status lutkern_stream_capturing(int32_t device, void* stream, int32_t* out);
/* A stream of its own, for work beside that of others. */
LUTKERN_API lutkern_status lutkern_stream_create(int32_t device, void** out);
LUTKERN_API lutkern_status lutkern_stream_destroy(int32_t device, void* stream);
/* Work that is queued on the stream between begin and end is kept, not run; launch runs it as often as wanted. */
LUTKERN_API lutkern_status lutkern_graph_begin(int32_t device, void* stream);
LUTKERN_API lutkern_status lutkern_graph_end(int32_t device, void* stream, void** graph);
LUTKERN_API lutkern_status lutkern_graph_launch(int32_t device, void* graph, void* stream);
LUTKERN_API lutkern_status lutkern_graph_destroy(int32_t device, void* graph);
/* Moments on a stream; elapsed waits for the second. On Metal it is the time that the GPU worked for the stream between
 * them: the waits for the processor between command buffers do not count. */
LUTKERN_API lutkern_status lutkern_event_create(int32_t device, void** out);
LUTKERN_API lutkern_status lutkern_event_record(int32_t device, void* event, void* stream);
LUTKERN_API lutkern_status lutkern_event_wait(int32_t device, void* event, void* stream);
LUTKERN_API lutkern_status lutkern_event_elapsed(int32_t device, void* begin, void* end, float* milliseconds);
LUTKERN_API lutkern_status lutkern_event_destroy(int32_t device, void* event);
/* The kernel that would run for a number of tokens (moe: of pairs of a token and an expert), or null; the name is that of
 * its function on the device. */
LUTKERN_API const char* lutkern_device_kernel(int32_t device, int32_t ggml_type, lutkern_operation operation,
                                              lutkern_layout layout, int64_t tokens);

/* ---- what runs ---- */

/* Instruction set rows that this build has, best first; null past the end. */
LUTKERN_API const char* lutkern_isa_at(int32_t index);
/* 1 if this processor has it. */
LUTKERN_API int32_t lutkern_isa_supported(const char* name);
/* Starts the search for kernels at this row; null: the best that the processor has, or LUTKERN_ISA. */
LUTKERN_API lutkern_status lutkern_use_isa(const char* name);
LUTKERN_API const char* lutkern_current_isa(void);
/* The row whose kernel would run, or null if the operation does not exist for the format. */
LUTKERN_API const char* lutkern_kernel_isa(int32_t ggml_type, lutkern_operation operation, lutkern_layout layout);
/* Threads of the library's own pool, the caller included. 0: LUTKERN_NUM_THREADS, or as many as the process may use. */
LUTKERN_API lutkern_status lutkern_set_num_threads(int32_t n);
LUTKERN_API int32_t lutkern_num_threads(void);

#ifdef __cplusplus
}
#endif

#endif /* LUTKERN_H */
