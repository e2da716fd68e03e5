// graddrop on the CPU: one read of the gradients, one write of the result.
//
// For a block of elements, the gradients above zero and those below are added apart, each with and without their leak, into
// sums in the first-level cache. Then the random numbers of the block are computed, and choose one of the two sums.
#include "block.h"
#include "kernels.h"

namespace cats {
namespace {

constexpr int64_t MAX_SHARES = 256;
constexpr int64_t TOGETHER = 4;     // gradients that are added while a vector of the sums is in registers
constexpr int64_t COUNTERS = 8;     // of the random generator, in one vector
constexpr int64_t PADDING = 4 * COUNTERS + 4;  // thresholds that are computed before and after those of a block

struct Job {
    const Work* work;
    const double* leak;  // (K)
    const Draws* draws;
    int64_t block;
    const std::vector<Segment>* segments;
};

typedef uint64_t ULong8Lanes __attribute__((vector_size(64)));
typedef uint64_t ULong4Lanes __attribute__((vector_size(32)));
typedef int32_t Int16Lanes __attribute__((vector_size(64)));
typedef int64_t Long16Lanes __attribute__((vector_size(128)));

// Masks, and numbers where a mask is set, else 0. GCC turns comparisons of such vectors into loops over the lanes.
CATS_INLINE Int16Lanes below_zero(Float16Lanes v) { return reinterpret<Int16Lanes>(v) >> 31; }  // or -0
CATS_INLINE Long16Lanes below_zero(Double16Lanes v) { return reinterpret<Long16Lanes>(v) >> 63; }
CATS_INLINE Int16Lanes zero(Float16Lanes v) { return (reinterpret<Int16Lanes>(v) - 1) >> 31; }  // of numbers that are not below 0
CATS_INLINE Long16Lanes zero(Double16Lanes v) { return (reinterpret<Long16Lanes>(v) - 1) >> 63; }
CATS_INLINE Float16Lanes where(Int16Lanes mask, Float16Lanes v) { return reinterpret<Float16Lanes>(reinterpret<Int16Lanes>(v) & mask); }
CATS_INLINE Double16Lanes where(Long16Lanes mask, Double16Lanes v) { return reinterpret<Double16Lanes>(reinterpret<Long16Lanes>(v) & mask); }

// The products of the lower halves of the lanes with a number below 2^32. GCC does not find the instruction.
template <Instructions I> CATS_INLINE ULong8Lanes multiply(ULong8Lanes a, uint64_t factor) {
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
    const ULong8Lanes factors = factor + ULong8Lanes{};
    if constexpr (I == Instructions::avx512) {
        asm("vpmuludq %1, %0, %0" : "+v"(a) : "v"(factors));
        return a;
    } else if constexpr (I == Instructions::avx2) {
        ULong4Lanes low = lower_half<ULong4Lanes>(a), high = upper_half<ULong4Lanes>(a);
        asm("vpmuludq %1, %0, %0" : "+x"(low) : "x"(lower_half<ULong4Lanes>(factors)));
        asm("vpmuludq %1, %0, %0" : "+x"(high) : "x"(lower_half<ULong4Lanes>(factors)));
        ULong4Lanes both[2] = {low, high};
        std::memcpy(&a, both, sizeof a);
        return a;
    }
#endif
    return (a & 0xffffffffu) * factor;
}

// Philox4x32-10: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011. The four words of COUNTERS
// consecutive counters, each word in the lower half of a lane; the upper halves are meaningless.
template <Instructions I> CATS_INLINE void philox(uint64_t seed, uint64_t step, uint64_t counter, ULong8Lanes (&words)[4]) {
    ULong8Lanes a = counter + ULong8Lanes{0, 1, 2, 3, 4, 5, 6, 7}, b = a >> 32, c = step + ULong8Lanes{}, d = c >> 32;
    uint32_t low = uint32_t(seed), high = uint32_t(seed >> 32);
#pragma GCC unroll 10
    for (int round = 0; round < 10; round++) {
        const ULong8Lanes p = multiply<I>(a, 0xD2511F53), q = multiply<I>(c, 0xCD9E8D57);
        a = (q >> 32) ^ b ^ uint64_t(low);
        c = (p >> 32) ^ d ^ uint64_t(high);
        b = q, d = p;
        low += 0x9E3779B9, high += 0xBB67AE85;
    }
    words[0] = a, words[1] = b, words[2] = c, words[3] = d;
}

#if defined(__clang__)
#define CATS_ZIP(A, B, ...) __builtin_shufflevector(A, B, __VA_ARGS__)
#else
#define CATS_ZIP(A, B, ...) __builtin_shuffle(A, B, (ULong8Lanes){__VA_ARGS__})
#endif

// 2 U - 1 of `count` elements that begin at this position, in `buffer`. Returns the address of the first.
template <Instructions I> CATS_INLINE const float* thresholds(const Draws& draws, int64_t position, int64_t count, float* buffer) {
    const int64_t before = position % 4, first = position / 4;
    for (int64_t i = 0; i < before + count; i += 4 * COUNTERS) {
        ULong8Lanes words[4];
        philox<I>(draws.seed, draws.step, uint64_t(first + i / 4), words);
        const ULong8Lanes ab = (words[0] & 0xffffffffu) | (words[1] << 32), cd = (words[2] & 0xffffffffu) | (words[3] << 32);
        const ULong8Lanes ordered[2] = {CATS_ZIP(ab, cd, 0, 8, 1, 9, 2, 10, 3, 11), CATS_ZIP(ab, cd, 4, 12, 5, 13, 6, 14, 7, 15)};
        for (int64_t half = 0; half < 2; half++) {
            const UInt16Lanes odd = (reinterpret<UInt16Lanes>(ordered[half]) >> 8) * 2 + 1 - (1u << 24);
            store(buffer + i + half * LANES, __builtin_convertvector(reinterpret<Int16Lanes>(odd), Float16Lanes) * 0x1p-24f);
        }
    }
    return buffer + before;
}

// Sums over the tasks, of a block: of the gradients above zero and of those below, and of both multiplied by their leak.
template <class C> struct Sums {
    C up[MAX_BLOCK], down[MAX_BLOCK], leaking_up[MAX_BLOCK], leaking_down[MAX_BLOCK];
};

template <class T, class C, int ROWS, bool FIRST, bool LEAKS>
CATS_INLINE void add_rows(Sums<C>& sums, const T* const* g, const C* leak, int64_t count, int64_t next) {
    typedef typename Arithmetic<T>::Lanes V;
    for (int64_t i = 0; i < count; i += LANES) {
        V up = {}, down = {}, leaking_up = {}, leaking_down = {};
        if (!FIRST) up = load(sums.up + i), down = load(sums.down + i);
        if (!FIRST && LEAKS) leaking_up = load(sums.leaking_up + i), leaking_down = load(sums.leaking_down + i);
        for (int n = 0; n < ROWS; n++) {
            const V row = load(g[n] + i);
            const auto below = below_zero(row);
            const V positive = where(~below, row), negative = where(below, row);  // NaN gets into one of them
            up += positive;
            down += negative;
            if (LEAKS) leaking_up += positive * leak[n], leaking_down += negative * leak[n];
            if (next && i % LINE<T> == 0) fetch(g[n] + next + i);
        }
        store(sums.up + i, up);
        store(sums.down + i, down);
        if (LEAKS) store(sums.leaking_up + i, leaking_up), store(sums.leaking_down + i, leaking_down);
    }
}

template <class T, class C, bool LEAKS>
CATS_INLINE void add_all(Sums<C>& sums, const T* const* g, const C* leak, int64_t tasks, int64_t count, int64_t next) {
    int64_t n = std::min(tasks, TOGETHER);
    switch (n) {
        case 1: add_rows<T, C, 1, true, LEAKS>(sums, g, leak, count, next); break;
        case 2: add_rows<T, C, 2, true, LEAKS>(sums, g, leak, count, next); break;
        case 3: add_rows<T, C, 3, true, LEAKS>(sums, g, leak, count, next); break;
        default: add_rows<T, C, 4, true, LEAKS>(sums, g, leak, count, next);
    }
    for (; n + TOGETHER <= tasks; n += TOGETHER) add_rows<T, C, TOGETHER, false, LEAKS>(sums, g + n, leak + n, count, next);
    for (; n < tasks; n++) add_rows<T, C, 1, false, LEAKS>(sums, g + n, leak + n, count, next);
}

template <class V, class C, bool LEAKS> CATS_INLINE void choose(const Sums<C>& sums, const float* threshold, C* result, int64_t count) {
    for (int64_t i = 0; i < count; i += LANES) {
        const V up = load(sums.up + i), down = load(sums.down + i);
        const V sum = up + down, size = up - down, at = __builtin_convertvector(load(threshold + i), V);
        V if_up = up, if_down = down;
        if (LEAKS) if_up += load(sums.leaking_down + i), if_down += load(sums.leaking_up + i);
        // The second mask is for subnormal numbers: at * size may be rounded to size.
        const auto positive = below_zero(at * size - sum) | zero(size - sum);
        const V chosen = where(positive, if_up) + where(~positive, if_down);
        store(result + i, chosen + (size - size));  // NaN if a gradient, or the sum of their sizes, is not finite
    }
}

template <Instructions I, class T> CATS_INLINE void run(const Job& job) {
    typedef typename Arithmetic<T>::Scalar C;
    typedef typename Arithmetic<T>::Lanes V;
    const Work& work = *job.work;
    Sums<C> sums;
    C buffer[MAX_BLOCK];
    float numbers[MAX_BLOCK + PADDING];
    std::vector<C> leak;
    Rows<T> rows;
    for (const Segment& segment : *job.segments) {
        const int64_t* addresses = work.row(segment.parameter);
        const Present present(work.tasks, addresses);
        const int64_t tasks = int64_t(present.tasks.size());
        leak.clear();
        for (int64_t n : present.tasks) leak.push_back(C(job.leak[n]));
        const bool leaks = std::any_of(leak.begin(), leak.end(), [](C each) { return each != 0; });
        T* out = reinterpret_cast<T*>(addresses[work.tasks]);
        int64_t count;
        for (int64_t done = 0; done < segment.count; done += count) {
            count = block_count(job.block, segment.count - done);
            const int64_t start = segment.start + done, padded = whole_vectors(count), next = count < LANES ? 0 : job.block;
            rows.move(present, start, count);
            const int64_t position = job.draws->positions[segment.parameter] + start;
            const float* threshold = thresholds<I>(*job.draws, position, padded, numbers);
            C* result = buffer;
            if constexpr (std::is_same<T, C>::value)  // whole vectors are written directly to the result
                if (count >= LANES) result = out + start;
            if (leaks) {
                add_all<T, C, true>(sums, rows.at.data(), leak.data(), tasks, padded, next);
                choose<V, C, true>(sums, threshold, result, padded);
            } else {
                add_all<T, C, false>(sums, rows.at.data(), leak.data(), tasks, padded, next);
                choose<V, C, false>(sums, threshold, result, padded);
            }
            if (result == buffer) write(out + start, result, count);
        }
    }
}

CATS_DISPATCH_TYPES(run_best, run, Job)

}  // namespace

void graddrop(const Work& work, const double* leak, const Draws& draws) {
    const int64_t block = block_length(work.tasks, element_size(work.type));
    share_out(work, block, 0, nullptr, MAX_SHARES, [&](const std::vector<Segment>& segments, const Account&) {
        run_best({&work, leak, &draws, block, &segments});
    });
}

}  // namespace cats
