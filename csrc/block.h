// What the operators do with a block: up to some thousand elements of each gradient, in a core's cache.
#pragma once

#include <algorithm>
#include <cmath>

#include "vector.h"

namespace cats {

constexpr int64_t MAX_BLOCK = 1024;      // elements; a lane of a sum then has at most 16 terms
constexpr int64_t CACHE = 128 << 10;     // bytes of a block: half of the second-level cache of small processors
constexpr double SMALLEST = 0x1p-80;     // a block's sum of squares below this may have lost terms below 2^-126
constexpr double SMALLEST_DOT = 0x1p-100;

// Elements per block of K gradients.
static inline int64_t block_length(int64_t tasks, size_t element) {
    const int64_t length = CACHE / int64_t(element) / std::max<int64_t>(1, tasks) / 64 * 64;
    return std::min(std::max<int64_t>(length, 64), MAX_BLOCK);
}

template <class T, class C, int ROWS, bool FIRST>
CATS_INLINE void add_rows(C* c, const T* const* g, const C* w, int64_t count) {
    typedef typename Arithmetic<T>::Lanes V;
    for (int64_t i = 0; i < count; i += LANES) {
        V sum = load(g[0] + i, count - i) * w[0];
        if (!FIRST) sum = load(c + i) + load(g[0] + i, count - i) * w[0];
        for (int n = 1; n < ROWS; n++) sum += load(g[n] + i, count - i) * w[n];
        store(c + i, sum);
    }
}

// c = sum_n w_n g_n, one rounding per term; c is as long as `count` rounded up to LANES, its rest becomes 0 * w.
template <class T, class C> CATS_INLINE void weighted_sum(C* c, const T* const* g, const C* w, int64_t tasks, int64_t count) {
    int64_t n = std::min<int64_t>(tasks, 4);
    switch (n) {  // four rows at a time: c is read and written once for four
        case 1: add_rows<T, C, 1, true>(c, g, w, count); break;
        case 2: add_rows<T, C, 2, true>(c, g, w, count); break;
        case 3: add_rows<T, C, 3, true>(c, g, w, count); break;
        default: add_rows<T, C, 4, true>(c, g, w, count);
    }
    for (; n + 4 <= tasks; n += 4) add_rows<T, C, 4, false>(c, g + n, w + n, count);
    for (; n < tasks; n++) add_rows<T, C, 1, false>(c, g + n, w + n, count);
}

// <g, c> and <g, g> where float32 does not suffice: squares that overflow or vanish.
template <class T, class C>
__attribute__((noinline)) void products_in_double(const T* g, const C* c, int64_t count, double* dot, double* square) {
    *dot = *square = 0;
    for (int64_t i = 0; i < count; i += LANES) {
        C row[LANES];
        const int64_t rest = std::min<int64_t>(LANES, count - i);
        store(row, load(g + i, rest));
        for (int64_t j = 0; j < rest; j++) {
            *dot += double(row[j]) * double(c[i + j]);
            *square += double(row[j]) * double(row[j]);
        }
    }
}

// <g, c>, and <g, g> if NORM, of a block; `next` is where g goes on, to be fetched in the meantime.
template <class T, class C, bool NORM>
CATS_INLINE void products(const T* g, const C* c, int64_t count, const T* next, double* dot, double* square) {
    typedef typename Arithmetic<T>::Lanes V;
    V d[4] = {}, q[4] = {};
    int64_t i = 0;
    for (; i + 4 * LANES <= count; i += 4 * LANES) {
        for (size_t line = 0; line < 4 * LANES * sizeof(T); line += 64)
            __builtin_prefetch(reinterpret_cast<const char*>(next + i) + line, 0, 2);
        for (int j = 0; j < 4; j++) {
            const V row = load(g + i + j * LANES);
            d[j] += row * load(c + i + j * LANES);
            if (NORM) q[j] += row * row;
        }
    }
    for (; i < count; i += LANES) {
        const V row = load(g + i, count - i);
        d[0] += row * load(c + i, count - i);
        if (NORM) q[0] += row * row;
    }
    *dot = sum((d[0] + d[1]) + (d[2] + d[3]));
    if (NORM) *square = sum((q[0] + q[1]) + (q[2] + q[3]));
    if (sizeof(C) < sizeof(double)) {
        const bool sound = NORM ? *square >= SMALLEST && std::isfinite(*square) && std::isfinite(*dot)
                                : std::fabs(*dot) >= SMALLEST_DOT && std::isfinite(*dot);
        if (!sound) {
            double ignored;
            products_in_double(g, c, count, dot, NORM ? square : &ignored);
        }
    }
}

}  // namespace cats
