/* The kernels of routing.c that are short, as operations of torch: see operations.h. Each returns
 * what is wrong as its last result, 0 if nothing is. */
#include "operations.h"
#include "routing.c"

/* `how` is k and two bits, whether the scores are sigmoids and whether there is a bias: every number
 * that torch is handed takes .3 us, a thirtieth of a short call. */
static void routed(Value *stack, u64 in, u64 out) {
    Tensor logits = TENSOR(stack[0]), bias = TENSOR(stack[1]);
    i64 how = stack[2];
    int steered = how & 1, sigmoid = how >> 1 & 1, k = how >> 2;
    i64 n = size(logits, 0), experts = size(logits, 1), fault = 0;
    Tensor weights = made(logits, FLOAT32, n, k, &fault), chosen = made(logits, INT64, n, k, &fault);
    Tensor order = made(logits, INT64, n * k, 0, &fault), place = made(logits, INT64, n, k, &fault);
    Tensor offsets = made(logits, INT64, experts + 1, 0, &fault);
    float *room = malloc(sizeof(float) * LANES * (experts + 2 * ((i64)k + AT_ONCE)));
    if (!room) fault = OUT_OF_MEMORY;
    if (!fault)
        route(memory(logits), steered ? memory(bias) : 0, memory(weights), memory(chosen),
              memory(order), memory(place), memory(offsets), &fault, room, n, experts, k, sigmoid, 1);
    free(room);
    release(logits), release(bias);
    stack[0] = VALUE(weights), stack[1] = VALUE(chosen), stack[2] = VALUE(order);
    stack[3] = VALUE(place), stack[4] = VALUE(offsets), stack[5] = fault;
}

static void sorted(Value *stack, u64 in, u64 out) {
    Tensor chosen = TENSOR(stack[0]);
    i64 count = stack[1], n = size(chosen, 0), k = size(chosen, 1), fault = 0;
    Tensor order = made(chosen, INT64, n * k, 0, &fault), place = made(chosen, INT64, n, k, &fault);
    Tensor offsets = made(chosen, INT64, count + 1, 0, &fault);
    if (!fault)
        route_sort(memory(chosen), memory(order), memory(place), memory(offsets), &fault, n * k,
                   count, 1);
    release(chosen);
    stack[0] = VALUE(order), stack[1] = VALUE(place), stack[2] = VALUE(offsets), stack[3] = fault;
}

static void learnt(Value *stack, u64 in, u64 out) {
    Tensor grad = TENSOR(stack[0]), weights = TENSOR(stack[1]), chosen = TENSOR(stack[2]);
    Tensor logits = TENSOR(stack[3]);
    i64 n = size(logits, 0), experts = size(logits, 1), k = size(chosen, 1), fault = 0;
    Tensor found = made(logits, FLOAT32, n, experts, &fault);
    if (!fault && n) {
        memset(memory(found), 0, sizeof(float) * n * experts);
        route_backward(memory(grad), memory(weights), memory(chosen), memory(logits), memory(found),
                       experts, k, stack[4], n);
    }
    release(grad), release(weights), release(chosen), release(logits);
    stack[0] = VALUE(found), stack[1] = fault;
}

int join(void) {
    return joined("route(Tensor logits, Tensor bias, int how) -> "
                  "(Tensor, Tensor, Tensor, Tensor, Tensor, int)", "route", routed) ||
           joined("route_sort(Tensor experts, int count) -> (Tensor, Tensor, Tensor, int)",
                  "route_sort", sorted) ||
           joined("route_backward(Tensor grad, Tensor weights, Tensor experts, Tensor logits, "
                  "bool sigmoid) -> (Tensor, int)", "route_backward", learnt);
}
