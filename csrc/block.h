// What the operators do with a block: up to about a thousand elements of each gradient, in a core's cache.
#pragma once

#include <algorithm>
#include <cmath>
#include <type_traits>
#include <vector>

#include "vector.h"
#include "work.h"

namespace cats {

constexpr int64_t MAX_BLOCK = 1024;      // elements
constexpr int64_t CHAIN = 24 * 16;       // elements per float32 sum: 24 terms per lane, an error of at most 1.6e-6
constexpr int64_t CACHE = 256 << 10;     // bytes of a block: it and the next block fit into a second-level cache of 512 KiB
constexpr double SMALLEST = 0x1p-80;     // a block's sum of squares below this may have lost terms below 2^-126
constexpr double SMALLEST_DOT = 0x1p-100;  // the same for a dot product

static inline size_t element_size(Type type) { return type == Type::float64 ? 8 : type == Type::float32 ? 4 : 2; }

// Elements per block of K gradients.
static inline int64_t block_length(int64_t tasks, size_t element) {
    const int64_t length = CACHE / int64_t(element) / std::max<int64_t>(1, tasks) / 64 * 64;
    return std::min(std::max<int64_t>(length, 64), MAX_BLOCK);
}

// The size of a parameter's next block when `rest` elements are left: a multiple of LANES, or less than LANES.
static inline int64_t block_count(int64_t block, int64_t rest) {
    return rest < LANES ? rest : std::min(block, rest / LANES * LANES);
}
static inline int64_t whole_vectors(int64_t count) { return (count + LANES - 1) / LANES * LANES; }

// One block of the gradients that are not None.
template <class T> struct Rows {
    std::vector<const T*> at;
    std::vector<T> padded;

    // A block shorter than a vector is copied into a buffer and padded with zeros.
    void move(const Present& present, int64_t start, int64_t count) {
        const size_t tasks = present.data.size();
        at.resize(tasks);
        for (size_t n = 0; n < tasks; n++) at[n] = reinterpret_cast<const T*>(present.data[n]) + start;
        if (count >= LANES) return;
        padded.assign(tasks * LANES, T());
        for (size_t n = 0; n < tasks; n++) {
            std::memcpy(&padded[n * LANES], at[n], size_t(count) * sizeof(T));
            at[n] = &padded[n * LANES];
        }
    }
};

// `count` numbers of type S converted to type C, as whole vectors: the memory itself if S is C and no padding is needed,
// else `buffer`, padded with zeros.
template <class S, class C> CATS_INLINE const C* widen(C* buffer, const S* source, int64_t count) {
    if constexpr (std::is_same<S, C>::value)
        if (count >= LANES) return source;
    S padded[LANES] = {};
    if (count < LANES) source = static_cast<S*>(std::memcpy(padded, source, size_t(count) * sizeof(S)));
    for (int64_t i = 0; i < count; i += LANES) store(buffer + i, load(source + i));
    return buffer;
}

// The first `count` elements of c, rounded to T: c itself if it has this type, else in `buffer`.
template <class T, class C> CATS_INLINE const T* rounded(const C* c, T* buffer, int64_t count) {
    for (int64_t i = 0; i < count; i += LANES) store(buffer + i, load(c + i));
    return buffer;
}
template <class T> CATS_INLINE const T* rounded(const T* c, T*, int64_t) { return c; }

template <class T, class C> CATS_INLINE void write(T* out, const C* c, int64_t count) {
    T buffer[MAX_BLOCK];
    const T* result = rounded<T>(c, buffer, count);
    std::memcpy(out, result, size_t(count) * sizeof(T));
}

// Prefetches the next data into the second-level cache while the processor computes.
CATS_INLINE void fetch(const void* address) { __builtin_prefetch(address, 0, 2); }

template <class T> constexpr int64_t LINE = 64 / int64_t(sizeof(T));  // elements

template <class T, class C, int ROWS, bool FIRST>
CATS_INLINE void add_rows(C* c, const T* const* g, const C* w, int64_t count, int64_t next) {
    typedef typename Arithmetic<T>::Lanes V;
    for (int64_t i = 0; i < count; i += LANES) {
        V sum = load(g[0] + i) * w[0];
        if (!FIRST) sum = load(c + i) + load(g[0] + i) * w[0];
        for (int n = 1; n < ROWS; n++) sum += load(g[n] + i) * w[n];
        store(c + i, sum);
        if (next && i % (2 * LINE<T>) == 0)
            for (int n = 0; n < ROWS; n++) fetch(g[n] + next + i / 2);
    }
}

// c = sum_n w_n g_n for `count` elements (whole vectors), with one rounding per term. Prefetches the first half of the
// block that begins `next` elements later, unless next is 0.
template <class T, class C>
CATS_INLINE void weighted_sum(C* c, const T* const* g, const C* w, int64_t tasks, int64_t count, int64_t next) {
    int64_t n = std::min<int64_t>(tasks, 8);
    switch (n) {  // eight rows at a time, so c is read and written once per eight rows
        case 1: add_rows<T, C, 1, true>(c, g, w, count, next); break;
        case 2: add_rows<T, C, 2, true>(c, g, w, count, next); break;
        case 3: add_rows<T, C, 3, true>(c, g, w, count, next); break;
        case 4: add_rows<T, C, 4, true>(c, g, w, count, next); break;
        case 5: add_rows<T, C, 5, true>(c, g, w, count, next); break;
        case 6: add_rows<T, C, 6, true>(c, g, w, count, next); break;
        case 7: add_rows<T, C, 7, true>(c, g, w, count, next); break;
        default: add_rows<T, C, 8, true>(c, g, w, count, next);
    }
    for (; n + 8 <= tasks; n += 8) add_rows<T, C, 8, false>(c, g + n, w + n, count, next);
    for (; n < tasks; n++) add_rows<T, C, 1, false>(c, g + n, w + n, count, next);
}

// <g, c> and <g, g> where float32 is not enough because squares overflow or vanish.
template <class T, class C>
__attribute__((noinline)) void products_in_double(const T* g, const C* c, int64_t count, double* dot, double* square) {
    *dot = *square = 0;
    for (int64_t i = 0; i < count; i += LANES) {
        C row[LANES];
        store(row, load(g + i));
        for (int64_t j = 0; j < LANES; j++) {
            *dot += double(row[j]) * double(c[i + j]);
            *square += double(row[j]) * double(row[j]);
        }
    }
}

// Whether all of `count` elements (whole vectors) are 0 or -0, as in embedding rows that are in no task's batch.
template <class T> static inline bool all_zero(const T* g, int64_t count) {
    constexpr uint64_t DIGITS = sizeof(T) == 2   ? 0x7fff7fff7fff7fff
                                : sizeof(T) == 4 ? 0x7fffffff7fffffff
                                                 : 0x7fffffffffffffff;
    uint64_t seen = 0;
    for (size_t i = 0; i < size_t(count) * sizeof(T); i += sizeof seen) {
        uint64_t word;
        std::memcpy(&word, reinterpret_cast<const char*>(g) + i, sizeof word);
        seen |= word & DIGITS;
    }
    return seen == 0;
}

// Computes again the sums that float32 could not hold. Without `square`, only the dot product.
template <class T, class C> CATS_INLINE void check_products(const T* g, const C* c, int64_t count, double* dot, double* square) {
    if (sizeof(C) == sizeof(double)) return;
    const bool finite = std::isfinite(*dot) && (!square || std::isfinite(*square));
    const bool large = std::fabs(*dot) >= SMALLEST_DOT && (!square || *square >= SMALLEST);
    if (finite && (large || (*dot == 0 && all_zero(g, count)))) return;
    if (finite && *dot == 0 && (!square || *square >= SMALLEST) && all_zero(c, count)) return;
    double ignored;
    typedef typename Arithmetic<T>::Portable P;
    products_in_double(reinterpret_cast<const P*>(g), c, count, dot, square ? square : &ignored);
}

// <g_n, c>, and <g_n, g_n> if NORM. Several rows are processed together, so c is loaded once for all of them. Prefetches
// the second half of the block that begins `next` elements later, unless next is 0.
template <class T, class C, int ROWS, bool NORM>
CATS_INLINE void products(const T* const* g, const C* c, int64_t count, int64_t next, double* dots, double* squares) {
    typedef typename Arithmetic<T>::Lanes V;
    for (int n = 0; n < ROWS; n++) {
        dots[n] = 0;
        if (NORM) squares[n] = 0;
    }
    for (int64_t start = 0; start < count; start += CHAIN) {
        const int64_t end = std::min(count, start + CHAIN);
        V d[ROWS] = {}, q[ROWS] = {};
        for (int64_t i = start; i < end; i += LANES) {
            const V with = load(c + i);
            for (int n = 0; n < ROWS; n++) {
                const V row = load(g[n] + i);
                d[n] += row * with;
                if (NORM) q[n] += row * row;
            }
            if (next && i % (2 * LINE<T>) == 0)
                for (int n = 0; n < ROWS; n++) fetch(g[n] + next + (count + i) / 2);
        }
        for (int n = 0; n < ROWS; n++) {
            dots[n] += sum(d[n]);
            if (NORM) squares[n] += sum(q[n]);
        }
    }
    for (int n = 0; n < ROWS; n++) check_products(g[n], c, count, dots + n, NORM ? squares + n : nullptr);
}

template <class T, class C, bool NORM>
CATS_INLINE void all_products(const T* const* g, const C* c, int64_t tasks, int64_t count, int64_t next, double* dots, double* squares) {
    int64_t n = 0;
    for (; n + 4 <= tasks; n += 4) products<T, C, 4, NORM>(g + n, c, count, next, dots + n, NORM ? squares + n : nullptr);
    for (; n < tasks; n++) products<T, C, 1, NORM>(g + n, c, count, next, dots + n, NORM ? squares + n : nullptr);
}

// c, <g_n, c> and <g_n, g_n> for K rows, few enough that all sums fit into registers. Every number is loaded once.
template <class T, class C, int K>
CATS_INLINE void combine_products(C* c, const T* const* g, const C* w, int64_t count, double* dots, double* squares) {
    typedef typename Arithmetic<T>::Lanes V;
    const T* rows[K];
    C weights[K];
    for (int n = 0; n < K; n++) rows[n] = g[n], weights[n] = w[n];
    for (int n = 0; n < K; n++) dots[n] = squares[n] = 0;
    for (int64_t start = 0; start < count; start += CHAIN) {
        const int64_t end = std::min(count, start + CHAIN);
        V d[K] = {}, q[K] = {};
        for (int64_t i = start; i < end; i += LANES) {
            V row[K];
            for (int n = 0; n < K; n++) row[n] = load(rows[n] + i);
            V sum = row[0] * weights[0];
            for (int n = 1; n < K; n++) sum += row[n] * weights[n];
            store(c + i, sum);
            for (int n = 0; n < K; n++) {
                d[n] += row[n] * sum;
                q[n] += row[n] * row[n];
            }
        }
        for (int n = 0; n < K; n++) {
            dots[n] += sum(d[n]);
            squares[n] += sum(q[n]);
        }
    }
    for (int n = 0; n < K; n++) check_products(g[n], c, count, dots + n, squares + n);
}

}  // namespace cats

// Defines `void NAME(const JOB& job)`, which calls the inlined template function RUN<instructions, T>(job) in the best
// version. T is the type of the gradients of job.work.
#define CATS_DISPATCH_TYPES(NAME, RUN, JOB)                                               \
    template <::cats::Instructions I> CATS_INLINE void NAME##_for_types(const JOB& job) { \
        switch (job.work->type) {                                                         \
            case ::cats::Type::float32: return RUN<I, float>(job);                        \
            case ::cats::Type::bfloat16: return RUN<I, ::cats::BFloat16<I>>(job);         \
            case ::cats::Type::float16: return RUN<I, ::cats::Half<I>>(job);              \
            case ::cats::Type::float64: return RUN<I, double>(job);                       \
        }                                                                                 \
    }                                                                                     \
    CATS_DISPATCH(NAME, NAME##_for_types, const JOB&)
