// combine, combine_dots and combine_adamw_ on the CPU: one pass over memory.
//
// Few gradients: they are loaded once. The combination, its products with the gradients and their squares are computed
// while the gradients are in registers.
// More gradients: a block of them is loaded into a core's cache. A first pass computes the combination, a second pass its
// products with every gradient. Each pass prefetches one half of the next block.
// The arithmetic is float32 (float64 for float64 gradients). The combination is written to its tensor, or used for an AdamW
// update.
#include "block.h"
#include "kernels.h"

namespace cats {
namespace {

constexpr int64_t MAX_SHARES = 256;

struct Job {
    const Work* work;
    int64_t rows;           // R
    const double* weights;  // (R, K)
    bool statistics;
    const AdamW* adamw;  // null: write the combinations
    int64_t block;
    const std::vector<Segment>* segments;
    const Account* account;  // per group: (R, K) dots, then K squared norms
};

// The operations of cats/ops/backends/reference.py in the same order; c is the combined gradient.
template <class C>
CATS_INLINE void adamw_update(const AdamW& o, const C* c, C* param, C* exp_avg, C* exp_avg_sq, int64_t count) {
    const C decay = C(o.decay), step = C(-o.step_size), eps = C(o.eps), correction = C(1 / o.correction);
    const C beta2 = C(o.beta2), fresh1 = C(1 - o.beta1), fresh2 = C(1 - o.beta2), kept1 = C(1) - fresh1;
    const bool from_grad = 1 - o.beta1 >= 0.5;  // as in torch.lerp, which is exact at both ends
    for (int64_t i = 0; i < count; i++) {
        const C grad = c[i], difference = grad - exp_avg[i];
        const C average = from_grad ? grad - difference * kept1 : exp_avg[i] + fresh1 * difference;
        const C square = exp_avg_sq[i] * beta2 + fresh2 * grad * grad;
        const C root = sizeof(C) == 4 ? C(__builtin_sqrtf(float(square))) : C(__builtin_sqrt(double(square)));
        exp_avg[i] = average;
        exp_avg_sq[i] = square;
        param[i] = param[i] * decay + average * step / (root * correction + eps);
    }
}

template <class T, class C> CATS_INLINE void update(const Job& job, const int64_t* others, int64_t start, int64_t count, C* c) {
    const AdamW& options = *job.adamw;
    T* param = reinterpret_cast<T*>(others[0]) + start;
    C* exp_avg = reinterpret_cast<C*>(others[1]) + start;
    C* exp_avg_sq = reinterpret_cast<C*>(others[2]) + start;
    if (options.grad_scale != 1)
        for (int64_t i = 0; i < count; i++) c[i] /= C(options.grad_scale);
    if constexpr (std::is_same<T, C>::value) {
        adamw_update(options, c, param, exp_avg, exp_avg_sq, count);
    } else {
        C values[MAX_BLOCK];
        widen(values, param, count);
        adamw_update(options, c, values, exp_avg, exp_avg_sq, count);
        T buffer[MAX_BLOCK];
        std::memcpy(param, rounded<T>(values, buffer, count), size_t(count) * sizeof(T));
    }
}

// The combination of a block, its dot products with the gradients, and their squares.
template <Instructions I, class T, class C>
CATS_INLINE void first_row(C* c, const T* const* g, const C* w, int64_t tasks, int64_t count, int64_t next, double* dots, double* squares) {
    // AVX-512 has 32 registers; the other instruction sets have 16, of half the size or less.
    constexpr bool MANY = I == Instructions::avx512, SHORT = sizeof(C) == 4;
    switch (tasks) {
        case 1: return combine_products<T, C, 1>(c, g, w, count, dots, squares);
        case 2: return combine_products<T, C, 2>(c, g, w, count, dots, squares);
        case 3: if constexpr (MANY) return combine_products<T, C, 3>(c, g, w, count, dots, squares); break;
        case 4: if constexpr (MANY) return combine_products<T, C, 4>(c, g, w, count, dots, squares); break;
        case 5: if constexpr (MANY && SHORT) return combine_products<T, C, 5>(c, g, w, count, dots, squares); break;
        case 6: if constexpr (MANY && SHORT) return combine_products<T, C, 6>(c, g, w, count, dots, squares); break;
        case 7: if constexpr (MANY && SHORT) return combine_products<T, C, 7>(c, g, w, count, dots, squares); break;
        case 8: if constexpr (MANY && SHORT) return combine_products<T, C, 8>(c, g, w, count, dots, squares); break;
    }
    weighted_sum<T, C>(c, g, w, tasks, count, next);
    all_products<T, C, true>(g, c, tasks, count, next, dots, squares);
}

// Another combination of a block that is already in the cache.
template <class T, class C>
CATS_INLINE void later_row(C* c, const T* const* g, const C* w, int64_t tasks, int64_t count, double* dots) {
    weighted_sum<T, C>(c, g, w, tasks, count, 0);
    all_products<T, C, false>(g, c, tasks, count, 0, dots, nullptr);
}

template <Instructions I, class T> CATS_INLINE void run(const Job& job) {
    typedef typename Arithmetic<T>::Scalar C;
    const Work& work = *job.work;
    const int64_t all = work.tasks;
    C buffer[MAX_BLOCK];
    std::vector<C> weights;
    std::vector<double> found(size_t(2 * all));
    Rows<T> rows;
    for (const Segment& segment : *job.segments) {
        const int64_t* addresses = work.row(segment.parameter);
        const Present present(all, addresses);
        if (present.tasks.empty()) continue;
        const int64_t tasks = int64_t(present.tasks.size());
        weights.resize(size_t(job.rows * tasks));
        for (int64_t r = 0; r < job.rows; r++)
            for (int64_t n = 0; n < tasks; n++)
                weights[size_t(r * tasks + n)] = C(job.weights[r * all + present.tasks[size_t(n)]]);
        double* sums = job.statistics ? (*job.account)(work.groups[segment.parameter]) : nullptr;
        int64_t count;
        for (int64_t done = 0; done < segment.count; done += count) {
            count = block_count(job.block, segment.count - done);
            const int64_t start = segment.start + done, padded = whole_vectors(count);
            rows.move(present, start, count);
            for (int64_t r = 0; r < job.rows; r++) {
                const C* w = weights.data() + r * tasks;
                C* c = buffer;
                if constexpr (std::is_same<T, C>::value)  // whole vectors are written directly to the result
                    if (!job.adamw && count >= LANES) c = reinterpret_cast<C*>(addresses[all + r]) + start;
                if (!job.statistics)
                    weighted_sum<T, C>(c, rows.at.data(), w, tasks, padded, 0);
                else if (r == 0)
                    first_row<I, T, C>(c, rows.at.data(), w, tasks, padded, count < LANES ? 0 : job.block, found.data(), &found[size_t(tasks)]);
                else
                    later_row<T, C>(c, rows.at.data(), w, tasks, padded, found.data());
                if (job.statistics && count < LANES && c[count] != 0) {  // an infinite weight, times the padding's zeros
                    std::fill(c + count, c + padded, C(0));
                    if (r == 0)
                        all_products<T, C, true>(rows.at.data(), c, tasks, padded, 0, found.data(), &found[size_t(tasks)]);
                    else
                        all_products<T, C, false>(rows.at.data(), c, tasks, padded, 0, found.data(), nullptr);
                }
                for (int64_t n = 0; job.statistics && n < tasks; n++) {
                    sums[r * all + present.tasks[size_t(n)]] += found[size_t(n)];
                    if (r == 0) sums[job.rows * all + present.tasks[size_t(n)]] += found[size_t(tasks + n)];
                }
                if (job.adamw && !job.adamw->skip) update<T, C>(job, addresses + all, start, count, c);
                if (!job.adamw && c == buffer) write<T, C>(reinterpret_cast<T*>(addresses[all + r]) + start, c, count);
            }
        }
    }
}

CATS_DISPATCH_TYPES(run_best, run, Job)

void start(const Work& work, int64_t rows, const double* weights, const AdamW* adamw, double* dots, double* sqnorms) {
    const int64_t size = dots ? (rows + 1) * work.tasks : 0;
    const int64_t block = block_length(work.tasks, element_size(work.type));
    int64_t groups = 1;
    for (int64_t group : work.groups) groups = std::max(groups, group + 1);
    std::vector<double> totals(size_t(groups * size), 0.0);
    share_out(work, block, size, totals.data(), MAX_SHARES, [&](const std::vector<Segment>& segments, const Account& account) {
        run_best({&work, rows, weights, dots != nullptr, adamw, block, &segments, &account});
    });
    for (int64_t group = 0; dots && group < groups; group++) {
        const double* sums = totals.data() + group * size;
        for (int64_t j = 0; j < rows * work.tasks; j++) dots[group * rows * work.tasks + j] += sums[j];
        for (int64_t n = 0; n < work.tasks; n++) sqnorms[group * work.tasks + n] += sums[rows * work.tasks + n];
    }
}

}  // namespace

void combine(const Work& work, int64_t rows, const double* weights, double* dots, double* sqnorms) {
    start(work, rows, weights, nullptr, dots, sqnorms);
}

void combine_adamw(const Work& work, const double* weights, const AdamW& options, double* dots, double* sqnorms) {
    start(work, 1, weights, &options, dots, sqnorms);
}

}  // namespace cats
