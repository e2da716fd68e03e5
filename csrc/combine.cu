#include "combine.cuh"

namespace cats {

static __global__ void prepare_adamw_kernel(double* numbers, double beta1, double beta2, double weight_decay) {
    const double step = numbers[0], lr = numbers[1], grad_scale = numbers[2], found_inf = numbers[3];
    numbers[0] = 1 - lr * weight_decay;
    numbers[1] = -lr / (1 - pow(beta1, step));
    numbers[2] = sqrt(1 - pow(beta2, step));
    numbers[3] = grad_scale;
    numbers[4] = found_inf;
}

static void launch_for(int64_t type, const CombineArguments& a, int64_t count, int64_t stream) {
    with_type(type, [&](auto element) { launch_combine<decltype(element)>(a, count, stream); });
}

static CombineArguments common(int64_t pointers, int64_t width, int64_t chunks, int64_t first, int64_t aligned,
                               int64_t tasks, int64_t partials) {
    if (tasks < 1 || tasks > MAX_TASKS) throw std::invalid_argument("the number of tasks must be 1 to 128");
    CombineArguments a{};
    a.pointers = reinterpret_cast<const int64_t*>(pointers);
    a.chunks = reinterpret_cast<const int64_t*>(chunks);
    a.width = width;
    a.first = first;
    a.aligned = aligned != 0;
    a.tasks = int(tasks);
    a.rows = 1;
    a.partials = reinterpret_cast<double*>(partials);
    return a;
}

}  // namespace cats

void cuda_combine(int64_t pointers, int64_t width, int64_t chunks, int64_t first, int64_t count, int64_t type,
                  int64_t aligned, int64_t tasks, int64_t row, int64_t rows, int64_t weights, int64_t partials,
                  int64_t stream) {
    if (rows < 1 || rows > cats::MAX_ROWS || (rows > 1 && tasks > cats::MAX_ROWS_TASKS))
        throw std::invalid_argument("too many rows of weights for one pass");
    cats::CombineArguments a = cats::common(pointers, width, chunks, first, aligned, tasks, partials);
    a.row = int(row);
    a.rows = int(rows);
    a.weights = reinterpret_cast<const double*>(weights);
    cats::launch_for(type, a, count, stream);
}

void cuda_dots(int64_t pointers, int64_t width, int64_t chunks, int64_t first, int64_t count, int64_t type,
               int64_t aligned, int64_t tasks, int64_t direction_is_float, int64_t partials, int64_t stream) {
    cats::CombineArguments a = cats::common(pointers, width, chunks, first, aligned, tasks, partials);
    a.direction = true;
    a.direction_is_float = direction_is_float != 0;
    cats::launch_for(type, a, count, stream);
}

void cuda_prepare_adamw(int64_t numbers, double beta1, double beta2, double weight_decay, int64_t stream) {
    cats::launch(cats::prepare_adamw_kernel, dim3(1), 1, 0, stream, reinterpret_cast<double*>(numbers), beta1, beta2,
                 weight_decay);
}

void cuda_combine_adamw(int64_t pointers, int64_t width, int64_t chunks, int64_t first, int64_t count, int64_t type,
                        int64_t aligned, int64_t tasks, int64_t weights, int64_t numbers, double beta1, double beta2,
                        double eps, int64_t partials, int64_t stream) {
    cats::CombineArguments a = cats::common(pointers, width, chunks, first, aligned, tasks, partials);
    a.weights = reinterpret_cast<const double*>(weights);
    a.numbers = reinterpret_cast<const double*>(numbers);
    a.beta1 = beta1;
    a.beta2 = beta2;
    a.eps = eps;
    cats::launch_for(type, a, count, stream);
}
