#include "vector.h"

#include <algorithm>

namespace cats {

namespace {

Instructions best() {
#if defined(__x86_64__) && defined(__GNUC__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl"))
        return Instructions::avx512;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return Instructions::avx2;
#endif
    return Instructions::baseline;
}

Instructions used = best();

}  // namespace

Instructions instructions() { return used; }

void use_instructions(Instructions at_most) { used = std::min(at_most, best()); }

}  // namespace cats
