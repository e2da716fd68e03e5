// How the CPU kernels divide their work, so that results have the same bits for every number of threads.
//
// Every parameter is cut into blocks that fit into a core's cache; blocks never cross parameters. Neighbouring blocks
// form shares, a number of them that depends on the sizes alone. A share adds the sums of its blocks, in order and in
// double, into an account of its own; at the end the accounts are added in order. Threads take shares as they come.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

namespace cats {

enum class Type : int { float32, bfloat16, float16, float64 };  // in the order of cats.native.TYPES

// What an operator works on: parameters as flat memory, all of one combination of types.
struct Work {
    const int64_t* addresses;     // per parameter: K gradients (0: none), then the other tensors
    std::vector<int64_t> numels;  // per parameter
    std::vector<int64_t> groups;  // per parameter
    int64_t tasks;                // K
    int64_t others;               // how many other tensors
    Type type;                    // of the gradients
    int threads;                  // at most

    int64_t elements() const;
    const int64_t* row(size_t parameter) const { return addresses + int64_t(parameter) * (tasks + others); }
};

// Neighbouring blocks of one parameter: `count` elements from `start` on.
struct Segment {
    size_t parameter;
    int64_t start, count;
};

// The gradients of a parameter that are there.
struct Present {
    std::vector<int64_t> tasks;
    std::vector<const char*> data;
    explicit Present(int64_t tasks_, const int64_t* row);
    Present() = default;
};

// Calls `body(a share's segments, account)` for every share, where account(group) are the share's sums of a group, and
// adds all accounts into `totals`, (groups, size) double.
//   block: elements per block. size: sums per group; 0 if there are none. max_shares: at most so many shares.
typedef std::function<double*(int64_t group)> Account;
void share_out(const Work& work, int64_t block, int64_t size, double* totals, int64_t max_shares,
               const std::function<void(const std::vector<Segment>&, const Account&)>& body);

// Runs task(0) ... task(count - 1) on at most `threads` threads: those of torch if use_openmp() was told where they are.
void parallel(int64_t count, int threads, const std::function<void(int64_t)>& task);

// `library`: the file of the OpenMP runtime that torch has loaded. Returns whether it can be used.
bool use_openmp(const char* library);

}  // namespace cats
