// The CUDA kernels' launchers, as cats/cuda.py calls them through cuda_bindings.cpp. Addresses are device addresses;
// every launch goes to `stream` of the current device and is not waited for; an error of the launch is thrown.
//
// words: a table of cats/table.py, and within it, in words, `chunks`: where the list of chunks begins. A launch works on
// the chunks first ... first + count - 1, all of one type (numbered as in cats/cuda.py) and all aligned to 16 bytes or
// not. width: addresses per parameter. tasks: K, at most 128.
// partials: float64, (count, values), the sums of every chunk; 0 if they are not wanted.
#pragma once

#include <cstdint>

extern "C" {

// Results at the addresses tasks + row ... tasks + row + rows - 1 of each parameter; at most 4 rows,
// with more than 64 tasks one.
// weights: float64 (rows, K). values: rows * K dots, then K squared norms.
void cuda_combine(int64_t words, int64_t width, int64_t chunks, int64_t first, int64_t count, int64_t type,
                  int64_t aligned, int64_t tasks, int64_t row, int64_t rows, int64_t weights, int64_t partials,
                  int64_t stream);

// The direction at address number tasks, of the gradients' type or, with direction_is_float, float32. values: K dots.
void cuda_dots(int64_t words, int64_t width, int64_t chunks, int64_t first, int64_t count, int64_t type,
               int64_t aligned, int64_t tasks, int64_t direction_is_float, int64_t partials, int64_t stream);

// numbers: float64, step, lr, grad_scale, found_inf; in their place what cuda_combine_adamw needs.
void cuda_prepare_adamw(int64_t numbers, double beta1, double beta2, double weight_decay, int64_t stream);

// Parameter, exp_avg and exp_avg_sq at the addresses tasks ... tasks + 2. values: K dots, K squared norms.
void cuda_combine_adamw(int64_t words, int64_t width, int64_t chunks, int64_t first, int64_t count, int64_t type,
                        int64_t aligned, int64_t tasks, int64_t weights, int64_t numbers, double beta1, double beta2,
                        double eps, int64_t partials, int64_t stream);

// values: K (K + 1) / 2, the lower triangle row by row. float64: K at most 8.
void cuda_gram(int64_t words, int64_t width, int64_t chunks, int64_t first, int64_t count, int64_t type,
               int64_t aligned, int64_t tasks, int64_t partials, int64_t stream);

// Adds the sums of the chunks first ... first + count - 1 by group, in the order of the table's list at `order`, whose
// groups begin at `bounds`. `left`, (groups, split), gets the first `split` values, `right`, (groups, values - split),
// the others; with add, they are added to what is there.
void cuda_reduce(int64_t words, int64_t order, int64_t bounds, int64_t groups, int64_t first, int64_t count,
                 int64_t partials, int64_t values, int64_t split, int64_t left, int64_t right, int64_t add,
                 int64_t stream);

// The same for lower triangles: gram, (groups, K, K).
void cuda_reduce_gram(int64_t words, int64_t order, int64_t bounds, int64_t groups, int64_t first, int64_t count,
                      int64_t partials, int64_t tasks, int64_t gram, int64_t add, int64_t stream);

// Reads and writes so many bytes (multiples of 16) with nothing else to do: what the memory can do.
void cuda_traffic(int64_t source, int64_t source_bytes, int64_t target, int64_t target_bytes, int64_t stream);
}
