// The names of csrc/device.cuh for a host compiler. Blocks of CUDA threads run one after the other. The threads of a block
// are fibers of one CPU thread; they wait for each other only where the kernel says so.
//
// emulate_order changes the order in which fibers run between two waits: then a kernel that lacks a barrier gives another
// result. It is an exception if not all threads of a block reach the same barrier, or not all lanes of a warp the same
// exchange. Shared memory is NaN at the start. Results are those of the device, except for the rounding of the matrix
// units: see mma.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <deque>
#include <exception>
#include <functional>
#include <memory>
#include <stdexcept>
#include <type_traits>
#include <vector>

#define CATS_DEVICE inline
#define __global__
#define __launch_bounds__(...)
#define __grid_constant__
#define CUDART_VERSION 13000

struct uint4 {
    uint32_t x, y, z, w;
};
inline uint4 make_uint4(uint32_t x, uint32_t y, uint32_t z, uint32_t w) { return {x, y, z, w}; }

struct dim3 {
    unsigned x, y;
    dim3(unsigned x_ = 1, unsigned y_ = 1) : x(x_), y(y_) {}
};

inline dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace cats {

enum class Order { ascending, descending, shuffled };

class Block {
public:
    static Block* current;
    std::vector<char> shared;

    Block(unsigned threads, size_t shared_bytes, Order order)
        : shared(shared_bytes + 16, char(0xff)), order_(order), fibers_(threads), slots_(threads) {}

    template <class Body> void run(const Body& body) {
        current = this;
        body_ = body;
        static std::vector<std::unique_ptr<char[]>> stacks;  // reused by all blocks
        while (stacks.size() < fibers_.size()) stacks.emplace_back(new char[STACK]);
        for (size_t i = 0; i < fibers_.size(); ++i) {
            Fiber& fiber = fibers_[i];
            getcontext(&fiber.context);
            fiber.context.uc_stack = {stacks[i].get(), 0, STACK};
            fiber.context.uc_link = nullptr;
            makecontext(&fiber.context, &Block::start, 0);
        }
        while (release()) {
        }
        current = nullptr;
    }

    void wait_block() { wait(State::at_barrier); }

    // Every lane of the warp gives a value. Until the next exchange it may read the values of the others.
    template <class T> auto exchange(const T& value) {
        static_assert(sizeof(T) <= sizeof(Slot), "some numbers");
        const unsigned warp = threadIdx.x / 32 * 32;
        Fiber& fiber = fibers_[threadIdx.x];
        // Two slots are enough: no lane can be two exchanges ahead of another.
        const int parity = fiber.parity ^= 1;
        std::memcpy(slots_[threadIdx.x][parity].bytes, &value, sizeof value);
        wait(State::at_exchange);
        return [this, warp, parity](unsigned lane) {
            T result;
            std::memcpy(&result, slots_[warp + lane][parity].bytes, sizeof result);
            return result;
        };
    }

    void start_copy(uint4* target, const uint4& value) { copies().back().push_back({target, value}); }
    void end_of_copies() { copies().emplace_back(); }
    // The copies of all groups of this thread but the last `count`.
    void finish_copies(size_t count) {
        auto& groups = copies();
        for (; groups.size() > count + 1; groups.pop_front())
            for (const Copy& copy : groups.front()) *copy.target = copy.value;
    }

private:
    struct Copy {
        uint4* target;
        uint4 value;
    };
    typedef std::deque<std::vector<Copy>> Copies;  // the last group is not ended

    Copies& copies() {
        Copies& groups = fibers_[threadIdx.x].copies;
        if (groups.empty()) groups.emplace_back();
        return groups;
    }

    static constexpr size_t STACK = 1 << 16;
    enum class State { ready, at_barrier, at_exchange, done };
    struct Fiber {
        ucontext_t context;  // where the fiber begins
        jmp_buf place;       // where it continues
        bool begun = false;
        State state = State::ready;
        int parity = 0;
        Copies copies;
    };
    struct Slot {
        char bytes[24];
    };
    typedef std::array<Slot, 2> Slots;

    static void start() {
        Block* block = current;
        try {
            block->body_();
        } catch (...) {
            block->error_ = std::current_exception();
        }
        block->fibers_[threadIdx.x].state = State::done;
        _longjmp(block->scheduler_, 1);
    }

    // With jumps, because every swapcontext makes two system calls.
    void resume(unsigned i) {
        threadIdx = dim3(i);
        if (_setjmp(scheduler_)) return;
        if (fibers_[i].begun) _longjmp(fibers_[i].place, 1);
        fibers_[i].begun = true;
        setcontext(&fibers_[i].context);
    }

    void wait(State state) {
        const unsigned me = threadIdx.x;
        fibers_[me].state = state;
        if (!_setjmp(fibers_[me].place)) _longjmp(scheduler_, 1);
    }

    // Runs every fiber that can continue until it waits. False when all have finished.
    bool release() {
        std::vector<unsigned> ready;
        for (unsigned i = 0; i < fibers_.size(); ++i)
            if (fibers_[i].state == State::ready) ready.push_back(i);
        if (order_ == Order::descending) std::reverse(ready.begin(), ready.end());
        if (order_ == Order::shuffled)
            for (size_t i = ready.size(); i > 1; --i) std::swap(ready[i - 1], ready[random() % i]);
        for (unsigned i : ready) {
            resume(i);
            if (error_) std::rethrow_exception(error_);
        }
        if (all(0, fibers_.size(), State::done)) return false;
        bool progress = false;
        for (size_t warp = 0; warp < fibers_.size(); warp += 32)
            if (all(warp, warp + 32, State::at_exchange)) set(warp, warp + 32), progress = true;
        if (all(0, fibers_.size(), State::at_barrier)) set(0, fibers_.size()), progress = true;
        if (!progress) throw std::logic_error("threads wait at different places, or for threads that have ended");
        return true;
    }

    bool all(size_t from, size_t to, State state) const {
        for (size_t i = from; i < to; ++i)
            if (fibers_[i].state != state) return false;
        return true;
    }
    void set(size_t from, size_t to) {
        for (size_t i = from; i < to; ++i) fibers_[i].state = State::ready;
    }
    uint32_t random() { return seed_ = seed_ * 1664525u + 1013904223u, seed_ >> 8; }

    Order order_;
    std::function<void()> body_;
    std::exception_ptr error_;
    std::vector<Fiber> fibers_;
    std::vector<Slots> slots_;
    jmp_buf scheduler_;
    uint32_t seed_ = 1;
};
inline Block* Block::current = nullptr;

inline Order emulated_order = Order::ascending;

template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), dim3 grid, unsigned threads, size_t shared, int64_t, Arguments... arguments) {
    if (threads == 0 || threads > 1024 || grid.x == 0 || grid.y == 0 || grid.y > 65535 || shared > 99 * 1024)
        throw std::invalid_argument("not a valid launch");
    gridDim = grid;
    blockDim = dim3(threads);
    for (unsigned y = 0; y < grid.y; ++y)
        for (unsigned x = 0; x < grid.x; ++x) {
            blockIdx = dim3(x, y);
            Block(threads, shared, emulated_order).run([&] { kernel(arguments...); });
        }
}

