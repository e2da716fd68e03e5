// gram: every inner product of the gradients, in one read of them.
//
// Up to 8 tasks: a lane holds 16 bytes of each gradient in registers and multiplies all pairs.
//
// More tasks: the matrix units. Tasks form blocks of 16. A warp computes one, three or six pairs of blocks, with 16 x 16
// products each. Lane (g, t) = (lane / 4, lane % 4) loads the t-th 16 bytes of a segment for the tasks g and g + 8 of one
// block and of the other. These registers are the operands. The position of an element along the sum does not matter, as
// long as it is the same on both sides. The warps of a block of threads read the same elements for different pairs at the
// same time, so all but the first find them in the cache.
// Float32 numbers are split into two TF32 numbers. The product of the two smaller parts (2^-22 of the result) is left out.
// Matrix units round sums towards zero, so after RUN elements a sum is added to a double. The larger and the smaller
// products have separate sums.
#include "cuda.h"
#include "device.cuh"

namespace cats {

constexpr int BLOCK = 16;   // tasks
constexpr int RUN = 128;    // elements
constexpr int AT_ONCE = 2;  // segments loaded together

struct GramArguments {
    const int64_t *pointers, *chunks;
    int64_t width, first;
    int tasks;
    bool aligned;
    double* partials;
};

struct Chunk {
    const int64_t* row;  // of the table of addresses
    int64_t start;
    int count;
    CATS_DEVICE explicit Chunk(const GramArguments& a) {
        const int64_t* chunk = a.chunks + 3 * (a.first + blockIdx.x);
        row = a.pointers + chunk[0] * a.width;
        start = chunk[1];
        count = int(chunk[2]);
    }
    // The address of the chunk's first element in a task's gradient; 0 for None.
    template <class T> CATS_DEVICE int64_t address(int n, int tasks) const {
        return n < tasks ? advance<T>(row[n], start) : 0;
    }
};

CATS_DEVICE int triangle(int i) { return i * (i + 1) / 2; }

template <class T, int CAP> __global__ void __launch_bounds__(256) gram_small_kernel(GramArguments a) {
    typedef typename T::Scalar S;
    constexpr int V = T::WIDTH;
    constexpr int STEPS = CHAIN / V;
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
    double* totals = reinterpret_cast<double*>(shared_memory());  // (CAP, warps, CAP)
    for (int i = threadIdx.x; i < CAP * warps * CAP; i += blockDim.x) totals[i] = 0;
    barrier();

    const Chunk chunk(a);
    int64_t addresses[CAP];
#pragma unroll
    for (int n = 0; n < CAP; ++n) addresses[n] = chunk.address<T>(n, a.tasks);

    const int stride = blockDim.x * V, steps = (chunk.count + stride - 1) / stride;
    for (int step = 0; step < steps;) {
        S products[CAP * (CAP + 1) / 2];
#pragma unroll
        for (int p = 0; p < CAP * (CAP + 1) / 2; ++p) products[p] = 0;
        for (int k = 0; k < STEPS && step < steps; ++k, ++step) {
            const Place at = place<V>(step * stride + threadIdx.x * V, chunk.count, a.aligned);
            uint4 grads[CAP];
            load_gradients<T, true>(addresses, at, grads);
#pragma unroll
            for (int e = 0; e < V; ++e) {
                S values[CAP];
#pragma unroll
                for (int i = 0; i < CAP; ++i) {
                    values[i] = Elements<T>::get(grads[i], e);
#pragma unroll
                    for (int j = 0; j <= i; ++j)
                        products[triangle(i) + j] = fused(values[i], values[j], products[triangle(i) + j]);
                }
            }
        }
#pragma unroll
        for (int i = 0; i < CAP; ++i) {
            S values[CAP];
#pragma unroll
            for (int j = 0; j < CAP; ++j) values[j] = j <= i ? products[triangle(i) + (j <= i ? j : 0)] : S(0);
            const S total = warp_sums(values);
            if (lane % (WARP / CAP) == 0) totals[(i * warps + warp) * CAP + lane / (WARP / CAP)] += total;
        }
    }
    barrier();

    const int values = triangle(a.tasks);
    for (int p = threadIdx.x; p < CAP * CAP; p += blockDim.x) {
        const int i = p / CAP, j = p % CAP;
        if (i >= a.tasks || j > i) continue;
        double total = 0;
        if (chunk.address<T>(i, a.tasks) && chunk.address<T>(j, a.tasks))
            for (int w = 0; w < warps; ++w) total += totals[(i * warps + w) * CAP + j];
        a.partials[int64_t(blockIdx.x) * values + triangle(i) + j] = total;
    }
}

// The sums of a 16 x 8 tile of products that a lane holds. The matrix units' layout: rows g and g + 8, columns 2 t and
// 2 t + 1.
struct Tile {
    float large[4], small[4];
    CATS_DEVICE void clear() {
#pragma unroll
        for (int c = 0; c < 4; ++c) large[c] = small[c] = 0;
    }
};

// Adds the products of 16 bytes of the tasks g and g + 8 of a block, grads[0] and grads[1], with those of another block,
// grads[2] and grads[3]. Each of the latter two has a tile.
template <class T> struct Multiply;
template <> struct Multiply<Float32> {
    // A number split into its larger part, rounded to the 10 fraction bits of TF32, and the rest. The matrix units ignore
    // the other 13 bits of an operand, so the rest is not rounded: it has at most 12 bits, and loses only the last of them.
    // NaN may become -0 in the larger part, but stays NaN in the rest.
    static CATS_DEVICE void split(uint32_t bits, uint32_t& large, uint32_t& small) {
        large = (bits + 0x1000u) & 0xffffe000u;
        small = as_bits(as_float(bits) - as_float(large));
    }
    static CATS_DEVICE void add(Tile (&tiles)[2], const uint4 (&grads)[4]) {
#pragma unroll
        for (int k = 0; k < 4; k += 2) {
            uint32_t a_large[4], a_small[4];
#pragma unroll
            for (int i = 0; i < 4; ++i) split(word(grads[i % 2], k + i / 2), a_large[i], a_small[i]);
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                uint32_t b_large[2], b_small[2];
#pragma unroll
                for (int i = 0; i < 2; ++i) split(word(grads[2 + h], k + i), b_large[i], b_small[i]);
                mma_tf32(tiles[h].small, a_large, b_small);
                mma_tf32(tiles[h].small, a_small, b_large);
                mma_tf32(tiles[h].large, a_large, b_large);
            }
        }
    }
};
template <class T> struct MultiplyHalf {
    static CATS_DEVICE void add(Tile (&tiles)[2], const uint4 (&grads)[4]) {
#pragma unroll
        for (int k = 0; k < 4; k += 2) {
            const uint32_t a[4] = {word(grads[0], k), word(grads[1], k), word(grads[0], k + 1), word(grads[1], k + 1)};
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                const uint32_t b[2] = {word(grads[2 + h], k), word(grads[2 + h], k + 1)};
                if (T::NUMBER == BFloat16::NUMBER)
                    mma_bfloat16(tiles[h].large, a, b);
                else
                    mma_half(tiles[h].large, a, b);
            }
        }
    }
};
template <> struct Multiply<BFloat16> : MultiplyHalf<BFloat16> {};
template <> struct Multiply<Float16> : MultiplyHalf<Float16> {};

