// gram: every inner product of the gradients, in one read of them.
//
// Up to 8 tasks: a lane holds 16 bytes of each gradient in registers and multiplies all pairs.
//
// More tasks: the matrix units. A block of threads copies tiles of the gradients to shared memory while it computes with an
// earlier tile, so every number is read from memory once and no register waits for it. Tasks form blocks of 32. A warp
// multiplies one pair of blocks: the 32 x 32 products stay in its registers, so every number that it reads from shared
// memory is used 32 times. Pairs above the diagonal are left out. If there are few pairs, slices of warps share a tile.
//
// A row of a tile is 128 or 256 bytes of one task. Piece c of 16 bytes in row r is at place c ^ (r % 8), so that 8 rows are
// read without conflicts of banks. A step takes 32 bytes of each row: 8 float32 numbers, or 16 of 16 bits. On the diagonal
// the rows of a product are also its columns, and are loaded once.
//
// Accuracy, in units of u = 2^-24 and for terms of one sign, the worst case. Matrix units round sums towards zero. A sum of
// RUN steps in float32 is added to a double.
// 16 bits: products are exact, and the matrix unit adds the steps: 17u.
// Float32: a number is split into two TF32 numbers, and three of the four products are added. The split and the missing
// product cost at most 8u, the matrix unit 2u. The steps are added with rounding to the nearest: 8.5u. In all 1.1e-6.
#include "cuda.h"
#include "device.cuh"

namespace cats {

constexpr int RUN = 16;    // steps per float32 sum
constexpr int STAGES = 4;  // tiles in shared memory: one in use, the others under way

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

// The operands of 16 tasks in one step: four matrices of 8 tasks and 16 bytes. As rows of a product: the first 16 bytes of
// tasks 0 to 7, those of tasks 8 to 15, then the second 16 bytes of both. As columns: both halves of tasks 0 to 7, then both
// of tasks 8 to 15. `multiply` adds the products with the first or the second 8 columns.
template <class T> struct Operands;
template <> struct Operands<Float32> {
    uint32_t large[4], small[4];
    // A number split into its larger part, rounded to the 10 fraction bits of TF32, and the rest. The matrix units ignore
    // the other 13 bits of an operand, so the rest is not rounded: it has at most 12 bits, and loses only the last of them.
    // NaN may become -0 in the larger part, but stays NaN in the rest.
    CATS_DEVICE explicit Operands(const uint32_t (&words)[4]) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            large[i] = (words[i] + 0x1000u) & 0xffffe000u;
            small[i] = as_bits(as_float(words[i]) - as_float(large[i]));
        }
    }
    CATS_DEVICE void multiply(const Operands& columns, int half, float (&sums)[4]) const {
        const uint32_t b_large[2] = {columns.large[2 * half], columns.large[2 * half + 1]};
        const uint32_t b_small[2] = {columns.small[2 * half], columns.small[2 * half + 1]};
        float products[4] = {0, 0, 0, 0};
        mma_tf32(products, large, b_small);
        mma_tf32(products, small, b_large);
        mma_tf32(products, large, b_large);
#pragma unroll
        for (int c = 0; c < 4; ++c) sums[c] += products[c];
    }
};
template <class T> struct Operands16 {
    uint32_t words[4];
    CATS_DEVICE explicit Operands16(const uint32_t (&loaded)[4]) {
#pragma unroll
        for (int i = 0; i < 4; ++i) words[i] = loaded[i];
    }
    CATS_DEVICE void multiply(const Operands16& columns, int half, float (&sums)[4]) const {
        const uint32_t b[2] = {columns.words[2 * half], columns.words[2 * half + 1]};
        if (T::NUMBER == BFloat16::NUMBER)
            mma_bfloat16(sums, words, b);
        else
            mma_half(sums, words, b);
    }
};
template <> struct Operands<BFloat16> : Operands16<BFloat16> {
    using Operands16::Operands16;
};
template <> struct Operands<Float16> : Operands16<Float16> {
    using Operands16::Operands16;
};