inline char* shared_memory() {
    const uintptr_t address = reinterpret_cast<uintptr_t>(Block::current->shared.data());
    return reinterpret_cast<char*>((address + 15) / 16 * 16);
}
inline void barrier() { Block::current->wait_block(); }
template <class T> T shuffle_xor(T value, int mask) { return Block::current->exchange(value)((threadIdx.x % 32) ^ mask); }

template <class To, class From> To reinterpret_bits(From from) {
    static_assert(sizeof(To) == sizeof(From), "of one size");
    To to;
    std::memcpy(&to, &from, sizeof to);
    return to;
}
inline float as_float(uint32_t bits) { return reinterpret_bits<float>(bits); }
inline uint32_t as_bits(float value) { return reinterpret_bits<uint32_t>(value); }

inline float half_to_float(uint32_t bits) {
    const int exponent = (bits >> 10) & 31, fraction = bits & 1023;
    float value = exponent == 31  ? (fraction ? NAN : INFINITY)
                  : exponent == 0 ? std::ldexp(float(fraction), -24)
                                  : std::ldexp(float(fraction + 1024), exponent - 25);
    return bits & 0x8000 ? -value : value;
}
inline uint16_t float_to_half(float value) {
    const uint16_t sign = std::signbit(value) ? 0x8000 : 0;
    const float magnitude = std::fabs(value);
    if (std::isnan(value)) return sign | 0x7e00;
    if (magnitude >= 65520.0f) return sign | 0x7c00;
    int exponent = magnitude == 0 ? -14 : std::max(std::ilogb(magnitude), -14);
    // In units of the last place, rounded to even; 1024 units carry into the next exponent.
    const int units = int(std::nearbyint(std::ldexp(magnitude, 10 - exponent)));
    return uint16_t(sign | (units + ((exponent + 14) << 10)));
}
inline uint16_t float_to_bfloat16(float value) {
    const uint32_t bits = as_bits(value);
    if (std::isnan(value)) return 0x7fff;
    return uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}