// Two blocks of tasks. Pairs are numbered like the elements of a lower triangle.
struct Pair {
    int row, column;
};
CATS_DEVICE Pair pair_of(int number) {
    int row = 0;
    while (triangle(row + 1) <= number) ++row;
    return {row, number - triangle(row)};
}

// Two blocks share a multiprocessor, so one computes while the other waits for its loads. Each has so many threads that the
// sums of its pairs fit into the registers: a quarter of a multiprocessor has 16384 of them.
constexpr int most_threads(int pairs) { return pairs == 1 ? 320 : pairs == 3 ? 224 : 192; }

// blockDim.x: slices * warps_per_slice warps. The warps of a slice compute all pairs, PAIRS per warp. The slices take turns
// with the runs of elements.
template <class T, int PAIRS>
__global__ void __launch_bounds__(most_threads(PAIRS), 2) gram_kernel(GramArguments a, int warps_per_slice) {
    constexpr int V = T::WIDTH;
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, g = lane / 4, t = lane % 4;
    const bool many = PAIRS > 1;  // then there is one slice
    const int slices = many ? 1 : blockDim.x / WARP / warps_per_slice, slice = many ? 0 : warp / warps_per_slice;
    const int blocks = (a.tasks + BLOCK - 1) / BLOCK, pairs = triangle(blocks);
    const int first = (many ? warp : warp % warps_per_slice) * PAIRS;  // of the warp's pairs
    const Chunk chunk(a);
    int64_t* addresses = reinterpret_cast<int64_t*>(shared_memory());  // (blocks * BLOCK)
    Pair* table = reinterpret_cast<Pair*>(addresses + blocks * BLOCK);  // (pairs)
    for (int n = threadIdx.x; n < blocks * BLOCK; n += blockDim.x) addresses[n] = chunk.address<T>(n, a.tasks);
    for (int n = threadIdx.x; n < pairs; n += blockDim.x) table[n] = pair_of(n);
    barrier();

    double sums[PAIRS][2][4];  // two tiles per pair
#pragma unroll
    for (int p = 0; p < PAIRS; ++p)
#pragma unroll
        for (int h = 0; h < 2; ++h)
#pragma unroll
            for (int c = 0; c < 4; ++c) sums[p][h][c] = 0;

    for (int begin = 0; begin < chunk.count; begin += slices * RUN) {
        const int run = begin + slice * RUN;
#pragma unroll
        for (int p = 0; p < PAIRS; ++p) {
            if (first + p >= pairs) break;
            const Pair pair = table[first + p];
            const bool diagonal = pair.row == pair.column;
            int64_t mine[4];  // of tasks g and g + 8 of the pair's row and, if it is another block, of its column
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                mine[h] = addresses[pair.row * BLOCK + h * 8 + g];
                mine[2 + h] = diagonal ? 0 : addresses[pair.column * BLOCK + h * 8 + g];
            }
            Tile tiles[2];
            tiles[0].clear();
            tiles[1].clear();
#pragma unroll 1
            for (int step = 0; step < RUN && run + step < chunk.count; step += AT_ONCE * 4 * V) {
                uint4 grads[AT_ONCE][4];
#pragma unroll
                for (int u = 0; u < AT_ONCE; ++u) {
                    const int index = run + step + u * 4 * V + t * V;
                    load_gradients<T, false>(mine, place<V>(index, chunk.count, a.aligned), grads[u]);
                }
#pragma unroll
                for (int u = 0; u < AT_ONCE; ++u) {
                    if (diagonal) grads[u][2] = grads[u][0], grads[u][3] = grads[u][1];
                    Multiply<T>::add(tiles, grads[u]);
                }
            }
#pragma unroll
            for (int h = 0; h < 2; ++h)
#pragma unroll
                for (int c = 0; c < 4; ++c) sums[p][h][c] += double(tiles[h].large[c]) + double(tiles[h].small[c]);
        }
        barrier();  // keeps the warps together: otherwise data would leave the cache before all warps have read it
    }

    // One slice after the other: every lane adds its sums to those of the same lane of the slice before.
    double* partial = a.partials + int64_t(blockIdx.x) * triangle(a.tasks);
    for (int s = 0; s < slices; ++s) {
#pragma unroll
        for (int p = 0; p < PAIRS; ++p) {
            if (slice != s || first + p >= pairs) continue;
            const Pair pair = table[first + p];
#pragma unroll
            for (int v = 0; v < 8; ++v) {
                const int h = v / 4, c = v % 4;
                const int i = pair.row * BLOCK + g + c / 2 * 8, j = pair.column * BLOCK + h * 8 + 2 * t + c % 2;
                if (i >= a.tasks || j > i) continue;
                double* sum = partial + triangle(i) + j;
                // A task without a gradient here has no product, not even with an infinite gradient.
                const bool used = addresses[i] && addresses[j];
                *sum = (s == 0 ? 0 : *sum) + (used ? sums[p][h][c] : 0);
            }
        }
        barrier();
    }
}

