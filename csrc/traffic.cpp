// Measures the memory's speed: no kernel that moves this many bytes can be faster.
#include <algorithm>
#include <atomic>

#include "kernels.h"
#include "vector.h"

namespace cats {
namespace {

constexpr int64_t PIECE = 1 << 16;  // bytes

struct Job {
    const char* source;
    int64_t source_bytes;
    char* target;
    int64_t target_bytes;
    bool in_place;
    uint64_t seen;
};

template <Instructions> CATS_INLINE void run(Job& job) {
    UInt16Lanes seen[4] = {};
    const int64_t step = int64_t(sizeof seen);
    for (int64_t i = 0; i + step <= job.source_bytes; i += step)
        for (int j = 0; j < 4; j++) {
            UInt16Lanes v;
            std::memcpy(&v, job.source + i + j * int64_t(sizeof v), sizeof v);
            seen[j] |= v;
        }
    seen[0] |= seen[1] | seen[2] | seen[3];
    const int64_t vector = int64_t(sizeof(UInt16Lanes));
    for (int64_t i = 0; i + vector <= job.target_bytes; i += vector) {
        UInt16Lanes v = {};
        if (job.in_place) std::memcpy(&v, job.target + i, sizeof v);
        v ^= seen[0];
        std::memcpy(job.target + i, &v, sizeof v);
    }
    job.seen = seen[0][0] | seen[0][LANES - 1];
}
CATS_DISPATCH(run_best, run, Job&)

}  // namespace

uint64_t traffic(const char* source, int64_t source_bytes, char* target, int64_t target_bytes, bool in_place, int threads) {
    // Reads and writes alternate in small pieces, as in a kernel.
    const int64_t pieces = std::max<int64_t>(1, std::max(source_bytes, target_bytes) / PIECE);
    std::atomic<uint64_t> seen{0};
    parallel(pieces, threads, [&](int64_t i) {
        const int64_t from = source_bytes * i / pieces, to = target_bytes * i / pieces;
        Job job = {source + from, source_bytes * (i + 1) / pieces - from, target + to, target_bytes * (i + 1) / pieces - to, in_place, 0};
        run_best(job);
        seen |= job.seen;
    });
    return seen;
}

}  // namespace cats
