// Adds the chunks' sums by group, after every operator that has sums. Also measures the memory's speed.
#include "cuda.h"
#include "device.cuh"

namespace cats {

constexpr int THREADS = 1024;  // per block

struct ReduceArguments {
    const int64_t *order, *bounds;
    int64_t first, count;
    const double* partials;
    int values;
    int split;  // combine: values before it are added to left, the others to right; gram: unused
    double *left, *right;
    int tasks;  // gram: K; otherwise 0
    bool add;
};

// The position of the first chunk >= bound in order[from ... to - 1], which is ascending.
CATS_DEVICE int64_t lower_bound(const int64_t* order, int64_t from, int64_t to, int64_t bound) {
    while (from < to) {
        const int64_t middle = (from + to) / 2;
        if (order[middle] < bound)
            from = middle + 1;
        else
            to = middle;
    }
    return from;
}

CATS_DEVICE void put(double* place, double total, bool add) { *place = add ? *place + total : total; }

// Grid: (groups, values / COLUMNS). A block adds COLUMNS values of a group's chunks. Its threads hold THREADS sums of each:
// chunk number i of the group belongs to sum i % THREADS. The sums are added in halves. So the order of the additions does
// not depend on COLUMNS, and all loads of a thread are independent.
template <int COLUMNS> __global__ void __launch_bounds__(THREADS) reduce_kernel(ReduceArguments a) {
    constexpr int LINES = THREADS / COLUMNS;
    double* totals = reinterpret_cast<double*>(shared_memory());  // (LINES, COLUMNS)
    const int column = threadIdx.x % COLUMNS, line = threadIdx.x / COLUMNS;
    const int v = blockIdx.y * COLUMNS + column;
    const int64_t group = blockIdx.x;
    int64_t from = a.bounds[group], to = a.bounds[group + 1];
    if (a.first > 0 || a.count < a.bounds[gridDim.x]) {  // not all chunks: this group's are not known without a search
        from = lower_bound(a.order, from, to, a.first);
        to = lower_bound(a.order, from, to, a.first + a.count);
    }
    double sums[COLUMNS];
#pragma unroll
    for (int j = 0; j < COLUMNS; ++j) sums[j] = 0;
    if (v < a.values) {
#pragma unroll(8 / COLUMNS)
        for (int64_t i = from + line; i < to; i += THREADS) {
#pragma unroll
            for (int j = 0; j < COLUMNS; ++j)
                if (i + j * LINES < to) sums[j] += a.partials[(a.order[i + j * LINES] - a.first) * a.values + v];
        }
    }
#pragma unroll
    for (int half = COLUMNS / 2; half > 0; half /= 2)
#pragma unroll
        for (int j = 0; j < half; ++j) sums[j] += sums[j + half];
    double total = sums[0];
    totals[threadIdx.x] = total;
    for (int half = LINES / 2; half > 0; half /= 2) {
        barrier();
        if (line < half) totals[threadIdx.x] += totals[threadIdx.x + half * COLUMNS];
    }
    if (line > 0 || v >= a.values) return;
    total = totals[column];
    if (a.tasks) {
        int i = 0;
        while ((i + 1) * (i + 2) / 2 <= v) ++i;
        const int j = v - i * (i + 1) / 2;
        double* gram = a.left + group * a.tasks * a.tasks;
        put(gram + i * a.tasks + j, total, a.add);
        if (i != j) put(gram + j * a.tasks + i, total, a.add);
    } else if (v < a.split) {
        put(a.left + group * a.split + v, total, a.add);
    } else {
        put(a.right + group * (a.values - a.split) + v - a.split, total, a.add);
    }
}

static void launch_reduce(const ReduceArguments& a, int64_t groups, int64_t stream) {
    // Few values: one per block, so that more multiprocessors work. Many: four, so that 32 bytes are read together.
    const int columns = a.values < 64 ? 1 : 4;
    const dim3 grid(unsigned(groups), unsigned((a.values + columns - 1) / columns));
    launch(columns == 1 ? reduce_kernel<1> : reduce_kernel<4>, grid, THREADS, THREADS * sizeof(double), stream, a);
}

// Every block of threads processes an equal part of both. What is read goes to `sink`. It is null, but the compiler cannot
// know that, so it has to keep the loads.
static __global__ void __launch_bounds__(256) traffic_kernel(const uint4* source, int64_t reads, uint4* target,
                                                             int64_t writes, uint32_t* sink) {
    const int64_t block = blockIdx.x, blocks = gridDim.x;
    uint32_t seen = 0;
    const int64_t read_end = reads * (block + 1) / blocks, write_end = writes * (block + 1) / blocks;
    int64_t w = writes * block / blocks + threadIdx.x;
    int64_t r = reads * block / blocks + threadIdx.x;
    constexpr int STEP = 8;  // loads in flight per thread
    for (; r < read_end || w < write_end; r += STEP * 256, w += STEP * 256) {
        uint4 values[STEP];
        if (r + (STEP - 1) * 256 < read_end) {
#pragma unroll
            for (int u = 0; u < STEP; ++u) values[u] = load_once(source + r + u * 256);
        } else {
#pragma unroll
            for (int u = 0; u < STEP; ++u)
                values[u] = r + u * 256 < read_end ? load_once(source + r + u * 256) : make_uint4(0, 0, 0, 0);
        }
#pragma unroll
        for (int u = 0; u < STEP; ++u) {
            seen ^= values[u].x ^ values[u].y ^ values[u].z ^ values[u].w;
            if (w + u * 256 < write_end) target[w + u * 256] = make_uint4(0, 0, 0, 0);
        }
    }
    if (sink) *sink = seen;
}

}  // namespace cats

void cuda_reduce(int64_t order, int64_t bounds, int64_t groups, int64_t first, int64_t count, int64_t partials,
                 int64_t values, int64_t split, int64_t left, int64_t right, int64_t add, int64_t stream) {
    const cats::ReduceArguments a{reinterpret_cast<const int64_t*>(order),
                                  reinterpret_cast<const int64_t*>(bounds),
                                  first,
                                  count,
                                  reinterpret_cast<double*>(partials),
                                  int(values),
                                  int(split),
                                  reinterpret_cast<double*>(left),
                                  reinterpret_cast<double*>(right),
                                  0,
                                  add != 0};
    cats::launch_reduce(a, groups, stream);
}

void cuda_reduce_gram(int64_t order, int64_t bounds, int64_t groups, int64_t first, int64_t count, int64_t partials,
                      int64_t tasks, int64_t gram, int64_t add, int64_t stream) {
    const cats::ReduceArguments a{reinterpret_cast<const int64_t*>(order),
                                  reinterpret_cast<const int64_t*>(bounds),
                                  first,
                                  count,
                                  reinterpret_cast<double*>(partials),
                                  int(tasks * (tasks + 1) / 2),
                                  0,
                                  reinterpret_cast<double*>(gram),
                                  nullptr,
                                  int(tasks),
                                  add != 0};
    cats::launch_reduce(a, groups, stream);
}

void cuda_traffic(int64_t source, int64_t source_bytes, int64_t target, int64_t target_bytes, int64_t stream) {
    const int64_t reads = source_bytes / 16, writes = target_bytes / 16;
    const int64_t part = 256 * 8 * 8;
    const int64_t blocks = ((reads > writes ? reads : writes) + part - 1) / part;
    if (blocks == 0) return;
    cats::launch(cats::traffic_kernel, dim3(unsigned(blocks)), 256, 0, stream, reinterpret_cast<const uint4*>(source),
                 reads, reinterpret_cast<uint4*>(target), writes, static_cast<uint32_t*>(nullptr));
}
