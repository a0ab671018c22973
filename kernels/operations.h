/* Functions in C as operations of torch, by its stable C interface (torch/csrc/stable/c/shim.h and
 * torch/csrc/inductor/aoti_torch/c/shim.h): torch makes the results and hands them to Python, which
 * takes a third of what `torch.empty` for each and a call by ctypes take.
 *
 *     static void twos(Value *stack, u64 in, u64 out) {
 *         i64 fault = 0;
 *         Tensor x = TENSOR(stack[0]), y = made(x, FLOAT32, size(x, 0), 0, &fault);
 *         for (i64 i = 0; !fault && i < size(x, 0); i++) ((float *)memory(y))[i] = 2;
 *         release(x);
 *         stack[0] = VALUE(y), stack[1] = fault;
 *     }
 *     int join(void) { return joined("twos(Tensor x) -> (Tensor, int)", "twos", twos); }
 *
 * Arguments and results share the stack, one slot each: a tensor, an int or a bool. A function
 * owns the tensors it is given, and gives away those it returns. They are contiguous and on the
 * processor.
 */
#ifndef OPERATIONS_H
#define OPERATIONS_H
#include "items.h"
#include <stdlib.h>

typedef struct AtenTensorOpaque *Tensor;
typedef u64 Value;
typedef void Operation(Value *stack, u64 in, u64 out);

int aoti_torch_delete_tensor_object(Tensor);
int32_t aoti_torch_device_type_cpu(void);
int32_t aoti_torch_dtype_float32(void);
int32_t aoti_torch_dtype_int64(void);
int aoti_torch_empty_strided(i64 dims, const i64 *sizes, const i64 *strides, int32_t dtype,
                             int32_t device, int32_t index, Tensor *);
int aoti_torch_get_data_ptr(Tensor, void **);
int aoti_torch_get_sizes(Tensor, i64 **);
int aoti_torch_library_def(void *library, const char *schema);
int aoti_torch_library_impl(void *library, const char *name, Operation *);
int aoti_torch_library_init_fragment(const char *space, const char *file, u32 line, void **);
int aoti_torch_library_init_impl(const char *space, const char *device, const char *file, u32 line,
                                 void **);
int aoti_torch_new_tensor_handle(Tensor, Tensor *);

#define TENSOR(value) ((Tensor)(uintptr_t)(value))
#define VALUE(tensor) ((Value)(uintptr_t)(tensor))
#define FLOAT32 aoti_torch_dtype_float32()
#define INT64 aoti_torch_dtype_int64()

static void *memory(Tensor x) {
    void *found = 0;
    return aoti_torch_get_data_ptr(x, &found) ? 0 : found;
}

static i64 size(Tensor x, int dim) {
    i64 *sizes;
    return aoti_torch_get_sizes(x, &sizes) ? 0 : sizes[dim];
}

static void release(Tensor x) { aoti_torch_delete_tensor_object(x); }

/* An empty tensor of (n), or (n, k) if k is not 0. Without memory for it: `other` once more, and
 * *fault becomes OUT_OF_MEMORY, for a result must be some tensor. */
#define OUT_OF_MEMORY 3
static Tensor made(Tensor other, int32_t dtype, i64 n, i64 k, i64 *fault) {
    i64 sizes[] = {n, k}, strides[] = {k ? k : 1, 1};
    Tensor x;
    if (!aoti_torch_empty_strided(k ? 2 : 1, sizes, strides, dtype, aoti_torch_device_type_cpu(), 0,
                                  &x))
        return x;
    *fault = OUT_OF_MEMORY;
    aoti_torch_new_tensor_handle(other, &x);
    return x;
}

/* The operation is torch.ops.community_c.NAME from now on; returns whether that failed. */
static int joined(const char *schema, const char *name, Operation *run) {
    void *whole, *processor; /* torch keeps both as long as the process lives */
    return aoti_torch_library_init_fragment("community_c", __FILE__, __LINE__, &whole) ||
           aoti_torch_library_def(whole, schema) ||
           aoti_torch_library_init_impl("community_c", "CPU", __FILE__, __LINE__, &processor) ||
           aoti_torch_library_impl(processor, name, run);
}

#endif