// How the work is divided for at most SIZE tasks. A multiprocessor runs 12 warps, because the sums of a pair need so many
// registers: three blocks of threads with one pair, two with three or six pairs, one with ten.
template <int SIZE> struct Shape {
    static constexpr int HALVES = SIZE == 16 ? 1 : 2;  // 16 tasks each, of a block of tasks
    static constexpr int BLOCK = 16 * HALVES, BLOCKS = SIZE / BLOCK, PAIRS = BLOCKS * (BLOCKS + 1) / 2;
    static constexpr int WIDTH = SIZE <= 64 ? 16 : 8;  // pieces of 16 bytes in a row of a tile
    static constexpr int SLICES = SIZE <= 32 ? 4 : SIZE <= 64 ? 2 : 1;
    static constexpr int STEPS = WIDTH / 2 / SLICES;  // of a warp, per tile
    static constexpr int THREADS = PAIRS * SLICES * WARP;
    static constexpr int TILE = SIZE * WIDTH;  // pieces
    static constexpr int RESIDENT = SIZE == 16 ? 5 : 12 * WARP / THREADS;  // blocks of threads on a multiprocessor
    static constexpr size_t SHARED = SIZE * sizeof(int64_t) + STAGES * TILE * sizeof(uint4);
    static_assert(SLICES == 1 || STAGES * TILE * sizeof(uint4) >= PAIRS * BLOCK * BLOCK * sizeof(double), "see below");
};

// Two blocks of tasks, row >= column. They are numbered along the diagonals.
struct Pair {
    int row, column;
};
template <int SIZE> CATS_DEVICE Pair pair_of(int number) {
    // A quarter of a multiprocessor runs every fourth warp. Two of the quarters have three of ten warps: they get the pairs on
    // the diagonal, which have less to do.
    if (Shape<SIZE>::PAIRS == 10 && number >= 2 && number < 6) number ^= 6;
    int distance = 0;
    for (; number >= Shape<SIZE>::BLOCKS - distance; ++distance) number -= Shape<SIZE>::BLOCKS - distance;
    return {number + distance, number};
}

// The products of a pair of blocks that a lane holds: tiles of 16 x 8 in the layout of the matrix units, rows g and g + 8,
// columns 2 t and 2 t + 1.
template <int SIZE, class S> struct Products {
    static constexpr int HALVES = Shape<SIZE>::HALVES;
    S tiles[HALVES][2 * HALVES][4];
    CATS_DEVICE Products() { clear(); }
    CATS_DEVICE void clear() {
#pragma unroll
        for (int m = 0; m < HALVES; ++m)
#pragma unroll
            for (int n = 0; n < 2 * HALVES; ++n)
#pragma unroll
                for (int c = 0; c < 4; ++c) tiles[m][n][c] = 0;
    }
};

// Starts the copies of the tile whose first element is `index`. Rows without a gradient stay zero. A thread copies the same
// piece of several rows.
template <class T, int SIZE>
CATS_DEVICE void load_tile(uint4* tile, const int64_t* addresses, int index, int count, bool aligned) {
    constexpr int WIDTH = Shape<SIZE>::WIDTH, TOGETHER = Shape<SIZE>::THREADS / WIDTH;
    const int first = threadIdx.x / WIDTH, piece = threadIdx.x % WIDTH;
    const Place at = place<T::WIDTH>(index + piece * T::WIDTH, count, aligned);
    const auto target = [&](int row) { return tile + row * WIDTH + (piece ^ (row % 8)); };
    if (at.whole) {
        const int64_t offset = at.index * int64_t(sizeof(typename T::Element));
#pragma unroll
        for (int i = 0; i < SIZE; i += TOGETHER) {
            const int row = first + i;
            const int64_t address = SIZE % TOGETHER && row >= SIZE ? 0 : addresses[row];
            if (address) start_copy(target(row), reinterpret_cast<const uint4*>(address + offset));
        }
    } else {
#pragma unroll 1
        for (int row = first; row < SIZE; row += TOGETHER)
            if (addresses[row]) *target(row) = load_part<T>(addresses[row], at);
    }
}

