// gram on the CPU: all inner products of K gradients in one pass.
//
// A block of the K rows lies in the second-level cache; tiles of 4 x 4 inner products (2 x 2 where a row of 16 numbers
// fills several registers) read it from there, so that a number that was loaded is multiplied four times. Only the
// tiles on and above the diagonal are formed; the lower triangle is a copy.
#include <vector>

#include "block.h"
#include "kernels.h"

namespace cats {
namespace {

struct Job {
    const Work* work;
    int64_t block;
    const std::vector<Segment>* segments;
    const Account* account;  // per group: (K, K), the upper triangle
};

// sums[a][b] = <rows[a], columns[b]>, count a multiple of LANES.
template <class C, int SIDE>
CATS_INLINE void tile(const C* const* rows, const C* const* columns, int64_t count, double (*sums)[SIDE]) {
    typedef typename Arithmetic<C>::Lanes V;
    V total[SIDE][SIDE] = {};
    for (int64_t i = 0; i < count; i += LANES) {
        V right[SIDE];
        for (int b = 0; b < SIDE; b++) right[b] = load(columns[b] + i);
        for (int a = 0; a < SIDE; a++) {
            const V left = load(rows[a] + i);
            for (int b = 0; b < SIDE; b++) total[a][b] += left * right[b];
        }
    }
    for (int a = 0; a < SIDE; a++)
        for (int b = 0; b < SIDE; b++) sums[a][b] = sum(total[a][b]);
}

// The upper triangle of the block's Gram matrix, added to `sums` at the places of the tasks present.
template <class C, int SIDE>
CATS_INLINE void block_gram(const std::vector<const C*>& rows, const std::vector<int64_t>& tasks, int64_t count, int64_t all,
                            std::vector<double>& found, double* sums) {
    const int64_t size = int64_t(tasks.size());
    found.resize(size_t(size * size));
    bool sound = true;
    for (int64_t a = 0; a < size; a += SIDE)
        for (int64_t b = a; b < size; b += SIDE) {
            const C *left[SIDE], *right[SIDE];
            for (int i = 0; i < SIDE; i++) {  // beyond the last row: that row once more
                left[i] = rows[size_t(std::min(a + i, size - 1))];
                right[i] = rows[size_t(std::min(b + i, size - 1))];
            }
            double part[SIDE][SIDE];
            tile<C, SIDE>(left, right, count, part);
            for (int64_t i = 0; i < SIDE && a + i < size; i++)
                for (int64_t j = 0; j < SIDE && b + j < size; j++) {
                    found[size_t((a + i) * size + b + j)] = part[i][j];
                    sound &= std::isfinite(part[i][j]) && (a + i != b + j || part[i][j] >= SMALLEST);
                }
        }
    for (int64_t a = 0; a < size; a++)
        for (int64_t b = a; b < size; b++) {
            double value = found[size_t(a * size + b)], ignored;
            if (!sound && sizeof(C) < sizeof(double))
                products_in_double(rows[size_t(a)], rows[size_t(b)], count, &value, &ignored);
            sums[tasks[size_t(a)] * all + tasks[size_t(b)]] += value;
        }
}

template <class T> CATS_INLINE void run(const Job& job, bool large_registers) {
    typedef typename Arithmetic<T>::Scalar C;
    const Work& work = *job.work;
    const int64_t stride = job.block;
    std::vector<C> space;
    std::vector<const C*> rows;
    std::vector<double> found;
    for (const Segment& segment : *job.segments) {
        const Present present(work.tasks, work.row(segment.parameter));
        const size_t tasks = present.tasks.size();
        double* sums = (*job.account)(work.groups[segment.parameter]);
        space.resize(tasks * size_t(stride));
        rows.resize(tasks);
        for (int64_t start = segment.start; start < segment.start + segment.count; start += stride) {
            const int64_t count = std::min(stride, segment.start + segment.count - start);
            const int64_t padded = (count + LANES - 1) / LANES * LANES;
            for (size_t n = 0; n < tasks; n++) {
                const T* g = reinterpret_cast<const T*>(present.data[n]) + start;
                C* copy = space.data() + n * size_t(stride);
                for (int64_t i = 0; i < padded; i += LANES) {
                    store(copy + i, load(g + i, count - i));
                    for (size_t line = 0; line < LANES * sizeof(T); line += 64)
                        __builtin_prefetch(reinterpret_cast<const char*>(g + stride + i) + line, 0, 2);
                }
                rows[n] = copy;
            }
            if (large_registers && sizeof(C) == 4)
                block_gram<C, 4>(rows, present.tasks, padded, work.tasks, found, sums);
            else
                block_gram<C, 2>(rows, present.tasks, padded, work.tasks, found, sums);
        }
    }
}

CATS_INLINE void run_any(const Job& job) {
    const bool large_registers = instructions() == Instructions::avx512;
    switch (job.work->type) {
        case Type::float32: return run<float>(job, large_registers);
        case Type::bfloat16: return run<BFloat16>(job, large_registers);
        case Type::float16: return run<Half>(job, large_registers);
        case Type::float64: return run<double>(job, large_registers);
    }
}
CATS_DISPATCH(run_best, run_any, const Job&)

}  // namespace

void gram(const Work& work, double* gram) {
    const int64_t tasks = work.tasks, size = tasks * tasks;
    const int64_t block = block_length(tasks, work.type == Type::float64 ? 8 : 4);
    const int64_t max_shares = std::min<int64_t>(256, std::max<int64_t>(16, (1 << 19) / size));
    share_out(work, block, size, gram, max_shares, [&](const std::vector<Segment>& segments, const Account& account) {
        run_best({&work, block, &segments, &account});
    });
    int64_t groups = 1;
    for (int64_t group : work.groups) groups = std::max(groups, group + 1);
    for (int64_t group = 0; group < groups; group++)
        for (int64_t a = 0; a < tasks; a++)
            for (int64_t b = 0; b < a; b++) gram[group * size + a * tasks + b] = gram[group * size + b * tasks + a];
}

}  // namespace cats
