// Vectors of 16 numbers, conversions between the element types and the type of arithmetic, and the choice of an
// instruction set at run time.
//
// The kernels are written once, with the vector extension of GCC and Clang: 16 lanes, whatever the processor has. A kernel
// is an inlined template. CATS_DISPATCH compiles it for AVX-512, for AVX2 with FMA, and for the compiler's default target
// (SSE2 on x86-64, NEON on arm64), and calls the best version that this processor can run. Multiplications and additions
// are fused if the instruction set can do so; therefore the last bits depend on it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#define CATS_INLINE static inline __attribute__((always_inline))

namespace cats {

constexpr int LANES = 16;

enum class Instructions { baseline, avx2, avx512 };
Instructions instructions();  // that the kernels use: the processor's best, unless use_instructions() set another
void use_instructions(Instructions at_most);

typedef float Float16Lanes __attribute__((vector_size(64)));
typedef double Double16Lanes __attribute__((vector_size(128)));
typedef double Double8Lanes __attribute__((vector_size(64)));
typedef double Double4Lanes __attribute__((vector_size(32)));
typedef double Double2Lanes __attribute__((vector_size(16)));
typedef uint32_t UInt16Lanes __attribute__((vector_size(64)));
typedef uint16_t Short16Lanes __attribute__((vector_size(32)));

// 16-bit numbers. The type says which instructions convert them.
template <Instructions> struct BFloat16 {
    uint16_t bits;
};
template <Instructions> struct Half {
    uint16_t bits;
};

// For an element type: the type of the arithmetic, its vector, and the element type in functions that run on every processor.
template <class T> struct Arithmetic;
template <> struct Arithmetic<float> {
    typedef float Scalar, Portable;
    typedef Float16Lanes Lanes;
};
template <> struct Arithmetic<double> {
    typedef double Scalar, Portable;
    typedef Double16Lanes Lanes;
};
template <Instructions I> struct Arithmetic<BFloat16<I>> {
    typedef float Scalar;
    typedef Float16Lanes Lanes;
    typedef BFloat16<Instructions::baseline> Portable;
};
template <Instructions I> struct Arithmetic<Half<I>> {
    typedef float Scalar;
    typedef Float16Lanes Lanes;
    typedef Half<Instructions::baseline> Portable;
};

template <class To, class From> CATS_INLINE To reinterpret(From value) {
    static_assert(sizeof(To) == sizeof(From), "of one size");
    To result;
    std::memcpy(&result, &value, sizeof result);
    return result;
}

template <class To, class From> CATS_INLINE To lower_half(const From& value) {
    static_assert(2 * sizeof(To) == sizeof(From), "of half the size");
    To result;
    std::memcpy(&result, &value, sizeof result);
    return result;
}
template <class To, class From> CATS_INLINE To upper_half(const From& value) {
    static_assert(2 * sizeof(To) == sizeof(From), "of half the size");
    To result;
    std::memcpy(&result, reinterpret_cast<const char*>(&value) + sizeof result, sizeof result);
    return result;
}

CATS_INLINE Float16Lanes from_bfloat16(Short16Lanes bits) {
    return reinterpret<Float16Lanes>(__builtin_convertvector(bits, UInt16Lanes) << 16);
}

// The exponent bias is 15 for half and 127 for float; in both, infinity and NaN have the largest exponent. A subnormal half
// is computed as a normal float with the same digits, minus the implicit leading one. So no float here is subnormal;
// processors compute slowly with subnormal floats.
CATS_INLINE Float16Lanes from_half(Short16Lanes bits) {
    UInt16Lanes half = __builtin_convertvector(bits, UInt16Lanes);
    UInt16Lanes sign = (half & 0x8000u) << 16, magnitude = (half & 0x7fffu) << 13;
    UInt16Lanes subnormal = reinterpret<UInt16Lanes>(magnitude < 0x00800000u);
    UInt16Lanes special = reinterpret<UInt16Lanes>(magnitude >= 0x0f800000u);
    UInt16Lanes rebiased = magnitude + 0x38000000u + (subnormal & 0x00800000u) + (special & 0x38000000u);
    Float16Lanes one = reinterpret<Float16Lanes>(subnormal & 0x38800000u);  // 2^-14, or 0
    return reinterpret<Float16Lanes>(sign | reinterpret<UInt16Lanes>(reinterpret<Float16Lanes>(rebiased) - one));
}

// Both round to the nearest, ties to even, and turn every NaN into a quiet NaN.
CATS_INLINE Short16Lanes to_bfloat16(Float16Lanes values) {
    UInt16Lanes bits = reinterpret<UInt16Lanes>(values);
    UInt16Lanes rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    UInt16Lanes nan = reinterpret<UInt16Lanes>((bits & 0x7fffffffu) > 0x7f800000u);
    return __builtin_convertvector((nan & 0x7fc0u) | (~nan & rounded), Short16Lanes);
}

CATS_INLINE Short16Lanes to_half(Float16Lanes values) {
    UInt16Lanes bits = reinterpret<UInt16Lanes>(values), sign = (bits >> 16) & 0x8000u, magnitude = bits & 0x7fffffffu;
    UInt16Lanes normal = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
    // Adding 0.5 to a number below 2^-14 rounds it to a multiple of 2^-24, the smallest half.
    Float16Lanes shifted = reinterpret<Float16Lanes>(magnitude) + 0.5f;
    UInt16Lanes subnormal = reinterpret<UInt16Lanes>(shifted) - 0x3f000000u;
    UInt16Lanes small = reinterpret<UInt16Lanes>(magnitude < 0x38800000u);
    UInt16Lanes large = reinterpret<UInt16Lanes>(magnitude >= 0x47800000u);
    UInt16Lanes nan = reinterpret<UInt16Lanes>(magnitude > 0x7f800000u);
    UInt16Lanes special = 0x7c00u + (nan & 0x200u);
    UInt16Lanes finite = (small & subnormal) | (~small & normal);
    return __builtin_convertvector(sign | (large & special) | (~large & finite), Short16Lanes);
}

CATS_INLINE Float16Lanes load(const float* p) {
    Float16Lanes v;
    std::memcpy(&v, p, sizeof v);
    return v;
}
CATS_INLINE Double16Lanes load(const double* p) {
    Double16Lanes v;
    std::memcpy(&v, p, sizeof v);
    return v;
}
// Single instructions where GCC generates long sequences (GCC 12: five instructions for the first, thirty for the second).
// Clang finds them itself, and would refuse operands for which the surrounding function has no registers.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define CATS_CONVERT(INSTRUCTION, TO, FROM) asm(INSTRUCTION : "=v"(TO) : "v"(FROM))
template <Instructions I> constexpr bool CONVERTS = I == Instructions::avx512;
#else
#define CATS_CONVERT(INSTRUCTION, TO, FROM) static_cast<void>(TO)
template <Instructions> constexpr bool CONVERTS = false;
#endif

template <Instructions I> CATS_INLINE Float16Lanes load(const BFloat16<I>* p) {
    Short16Lanes v;
    std::memcpy(&v, p, sizeof v);
    if constexpr (CONVERTS<I>) {
        UInt16Lanes wide;
        CATS_CONVERT("vpmovzxwd %1, %0", wide, v);
        return reinterpret<Float16Lanes>(wide << 16);
    }
    return from_bfloat16(v);
}
template <Instructions I> CATS_INLINE Float16Lanes load(const Half<I>* p) {
    Short16Lanes v;
    std::memcpy(&v, p, sizeof v);
    if constexpr (CONVERTS<I>) {
        Float16Lanes wide;
        CATS_CONVERT("vcvtph2ps %1, %0", wide, v);
        return wide;
    }
    return from_half(v);
}

CATS_INLINE void store(float* p, Float16Lanes v) { std::memcpy(p, &v, sizeof v); }
CATS_INLINE void store(double* p, Double16Lanes v) { std::memcpy(p, &v, sizeof v); }
template <Instructions I> CATS_INLINE void store(BFloat16<I>* p, Float16Lanes v) {
    Short16Lanes bits = to_bfloat16(v);
    std::memcpy(p, &bits, sizeof bits);
}
template <Instructions I> CATS_INLINE void store(Half<I>* p, Float16Lanes v) {
    Short16Lanes bits;
    if constexpr (CONVERTS<I>)
        CATS_CONVERT("vcvtps2ph $8, %1, %0", bits, v);  // round to nearest even, no exceptions
    else
        bits = to_half(v);
    std::memcpy(p, &bits, sizeof bits);
}

// The sum of a vector's lanes in double, added in a tree.
CATS_INLINE double sum(Double16Lanes v) {
    Double8Lanes eight = lower_half<Double8Lanes>(v) + upper_half<Double8Lanes>(v);
    Double4Lanes four = lower_half<Double4Lanes>(eight) + upper_half<Double4Lanes>(eight);
    Double2Lanes two = lower_half<Double2Lanes>(four) + upper_half<Double2Lanes>(four);
    return two[0] + two[1];
}
CATS_INLINE double sum(Float16Lanes v) {
    return sum(__builtin_convertvector(v, Double16Lanes));
}

// The sums of the lanes of sixteen vectors, each added in a tree: lane n of the result is the sum of v[n]. Overwrites v.
#if defined(__clang__)
#define CATS_PICK(A, B, ...) __builtin_shufflevector(A, B, __VA_ARGS__)
#else
#define CATS_PICK(A, B, ...) __builtin_shuffle(A, B, (UInt16Lanes){__VA_ARGS__})
#endif
CATS_INLINE Float16Lanes sums(Float16Lanes* v) {
    for (int i = 0; i < 8; i++)
        v[i] = CATS_PICK(v[i], v[i + 8], 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23) +
               CATS_PICK(v[i], v[i + 8], 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
    for (int i = 0; i < 4; i++)
        v[i] = CATS_PICK(v[i], v[i + 4], 0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25, 26, 27) +
               CATS_PICK(v[i], v[i + 4], 4, 5, 6, 7, 20, 21, 22, 23, 12, 13, 14, 15, 28, 29, 30, 31);
    for (int i = 0; i < 2; i++)
        v[i] = CATS_PICK(v[i], v[i + 2], 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29) +
               CATS_PICK(v[i], v[i + 2], 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31);
    return CATS_PICK(v[0], v[1], 0, 16, 2, 18, 4, 20, 6, 22, 8, 24, 10, 26, 12, 28, 14, 30) +
           CATS_PICK(v[0], v[1], 1, 17, 3, 19, 5, 21, 7, 23, 9, 25, 11, 27, 13, 29, 15, 31);
}

}  // namespace cats

// Defines `void NAME(A a)`, which calls the inlined template function IMPL<instructions>(a) in the best version.
#if defined(__x86_64__) && defined(__GNUC__)
#define CATS_DISPATCH(NAME, IMPL, A)                                                                  \
    __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma"))) static void NAME##_avx512( \
        A a) {                                                                                        \
        IMPL<::cats::Instructions::avx512>(a);                                                        \
    }                                                                                                 \
    __attribute__((target("avx2,fma"))) static void NAME##_avx2(A a) {                                \
        IMPL<::cats::Instructions::avx2>(a);                                                          \
    }                                                                                                 \
    static void NAME##_baseline(A a) { IMPL<::cats::Instructions::baseline>(a); }                     \
    static void NAME(A a) {                                                                           \
        switch (::cats::instructions()) {                                                             \
            case ::cats::Instructions::avx512: return NAME##_avx512(a);                               \
            case ::cats::Instructions::avx2: return NAME##_avx2(a);                                   \
            default: return NAME##_baseline(a);                                                       \
        }                                                                                             \
    }
#else
#define CATS_DISPATCH(NAME, IMPL, A) \
    static void NAME(A a) { IMPL<::cats::Instructions::baseline>(a); }
#endif
