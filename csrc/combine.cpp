// combine, combine_dots and combine_adamw_ on the CPU: one pass over memory.
//
// A block of the gradients is brought into a core's cache once. There the combination is formed, in float32 (float64
// for float64); then each row meets it for its dot product and itself for its norm, while the processor is told to
// fetch the row's part of the next block. The combination goes to its tensor, or into an AdamW update.
#include "block.h"
#include "kernels.h"

namespace cats {
namespace {

constexpr int64_t MAX_SHARES = 256;
constexpr int64_t STREAM = 8 << 20;  // bytes: longer results would only push other data out of the caches

struct Job {
    const Work* work;
    int64_t rows;           // R
    const double* weights;  // (R, K)
    bool statistics;
    bool stream;
    const AdamW* adamw;  // null: write the combinations
    int64_t block;
    const std::vector<Segment>* segments;
    const Account* account;  // per group: (R, K) dots, then K squared norms
};

// The operations of cats.reference on float32 or float64, in its order; c is the combined gradient.
template <class C> CATS_INLINE void adamw_update(const AdamW& o, const C* c, C* param, C* exp_avg, C* exp_avg_sq, int64_t count) {
    const C scale = C(o.grad_scale), decay = C(o.decay), step = C(-o.step_size), eps = C(o.eps);
    const C correction = C(o.correction), beta2 = C(o.beta2), fresh1 = C(1 - o.beta1), fresh2 = C(1 - o.beta2);
    const bool from_grad = 1 - o.beta1 >= 0.5;  // as torch.lerp: exact at both ends
    const C kept1 = C(1) - fresh1;
    for (int64_t i = 0; i < count; i++) {
        const C grad = c[i] / scale, difference = grad - exp_avg[i];
        const C average = from_grad ? grad - difference * kept1 : exp_avg[i] + fresh1 * difference;
        const C square = exp_avg_sq[i] * beta2 + fresh2 * grad * grad;
        const C root = sizeof(C) == 4 ? C(__builtin_sqrtf(float(square))) : C(__builtin_sqrt(double(square)));
        exp_avg[i] = average;
        exp_avg_sq[i] = square;
        param[i] = param[i] * decay + average * step / (root / correction + eps);
    }
}

template <class T, class C> CATS_INLINE void update(const Job& job, const int64_t* others, int64_t start, int64_t count, const C* c) {
    T* param = reinterpret_cast<T*>(others[0]) + start;
    C values[MAX_BLOCK + LANES];
    for (int64_t i = 0; i < count; i += LANES) store(values + i, load(param + i, std::min<int64_t>(LANES, count - i)));
    adamw_update(*job.adamw, c, values, reinterpret_cast<C*>(others[1]) + start, reinterpret_cast<C*>(others[2]) + start, count);
    for (int64_t i = 0; i < count; i += LANES) store(param + i, load(values + i), std::min<int64_t>(LANES, count - i));
}

template <class T, class C> CATS_INLINE void write(const Job& job, T* out, const C* c, int64_t count) {
    T rounded[MAX_BLOCK + LANES];
    for (int64_t i = 0; i < count; i += LANES) store(rounded + i, load(c + i));
    if (job.stream)
        stream_copy(out, rounded, size_t(count) * sizeof(T));
    else
        std::memcpy(out, rounded, size_t(count) * sizeof(T));
}

template <class T> CATS_INLINE void run(const Job& job) {
    typedef typename Arithmetic<T>::Scalar C;
    const Work& work = *job.work;
    const int64_t all = work.tasks;
    C c[MAX_BLOCK + LANES];
    std::vector<C> weights;
    std::vector<const T*> g;
    for (const Segment& segment : *job.segments) {
        const int64_t* row = work.row(segment.parameter);
        const Present present(all, row);
        const int64_t tasks = int64_t(present.tasks.size());
        weights.resize(size_t(job.rows * tasks));
        for (int64_t r = 0; r < job.rows; r++)
            for (int64_t n = 0; n < tasks; n++)
                weights[size_t(r * tasks + n)] = C(job.weights[r * all + present.tasks[size_t(n)]]);
        g.resize(size_t(tasks));
        double* sums = job.statistics ? (*job.account)(work.groups[segment.parameter]) : nullptr;
        for (int64_t start = segment.start; start < segment.start + segment.count; start += job.block) {
            const int64_t count = std::min(job.block, segment.start + segment.count - start);
            for (int64_t n = 0; n < tasks; n++)
                g[size_t(n)] = reinterpret_cast<const T*>(present.data[size_t(n)]) + start;
            for (int64_t r = 0; r < job.rows; r++) {
                weighted_sum<T, C>(c, g.data(), weights.data() + r * tasks, tasks, count);
                for (int64_t n = 0; job.statistics && n < tasks; n++) {
                    const T* mine = g[size_t(n)];
                    double dot, square;
                    if (r == 0) {
                        products<T, C, true>(mine, c, count, mine + job.block, &dot, &square);
                        sums[job.rows * all + present.tasks[size_t(n)]] += square;
                    } else {
                        products<T, C, false>(mine, c, count, mine, &dot, &square);
                    }
                    sums[r * all + present.tasks[size_t(n)]] += dot;
                }
                if (!job.adamw)
                    write<T, C>(job, reinterpret_cast<T*>(row[all + r]) + start, c, count);
                else if (!job.adamw->skip)
                    update<T, C>(job, row + all, start, count, c);
            }
        }
    }
}

CATS_INLINE void run_any(const Job& job) {
    switch (job.work->type) {
        case Type::float32: return run<float>(job);
        case Type::bfloat16: return run<BFloat16>(job);
        case Type::float16: return run<Half>(job);
        case Type::float64: return run<double>(job);
    }
}
CATS_DISPATCH(run_best, run_any, const Job&)

size_t element_size(Type type) { return type == Type::float64 ? 8 : type == Type::float32 ? 4 : 2; }

void start(const Work& work, int64_t rows, const double* weights, const AdamW* adamw, double* dots, double* sqnorms) {
    const int64_t size = dots ? (rows + 1) * work.tasks : 0;
    const int64_t block = block_length(work.tasks, element_size(work.type));
    const bool stream = work.elements() * int64_t(element_size(work.type)) >= STREAM;
    int64_t groups = 1;
    for (int64_t group : work.groups) groups = std::max(groups, group + 1);
    std::vector<double> totals(size_t(groups * size), 0.0);
    share_out(work, block, size, totals.data(), MAX_SHARES, [&](const std::vector<Segment>& segments, const Account& account) {
        run_best({&work, rows, weights, dots != nullptr, stream, adamw, block, &segments, &account});
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
