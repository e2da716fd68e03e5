// How the CPU kernels divide their work. Results have the same bits for every number of threads.
//
// Every parameter is cut into blocks that fit into a core's cache. A block belongs to one parameter. Neighbouring blocks
// form shares; their number depends on the sizes alone. Each share has its own partial sums in double, to which it adds the
// sums of its blocks in order. At the end the partial sums are added in order. Each thread takes the next share as soon as it
// is free.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

namespace cats {

enum class Type : int { float32, bfloat16, float16, float64 };  // numbered as in TYPES of cats/ops/layout.py

// What an operator works on: dense parameters, all with the same combination of types.
struct Work {
    const int64_t* addresses;     // per parameter: K gradients (0 for None), then the other tensors
    std::vector<int64_t> numels;  // per parameter
    std::vector<int64_t> groups;  // per parameter
    int64_t tasks;                // K
    int64_t others;               // number of other tensors
    Type type;                    // of the gradients
    int threads;                  // at most

    int64_t elements() const;
    const int64_t* row(size_t parameter) const { return addresses + int64_t(parameter) * (tasks + others); }
};

// Neighbouring blocks of one parameter: `count` elements that begin at `start`.
struct Segment {
    size_t parameter;
    int64_t start, count;
};

// The gradients of a parameter that are not None.
struct Present {
    std::vector<int64_t> tasks;
    std::vector<const char*> data;
    explicit Present(int64_t tasks_, const int64_t* row);
    Present() = default;
};

// Calls `body(segments, account)` for every share, and adds the partial sums of all shares to `totals`, (groups, size) double.
// account(group) points to the share's partial sums for a group.
//   block: elements per block. size: sums per group, 0 for none. max_shares: the largest number of shares.
typedef std::function<double*(int64_t group)> Account;
void share_out(const Work& work, int64_t block, int64_t size, double* totals, int64_t max_shares,
               const std::function<void(const std::vector<Segment>&, const Account&)>& body);

// Runs task(0) ... task(count - 1) on at most `threads` threads: torch's own if use_openmp() has found them.
void parallel(int64_t count, int threads, const std::function<void(int64_t)>& task);

// `library`: the file of the OpenMP runtime that torch has loaded. Returns whether it can be used.
bool use_openmp(const char* library);

}  // namespace cats
