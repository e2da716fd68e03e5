// row_dots on the GPU. A block of threads takes some neighbouring rows, and a team of its threads one part of a row at a
// time. Then thread n adds what belongs to task n, in the order of the rows, so the rows may be in any order.
#include "cuda.h"
#include "device.cuh"

namespace cats {

constexpr int TEAM_THREADS = 128;  // per block
constexpr int MIN_PART = 2048;     // elements of a row that a team adds at least, so that there are several loads per thread
constexpr int MAX_PARTS = 64;      // per row

struct RowDotsArguments {
    int64_t x, y;                // addresses
    int64_t x_stride, y_stride;  // elements from a row to the next
    const int64_t* owners;
    int64_t count, width;
    int64_t part;            // elements of each part of a row but the last
    int rows, parts, lanes;  // rows per block, parts per row, threads per team
    int tasks;
    bool aligned;
    double* partials;
};

// This thread's share of <x, y>: of `count` elements, every lanes-th group of V. At most CHAIN additions are in float32.
template <class T, class U> CATS_DEVICE double inner(int64_t x, int64_t y, int count, int lane, int lanes, bool aligned) {
    typedef typename T::Scalar S;
    constexpr int V = T::WIDTH, VECTORS = V / U::WIDTH;  // 16 bytes of x, and as many elements of y
    constexpr int BATCH = VECTORS == 1 ? 4 : 2;          // groups that are loaded before the first is used
    double total = 0;
    int index = lane * V;
    const int stride = lanes * V;
    while (aligned && index + (BATCH - 1) * stride + V <= count) {
        S sum = 0;
#pragma unroll 1
        for (int i = 0; i < CHAIN / V; i += BATCH) {
            if (index + (BATCH - 1) * stride + V > count) break;
            uint4 left[BATCH][1], right[BATCH][VECTORS];
#pragma unroll
            for (int b = 0; b < BATCH; ++b) {
                const Place at = {index + b * stride, V, true};
                load_raw<T>(x, at, left[b]);
                load_raw<U>(y, at, right[b]);
            }
#pragma unroll
            for (int b = 0; b < BATCH; ++b)
#pragma unroll
                for (int e = 0; e < V; ++e)
                    sum = fused(Elements<T>::get(left[b][0], e), Elements<U>::get(right[b][e / U::WIDTH], e % U::WIDTH), sum);
            index += BATCH * stride;
        }
        total += sum;
    }
    while (index < count) {
        S sum = 0;
        for (int i = 0; i < CHAIN && index < count; i += V, index += stride) {
            const Place at = place<V>(index, count, aligned);
            S left[V], right[V];
            load<T>(x, at, left);
            load<U>(y, at, right);
#pragma unroll
            for (int e = 0; e < V; ++e) sum = fused(left[e], right[e], sum);
        }
        total += sum;
    }
    return total;
}

template <class T, class U> __global__ void __launch_bounds__(TEAM_THREADS) row_dots_kernel(RowDotsArguments a) {
    double* sums = reinterpret_cast<double*>(shared_memory());                // (rows, parts)
    int64_t* owners = reinterpret_cast<int64_t*>(sums + a.rows * a.parts);  // (rows)
    const int64_t first = int64_t(blockIdx.x) * a.rows;
    for (int i = threadIdx.x; i < a.rows; i += TEAM_THREADS) owners[i] = first + i < a.count ? a.owners[first + i] : -1;
    barrier();
    const int lane = threadIdx.x % a.lanes, team = threadIdx.x / a.lanes, teams = TEAM_THREADS / a.lanes;
    const int units = a.rows * a.parts;
    for (int begin = 0; begin < units; begin += teams) {  // as often for all threads: they exchange their sums
        const int unit = begin + team, row = unit / a.parts;
        const int64_t start = (unit % a.parts) * a.part, rest = a.width - start;
        const bool wanted = unit < units && owners[row] >= 0 && owners[row] < a.tasks;
        const int count = !wanted ? 0 : rest < a.part ? int(rest) : int(a.part);
        const int64_t x = advance<T>(a.x, (first + row) * a.x_stride + start);
        const int64_t y = advance<U>(a.y, (first + row) * a.y_stride + start);
        double total = inner<T, U>(x, y, count, lane, a.lanes, a.aligned);
        for (int offset = a.lanes / 2; offset > 0; offset /= 2) total += shuffle_xor(total, offset);
        if (lane == 0 && unit < units) sums[unit] = total;
    }
    barrier();
    for (int n = threadIdx.x; n < a.tasks; n += TEAM_THREADS) {
        double total = 0;
        for (int row = 0; row < a.rows; ++row)
            if (owners[row] == n)
                for (int p = 0; p < a.parts; ++p) total += sums[row * a.parts + p];
        a.partials[int64_t(blockIdx.x) * a.tasks + n] = total;
    }
}

template <class T, class U> static void launch_row_dots(RowDotsArguments a, int64_t stream) {
    a.part = (a.width / MAX_PARTS / MIN_PART + 1) * MIN_PART;
    a.parts = int((a.width + a.part - 1) / a.part);
    a.lanes = 1;
    while (a.lanes < WARP && a.lanes * T::WIDTH < a.width) a.lanes *= 2;
    const size_t shared = size_t(a.rows) * (a.parts * sizeof(double) + sizeof(int64_t));
    const dim3 grid(unsigned((a.count + a.rows - 1) / a.rows));
    launch(row_dots_kernel<T, U>, grid, TEAM_THREADS, shared, stream, a);
}

}  // namespace cats

void cuda_row_dots(int64_t x, int64_t x_stride, int64_t y, int64_t y_stride, int64_t owners, int64_t count, int64_t width,
                   int64_t rows, int64_t type, int64_t y_is_float, int64_t aligned, int64_t tasks, int64_t partials,
                   int64_t stream) {
    using namespace cats;
    RowDotsArguments a{};
    a.x = x;
    a.y = y;
    a.x_stride = x_stride;
    a.y_stride = y_stride;
    a.owners = reinterpret_cast<const int64_t*>(owners);
    a.count = count;
    a.width = width;
    a.rows = int(rows);
    a.tasks = int(tasks);
    a.aligned = aligned != 0;
    a.partials = reinterpret_cast<double*>(partials);
    switch (type) {
        case Float32::NUMBER: return launch_row_dots<Float32, Float32>(a, stream);
        case BFloat16::NUMBER:
            return y_is_float ? launch_row_dots<BFloat16, Float32>(a, stream) : launch_row_dots<BFloat16, BFloat16>(a, stream);
        case Float16::NUMBER:
            return y_is_float ? launch_row_dots<Float16, Float32>(a, stream) : launch_row_dots<Float16, Float16>(a, stream);
        case Float64::NUMBER: return launch_row_dots<Float64, Float64>(a, stream);
    }
    throw std::invalid_argument("there is no type with this number");
}
