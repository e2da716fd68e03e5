// combine, combine_dots, dots and combine_adamw_: one read of the gradients.
//
// A block of threads processes one chunk of a parameter. A warp keeps 16 bytes per lane of up to CAP gradients in registers,
// for the combination and for the dots with it. So memory is read once, and a warp has started CAP loads of 512 bytes
// before it computes anything. With more tasks than CAP, `split` warps share them: each combines its own tasks, and the
// parts are added through shared memory in the order of the tasks.
// Which lane processes which element depends on the number of tasks alone, so all operators compute the same bits.
#pragma once

#include "cuda.h"
#include "device.cuh"

namespace cats {

// The most rows of weights in one pass, and for how many tasks. Every row needs another CAP sums per lane.
constexpr int MAX_ROWS = 4;
constexpr int MAX_ROWS_TASKS = 64;
constexpr int MOST_TASKS = 8;  // per warp

struct CombineArguments {
    const int64_t *pointers, *chunks;
    int64_t width, first;
    int tasks, row, rows;
    int split;  // a power of two that divides the number of warps; larger than 1 only with CAP = MOST_TASKS
    bool aligned;
    bool direction;           // the direction is given, not combined
    bool direction_is_float;  // otherwise it has the gradients' type
    const double* weights;
    double* partials;
    const double* numbers;  // for AdamW: 1 - lr wd, -lr / (1 - beta1^t), sqrt(1 - beta2^t), grad_scale, skip
    double beta1, beta2, eps;
};

template <class T, int CAP, int ROWS> struct CombineShared {
    typedef typename T::Scalar S;
    static constexpr int VECTORS = T::WIDTH * int(sizeof(S)) / 16;  // of 16 bytes, in a lane's combination

    double* totals;       // (ROWS + 1, warps, CAP): the dots of every row, then the squares
    int64_t* addresses;   // (split * CAP): of the chunk's first element; 0 for None
    S* weights;           // (ROWS, split * CAP)
    uint4* combinations;  // (2, warps, VECTORS, 32): the combination of a warp's tasks

    CATS_DEVICE CombineShared(char* memory, int warps, int split) {
        totals = reinterpret_cast<double*>(memory);
        addresses = reinterpret_cast<int64_t*>(totals + (ROWS + 1) * warps * CAP);
        weights = reinterpret_cast<S*>(addresses + split * CAP);
        combinations = reinterpret_cast<uint4*>(weights + ROWS * split * CAP);
    }
    static size_t size(int warps, int split) {
        size_t fixed = (ROWS + 1) * warps * CAP * sizeof(double) + split * CAP * (sizeof(int64_t) + ROWS * sizeof(S));
        return fixed + (split > 1 ? 2 * warps * VECTORS * WARP * sizeof(uint4) : 0);
    }
};

// The update of one parameter's elements: the operations of torch.optim.AdamW in the same order.
template <class T, int COUNT, class S>
CATS_DEVICE void adamw(const CombineArguments& a, const int64_t* others, int64_t start, const Place& at,
                       const S (&combined)[COUNT]) {
    typedef typename std::conditional<sizeof(S) == 8, Float64, Float32>::type Moment;
    if (a.numbers[4] != 0) return;
    S param[COUNT], average[COUNT], square[COUNT];
    load<T>(advance<T>(others[0], start), at, param);
    load<Moment>(advance<Moment>(others[1], start), at, average);
    load<Moment>(advance<Moment>(others[2], start), at, square);
    const S weight = S(1 - a.beta1), beta2 = S(a.beta2), rest2 = S(1 - a.beta2), eps = S(a.eps);
    const S decay = S(a.numbers[0]), step = S(a.numbers[1]), correction = S(a.numbers[2]), scale = S(a.numbers[3]);
    const bool near = weight < S(0.5);
#pragma unroll
    for (int e = 0; e < COUNT; ++e) {
        const S grad = combined[e] / scale;
        const S way = grad - average[e];
        average[e] = near ? average[e] + weight * way : grad - way * (S(1) - weight);
        square[e] = square[e] * beta2 + rest2 * grad * grad;
        param[e] = param[e] * decay + (average[e] * step) / (sqrt(square[e]) / correction + eps);
    }
    store<T>(advance<T>(others[0], start), at, param);
    store<Moment>(advance<Moment>(others[1], start), at, average);
    store<Moment>(advance<Moment>(others[2], start), at, square);
}

// Launch bounds with which each multiprocessor has 40 to 64 KB of loads in flight: CAP times 16 bytes per thread.
constexpr int most_threads(int cap, int rows) { return cap < MOST_TASKS || rows > 1 ? 256 : 512; }
constexpr int least_blocks(int cap) { return cap == 2 ? 5 : cap == 4 ? 4 : 1; }

template <class T, int CAP, int ROWS, bool UPDATE>
__global__ void __launch_bounds__(most_threads(CAP, ROWS), least_blocks(CAP)) combine_kernel(CombineArguments a) {
    typedef typename T::Scalar S;
    constexpr int V = T::WIDTH;
    constexpr int VECTORS = CombineShared<T, CAP, ROWS>::VECTORS;
    constexpr int STEPS = CHAIN / V;

    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
    const int split = CAP == MOST_TASKS ? a.split : 1, rows = ROWS == 1 ? 1 : a.rows;
    const int slice = warp % split, tile = warp / split, tiles = warps / split;
    const CombineShared<T, CAP, ROWS> shared(shared_memory(), warps, split);

    const int64_t* chunk = a.chunks + 3 * (a.first + blockIdx.x);
    const int64_t* row = a.pointers + chunk[0] * a.width;
    const int64_t start = chunk[1];
    const int count = int(chunk[2]);
    for (int n = threadIdx.x; n < split * CAP; n += blockDim.x) {
        const int64_t address = n < a.tasks ? row[n] : 0;
        shared.addresses[n] = advance<T>(address, start);
        for (int r = 0; r < ROWS; ++r) {
            // A task without a gradient here is left out whatever its weight is, even NaN.
            const bool used = address && !a.direction && r < rows;
            shared.weights[r * split * CAP + n] = used ? S(a.weights[r * a.tasks + n]) : S(0);
        }
    }
    for (int i = threadIdx.x; i < (ROWS + 1) * warps * CAP; i += blockDim.x) shared.totals[i] = 0;
    barrier();

    const int64_t* addresses = shared.addresses + slice * CAP;
    const int stride = tiles * WARP * V, steps = (count + stride - 1) / stride;
    int parity = 0;
    for (int step = 0; step < steps;) {
        S dots[ROWS][CAP], squares[CAP];
#pragma unroll
        for (int n = 0; n < CAP; ++n) {
            squares[n] = 0;
#pragma unroll
            for (int r = 0; r < ROWS; ++r) dots[r][n] = 0;
        }
        for (int i = 0; i < STEPS && step < steps; ++i, ++step) {
            const Place at = place<V>(step * stride + (tile * WARP + lane) * V, count, a.aligned);
            uint4 grads[CAP];
            load_gradients<T, true>(addresses, at, grads);
#pragma unroll
            for (int r = 0; r < ROWS; ++r) {
                if (r >= rows) break;
                S combined[V];
                if (a.direction) {
                    if (a.direction_is_float)
                        load<Float32>(advance<Float32>(row[a.tasks], start), at, combined);
                    else
                        load<T>(advance<T>(row[a.tasks], start), at, combined);
                } else {
#pragma unroll
                    for (int e = 0; e < V; ++e) combined[e] = 0;
#pragma unroll
                    for (int n = 0; n < CAP; ++n) {
                        const S weight = shared.weights[(r * split + slice) * CAP + n];
#pragma unroll
                        for (int e = 0; e < V; ++e)
                            combined[e] = fused(weight, Elements<T>::get(grads[n], e), combined[e]);
                    }
                    if (split > 1) {
                        union {
                            uint4 raw[VECTORS];
                            S values[V];
                        } u;
#pragma unroll
                        for (int e = 0; e < V; ++e) u.values[e] = combined[e], combined[e] = 0;
                        uint4* all = shared.combinations + parity * warps * VECTORS * WARP + lane;
#pragma unroll
                        for (int j = 0; j < VECTORS; ++j) all[(warp * VECTORS + j) * WARP] = u.raw[j];
                        // One barrier is enough: this half is written again two steps later, and by then all have read it.
                        barrier();
                        parity ^= 1;
                        for (int s = 0; s < split; ++s) {
#pragma unroll
                            for (int j = 0; j < VECTORS; ++j) u.raw[j] = all[((tile * split + s) * VECTORS + j) * WARP];
#pragma unroll
                            for (int e = 0; e < V; ++e) combined[e] += u.values[e];
                        }
                    }
                    if (at.valid < V) {  // an infinite weight times the padding zeros is NaN
#pragma unroll
                        for (int e = 0; e < V; ++e)
                            if (e >= at.valid) combined[e] = 0;
                    }
                    if (slice == r % split) {
                        if constexpr (UPDATE)
                            adamw<T>(a, row + a.tasks, start, at, combined);
                        else
                            store<T>(advance<T>(row[a.tasks + a.row + r], start), at, combined);
                    }
                }
                if (!a.partials) continue;
#pragma unroll
                for (int n = 0; n < CAP; ++n) {
#pragma unroll
                    for (int e = 0; e < V; ++e) {
                        const S value = Elements<T>::get(grads[n], e);
                        dots[r][n] = fused(value, combined[e], dots[r][n]);
                        if (r == 0) squares[n] = fused(value, value, squares[n]);
                    }
                }
            }
        }
        if (!a.partials) continue;
        const int n = lane / (WARP / CAP);
#pragma unroll
        for (int r = 0; r <= ROWS; ++r) {
            const S total = warp_sums(r < ROWS ? dots[r < ROWS ? r : 0] : squares);
            if (lane % (WARP / CAP) == 0) shared.totals[(r * warps + warp) * CAP + n] += total;
        }
    }

    if (!a.partials) return;
    barrier();
    const int values = (a.direction ? 1 : rows + 1) * a.tasks;
    for (int v = threadIdx.x; v < values; v += blockDim.x) {
        const int n = v % a.tasks, r = v / a.tasks < rows ? v / a.tasks : ROWS;
        double total = 0;
        if (shared.addresses[n])
            for (int t = 0; t < tiles; ++t)
                total += shared.totals[(r * warps + t * split + n / CAP) * CAP + n % CAP];
        a.partials[int64_t(blockIdx.x) * values + v] = total;
    }
}

template <class T, int CAP, int ROWS, bool UPDATE>
void launch_one(const CombineArguments& a, int64_t count, int64_t stream) {
    const int threads = a.split * WARP > 256 ? a.split * WARP : 256;
    const size_t shared = CombineShared<T, CAP, ROWS>::size(threads / WARP, a.split);
    launch(combine_kernel<T, CAP, ROWS, UPDATE>, dim3(unsigned(count)), threads, shared, stream, a);
}

template <class T> void launch_combine(CombineArguments a, int64_t count, int64_t stream) {
    a.split = 1;
    while (a.split * MOST_TASKS < a.tasks) a.split *= 2;
    if (a.numbers)
        launch_one<T, MOST_TASKS, 1, true>(a, count, stream);
    else if (a.rows > 1)
        launch_one<T, MOST_TASKS, MAX_ROWS, false>(a, count, stream);
    else if (a.tasks > 4)
        launch_one<T, MOST_TASKS, 1, false>(a, count, stream);
    else if (a.tasks > 2)
        launch_one<T, 4, 1, false>(a, count, stream);
    else
        launch_one<T, 2, 1, false>(a, count, stream);
}

// In combine_half.cu, so that it is compiled in parallel with the others.
extern template void launch_combine<BFloat16>(CombineArguments, int64_t, int64_t);
extern template void launch_combine<Float16>(CombineArguments, int64_t, int64_t);

}  // namespace cats
