// The operators on the CPU, called by cats/ops/backends/native.py. Sums are added to what `dots`, `sqnorms` and `gram` hold.
#pragma once

#include "work.h"

namespace cats {

// `work` lists, after the K gradients, the `rows` output tensors. They have the gradients' type. weights: (rows, K).
// dots: (groups, rows, K), sqnorms: (groups, K); both null if not wanted.
void combine(const Work& work, int64_t rows, const double* weights, double* dots, double* sqnorms);

// `work` lists, after the K gradients, the direction. It has the gradients' type or, if `direction_is_wide`, the type of
// the arithmetic (float32 or float64). dots: (groups, K).
void dots(const Work& work, bool direction_is_wide, double* dots);

// gram: (groups, K, K), symmetric.
void gram(const Work& work, double* gram);

struct AdamW {
    double step_size, decay, beta1, beta2, eps, correction;  // lr / (1 - beta1^t), 1 - lr wd, ..., sqrt(1 - beta2^t)
    double grad_scale;
    bool skip;  // found_inf: statistics only
};

// `work` lists, after the K gradients, the parameter, exp_avg and exp_avg_sq. The moments are float32, or float64 for
// float64 parameters. weights: (K). dots, sqnorms: (groups, K).
void combine_adamw(const Work& work, const double* weights, const AdamW& options, double* dots, double* sqnorms);

// The random numbers of graddrop: which ones, and per parameter the position of its first element among them.
struct Draws {
    uint64_t seed, step;
    const int64_t* positions;
};

// `work` lists, after the K gradients, the output tensor. It has the gradients' type. leak: (K).
void graddrop(const Work& work, const double* leak, const Draws& draws);

// Two matrices of `count` rows of `width` elements, and the task of every row; -1: none.
struct RowDots {
    const void *x, *y;
    int64_t x_stride, y_stride;  // elements from a row to the next
    const int64_t* owners;
    int64_t count, width, tasks;
    Type type;        // of x, and of y unless y_is_float
    bool y_is_float;  // y is float32
    int threads;      // at most
};

// dots: (tasks). All owners must be below `tasks`.
void row_dots(const RowDots& problem, double* dots);

// The first of these that is neither -1 nor a task; -1 if there is none.
int64_t first_outside(const int64_t* owners, int64_t count, int64_t tasks);

// Reads and writes this many bytes, in one stream each and with almost no arithmetic, to measure the memory's speed. With
// `in_place` the target is also read, as an optimizer does with its state.
uint64_t traffic(const char* source, int64_t source_bytes, char* target, int64_t target_bytes, bool in_place, int threads);

}  // namespace cats
