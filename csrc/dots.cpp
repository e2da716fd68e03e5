// dots on the CPU: a block of the direction stays in the first-level cache while the gradients are read.
#include "block.h"
#include "kernels.h"

namespace cats {
namespace {

constexpr int64_t MAX_SHARES = 256;

struct Job {
    const Work* work;
    bool direction_is_wide;  // the direction has the type of the arithmetic, otherwise that of the gradients
    const std::vector<Segment>* segments;
    const Account* account;  // per group: K dots
};

template <Instructions, class T> CATS_INLINE void run(const Job& job) {
    typedef typename Arithmetic<T>::Scalar C;
    const Work& work = *job.work;
    C buffer[MAX_BLOCK];
    Rows<T> rows;
    std::vector<double> found;
    for (const Segment& segment : *job.segments) {
        const int64_t* addresses = work.row(segment.parameter);
        const Present present(work.tasks, addresses);
        double* sums = (*job.account)(work.groups[segment.parameter]);
        found.resize(present.tasks.size());
        int64_t count;
        for (int64_t done = 0; done < segment.count; done += count) {
            count = block_count(MAX_BLOCK, segment.count - done);
            const int64_t start = segment.start + done;
            rows.move(present, start, count);
            const int64_t direction = addresses[work.tasks];
            const C* c = job.direction_is_wide ? widen(buffer, reinterpret_cast<const C*>(direction) + start, count)
                                               : widen(buffer, reinterpret_cast<const T*>(direction) + start, count);
            all_products<T, C, false>(rows.at.data(), c, int64_t(found.size()), whole_vectors(count), 0, found.data(), nullptr);
            for (size_t n = 0; n < found.size(); n++) sums[present.tasks[n]] += found[n];
        }
    }
}

CATS_DISPATCH_TYPES(run_best, run, Job)

}  // namespace

void dots(const Work& work, bool direction_is_wide, double* dots) {
    share_out(work, MAX_BLOCK, work.tasks, dots, MAX_SHARES, [&](const std::vector<Segment>& segments, const Account& account) {
        run_best({&work, direction_is_wide, &segments, &account});
    });
}

}  // namespace cats
