#include "combine.cuh"

namespace cats {

template void launch_combine<BFloat16>(CombineArguments, int64_t, int64_t);
template void launch_combine<Float16>(CombineArguments, int64_t, int64_t);

}  // namespace cats