inline uint4 load_once(const uint4* address) {
    if (reinterpret_cast<uintptr_t>(address) % 16) throw std::logic_error("misaligned load of 16 bytes");
    return *address;
}
inline uint4 load_constant(const uint4* address) { return load_once(address); }

// Copies are made as late as the device may make them: when they are waited for.
inline void start_copy(uint4* shared, const uint4* address) { Block::current->start_copy(shared, load_once(address)); }
inline void end_of_copies() { Block::current->end_of_copies(); }
template <int COUNT> void wait_for_copies() { Block::current->finish_copies(COUNT); }

inline void load_matrices(uint32_t (&words)[4], const uint4* row) {
    const unsigned lane = threadIdx.x % 32;
    const auto from = Block::current->exchange(load_once(row));
    for (unsigned i = 0; i < 4; ++i) {
        const uint4 source = from(8 * i + lane / 4);
        words[i] = lane % 4 == 0 ? source.x : lane % 4 == 1 ? source.y : lane % 4 == 2 ? source.z : source.w;
    }
}

// c += a b with the PTX ISA's layout of fragments. Let g = lane / 4, t = lane % 4, and P the number of operands in a register.
// Register i of a holds row g + 8 (i % 2), P columns from P (t + 4 (i / 2)). Register i of b holds column g, P rows from
// P (t + 4 i). c[i] is row g + 8 (i / 2), column 2 t + i % 2. Sums are rounded towards zero, as by the matrix units.
inline float add_towards_zero(float sum, double products) {
    const double exact = double(sum) + products;
    const float rounded = float(exact);
    return std::fabs(rounded) > std::fabs(exact) ? std::nextafter(rounded, 0.0f) : rounded;
}
template <int P, class Value>
void mma(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], const Value& value) {
    const unsigned lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    struct Operands {
        uint32_t a[4], b[2];
    };
    Operands mine;
    std::copy(a, a + 4, mine.a);
    std::copy(b, b + 2, mine.b);
    const auto from = Block::current->exchange(mine);
    double sums[4] = {0, 0, 0, 0};
    for (unsigned k = 0; k < 4; ++k) {
        const Operands row = from(g * 4 + k), columns[2] = {from(2 * t * 4 + k), from((2 * t + 1) * 4 + k)};
        for (int i = 0; i < 4; ++i)
            for (int half = 0; half < 2; ++half)
                for (int p = 0; p < P; ++p)
                    sums[i] += double(value(row.a[2 * half + i / 2], p)) * value(columns[i % 2].b[half], p);
    }
    for (int i = 0; i < 4; ++i) c[i] = add_towards_zero(c[i], sums[i]);
}
inline void mma_tf32(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    mma<1>(c, a, b, [](uint32_t bits, int) { return as_float(bits & 0xffffe000); });
}
inline void mma_bfloat16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    mma<2>(c, a, b, [](uint32_t bits, int p) { return as_float(p ? bits & 0xffff0000 : bits << 16); });
}
inline void mma_half(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    mma<2>(c, a, b, [](uint32_t bits, int p) { return half_to_float(p ? bits >> 16 : bits & 0xffff); });
}

}  // namespace cats