// Adds the products of a pair of blocks for a slice of a tile.
template <class T, int SIZE, bool DIAGONAL>
CATS_DEVICE void add_tile(Products<SIZE, float>& sums, const uint4* tile, const Pair& pair, int slice) {
    typedef Shape<SIZE> Shape;
    constexpr int WIDTH = Shape::WIDTH, HALVES = Shape::HALVES, STEPS = Shape::STEPS;
    // This lane says where a row of a matrix is: see Operands for their order.
    const int lane = threadIdx.x % WARP, matrix = lane / 8, inside = lane % 8;
    const uint4* rows = tile + (pair.row * Shape::BLOCK + matrix % 2 * 8 + inside) * WIDTH;
    const uint4* columns = tile + (pair.column * Shape::BLOCK + matrix / 2 * 8 + inside) * WIDTH;
#pragma unroll(T::NUMBER == Float32::NUMBER ? 1 : STEPS)  // for more, float32 lacks registers
    for (int s = 0; s < STEPS; ++s) {
        const int piece = 2 * (slice * STEPS + s);
        uint32_t a[HALVES][4], b[HALVES][4];
#pragma unroll
        for (int m = 0; m < HALVES; ++m) {
            load_matrices(a[m], rows + m * 16 * WIDTH + ((piece + matrix / 2) ^ inside));
            if constexpr (!DIAGONAL) load_matrices(b[m], columns + m * 16 * WIDTH + ((piece + matrix % 2) ^ inside));
        }
#pragma unroll
        for (int n = 0; n < HALVES; ++n) {
            if constexpr (DIAGONAL)  // the columns are the rows, in the other order
                for (int i = 0; i < 4; ++i) b[n][i] = a[n][i / 2 + i % 2 * 2];
            const Operands<T> right(b[n]);
#pragma unroll
            for (int m = DIAGONAL ? n : 0; m < HALVES; ++m) {
                const Operands<T> left(a[m]);
#pragma unroll
                for (int half = 0; half < 2; ++half) left.multiply(right, half, sums.tiles[m][2 * n + half]);
            }
        }
    }
}

