// dots on the CPU: a block of the direction stays in the first-level cache while the gradients pass by.
#include "block.h"
#include "kernels.h"

namespace cats {
namespace {

constexpr int64_t MAX_SHARES = 256;

struct Job {
    const Work* work;
    bool direction_is_wide;  // of the type of arithmetic, else of the gradients'
    const std::vector<Segment>* segments;
    const Account* account;  // per group: K dots
};

template <class T> CATS_INLINE void run(const Job& job) {
    typedef typename Arithmetic<T>::Scalar C;
    const Work& work = *job.work;
    C c[MAX_BLOCK + LANES];
    for (const Segment& segment : *job.segments) {
        const int64_t* row = work.row(segment.parameter);
        const Present present(work.tasks, row);
        double* sums = (*job.account)(work.groups[segment.parameter]);
        for (int64_t start = segment.start; start < segment.start + segment.count; start += MAX_BLOCK) {
            const int64_t count = std::min(MAX_BLOCK, segment.start + segment.count - start);
            for (int64_t i = 0; i < count; i += LANES) {
                const int64_t rest = std::min<int64_t>(LANES, count - i);
                if (job.direction_is_wide)
                    store(c + i, load(reinterpret_cast<const C*>(row[work.tasks]) + start + i, rest));
                else
                    store(c + i, load(reinterpret_cast<const T*>(row[work.tasks]) + start + i, rest));
            }
            for (size_t n = 0; n < present.tasks.size(); n++) {
                const T* g = reinterpret_cast<const T*>(present.data[n]) + start;
                double dot, ignored;
                products<T, C, false>(g, c, count, g + MAX_BLOCK, &dot, &ignored);
                sums[present.tasks[n]] += dot;
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

}  // namespace

void dots(const Work& work, bool direction_is_wide, double* dots) {
    share_out(work, MAX_BLOCK, work.tasks, dots, MAX_SHARES, [&](const std::vector<Segment>& segments, const Account& account) {
        run_best({&work, direction_is_wide, &segments, &account});
    });
}

}  // namespace cats
