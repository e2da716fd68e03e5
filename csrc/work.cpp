#include "work.h"

#include <algorithm>
#include <atomic>
#include <exception>
#include <map>
#include <mutex>
#include <system_error>
#include <thread>

#if defined(__SSE__) || defined(_M_X64)
#include <xmmintrin.h>
#endif
#if defined(__unix__) || defined(__APPLE__)
#include <dlfcn.h>
#include <unistd.h>
#endif

namespace cats {

int64_t Work::elements() const {
    int64_t total = 0;
    for (int64_t numel : numels) total += numel;
    return total;
}

Present::Present(int64_t count, const int64_t* row) {
    for (int64_t n = 0; n < count; n++)
        if (row[n] != 0) {
            tasks.push_back(n);
            data.push_back(reinterpret_cast<const char*>(row[n]));
        }
}

void share_out(const Work& work, int64_t block, int64_t size, double* totals, int64_t max_shares,
               const std::function<void(const std::vector<Segment>&, const Account&)>& body) {
    // A block belongs to the share that contains its first element. Elements are counted over all parameters.
    const int64_t elements = work.elements();
    const int64_t length = block * std::max<int64_t>(8, elements / block / max_shares + 1);
    std::vector<std::vector<Segment>> shares(size_t(elements / length + 1));
    int64_t offset = 0;
    for (size_t i = 0; i < work.numels.size(); i++) {
        const int64_t numel = work.numels[i];
        for (int64_t start = 0; start < numel;) {
            const int64_t share = (offset + start) / length;
            const int64_t blocks = ((share + 1) * length - offset - start + block - 1) / block;
            const int64_t end = std::min(numel, start + blocks * block);
            shares[size_t(share)].push_back({i, start, end - start});
            start = end;
        }
        offset += numel;
    }
    std::vector<std::map<int64_t, std::vector<double>>> accounts(shares.size());
    parallel(int64_t(shares.size()), elements < (1 << 16) ? 1 : work.threads, [&](int64_t s) {
        auto& mine = accounts[size_t(s)];
        body(shares[size_t(s)], [&mine, size](int64_t group) {
            std::vector<double>& sums = mine[group];
            sums.resize(size_t(size), 0.0);
            return sums.data();
        });
    });
    for (const auto& mine : accounts)
        for (const auto& [group, sums] : mine)
            for (int64_t j = 0; j < size; j++) totals[group * size + j] += sums[size_t(j)];
}

namespace {

typedef void (*GompParallel)(void (*)(void*), void*, unsigned, unsigned);
GompParallel gomp_parallel = nullptr;

// How this thread rounds, and whether it takes denormal numbers for 0 (torch.set_flush_denormal), which each thread has for
// itself.
#if defined(__SSE__) || defined(_M_X64)
typedef unsigned FloatMode;
FloatMode float_mode() { return _mm_getcsr(); }
void set_float_mode(FloatMode mode) { _mm_setcsr(mode); }
#elif defined(__aarch64__) && defined(__GNUC__)
typedef uint64_t FloatMode;
FloatMode float_mode() {
    FloatMode mode;
    asm volatile("mrs %0, fpcr" : "=r"(mode));
    return mode;
}
void set_float_mode(FloatMode mode) { asm volatile("msr fpcr, %0" : : "r"(mode)); }
#else
typedef int FloatMode;
FloatMode float_mode() { return 0; }
void set_float_mode(FloatMode) {}
#endif

struct Job {
    const std::function<void(int64_t)>* task;
    int64_t count;
    FloatMode mode = float_mode();  // of the caller: the shares have the same bits in all threads
    std::atomic<int64_t> next{0};
    std::exception_ptr error;
    std::mutex guard;

    void work() {
        const FloatMode own = float_mode();
        set_float_mode(mode);
        try {
            for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < count;) (*task)(i);
        } catch (...) {
            std::lock_guard<std::mutex> lock(guard);
            error = std::current_exception();
            next = count;
        }
        set_float_mode(own);
    }
};

}  // namespace

#if defined(__unix__) || defined(__APPLE__)
// A forked child has none of its parent's threads, and an OpenMP runtime would wait for them forever.
static const pid_t loaded_in = getpid();
static bool forked() { return getpid() != loaded_in; }

bool use_openmp(const char* library) {
    void* handle = dlopen(library, RTLD_LAZY | RTLD_NOLOAD);
    gomp_parallel = handle ? reinterpret_cast<GompParallel>(dlsym(handle, "GOMP_parallel")) : nullptr;
    return gomp_parallel != nullptr;
}
#else
static bool forked() { return false; }

bool use_openmp(const char*) { return false; }
#endif

void parallel(int64_t count, int threads, const std::function<void(int64_t)>& task) {
    Job job;
    job.task = &task;
    job.count = count;
    if (threads > count) threads = int(count);
    if (threads <= 1 || forked()) {
        job.work();
    } else if (gomp_parallel) {
        // GCC compiles `#pragma omp parallel` into a call of this function. LLVM's and Intel's runtimes have it too.
        gomp_parallel([](void* data) { static_cast<Job*>(data)->work(); }, &job, unsigned(threads), 0);
    } else {
        std::vector<std::thread> others;
        try {
            for (int t = 1; t < threads; t++) others.emplace_back([&job] { job.work(); });
        } catch (const std::system_error&) {  // no more threads are allowed: those that there are do all
        }
        job.work();
        for (std::thread& other : others) other.join();
    }
    if (job.error) std::rethrow_exception(job.error);
}

}  // namespace cats
