// Lists of torch tensors, read in one pass without torch's headers: through the table of C functions that torch exports
// as the DLPack exchange API (torch.Tensor.__dlpack_c_exchange_api__, DLPack 1.2 or later).
// Whatever is not plain (subclasses, sparse layouts, a torch without that table) is left to Python.
#include "tensors.h"

#include <algorithm>
#include <cstdint>
#include <vector>

namespace py = pybind11;

namespace {

// The part of the ABI of dlpack.h that is used here.
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
    int (*view)(void* object, View* out);  // dltensor_from_py_object_no_sync: owns nothing, valid while the tensor lives
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

// Fills `out` if `object` is a plain dense tensor of one of the four dtypes.
bool look(PyObject* object, View* out) {
    if (Py_TYPE(object) != tensor_type && Py_TYPE(object) != parameter_type) return false;
    if (api->view(object, out) != 0) {
        PyErr_Clear();
        return false;
    }
    return dtype_index(out->dtype) >= 0 && (out->data != nullptr || numel(*out) == 0);
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

// Memory that torch reads with its sign turned, which DLPack does not tell: x.conj().imag, dense only if of one element.
bool negated(PyObject* object) {
    PyObject* answer = PyObject_CallMethod(object, "is_neg", nullptr);
    if (answer == nullptr) PyErr_Clear();
    const bool plain = answer == Py_False;
    Py_XDECREF(answer);
    return !plain;
}

bool same_strides(const View& a, const View& b) {
    for (int d = 0; d < a.ndim; d++)
        if (a.shape[d] > 1 && a.strides[d] != b.strides[d]) return false;
    return true;
}

// The K rows of N entries; false if a row is no list of N.
bool read_rows(const py::list& rows, std::vector<PyObject**>& out, Py_ssize_t* size) {
    for (py::handle row : rows) {
        if (!PyList_CheckExact(row.ptr())) return false;
        if (out.empty()) *size = PyList_GET_SIZE(row.ptr());
        if (PyList_GET_SIZE(row.ptr()) != *size) return false;
        out.push_back(reinterpret_cast<PyListObject*>(row.ptr())->ob_item);
    }
    return !out.empty() && *size > 0;
}

}  // namespace

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
    api = found;
    return true;
}

py::object uniform(const py::list& rows) {
    std::vector<PyObject**> entries;
    Py_ssize_t size = 0;
    if (api == nullptr || !read_rows(rows, entries, &size)) return py::none();
    py::list first(size);
    Device device = {0, 0};
    for (Py_ssize_t i = 0; i < size; i++) {
        View reference = {};
        PyObject* owner = Py_None;
        for (PyObject** row : entries) {
            if (row[i] == Py_None) continue;
            View view;
            if (!look(row[i], &view)) return py::none();
            if (device.type == 0) device = view.device;
            if (view.device.type != device.type || view.device.id != device.id) return py::none();
            if (owner == Py_None) {
                owner = row[i];
                reference = view;
            } else if (!same_kind(view, reference)) {
                return py::none();
            }
        }
        first[size_t(i)] = py::reinterpret_borrow<py::object>(owner);
    }
    return first;
}

bool matches(const py::list& first, const py::list& row, bool optional, bool moments) {
    if (api == nullptr || first.size() != row.size()) return false;
    for (size_t i = 0; i < row.size(); i++) {
        View view, gradient;
        PyObject* entry = PyList_GET_ITEM(row.ptr(), Py_ssize_t(i));
        PyObject* owner = PyList_GET_ITEM(first.ptr(), Py_ssize_t(i));
        if (entry == Py_None || owner == Py_None) {
            if (entry != owner || !optional) return false;
            continue;
        }
        if (!look(entry, &view) || !look(owner, &gradient) || !contiguous(view)) return false;
        if (moments) {
            const uint8_t bits = gradient.dtype.bits == 64 ? 64 : 32;
            gradient.dtype = {2, bits, 1};
        }
        if (!same_kind(view, gradient) || view.device.type != gradient.device.type || view.device.id != gradient.device.id)
            return false;
    }
    return true;
}

py::object flatten(const py::list& grads, const py::list& others, int64_t vector_bytes) {
    std::vector<PyObject**> entries;
    Py_ssize_t size = 0;
    if (api == nullptr || !read_rows(grads, entries, &size)) return py::none();
    const size_t tasks = entries.size();
    if (!read_rows(others, entries, &size) && !others.empty()) return py::none();
    py::list params, numels, kinds, aligned, odd;
    std::vector<int64_t> addresses;
    std::vector<View> views(entries.size());
    std::vector<int> last_kind;
    py::object last_tuple;
    for (Py_ssize_t i = 0; i < size; i++) {
        const View* first = nullptr;
        bool complete = true, flat = true, vectors = true;
        for (size_t t = 0; t < entries.size(); t++) {
            PyObject* entry = entries[t][i];
            views[t].data = nullptr;
            if (entry == Py_None) {
                complete &= t < tasks;
                continue;
            }
            if (!look(entry, &views[t])) return py::none();
            if (t < tasks && first == nullptr) first = &views[t];
            if (numel(views[t]) == 1) flat &= !negated(entry);
        }
        if (first == nullptr || !complete || numel(*first) == 0) continue;
        const bool rows_only = contiguous(*first);
        if (!rows_only) flat &= dense(*first);
        std::vector<int> kind(1, dtype_index(first->dtype));
        const size_t begin = addresses.size();
        for (size_t t = 0; t < entries.size(); t++) {
            const View& view = views[t];
            const bool there = view.data != nullptr;
            if (there) flat &= rows_only ? contiguous(view) : same_strides(view, *first);
            const int64_t address = there ? int64_t(reinterpret_cast<uintptr_t>(view.data)) + int64_t(view.byte_offset) : 0;
            vectors &= address % vector_bytes == 0;
            addresses.push_back(address);
            if (t >= tasks) kind.push_back(dtype_index(view.dtype));
        }
        if (!flat) {
            addresses.resize(begin);
            odd.append(i);
            continue;
        }
        if (kind != last_kind) {
            py::tuple tuple(kind.size());
            for (size_t t = 0; t < kind.size(); t++) tuple[t] = py::reinterpret_borrow<py::object>(dtypes[kind[t]]);
            last_tuple = tuple;
            last_kind = kind;
        }
        params.append(i);
        numels.append(numel(*first));
        kinds.append(last_tuple);
        aligned.append(vectors);
    }
    py::bytes bytes(reinterpret_cast<const char*>(addresses.data()), addresses.size() * sizeof(int64_t));
    return py::make_tuple(params, numels, kinds, aligned, bytes, odd);
}
