// Two ways to read the fields: by torch's methods, or at their places in torch's objects.
//
// The methods take 0.1 microseconds per tensor: 2 milliseconds for the 23,000 gradients of 92 tasks, more than all other work
// on the host. The places are not part of torch's interface. So they are looked for when the module is loaded, in some
// tensors of which the methods tell the fields, and every one of them must fit all of these tensors. Otherwise the methods
// are used.
#include "fields.h"

#include <exception>
#include <vector>

namespace py = pybind11;

namespace {

PyObject *is_neg, *untyped_storage, *data_ptr, *nbytes;  // torch's methods

struct Places {
    bool found = false;
    size_t tensor;              // in the Python object
    size_t keys, storage;       // in the tensor
    size_t begin, bytes;        // in the storage
    uint64_t negative_bit = 0;  // among the keys
} places;

uint64_t word(uint64_t object, size_t place) { return *reinterpret_cast<const uint64_t*>(object + place); }

// Sets `place` to the first offset below `size` at which object i has the word expected[i], for every i.
bool find(const std::vector<uint64_t>& objects, const std::vector<uint64_t>& expected, size_t size, size_t* place) {
    for (*place = 0; *place < size; *place += sizeof(uint64_t)) {
        bool fits = true;
        for (size_t i = 0; fits && i < objects.size(); i++) fits = word(objects[i], *place) == expected[i];
        if (fits) return true;
    }
    return false;
}

// No more is read of torch's objects, which have at least this size.
constexpr size_t TENSOR_BYTES = 176, STORAGE_BYTES = 64;

Places find_places(const py::object& torch) {
    const py::object empty = torch.attr("empty"), keys_of = torch.attr("_C").attr("_dispatch_keys");
    const auto sample = [&](int size, const char* dtype) { return empty(size, py::arg("dtype") = torch.attr(dtype), py::arg("device") = "cpu"); };
    const py::object plain = sample(7, "float32");
    // The memory of the last one is not torch's own.
    const py::object foreign = torch.attr("from_numpy")(py::module_::import("numpy").attr("zeros")(9));
    const std::vector<py::object> samples = {plain,
                                             plain[py::slice(2, 6, 1)],
                                             torch.attr("_neg_view")(sample(300, "float32")),
                                             torch.attr("nn").attr("Parameter")(sample(5, "float64")),
                                             sample(0, "float16"),
                                             foreign};
    std::vector<uint64_t> objects, tensors, keys, storages, begins, sizes;
    for (const py::object& t : samples) {
        const py::object storage = t.attr("untyped_storage")();
        objects.push_back(reinterpret_cast<uintptr_t>(t.ptr()));
        tensors.push_back(t.attr("_cdata").cast<uint64_t>());
        keys.push_back(keys_of(t).attr("raw_repr")().cast<uint64_t>());
        storages.push_back(storage.attr("_cdata").cast<uint64_t>());
        begins.push_back(storage.attr("data_ptr")().cast<uint64_t>());
        sizes.push_back(storage.attr("nbytes")().cast<uint64_t>());
    }
    Places p;
    p.negative_bit = keys[2] ^ keys[0];
    p.found = p.negative_bit != 0 && find(objects, tensors, size_t(Py_TYPE(plain.ptr())->tp_basicsize), &p.tensor) &&
              find(tensors, keys, TENSOR_BYTES, &p.keys) && find(tensors, storages, TENSOR_BYTES, &p.storage) &&
              find(storages, begins, STORAGE_BYTES, &p.begin) && find(storages, sizes, STORAGE_BYTES, &p.bytes);
    return p;
}

// The number that a method without arguments returns; false if it raises.
bool call(PyObject* method, PyObject* self, uint64_t* result) {
    PyObject* answer = PyObject_CallOneArg(method, self);
    *result = answer == nullptr ? 0 : PyLong_AsUnsignedLongLong(answer);
    Py_XDECREF(answer);
    const bool raised = PyErr_Occurred() != nullptr;
    if (raised) PyErr_Clear();
    return !raised;
}

}  // namespace

void find_fields(const py::object& torch) {
    const auto method = [&](const char* type, const char* name) { return py::object(torch.attr(type).attr(name)).release().ptr(); };
    is_neg = method("Tensor", "is_neg");
    untyped_storage = method("Tensor", "untyped_storage");
    data_ptr = method("UntypedStorage", "data_ptr");
    nbytes = method("UntypedStorage", "nbytes");
    try {
        places = find_places(torch);
    } catch (const std::exception&) {  // another torch, whose objects do not have these names or types
        places.found = false;
    }
}

void fetch_fields(PyObject* object, int level) {
#ifdef __GNUC__
    if (!places.found) return;
    const uint64_t address = reinterpret_cast<uintptr_t>(object);
    if (level == 0) return __builtin_prefetch(object);
    const uint64_t tensor = word(address, places.tensor);
    if (level == 1) {
        for (size_t line = 0; line < TENSOR_BYTES; line += 64) __builtin_prefetch(reinterpret_cast<const char*>(tensor) + line);
    } else {
        __builtin_prefetch(reinterpret_cast<const char*>(word(tensor, places.storage)));
    }
#endif
}

bool read_fields(PyObject* object, Fields* out) {
    if (places.found) {
        const uint64_t tensor = word(reinterpret_cast<uintptr_t>(object), places.tensor), storage = word(tensor, places.storage);
        if (storage == 0) return false;
        *out = {(word(tensor, places.keys) & places.negative_bit) != 0, uintptr_t(word(storage, places.begin)),
                int64_t(word(storage, places.bytes))};
        return true;
    }
    uint64_t negative, begin, bytes;
    if (!call(is_neg, object, &negative)) return false;
    PyObject* storage = PyObject_CallOneArg(untyped_storage, object);
    if (storage == nullptr) PyErr_Clear();
    const bool known = storage != nullptr && call(data_ptr, storage, &begin) && call(nbytes, storage, &bytes);
    Py_XDECREF(storage);
    if (known) *out = {negative != 0, uintptr_t(begin), int64_t(bytes)};
    return known;
}