template <class T, int CAP> static void launch_small(const GramArguments& a, int64_t count, int64_t stream) {
    const unsigned threads = 256;
    const size_t shared = CAP * (threads / WARP) * CAP * sizeof(double);
    launch(gram_small_kernel<T, CAP>, dim3(unsigned(count)), threads, shared, stream, a);
}

template <class T> static void launch_gram(const GramArguments& a, int64_t count, int64_t stream) {
    if (a.tasks <= 2) return launch_small<T, 2>(a, count, stream);
    if (a.tasks <= 4) return launch_small<T, 4>(a, count, stream);
    if (a.tasks <= 8) return launch_small<T, 8>(a, count, stream);
    if constexpr (T::NUMBER == Float64::NUMBER) {
        throw std::invalid_argument("gram of float64: at most 8 tasks");
    } else {
        const int blocks = (a.tasks + BLOCK - 1) / BLOCK, pairs = blocks * (blocks + 1) / 2;
        const int per_warp = pairs > 21 ? 6 : pairs > 10 ? 3 : 1, warps = (pairs + per_warp - 1) / per_warp;
        const int slices = per_warp == 1 && warps < 8 ? 8 / warps : 1;
        const unsigned threads = unsigned(warps * slices * WARP);
        const size_t shared = blocks * BLOCK * sizeof(int64_t) + pairs * sizeof(Pair);
        const auto kernel = per_warp == 6 ? gram_kernel<T, 6> : per_warp == 3 ? gram_kernel<T, 3> : gram_kernel<T, 1>;
        launch(kernel, dim3(unsigned(count)), threads, shared, stream, a, warps);
    }
}

}  // namespace cats

void cuda_gram(int64_t pointers, int64_t width, int64_t chunks, int64_t first, int64_t count, int64_t type,
               int64_t aligned, int64_t tasks, int64_t partials, int64_t stream) {
    using namespace cats;
    if (tasks < 1 || tasks > MAX_TASKS) throw std::invalid_argument("the number of tasks must be 1 to 128");
    const GramArguments a{reinterpret_cast<const int64_t*>(pointers),
                          reinterpret_cast<const int64_t*>(chunks),
                          width,
                          first,
                          int(tasks),
                          aligned != 0,
                          reinterpret_cast<double*>(partials)};
    with_type(type, [&](auto element) { launch_gram<decltype(element)>(a, count, stream); });
}
