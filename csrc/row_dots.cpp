// row_dots on the CPU. Neighbouring rows of one task that lie one behind the other are one long row.
#include "block.h"
#include "kernels.h"

namespace cats {
namespace {

constexpr int64_t MAX_SHARES = 256;

struct Job {
    const RowDots* problem;
    int64_t begin, end;  // rows
    double* sums;        // K
};

// <x, y> where float32 is not enough because products overflow or vanish.
template <class T, class S> __attribute__((noinline)) double inner_in_double(const T* x, const S* y, int64_t count) {
    typedef typename Arithmetic<T>::Scalar C;
    double sum = 0;
    for (int64_t i = 0; i < count; i += LANES) {
        const int64_t here = std::min<int64_t>(LANES, count - i);
        T a[LANES] = {};
        S b[LANES] = {};
        C left[LANES], right[LANES];
        std::memcpy(a, x + i, size_t(here) * sizeof(T));
        std::memcpy(b, y + i, size_t(here) * sizeof(S));
        store(left, load(a));
        store(right, load(b));
        for (int64_t j = 0; j < LANES; j++) sum += double(left[j]) * double(right[j]);
    }
    return sum;
}

template <class T> static inline bool all_zero_to(const T* end, int64_t count) {
    return all_zero(end - count, count / LANES * LANES) && all_zero(end - LANES, LANES);
}

// The vector that ends at `end`, with zeros before its last `count` elements.
template <class T> CATS_INLINE typename Arithmetic<T>::Lanes load_end(const T* end, int64_t count) {
    typedef typename Arithmetic<T>::Lanes V;
    typedef decltype(V() < V()) Mask;
    const V numbers = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    const Mask wanted = numbers >= typename Arithmetic<T>::Scalar(LANES - count);
    return reinterpret<V>(reinterpret<Mask>(load(end - LANES)) & wanted);
}

// <x, y> for LANES ... MAX_BLOCK + LANES - 1 elements. A lane of an accumulator adds at most 19 products in a row.
template <class T, class S> CATS_INLINE double inner_block(const T* x, const S* y, int64_t count) {
    typedef typename Arithmetic<T>::Lanes V;
    constexpr int PARALLEL = sizeof(typename Arithmetic<T>::Scalar) == 4 ? 4 : 2;  // independent additions
    static_assert(MAX_BLOCK <= 16 * 4 * LANES, "short chains of float32");
    V d[PARALLEL] = {};
    int64_t i = 0;
    for (; i + PARALLEL * LANES <= count; i += PARALLEL * LANES)
        for (int j = 0; j < PARALLEL; j++) d[j] += load(x + i + j * LANES) * load(y + i + j * LANES);
    for (; i + LANES <= count; i += LANES) d[0] += load(x + i) * load(y + i);
    if (i < count) d[1] += load_end(x + count, count - i) * load_end(y + count, count - i);
    for (int half = PARALLEL / 2; half > 0; half /= 2)
        for (int j = 0; j < half; j++) d[j] += d[j + half];
    const double dot = sum(d[0]);
    if (sizeof(V) == sizeof(Double16Lanes)) return dot;
    if (std::isfinite(dot) && (std::fabs(dot) >= SMALLEST_DOT ||
                               (dot == 0 && (all_zero_to(x + count, count) || all_zero_to(y + count, count)))))
        return dot;
    typedef typename Arithmetic<T>::Portable P;
    typedef typename Arithmetic<S>::Portable Q;
    return inner_in_double(reinterpret_cast<const P*>(x), reinterpret_cast<const Q*>(y), count);
}

template <class T, class S> CATS_INLINE double inner(const T* x, const S* y, int64_t count) {
    if (count < LANES) {
        T left[LANES] = {};
        S right[LANES] = {};
        std::memcpy(left, x, size_t(count) * sizeof(T));
        std::memcpy(right, y, size_t(count) * sizeof(S));
        return inner_block(left, right, LANES);
    }
    double total = 0;
    int64_t i = 0;
    for (; count - i >= MAX_BLOCK + LANES; i += MAX_BLOCK) total += inner_block(x + i, y + i, MAX_BLOCK);
    return total + inner_block(x + i, y + i, count - i);
}

template <class T, class S> CATS_INLINE void run(const Job& job) {
    const RowDots& p = *job.problem;
    const T* x = static_cast<const T*>(p.x);
    const S* y = static_cast<const S*>(p.y);
    const bool joined = p.x_stride == p.width && p.y_stride == p.width;
    for (int64_t row = job.begin, next; row < job.end; row = next) {
        const int64_t task = p.owners[row];
        for (next = row + 1; next < job.end && p.owners[next] == task;) next++;
        if (task < 0) continue;
        double& sum = job.sums[task];
        if (joined) {
            sum += inner(x + row * p.width, y + row * p.width, (next - row) * p.width);
        } else {
            for (int64_t r = row; r < next; r++) sum += inner(x + r * p.x_stride, y + r * p.y_stride, p.width);
        }
    }
}

template <Instructions I> CATS_INLINE void run_any(const Job& job) {
    const bool mixed = job.problem->y_is_float;
    switch (job.problem->type) {
        case Type::float32: return run<float, float>(job);
        case Type::bfloat16: return mixed ? run<BFloat16<I>, float>(job) : run<BFloat16<I>, BFloat16<I>>(job);
        case Type::float16: return mixed ? run<Half<I>, float>(job) : run<Half<I>, Half<I>>(job);
        case Type::float64: return run<double, double>(job);
    }
}
CATS_DISPATCH(run_best, run_any, const Job&)

}  // namespace

int64_t first_outside(const int64_t* owners, int64_t count, int64_t tasks) {
    for (int64_t r = 0; r < count; r++)
        if (uint64_t(owners[r]) + 1 > uint64_t(tasks)) return r;
    return -1;
}

void row_dots(const RowDots& p, double* dots) {
    // The rows of a share depend on sizes alone, so the order of the sums does.
    const int64_t length = std::max(8 * MAX_BLOCK / p.width + 1, p.count / MAX_SHARES + 1);
    const int64_t shares = (p.count + length - 1) / length;
    std::vector<double> sums(size_t(shares * p.tasks), 0.0);
    parallel(shares, p.count * p.width < (1 << 16) ? 1 : p.threads, [&](int64_t share) {
        run_best({&p, share * length, std::min(p.count, (share + 1) * length), &sums[size_t(share * p.tasks)]});
    });
    for (int64_t share = 0; share < shares; share++)
        for (int64_t n = 0; n < p.tasks; n++) dots[n] += sums[size_t(share * p.tasks + n)];
}

}  // namespace cats
