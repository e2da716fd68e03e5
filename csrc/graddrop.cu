// graddrop on the GPU: one read of the gradients, one write of the result.
//
// A block of threads processes one chunk of a parameter. A thread has 16 bytes of every gradient at a time. It adds the
// gradients above zero and those below apart, each with and without their leak; then a random number for each element
// chooses one of the two sums.
#include "cuda.h"
#include "device.cuh"

namespace cats {

constexpr int DROP_THREADS = 256;

struct GradDropArguments {
    const int64_t *pointers, *chunks;
    int64_t width, first;
    int tasks;
    bool aligned;
    const double* leak;
    const int64_t* words;  // seed, step, and the position of the first element of every row of pointers
};

// Philox4x32-10: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011. Writes four words.
CATS_DEVICE void philox(uint64_t seed, uint64_t step, uint64_t counter, uint32_t* words) {
    uint32_t a = uint32_t(counter), b = uint32_t(counter >> 32), c = uint32_t(step), d = uint32_t(step >> 32);
    uint32_t low = uint32_t(seed), high = uint32_t(seed >> 32);
#pragma unroll
    for (int round = 0; round < 10; ++round) {
        const uint64_t p = uint64_t(a) * 0xD2511F53u, q = uint64_t(c) * 0xCD9E8D57u;
        a = uint32_t(q >> 32) ^ b ^ low;
        b = uint32_t(q);
        c = uint32_t(p >> 32) ^ d ^ high;
        d = uint32_t(p);
        low += 0x9E3779B9u;
        high += 0xBB67AE85u;
    }
    words[0] = a, words[1] = b, words[2] = c, words[3] = d;
}

// 2 U - 1 for V elements that begin at this position.
template <int V, class S> CATS_DEVICE void thresholds(uint64_t seed, uint64_t step, int64_t position, S (&values)[V]) {
    constexpr int CALLS = (V + 3) / 4;
    uint32_t words[4 * CALLS + 4];
    const int before = int(position & 3);  // the same for all threads, except with V = 2
#pragma unroll
    for (int c = 0; c < CALLS; ++c) philox(seed, step, uint64_t(position >> 2) + c, words + 4 * c);
#pragma unroll
    for (int i = 4 * CALLS; i < 4 * CALLS + 4; ++i) words[i] = 0;
    if (before + V > 4 * CALLS) philox(seed, step, uint64_t(position >> 2) + CALLS, words + 4 * CALLS);
    // An index that is no constant would put the words into slow memory, so they move instead.
#pragma unroll
    for (int bit = 1; bit <= 2; bit *= 2)
#pragma unroll
        for (int i = 0; i + bit < 4 * CALLS + 4; ++i) words[i] = before & bit ? words[i + bit] : words[i];
#pragma unroll
    for (int e = 0; e < V; ++e) values[e] = S(int(words[e] >> 8) * 2 + 1 - (1 << 24)) * S(1.0 / (1 << 24));
}

template <class T, int CAP> __global__ void __launch_bounds__(DROP_THREADS, 2) graddrop_kernel(GradDropArguments a) {
    typedef typename T::Scalar S;
    constexpr int V = T::WIDTH;
    int64_t* addresses = reinterpret_cast<int64_t*>(shared_memory());  // (MAX_TASKS), zero after the last task
    S* leak = reinterpret_cast<S*>(addresses + MAX_TASKS);               // (MAX_TASKS)
    const int64_t* chunk = a.chunks + 3 * (a.first + blockIdx.x);
    const int64_t* row = a.pointers + chunk[0] * a.width;
    const int64_t start = chunk[1], position = a.words[2 + chunk[0]] + start;
    const uint64_t seed = uint64_t(a.words[0]), step = uint64_t(a.words[1]);
    const int count = int(chunk[2]);
    for (int n = threadIdx.x; n < MAX_TASKS; n += DROP_THREADS) {
        addresses[n] = n < a.tasks ? advance<T>(row[n], start) : 0;
        leak[n] = n < a.tasks ? S(a.leak[n]) : S(0);
    }
    const int64_t target = advance<T>(row[a.tasks], start);
    barrier();
    for (int index = threadIdx.x * V; index < count; index += DROP_THREADS * V) {
        const Place at = place<V>(index, count, a.aligned);
        S up[V], down[V], leaking_up[V], leaking_down[V];
#pragma unroll
        for (int e = 0; e < V; ++e) up[e] = down[e] = leaking_up[e] = leaking_down[e] = 0;
        for (int begin = 0; begin < a.tasks; begin += CAP) {
            uint4 grads[CAP];
            load_gradients<T, true>(addresses + begin, at, grads);
#pragma unroll
            for (int n = 0; n < CAP; ++n) {
                const S leaks = leak[begin + n];
#pragma unroll
                for (int e = 0; e < V; ++e) {
                    const S g = Elements<T>::get(grads[n], e);
                    // NaN is not above zero, so it gets into `down`.
                    const S positive = g > 0 ? g : S(0), negative = g > 0 ? S(0) : g;
                    up[e] += positive;
                    down[e] += negative;
                    leaking_up[e] = fused(positive, leaks, leaking_up[e]);
                    leaking_down[e] = fused(negative, leaks, leaking_down[e]);
                }
            }
        }
        S threshold[V], result[V];
        thresholds(seed, step, position + index, threshold);
#pragma unroll
        for (int e = 0; e < V; ++e) {
            const S sum = up[e] + down[e], size = up[e] - down[e];
            // The second comparison is for subnormal numbers: threshold * size may be rounded to size.
            const bool chosen = sum > threshold[e] * size || sum == size;
            const S kept = chosen ? up[e] + leaking_down[e] : down[e] + leaking_up[e];
            result[e] = kept + (size - size);  // NaN if a gradient, or the sum of their sizes, is not finite
        }
        store<T>(target, at, result);
    }
}

template <class T> void launch_graddrop(const GradDropArguments& a, int64_t count, int64_t stream) {
    const size_t shared = MAX_TASKS * (sizeof(int64_t) + sizeof(typename T::Scalar));
    launch(a.tasks <= 4 ? graddrop_kernel<T, 4> : graddrop_kernel<T, 8>, dim3(unsigned(count)), DROP_THREADS, shared, stream, a);
}

}  // namespace cats

void cuda_graddrop(int64_t pointers, int64_t width, int64_t chunks, int64_t first, int64_t count, int64_t type,
                   int64_t aligned, int64_t tasks, int64_t leak, int64_t words, int64_t stream) {
    using namespace cats;
    if (tasks < 1 || tasks > MAX_TASKS) throw std::invalid_argument("the number of tasks must be 1 to 128");
    const GradDropArguments a{reinterpret_cast<const int64_t*>(pointers),
                              reinterpret_cast<const int64_t*>(chunks),
                              width,
                              first,
                              int(tasks),
                              aligned != 0,
                              reinterpret_cast<const double*>(leak),
                              reinterpret_cast<const int64_t*>(words)};
    with_type(type, [&](auto element) { launch_graddrop<decltype(element)>(a, count, stream); });
}
