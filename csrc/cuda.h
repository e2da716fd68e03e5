// The CUDA kernels' launchers, which cats/ops/backends/cuda.py calls through cuda_bindings.cpp. All addresses are device
// addresses. Every launch is on `stream` of the current device; nothing waits for it. A failed launch throws an exception.
//
// pointers: the table of addresses, `width` for each parameter. chunks: the list of chunks, three words each. Both: see
// cats/ops/device_table.py. A launch processes the chunks first ... first + count - 1. They have the same type (numbered as
// in cats/ops/layout.py), and are either all aligned to 16 bytes or none. tasks: K, at most 128.
// partials: float64, (count, values), the sums of every chunk; 0 if they are not wanted.
#pragma once

#include <cstdint>

extern "C" {

// The results are written to the addresses tasks + row ... tasks + row + rows - 1 of each parameter. At most 4 rows; with
// more than 64 tasks, one.
// weights: float64 (rows, K). values: rows * K dots, then K squared norms.
void cuda_combine(int64_t pointers, int64_t width, int64_t chunks, int64_t first, int64_t count, int64_t type,
                  int64_t aligned, int64_t tasks, int64_t row, int64_t rows, int64_t weights, int64_t partials,
                  int64_t stream);

// The direction is at address `tasks`. It has the gradients' type or, with direction_is_float, float32. values: K dots.
void cuda_dots(int64_t pointers, int64_t width, int64_t chunks, int64_t first, int64_t count, int64_t type,
               int64_t aligned, int64_t tasks, int64_t direction_is_float, int64_t partials, int64_t stream);

// numbers: float64: step, lr, grad_scale, found_inf. They are replaced by the numbers that cuda_combine_adamw needs.
void cuda_prepare_adamw(int64_t numbers, double beta1, double beta2, double weight_decay, int64_t stream);

// Parameter, exp_avg and exp_avg_sq are at the addresses tasks ... tasks + 2. values: K dots, K squared norms.
void cuda_combine_adamw(int64_t pointers, int64_t width, int64_t chunks, int64_t first, int64_t count, int64_t type,
                        int64_t aligned, int64_t tasks, int64_t weights, int64_t numbers, double beta1, double beta2,
                        double eps, int64_t partials, int64_t stream);

// values: K (K + 1) / 2, the lower triangle row by row. For float64, K is at most 8.
void cuda_gram(int64_t pointers, int64_t width, int64_t chunks, int64_t first, int64_t count, int64_t type,
               int64_t aligned, int64_t tasks, int64_t partials, int64_t stream);

// The result is at address `tasks`. leak: float64 (K). words: int64: seed, step, and for each row of `pointers` the position of
// its first element among the random numbers.
void cuda_graddrop(int64_t pointers, int64_t width, int64_t chunks, int64_t first, int64_t count, int64_t type,
                   int64_t aligned, int64_t tasks, int64_t leak, int64_t words, int64_t stream);

// The inner products of the rows of x and y, (count, width), added by task. A stride is the number of elements from a row to
// the next. x has this type, y the same or, with y_is_float, float32. aligned: every row begins at a multiple of 16 bytes.
// owners: int64, the task of every row; rows of other numbers are left out. A block of threads takes `rows` rows.
// partials: float64, (ceil(count / rows), tasks), the sums of every block.
void cuda_row_dots(int64_t x, int64_t x_stride, int64_t y, int64_t y_stride, int64_t owners, int64_t count, int64_t width,
                   int64_t rows, int64_t type, int64_t y_is_float, int64_t aligned, int64_t tasks, int64_t partials,
                   int64_t stream);

// Adds the sums of the chunks first ... first + count - 1 by group, in the order of the list `order`. `bounds` says where
// each group begins in it. The first `split` values are written to `left`, (groups, split), the others to
// `right`, (groups, values - split). With add, they are added to what is there.
void cuda_reduce(int64_t order, int64_t bounds, int64_t groups, int64_t first, int64_t count, int64_t partials,
                 int64_t values, int64_t split, int64_t left, int64_t right, int64_t add, int64_t stream);

// The same for lower triangles: gram, (groups, K, K).
void cuda_reduce_gram(int64_t order, int64_t bounds, int64_t groups, int64_t first, int64_t count, int64_t partials,
                      int64_t tasks, int64_t gram, int64_t add, int64_t stream);

// Writes `count` words that lie at `source` in the host's memory to `target` on the device. They travel as arguments of
// kernels: the host's memory may be freed when this returns, and a CUDA graph that captures it has the words in its nodes.
void cuda_write(int64_t target, int64_t source, int64_t count, int64_t stream);

// The CUDA version that the kernels are compiled with: 1000 major + 10 minor.
int64_t cuda_toolkit();

// Reads and writes this many bytes (multiples of 16) and does nothing else, to measure the memory's speed.
void cuda_traffic(int64_t source, int64_t source_bytes, int64_t target, int64_t target_bytes, int64_t stream);
}
