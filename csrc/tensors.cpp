// Reads lists of torch tensors in one pass, without torch's headers: through the table of C functions that torch exports
// as the DLPack exchange API (torch.Tensor.__dlpack_c_exchange_api__, DLPack 1.2 or later).
// Python handles what this cannot read: subclasses, sparse layouts, a torch without that table.
#include "tensors.h"

#include "fields.h"

#include <algorithm>
#include <cstdint>
#include <vector>

namespace py = pybind11;

namespace {

// The part of dlpack.h's ABI that is used here.
struct Version {
    uint32_t major, minor;
};
struct Device {
    int32_t type, id;
};
struct DataType {
    uint8_t code, bits;
    uint16_t lanes;
};
struct View {
    void* data;
    Device device;
    int32_t ndim;
    DataType dtype;
    int64_t* shape;
    int64_t* strides;
    uint64_t byte_offset;
};
struct ExchangeApi {
    Version version;
    ExchangeApi* previous;
    void* managed_tensor_allocator;
    void* managed_tensor_from_py_object_no_sync;
    void* managed_tensor_to_py_object_no_sync;
    int (*view)(void* object, View* out);  // dltensor_from_py_object_no_sync: not an owner; valid while the tensor lives
    int (*current_work_stream)(int32_t type, int32_t id, void** stream);
};

const ExchangeApi* api = nullptr;
PyTypeObject* tensor_type = nullptr;
PyTypeObject* parameter_type = nullptr;
PyObject* dtypes[4];  // torch.float32, bfloat16, float16, float64

int dtype_index(DataType dtype) {
    if (dtype.lanes != 1) return -1;
    if (dtype.code == 2) return dtype.bits == 32 ? 0 : dtype.bits == 16 ? 2 : dtype.bits == 64 ? 3 : -1;
    return dtype.code == 4 && dtype.bits == 16 ? 1 : -1;
}

int64_t numel(const View& v) {
    int64_t product = 1;
    for (int d = 0; d < v.ndim; d++) product *= v.shape[d];
    return product;
}

const char* address(const View& v) { return static_cast<const char*>(v.data) + v.byte_offset; }

// The bytes from the first element of a tensor to its last. Strides of torch are not negative.
int64_t extent(const View& v) {
    int64_t last = 0;
    for (int d = 0; d < v.ndim; d++) {
        if (v.shape[d] == 0) return 0;
        last += (v.shape[d] - 1) * v.strides[d];
    }
    return (last + 1) * (v.dtype.bits / 8);
}

bool is_plain(PyObject* object) { return Py_TYPE(object) == tensor_type || Py_TYPE(object) == parameter_type; }

// Fills `out` if `object` is a plain strided tensor of one of the four dtypes.
bool describe(PyObject* object, View* out) {
    if (!is_plain(object)) return false;
    if (api->view(object, out) != 0) {
        PyErr_Clear();
        return false;
    }
    return dtype_index(out->dtype) >= 0;
}

// Whether all elements lie in the tensor's storage. They do not after storage.resize_(), with which FSDP frees memory.
// `negative`: see Fields.
bool in_storage(PyObject* object, const View& view, bool* negative) {
    Fields fields;
    if (!read_fields(object, &fields)) return false;
    *negative = fields.negative;
    if (numel(view) == 0) return true;
    const uintptr_t start = reinterpret_cast<uintptr_t>(address(view));
    return view.data != nullptr && fields.begin != 0 && start >= fields.begin &&
           int64_t(start - fields.begin) + extent(view) <= fields.bytes;
}

bool look(PyObject* object, View* out, bool* negative) { return describe(object, out) && in_storage(object, *out, negative); }

// Starts to load what `look` will read of the entries after row[i]. With many tasks, most of its time is waiting for memory.
void fetch_ahead(PyObject** row, Py_ssize_t i, Py_ssize_t size) {
    constexpr Py_ssize_t STEP = 8;
    if (i + 3 * STEP < size) fetch_fields(row[i + 3 * STEP], 0);
    if (i + 2 * STEP < size && is_plain(row[i + 2 * STEP])) fetch_fields(row[i + 2 * STEP], 1);
    if (i + STEP < size && is_plain(row[i + STEP])) fetch_fields(row[i + STEP], 2);
}

bool same_kind(const View& a, const View& b) {
    return a.ndim == b.ndim && a.dtype.code == b.dtype.code && a.dtype.bits == b.dtype.bits &&
           std::equal(a.shape, a.shape + a.ndim, b.shape);
}

bool contiguous(const View& v) {
    int64_t expected = 1;
    for (int d = v.ndim - 1; d >= 0; d--) {
        if (v.shape[d] > 1 && v.strides[d] != expected) return false;
        expected *= v.shape[d];
    }
    return true;
}

bool dense(const View& v) {
    std::vector<int> axes;
    for (int d = 0; d < v.ndim; d++)
        if (v.shape[d] > 1) axes.push_back(d);
    std::sort(axes.begin(), axes.end(), [&](int a, int b) { return v.strides[a] < v.strides[b]; });
    int64_t expected = 1;
    for (int d : axes) {
        if (v.strides[d] != expected) return false;
        expected *= v.shape[d];
    }
    return true;
}

bool same_strides(const View& a, const View& b) {
    for (int d = 0; d < a.ndim; d++)
        if (a.shape[d] > 1 && a.strides[d] != b.strides[d]) return false;
    return true;
}

// The K rows of N entries; false if a row is not a list of N entries.
bool read_rows(const py::list& rows, std::vector<PyObject**>& out, Py_ssize_t* size) {
    for (py::handle row : rows) {
        if (!PyList_CheckExact(row.ptr())) return false;
        if (out.empty()) *size = PyList_GET_SIZE(row.ptr());
        if (PyList_GET_SIZE(row.ptr()) != *size) return false;
        out.push_back(reinterpret_cast<PyListObject*>(row.ptr())->ob_item);
    }
    return !out.empty() && *size > 0;
}

// What was read from the gradients of a call, so that they are read only once: for 23,000 gradients (92 tasks), reading the
// shapes and strides again, which are in torch's objects, would take milliseconds.
struct Views {
    std::vector<View> of;        // K N views, parameter by parameter; empty for None
    std::vector<char> negative;  // K N: see Fields
    std::vector<char> in_order;  // K N: whether it is contiguous
};

// Finds torch's table of functions. False if there is none; then the functions below return None.
bool use_torch(py::object torch) {
    PyObject* capsule = PyObject_GetAttrString(torch.attr("Tensor").ptr(), "__dlpack_c_exchange_api__");
    if (capsule == nullptr) {
        PyErr_Clear();
        return false;
    }
    auto* found = static_cast<ExchangeApi*>(PyCapsule_GetPointer(capsule, "dlpack_exchange_api"));
    Py_DECREF(capsule);  // the table is static
    if (found == nullptr) PyErr_Clear();
    while (found != nullptr && found->version.major != 1) found = found->previous;
    if (found == nullptr || found->view == nullptr) return false;
    tensor_type = reinterpret_cast<PyTypeObject*>(torch.attr("Tensor").ptr());
    parameter_type = reinterpret_cast<PyTypeObject*>(torch.attr("nn").attr("Parameter").ptr());
    const char* names[4] = {"float32", "bfloat16", "float16", "float64"};
    for (int i = 0; i < 4; i++) dtypes[i] = py::object(torch.attr(names[i])).release().ptr();
    find_fields(torch);
    api = found;
    return true;
}

// For K lists of N gradients: (a list with the first gradient of every parameter or None, Views) if all are plain dense
// tensors on one device, with the same shape and dtype for all tasks; else None.
py::object uniform(const py::list& rows) {
    std::vector<PyObject**> entries;
    Py_ssize_t size = 0;
    if (api == nullptr || !read_rows(rows, entries, &size)) return py::none();
    py::list first(size);
    Views views;
    views.of.resize(entries.size() * size_t(size));
    views.negative.resize(views.of.size());
    views.in_order.resize(views.of.size());
    std::vector<View> references(static_cast<size_t>(size));
    std::vector<PyObject*> owners(static_cast<size_t>(size), Py_None);
    Device device = {0, 0};
    // Task by task: the gradients of a task were made one after the other, so they lie close together.
    const size_t tasks = entries.size();
    for (size_t n = 0; n < tasks; n++) {
        PyObject** row = entries[n];
        for (Py_ssize_t i = 0; i < size; i++) {
            fetch_ahead(row, i, size);
            if (row[i] == Py_None) continue;
            const size_t at = size_t(i) * tasks + n;
            View& view = views.of[at];
            bool negative = false;
            if (!look(row[i], &view, &negative)) return py::none();
            views.negative[at] = negative;
            views.in_order[at] = contiguous(view);
            if (device.type == 0) device = view.device;
            if (view.device.type != device.type || view.device.id != device.id) return py::none();
            if (owners[size_t(i)] == Py_None) {
                owners[size_t(i)] = row[i];
                references[size_t(i)] = view;
            } else if (!same_kind(view, references[size_t(i)])) {
                return py::none();
            }
        }
    }
    for (size_t i = 0; i < size_t(size); i++) first[i] = py::reinterpret_borrow<py::object>(owners[i]);
    return py::make_tuple(first, std::move(views));
}

// Whether `row` has a contiguous tensor of the same shape, dtype and device for every gradient in `first`. moments: of the
// dtype of AdamW's moments instead. optional: None is allowed where the gradient is None. False means only that Python
// must check.
bool matches(const py::list& first, const py::list& row, bool optional, bool moments) {
    if (api == nullptr || first.size() != row.size()) return false;
    for (size_t i = 0; i < row.size(); i++) {
        View view, gradient;
        bool negative;
        PyObject* entry = PyList_GET_ITEM(row.ptr(), Py_ssize_t(i));
        PyObject* owner = PyList_GET_ITEM(first.ptr(), Py_ssize_t(i));
        if (entry == Py_None || owner == Py_None) {
            if (entry != owner || !optional) return false;
            continue;
        }
        if (!look(entry, &view, &negative) || !describe(owner, &gradient) || !contiguous(view)) return false;
        if (moments) {
            const uint8_t bits = gradient.dtype.bits == 64 ? 64 : 32;
            gradient.dtype = {2, bits, 1};
        }
        if (!same_kind(view, gradient) || view.device.type != gradient.device.type || view.device.id != gradient.device.id)
            return false;
    }
    return true;
}

// The memory that a tensor is certain to use: all of it if it has no gaps, else its first element.
struct Interval {
    const char *begin, *end;
    Py_ssize_t row, parameter;
    Interval(const View& v, Py_ssize_t row_, Py_ssize_t parameter_) : begin(address(v)), row(row_), parameter(parameter_) {
        end = begin + (contiguous(v) || dense(v) ? extent(v) : v.dtype.bits / 8);
    }
    Interval(const char* begin_, int64_t bytes, Py_ssize_t row_, Py_ssize_t parameter_)
        : begin(begin_), end(begin_ + bytes), row(row_), parameter(parameter_) {}
    bool meets(const Interval& other) const { return begin < other.end && other.begin < end; }
};

// An output that shares memory with a gradient of its parameter or with another output: (row of `written`, parameter, row,
// parameter) of the two. A row below K is a task, K + r is row r of `written`. None if there is no such output. views: of
// K rows of gradients. written: R lists of N tensors or None.
py::object shared(const Views& views, const py::list& written) {
    std::vector<PyObject**> rows;
    Py_ssize_t size = 0;
    if (!read_rows(written, rows, &size) || views.of.size() % size_t(size) != 0) return py::none();
    const Py_ssize_t tasks = Py_ssize_t(views.of.size()) / size;
    std::vector<Interval> all;
    for (Py_ssize_t r = 0; r < Py_ssize_t(rows.size()); r++)
        for (Py_ssize_t i = 0; i < size; i++) {
            View view;
            if (rows[size_t(r)][i] == Py_None || !describe(rows[size_t(r)][i], &view) || numel(view) == 0) continue;
            all.emplace_back(view, r, i);
            const int64_t elements = numel(view);  // of the gradients, too
            for (Py_ssize_t n = 0; n < tasks; n++) {
                const size_t at = size_t(i * tasks + n);
                const View& gradient = views.of[at];
                if (gradient.data == nullptr) continue;
                const Interval there = views.in_order[at]
                                           ? Interval{address(gradient), elements * (gradient.dtype.bits / 8), n, i}
                                           : Interval{gradient, n, i};
                if (all.back().meets(there)) return py::make_tuple(r, i, n, i);
            }
        }
    std::sort(all.begin(), all.end(), [](const Interval& a, const Interval& b) { return a.begin < b.begin; });
    for (size_t j = 1; j < all.size(); j++)
        if (all[j].meets(all[j - 1]))
            return py::make_tuple(all[j].row, all[j].parameter, tasks + all[j - 1].row, all[j - 1].parameter);
    return py::none();
}

// The dense parameters (see cats/ops/layout.py). `fallback`: the indices of the others, which go to the reference.
struct Flat {
    std::vector<int64_t> params, numels, addresses, fallback;
    std::vector<char> aligned;
    std::vector<size_t> kind;             // per parameter, an index into `kinds`
    std::vector<std::vector<int>> kinds;  // combinations of dtypes, as indices into `dtypes`
};

bool read(const py::list& grads, const py::list& others, int64_t vector_bytes, const Views* known, Flat& flat) {
    std::vector<PyObject**> entries;
    Py_ssize_t size = 0;
    if (api == nullptr || !read_rows(grads, entries, &size)) return false;
    const size_t tasks = entries.size();
    if (!read_rows(others, entries, &size) && !others.empty()) return false;
    if (known != nullptr && known->of.size() != tasks * size_t(size)) return false;
    std::vector<View> views(entries.size());
    std::vector<char> in_order(entries.size());
    std::vector<int> kind;
    for (Py_ssize_t i = 0; i < size; i++) {
        const View* first = nullptr;
        bool complete = true, plain = true, vectors = true;
        for (size_t t = 0; t < entries.size(); t++) {
            PyObject* entry = entries[t][i];
            views[t].data = nullptr;
            if (entry == Py_None) {
                complete &= t < tasks;
                continue;
            }
            bool negative = false;
            if (known != nullptr && t < tasks) {
                views[t] = known->of[size_t(i) * tasks + t];
                negative = known->negative[size_t(i) * tasks + t];
                in_order[t] = known->in_order[size_t(i) * tasks + t];
            } else if (look(entry, &views[t], &negative)) {
                in_order[t] = contiguous(views[t]);
            } else {
                return false;
            }
            if (t < tasks && first == nullptr) first = &views[t];
            plain &= !negative;
        }
        if (first == nullptr || !complete || numel(*first) == 0) continue;
        const bool rows_only = in_order[size_t(first - views.data())];
        if (!rows_only) plain &= dense(*first);
        kind.assign(1, dtype_index(first->dtype));
        const size_t begin = flat.addresses.size();
        for (size_t t = 0; t < entries.size(); t++) {
            const View& view = views[t];
            const bool there = view.data != nullptr;
            if (there) plain &= rows_only ? in_order[t] != 0 : same_strides(view, *first);
            const int64_t at = there ? int64_t(reinterpret_cast<uintptr_t>(address(view))) : 0;
            vectors &= at % vector_bytes == 0;
            flat.addresses.push_back(at);
            if (t >= tasks) kind.push_back(dtype_index(view.dtype));
        }
        if (!plain) {
            flat.addresses.resize(begin);
            flat.fallback.push_back(i);
            continue;
        }
        if (flat.kind.empty() || kind != flat.kinds[flat.kind.back()]) {
            const size_t place = size_t(std::find(flat.kinds.begin(), flat.kinds.end(), kind) - flat.kinds.begin());
            if (place == flat.kinds.size()) flat.kinds.push_back(kind);
            flat.kind.push_back(place);
        } else {
            flat.kind.push_back(flat.kind.back());
        }
        flat.params.push_back(i);
        flat.numels.push_back(numel(*first));
        flat.aligned.push_back(vectors);
    }
    return true;
}

py::tuple dtype_tuple(const std::vector<int>& kind) {
    py::tuple tuple(kind.size());
    for (size_t t = 0; t < kind.size(); t++) tuple[t] = py::reinterpret_borrow<py::object>(dtypes[kind[t]]);
    return tuple;
}

template <class V> py::list ints(const V& values) {
    py::list list(values.size());
    for (size_t i = 0; i < values.size(); i++) list[i] = py::int_(values[i]);
    return list;
}

// The fields of cats.ops.layout.Flat, with the pointers as bytes; None if an entry is not a plain dense tensor.
// views: of grads, if uniform() has read them.
py::object flatten(const py::list& grads, const py::list& others, int64_t vector_bytes, const Views* views) {
    Flat flat;
    if (!read(grads, others, vector_bytes, views, flat)) return py::none();
    std::vector<py::tuple> kinds;
    for (const std::vector<int>& kind : flat.kinds) kinds.push_back(dtype_tuple(kind));
    py::list kind(flat.params.size()), aligned(flat.params.size());
    for (size_t i = 0; i < flat.params.size(); i++) {
        kind[i] = kinds[flat.kind[i]];
        aligned[i] = py::bool_(flat.aligned[i] != 0);
    }
    py::bytes bytes(reinterpret_cast<const char*>(flat.addresses.data()), flat.addresses.size() * sizeof(int64_t));
    return py::make_tuple(ints(flat.params), ints(flat.numels), kind, aligned, bytes, ints(flat.fallback));
}

// The same for the CPU kernels: ([(Work, dtypes, params), ...], fallback), with a Work for every combination of dtypes.
// groups: N ints.
py::object works(const py::list& grads, const py::list& others, const py::list& groups, int threads, const Views* views) {
    Flat flat;
    if (!read(grads, others, 1, views, flat)) return py::none();
    const int64_t tasks = int64_t(grads.size()), width = tasks + int64_t(others.size());
    py::list result;
    for (size_t k = 0; k < flat.kinds.size(); k++) {
        OwnedWork owned;
        std::vector<int64_t> params;
        owned.work.tasks = tasks;
        owned.work.others = width - tasks;
        owned.work.type = static_cast<cats::Type>(flat.kinds[k][0]);
        owned.work.threads = threads;
        for (size_t i = 0; i < flat.params.size(); i++) {
            if (flat.kind[i] != k) continue;
            const int64_t* row = flat.addresses.data() + int64_t(i) * width;
            owned.addresses.insert(owned.addresses.end(), row, row + width);
            owned.work.numels.push_back(flat.numels[i]);
            owned.work.groups.push_back(groups[size_t(flat.params[i])].cast<int64_t>());
            params.push_back(flat.params[i]);
        }
        owned.work.addresses = owned.addresses.data();
        result.append(py::make_tuple(py::cast(std::move(owned)), dtype_tuple(flat.kinds[k]), ints(params)));
    }
    return py::make_tuple(result, ints(flat.fallback));
}

// Whether these are plain tensors with their numbers in memory: x and y two matrices of one shape, of any of the four dtypes,
// and rows one int64 for every row, all on one device. False means only that Python must check.
bool row_matrices(const py::object& x, const py::object& y, const py::object& rows) {
    View a, b, c;
    bool negative[3];
    if (api == nullptr || !look(x.ptr(), &a, &negative[0]) || !look(y.ptr(), &b, &negative[1])) return false;
    if (!is_plain(rows.ptr()) || api->view(rows.ptr(), &c) != 0) {
        PyErr_Clear();
        return false;
    }
    if (a.ndim != 2 || b.ndim != 2 || c.ndim != 1 || !std::equal(a.shape, a.shape + 2, b.shape) || c.shape[0] != a.shape[0])
        return false;
    if (c.dtype.code != 0 || c.dtype.bits != 64 || !in_storage(rows.ptr(), c, &negative[2])) return false;
    for (const View* v : {&b, &c})
        if (v->device.type != a.device.type || v->device.id != a.device.id) return false;
    return !negative[0] && !negative[1] && !negative[2];
}

}  // namespace

void bind_tensors(py::module_& m) {
    py::class_<Views>(m, "Views");
    m.def("use_torch", &use_torch);
    m.def("uniform", &uniform);
    m.def("matches", &matches);
    m.def("shared", &shared);
    m.def("flatten", &flatten);
    m.def("works", &works);
    m.def("row_matrices", &row_matrices);
}
