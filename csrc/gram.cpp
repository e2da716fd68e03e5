// gram on the CPU: all inner products of K gradients in one pass.
//
// A block of the K rows lies in the second-level cache; tiles of 4 x 4 inner products (2 x 2 where a row of 16 numbers
// fills several registers) read it from there, so that a number that was loaded is multiplied four times. Only the
// tiles on and above the diagonal are formed; the lower triangle is a copy.
#include <type_traits>
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

// sums[a][b] = <rows[a], columns[b]>, count a multiple of LANES. Meanwhile as many elements are fetched of each of
// ahead[0] ... ahead[fetched - 1].
template <class C, int SIDE, class T>
CATS_INLINE void tile(const C* const* rows, const C* const* columns, int64_t count, const T* const* ahead, int64_t fetched,
                      double (*sums)[SIDE]) {
    typedef typename Arithmetic<C>::Lanes V;
    V total[SIDE][SIDE] = {};
    for (int64_t i = 0; i < count; i += LANES) {
        for (int64_t n = 0; n < fetched; n++)
            for (int64_t line = 0; line < LANES; line += LINE<T>) fetch(ahead[n] + i + line);
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

// What one block adds to the Gram matrix.
template <class T, class C, int SIDE> class BlockGram {
    std::vector<C> space;  // the rows as numbers of type C, if they are of another
    std::vector<const C*> rows;
    std::vector<const T*> ahead;
    std::vector<double> found;

    inline __attribute__((always_inline)) void widen(const std::vector<const T*>& at, int64_t count) {
        rows.resize(at.size());
        space.resize(at.size() * size_t(MAX_BLOCK));
        for (size_t n = 0; n < at.size(); n++) {
            C* copy = space.data() + n * size_t(MAX_BLOCK);
            for (int64_t i = 0; i < count; i += LANES) store(copy + i, load(at[n] + i));
            rows[n] = copy;
        }
    }

public:
    // Adds the upper triangle to `sums`, (all, all), at the places of the tasks present. Of the rows' elements `next`
    // further on as many are fetched, unless that is 0.
    inline __attribute__((always_inline)) void add(const std::vector<const T*>& at, const std::vector<int64_t>& tasks, int64_t count, int64_t next,
                         int64_t all, double* sums) {
        const int64_t size = int64_t(tasks.size()), strips = (size + SIDE - 1) / SIDE, tiles = strips * (strips + 1) / 2;
        if constexpr (std::is_same<T, C>::value)
            rows = at;
        else
            widen(at, count);
        ahead.assign(at.begin(), at.end());
        for (const T*& row : ahead) row += next;
        found.resize(size_t(size * size));
        bool sound = true;
        int64_t number = 0;
        for (int64_t a = 0; a < size; a += SIDE)
            for (int64_t b = a; b < size; b += SIDE, number++) {
                const C *left[SIDE], *right[SIDE];
                for (int i = 0; i < SIDE; i++) {  // beyond the last row: that row once more
                    left[i] = rows[size_t(std::min(a + i, size - 1))];
                    right[i] = rows[size_t(std::min(b + i, size - 1))];
                }
                const int64_t from = size * number / tiles, to = next ? size * (number + 1) / tiles : from;
                double part[SIDE][SIDE];
                tile<C, SIDE, T>(left, right, count, ahead.data() + from, to - from, part);
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
};

template <Instructions I, class T> CATS_INLINE void run(const Job& job) {
    typedef typename Arithmetic<T>::Scalar C;
    constexpr int SIDE = I == Instructions::avx512 && sizeof(C) == 4 ? 4 : 2;
    const Work& work = *job.work;
    BlockGram<T, C, SIDE> gram;
    Rows<T> rows;
    for (const Segment& segment : *job.segments) {
        const Present present(work.tasks, work.row(segment.parameter));
        double* sums = (*job.account)(work.groups[segment.parameter]);
        int64_t count;
        for (int64_t done = 0; done < segment.count; done += count) {
            count = block_count(job.block, segment.count - done);
            rows.move(present, segment.start + done, count);
            const int64_t next = count < LANES ? 0 : job.block;
            gram.add(rows.at, present.tasks, whole_vectors(count), next, work.tasks, sums);
        }
    }
}

template <Instructions I> CATS_INLINE void run_any(const Job& job) {
    switch (job.work->type) {
        case Type::float32: return run<I, float>(job);
        case Type::bfloat16: return run<I, BFloat16>(job);
        case Type::float16: return run<I, Half>(job);
        case Type::float64: return run<I, double>(job);
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