// blockDim.x: SLICES * PAIRS warps.
template <class T, int SIZE>
__global__ void __launch_bounds__(Shape<SIZE>::THREADS, Shape<SIZE>::RESIDENT) gram_kernel(GramArguments a) {
    typedef Shape<SIZE> Shape;
    constexpr int WIDTH = Shape::WIDTH, HALVES = Shape::HALVES;
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    const int slice = warp / Shape::PAIRS, number = warp % Shape::PAIRS;
    const Pair pair = pair_of<SIZE>(number);
    const Chunk chunk(a);
    uint4* tiles = reinterpret_cast<uint4*>(shared_memory());                        // (STAGES, SIZE, WIDTH)
    int64_t* addresses = reinterpret_cast<int64_t*>(tiles + STAGES * Shape::TILE);  // (SIZE)
    for (int n = threadIdx.x; n < SIZE; n += Shape::THREADS) addresses[n] = chunk.address<T>(n, a.tasks);
    barrier();
    for (int i = threadIdx.x; i < STAGES * Shape::TILE; i += Shape::THREADS)
        if (!addresses[i / WIDTH % SIZE]) tiles[i] = make_uint4(0, 0, 0, 0);

    constexpr int LENGTH = WIDTH * T::WIDTH;  // elements
    const int count = (chunk.count + LENGTH - 1) / LENGTH;
    const auto load = [&](int n) {
        if (n < count) load_tile<T, SIZE>(tiles + n % STAGES * Shape::TILE, addresses, n * LENGTH, chunk.count, a.aligned);
        end_of_copies();
    };
#pragma unroll 1
    for (int n = 0; n < STAGES - 1; ++n) load(n);

    Products<SIZE, float> sums;
    Products<SIZE, double> totals;
    for (int n = 0; n < count; ++n) {
        wait_for_copies<STAGES - 2>();
        barrier();  // now all see tile n, and nobody needs tile n - 1, whose place is filled again
        load(n + STAGES - 1);
        const uint4* tile = tiles + n % STAGES * Shape::TILE;
        if (pair.row == pair.column)
            add_tile<T, SIZE, true>(sums, tile, pair, slice);
        else
            add_tile<T, SIZE, false>(sums, tile, pair, slice);
        if ((n + 1) % (RUN / Shape::STEPS) && n + 1 < count) continue;
#pragma unroll
        for (int m = 0; m < HALVES; ++m)
#pragma unroll
            for (int h = 0; h < 2 * HALVES; ++h)
#pragma unroll
                for (int c = 0; c < 4; ++c) totals.tiles[m][h][c] += double(sums.tiles[m][h][c]);
        sums.clear();
    }

    // One slice after the other: every lane adds its sums to those of the same lane of the slice before.
    double* exchanged = reinterpret_cast<double*>(tiles) + number * Shape::BLOCK * Shape::BLOCK + lane;
    double* partial = a.partials + int64_t(blockIdx.x) * triangle(a.tasks);
    for (int s = 0; s < Shape::SLICES; ++s) {
        barrier();  // at first, because the tiles were there
        if (slice != s) continue;
#pragma unroll
        for (int m = 0; m < HALVES; ++m)
#pragma unroll
            for (int h = 0; h < 2 * HALVES; ++h)
#pragma unroll
                for (int c = 0; c < 4; ++c) {
                    double* place = exchanged + ((m * 2 * HALVES + h) * 4 + c) * WARP;
                    const double total = totals.tiles[m][h][c] + (s > 0 ? *place : 0);
                    if (s < Shape::SLICES - 1) {
                        *place = total;
                        continue;
                    }
                    const int i = pair.row * Shape::BLOCK + m * 16 + c / 2 * 8 + lane / 4;
                    const int j = pair.column * Shape::BLOCK + h * 8 + lane % 4 * 2 + c % 2;
                    // A task without a gradient here has no product, not even with an infinite gradient.
                    if (i < a.tasks && j <= i) partial[triangle(i) + j] = addresses[i] && addresses[j] ? total : 0;
                }
    }
}

template <class T, int CAP> static void launch_small(const GramArguments& a, int64_t count, int64_t stream) {
    const unsigned threads = 256;
    const size_t shared = CAP * (threads / WARP) * CAP * sizeof(double);
    launch(gram_small_kernel<T, CAP>, dim3(unsigned(count)), threads, shared, stream, a);
}

template <class T, int SIZE> static void launch_blocks(const GramArguments& a, int64_t count, int64_t stream) {
    launch(gram_kernel<T, SIZE>, dim3(unsigned(count)), Shape<SIZE>::THREADS, Shape<SIZE>::SHARED, stream, a);
}

template <class T> static void launch_gram(const GramArguments& a, int64_t count, int64_t stream) {
    if (a.tasks <= 2) return launch_small<T, 2>(a, count, stream);
    if (a.tasks <= 4) return launch_small<T, 4>(a, count, stream);
    if (a.tasks <= 8) return launch_small<T, 8>(a, count, stream);
    if constexpr (T::NUMBER == Float64::NUMBER) {
        throw std::invalid_argument("gram of float64: at most 8 tasks");
    } else {
        if (a.tasks <= 16) return launch_blocks<T, 16>(a, count, stream);
        if (a.tasks <= 32) return launch_blocks<T, 32>(a, count, stream);
        if (a.tasks <= 64) return launch_blocks<T, 64>(a, count, stream);
        if (a.tasks <= 96) return launch_blocks<T, 96>(a, count, stream);
        return launch_blocks<T, 128>(a, count, stream);
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
