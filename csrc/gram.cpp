// gram on the CPU: all inner products of K gradients in one pass.
//
// A block of the K rows is in the second-level cache. Tiles of 4 x 4 inner products (2 x 2 with few registers) read it
// from there, so every loaded number is used four times, and prefetch the next block. Only the tiles on and above the
// diagonal are computed; the lower triangle is a copy.
#include "block.h"
#include "kernels.h"

namespace cats {
namespace {

struct Job {
    const Work* work;
    int64_t block;
    const std::vector<Segment>* segments;
    const Account* account;  // per group: (K, K), the upper triangle
};

// part[a][b] = <rows[a], columns[b]>; count is a multiple of LANES. Prefetches the same number of elements of each of
// ahead[0] ... ahead[fetched - 1].
template <class C, int SIDE, class T>
CATS_INLINE void tile(const C* const* rows, const C* const* columns, int64_t count, const T* const* ahead, int64_t fetched, double* part) {
    typedef typename Arithmetic<C>::Lanes V;
    for (int n = 0; n < SIDE * SIDE; n++) part[n] = 0;
    for (int64_t start = 0; start < count; start += CHAIN) {
        const int64_t end = std::min(count, start + CHAIN);
        V total[SIDE * SIDE] = {};
        for (int64_t i = start; i < end; i += LANES) {
            for (int64_t n = 0; n < fetched; n++)
                for (int64_t line = 0; line < LANES; line += LINE<T>) fetch(ahead[n] + i + line);
            V right[SIDE];
            for (int b = 0; b < SIDE; b++) right[b] = load(columns[b] + i);
            for (int a = 0; a < SIDE; a++) {
                const V left = load(rows[a] + i);
                for (int b = 0; b < SIDE; b++) total[a * SIDE + b] += left * right[b];
            }
        }
        if constexpr (SIDE * SIDE == LANES && sizeof(C) == 4) {
            Double16Lanes found;
            std::memcpy(&found, part, sizeof found);
            found += __builtin_convertvector(sums(total), Double16Lanes);
            std::memcpy(part, &found, sizeof found);
        } else {
            for (int n = 0; n < SIDE * SIDE; n++) part[n] += sum(total[n]);
        }
    }
}

// The inner products of the gradients of a segment, in tiles on and above the diagonal.
template <class T, class C, int SIDE> class Tiles {
    static constexpr int AREA = SIDE * SIDE;
    struct Tile {
        int64_t a, b;        // of the upper left corner
        int64_t from, to;    // the rows that are prefetched with it
        double total[AREA];  // sums over the blocks so far
    };
    int64_t tasks = 0;
    std::vector<Tile> tiles;  // the diagonal first: its squares show whether float32 can hold the block's products
    std::vector<const C*> rows;
    std::vector<const T*> ahead;
    std::vector<C> space;         // the rows converted to type C, if they have another type
    std::vector<double> squares;  // the diagonal of the block's Gram matrix

    inline __attribute__((always_inline)) void place(const std::vector<const T*>& at, int64_t count) {
        if constexpr (std::is_same<T, C>::value) {
            std::copy(at.begin(), at.end(), rows.begin());
        } else {
            for (size_t n = 0; n < at.size(); n++) rows[n] = widen(&space[n * size_t(MAX_BLOCK)], at[n], count);
        }
        // Tiles that reach beyond the last row use the last row again.
        for (size_t n = at.size(); n < rows.size(); n++) rows[n] = rows[at.size() - 1];
    }

    void add_in_double(int64_t count) {
        for (Tile& t : tiles)
            for (int64_t i = 0; i < AREA; i++) {
                double value, ignored;
                products_in_double(rows[size_t(t.a + i / SIDE)], rows[size_t(t.b + i % SIDE)], count, &value, &ignored);
                t.total[i] += value;
            }
    }

public:
    void start(int64_t count) {
        if (count != tasks) {
            tasks = count;
            tiles.clear();
            for (int64_t a = 0; a < count; a += SIDE) tiles.push_back({a, a, 0, 0, {}});
            for (int64_t a = 0; a < count; a += SIDE)
                for (int64_t b = a + SIDE; b < count; b += SIDE) tiles.push_back({a, b, 0, 0, {}});
            const int64_t number = int64_t(tiles.size()), strips = (count + SIDE - 1) / SIDE;
            for (int64_t i = 0; i < number; i++) {
                tiles[size_t(i)].from = count * i / number;
                tiles[size_t(i)].to = count * (i + 1) / number;
            }
            rows.resize(size_t(strips * SIDE));
            ahead.resize(size_t(count));
            squares.resize(size_t(strips * AREA));
            if (!std::is_same<T, C>::value) space.resize(size_t(count * MAX_BLOCK));
        }
        for (Tile& t : tiles) std::fill(t.total, t.total + AREA, 0.0);
    }

    // A block of `count` elements (whole vectors). Prefetches the block that begins `next` elements later, unless next is 0.
    inline __attribute__((always_inline)) void add(const std::vector<const T*>& at, int64_t count, int64_t next) {
        place(at, count);
        for (size_t n = 0; n < at.size(); n++) ahead[n] = at[n] + next;
        const size_t diagonal = rows.size() / SIDE;
        bool sound = true;
        for (size_t i = 0; i < diagonal; i++) {
            const Tile& t = tiles[i];
            const int64_t fetched = next ? t.to - t.from : 0;
            tile<C, SIDE, T>(&rows[size_t(t.a)], &rows[size_t(t.b)], count, &ahead[size_t(t.from)], fetched, &squares[i * AREA]);
            for (int n = 0; n < SIDE; n++) {
                const double square = squares[i * AREA + size_t(n * SIDE + n)];
                sound &= (square >= SMALLEST && square <= 3e38) || (square == 0 && all_zero(rows[size_t(t.a + n)], count));
            }
        }
        if (!sound && sizeof(C) < sizeof(double)) return add_in_double(count);
        for (size_t i = 0; i < diagonal; i++)
            for (int n = 0; n < AREA; n++) tiles[i].total[n] += squares[i * AREA + size_t(n)];
        for (size_t i = diagonal; i < tiles.size(); i++) {
            Tile& t = tiles[i];
            const int64_t fetched = next ? t.to - t.from : 0;
            double part[AREA];
            tile<C, SIDE, T>(&rows[size_t(t.a)], &rows[size_t(t.b)], count, &ahead[size_t(t.from)], fetched, part);
            for (int n = 0; n < AREA; n++) t.total[n] += part[n];
        }
    }

    // Adds the upper triangle to `sums`, (all, all), at the indices of the tasks that have a gradient.
    void finish(const std::vector<int64_t>& places, int64_t all, double* sums) const {
        for (const Tile& t : tiles)
            for (int64_t i = 0; i < AREA; i++) {
                const int64_t a = t.a + i / SIDE, b = t.b + i % SIDE;
                if (a <= b && b < tasks) sums[places[size_t(a)] * all + places[size_t(b)]] += t.total[i];
            }
    }
};

template <Instructions I, class T> CATS_INLINE void run(const Job& job) {
    typedef typename Arithmetic<T>::Scalar C;
    constexpr int SIDE = I == Instructions::avx512 && sizeof(C) == 4 ? 4 : 2;
    const Work& work = *job.work;
    Tiles<T, C, SIDE> tiles;
    Rows<T> rows;
    for (const Segment& segment : *job.segments) {
        const Present present(work.tasks, work.row(segment.parameter));
        if (present.tasks.empty()) continue;
        tiles.start(int64_t(present.tasks.size()));
        int64_t count;
        for (int64_t done = 0; done < segment.count; done += count) {
            count = block_count(job.block, segment.count - done);
            rows.move(present, segment.start + done, count);
            tiles.add(rows.at, whole_vectors(count), count < LANES ? 0 : job.block);
        }
        tiles.finish(present.tasks, work.tasks, (*job.account)(work.groups[segment.parameter]));
    }
}

CATS_DISPATCH_TYPES(run_best, run, Job)

}  // namespace

void gram(const Work& work, double* gram) {
    const int64_t tasks = work.tasks, size = tasks * tasks;
    const int64_t block = block_length(tasks, work.type == Type::float64 ? 8 : 4);
    const int64_t max_shares = std::min<int64_t>(256, std::max<int64_t>(16, (1 << 19) / size));
    share_out(work, block, size, gram, max_shares, [&](const std::vector<Segment>& segments, const Account& account) {
        run_best({&work, block, &segments, &account});
    });
    int64_t groups = 1;
    for (int64_t group : work.groups) groups = std::max(groups, group + 1);
    for (int64_t group = 0; group < groups; group++)
        for (int64_t a = 0; a < tasks; a++)
            for (int64_t b = 0; b < a; b++) gram[group * size + a * tasks + b] = gram[group * size + b * tasks + a];
}

}  // namespace cats
