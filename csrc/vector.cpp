#include "vector.h"

namespace cats {

Instructions instructions() {
#if defined(__x86_64__) && defined(__GNUC__)
    static const Instructions best = [] {
        __builtin_cpu_init();
        if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
            __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
            return Instructions::avx512;
        if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return Instructions::avx2;
        return Instructions::baseline;
    }();
    return best;
#else
    return Instructions::baseline;
#endif
}

}  // namespace cats
