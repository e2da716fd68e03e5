// combine, combine_dots, dots and combine_adamw_: one read of the gradients.
//
// A block of threads processes one chunk of a parameter. A warp keeps 16 bytes per lane of up to CAP gradients in registers,
// for the combination and for the dots with it. So memory is read once, and a warp has started CAP loads of 512 bytes
// before it computes anything. With more tasks than CAP, `split` warps share them evenly: each combines its own tasks, and
// the parts are added through shared memory in the order of the tasks.
// Which lane processes which element depends on the number of tasks alone, so all operators compute the same bits.
#pragma once

#include "cuda.h"
#include "device.cuh"

namespace cats {

// The most rows of weights in one pass, and for how many tasks. Every row needs another CAP sums per lane.
constexpr int MAX_ROWS = 4;
constexpr int MAX_ROWS_TASKS = 64;
constexpr int MOST_TASKS = 8;  // per warp
constexpr int OTHERS = 4;      // at most this many tensors that are not gradients

struct CombineArguments {
    const int64_t *pointers, *chunks;
    int64_t width, first;
    int tasks, row, rows;
    int split;  // divides the number of warps; larger than 1 only with CAP = MOST_TASKS
    bool aligned;
    bool direction;           // the direction is given, not combined
    bool direction_is_float;  // otherwise it has the gradients' type
    const double* weights;
    double* partials;
    const double* numbers;  // for AdamW: 1 - lr wd, -lr / (1 - beta1^t), sqrt(1 - beta2^t), grad_scale, skip
    double beta1, beta2, eps;
};

// The numbers of an AdamW update, in the type of the arithmetic. skip: not 0 if there is no update.
template <class S> struct alignas(16) Settings {
    S decay, step, correction, scale, weight, beta2, rest2, eps;
    double skip;
};

template <class T, int CAP, int ROWS> struct CombineShared {
    typedef typename T::Scalar S;
    static constexpr int VECTORS = T::WIDTH * int(sizeof(S)) / 16;  // of 16 bytes, in a lane's combination

    Settings<S>* settings;  // (1): for AdamW
    int64_t* others;        // (4): like addresses, for the tensors that are not gradients
    double* totals;         // (ROWS + 1, warps, CAP): the dots of every row, then the squares
    int64_t* addresses;     // (split * CAP): of the chunk's first element; 0 for None
    S* weights;             // (ROWS, split * CAP)
    uint4* combinations;    // (2, warps, VECTORS, 32): the combination of a warp's tasks

    CATS_DEVICE CombineShared(char* memory, int warps, int split) {
        settings = reinterpret_cast<Settings<S>*>(memory);
        others = reinterpret_cast<int64_t*>(settings + 1);
        totals = reinterpret_cast<double*>(others + OTHERS);
        addresses = reinterpret_cast<int64_t*>(totals + (ROWS + 1) * warps * CAP);
        weights = reinterpret_cast<S*>(addresses + split * CAP);
        combinations = reinterpret_cast<uint4*>(weights + ROWS * split * CAP);
    }
    static size_t size(int warps, int split) {
        const size_t fixed = sizeof(Settings<S>) + OTHERS * sizeof(int64_t);
        const size_t sums = (ROWS + 1) * warps * CAP * sizeof(double);
        const size_t tasks = split * CAP * (sizeof(int64_t) + ROWS * sizeof(S));
        return fixed + sums + tasks + (split > 1 ? 2 * warps * VECTORS * WARP * sizeof(uint4) : 0);
    }
};

// 16 bytes of a parameter, and as many elements of its moments.
template <class T> struct State {
    typedef typename T::Scalar S;
    typedef typename std::conditional<sizeof(S) == 8, Float64, Float32>::type Moment;
    static constexpr int V = T::WIDTH, VECTORS = V / Moment::WIDTH;
    uint4 param[1], average[VECTORS], square[VECTORS];

    CATS_DEVICE void load(const int64_t* addresses, const Place& at) {
        load_raw<T>(addresses[0], at, param);
        load_raw<Moment>(addresses[1], at, average);
        load_raw<Moment>(addresses[2], at, square);
    }

    // The operations of torch.optim.AdamW in the same order.
    CATS_DEVICE void update(const Settings<S>& s, const int64_t* addresses, const Place& at, const S (&combined)[V]) const {
        constexpr int W = Moment::WIDTH;
        S params[V];
        const bool near = s.weight < S(0.5);
#pragma unroll
        for (int i = 0; i < VECTORS; ++i) {
            const Place part = {at.index + i * W, at.valid - i * W, at.whole};
            S averages[W], squares[W];
#pragma unroll
            for (int e = 0; e < W; ++e) {
                const S grad = combined[i * W + e] / s.scale;
                const S old = Elements<Moment>::get(average[i], e), way = grad - old;
                averages[e] = near ? old + s.weight * way : grad - way * (S(1) - s.weight);
                squares[e] = Elements<Moment>::get(square[i], e) * s.beta2 + s.rest2 * grad * grad;
                params[i * W + e] = Elements<T>::get(param[0], i * W + e) * s.decay +
                                    (averages[e] * s.step) / (sqrt(squares[e]) / s.correction + s.eps);
            }
            store<Moment>(addresses[1], part, averages);
            store<Moment>(addresses[2], part, squares);
        }
        store<T>(addresses[0], at, params);
    }
};

// The first task of a slice when `split` slices share the tasks evenly.
CATS_DEVICE int slice_begin(int slice, int tasks, int split) { return slice * tasks / split; }

// Launch bounds with which each multiprocessor has 40 to 64 KB of loads in flight: 16 bytes per thread and tensor.
constexpr int most_threads(int cap, int rows) { return cap < MOST_TASKS || rows > 1 ? 256 : 512; }
constexpr int least_blocks(int cap, bool update) {
    return cap == MOST_TASKS ? 1 : update ? 2 : cap == 2 ? 5 : 4;
}

template <class T, int CAP, int ROWS, bool UPDATE>
__global__ void __launch_bounds__(most_threads(CAP, ROWS), least_blocks(CAP, UPDATE)) combine_kernel(CombineArguments a) {
    typedef typename T::Scalar S;
    constexpr int V = T::WIDTH;
    constexpr int VECTORS = CombineShared<T, CAP, ROWS>::VECTORS;
    constexpr int STEPS = CHAIN / V;
    // Eight gradients leave too few registers for the state of 8 elements, or for one of doubles.
    constexpr bool EARLY = UPDATE && (CAP < MOST_TASKS || T::NUMBER == Float32::NUMBER);

    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
    const int split = CAP == MOST_TASKS ? a.split : 1, rows = ROWS == 1 ? 1 : a.rows;
    const int slice = warp % split, tile = warp / split, tiles = warps / split;
    const CombineShared<T, CAP, ROWS> shared(shared_memory(), warps, split);

    const int64_t* chunk = a.chunks + 3 * (a.first + blockIdx.x);
    const int64_t* row = a.pointers + chunk[0] * a.width;
    const int64_t start = chunk[1];
    const int count = int(chunk[2]);
    for (int place = threadIdx.x; place < split * CAP; place += blockDim.x) {
        const int n = slice_begin(place / CAP, a.tasks, split) + place % CAP;
        const bool mine = n < slice_begin(place / CAP + 1, a.tasks, split);
        const int64_t address = mine ? row[n] : 0;
        shared.addresses[place] = advance<T>(address, start);
        for (int r = 0; r < ROWS; ++r) {
            // A task without a gradient here is left out whatever its weight is, even NaN.
            const bool used = address && !a.direction && r < rows;
            shared.weights[r * split * CAP + place] = used ? S(a.weights[r * a.tasks + n]) : S(0);
        }
    }
    if constexpr (UPDATE) {
        typedef typename State<T>::Moment Moment;
        if (threadIdx.x == 0) {
            shared.others[0] = advance<T>(row[a.tasks], start);
            shared.others[1] = advance<Moment>(row[a.tasks + 1], start);
            shared.others[2] = advance<Moment>(row[a.tasks + 2], start);
            *shared.settings = {S(a.numbers[0]), S(a.numbers[1]), S(a.numbers[2]), S(a.numbers[3]),
                                S(1 - a.beta1),  S(a.beta2),      S(1 - a.beta2),  S(a.eps),
                                a.numbers[4]};
        }
    } else if (a.direction) {
        const int64_t address = row[a.tasks];
        shared.others[0] = a.direction_is_float ? advance<Float32>(address, start) : advance<T>(address, start);
    } else if (threadIdx.x < rows) {
        shared.others[threadIdx.x] = advance<T>(row[a.tasks + a.row + threadIdx.x], start);
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
            State<T> state;  // loaded before anything waits for the gradients, if there are registers
            if constexpr (EARLY) {
                if (slice == 0 && shared.settings->skip == 0) state.load(shared.others, at);
            }
#pragma unroll
            for (int r = 0; r < ROWS; ++r) {
                if (r >= rows) break;
                S combined[V];
                if (a.direction) {
                    if (a.direction_is_float)
                        load<Float32>(shared.others[0], at, combined);
                    else
                        load<T>(shared.others[0], at, combined);
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
                    if constexpr (UPDATE) {
                        if (slice == 0 && shared.settings->skip == 0) {
                            if constexpr (!EARLY) state.load(shared.others, at);
                            state.update(*shared.settings, shared.others, at, combined);
                        }
                    } else {
                        if (slice == r % split) store<T>(shared.others[r], at, combined);
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
        const int s = ((n + 1) * split - 1) / a.tasks;  // the slice of task n
        const int place = n - slice_begin(s, a.tasks, split);
        double total = 0;
        if (shared.addresses[s * CAP + place])
            for (int t = 0; t < tiles; ++t) total += shared.totals[(r * warps + t * split + s) * CAP + place];
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
    // Up to 8 warps, split is a power of two, so that it divides their number. Beyond, it is their number.
    a.split = 1;
    while (a.split * MOST_TASKS < a.tasks) a.split *= 2;
    if (a.split > 8) a.split = (a.tasks + MOST_TASKS - 1) / MOST_TASKS;
    if (a.rows > 1)
        launch_one<T, MOST_TASKS, MAX_ROWS, false>(a, count, stream);
    else if (a.tasks > 4)
        a.numbers ? launch_one<T, MOST_TASKS, 1, true>(a, count, stream)
                  : launch_one<T, MOST_TASKS, 1, false>(a, count, stream);
    else if (a.tasks > 2)
        a.numbers ? launch_one<T, 4, 1, true>(a, count, stream) : launch_one<T, 4, 1, false>(a, count, stream);
    else
        a.numbers ? launch_one<T, 2, 1, true>(a, count, stream) : launch_one<T, 2, 1, false>(a, count, stream);
}

// In combine_half.cu, so that it is compiled in parallel with the others.
extern template void launch_combine<BFloat16>(CombineArguments, int64_t, int64_t);
extern template void launch_combine<Float16>(CombineArguments, int64_t, int64_t);

}  // namespace cats
