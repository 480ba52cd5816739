#include "short_call.hpp"

#include <structmember.h>

#include <algorithm>
#include <cmath>

#include "bind.hpp"
#include "gradstack/mlp.hpp"

namespace gradstack::bindings {
namespace {

using Array = py::detail::PyArray_Proxy;

// NumPy's functions and the two names looked at in every call; set once, with the types below.
const py::detail::npy_api* numpy = nullptr;
PyObject* out_name = nullptr;

// Types -------------------------------------------------------------------------------------------

struct Clock {
  PyObject_HEAD long long now;
};

struct Callable {
  PyObject_HEAD vectorcallfunc vectorcall;
  ShortCall* call;
};

// The base of every net. A null `vectorcall` is what it is without a short call: Python then uses
// the type's __call__.
struct Net {
  PyObject_HEAD vectorcallfunc vectorcall;
  PyObject* short_call;
};

Clock* the_clock = nullptr;
PyTypeObject* callable_type = nullptr;
PyTypeObject* net_type = nullptr;

template <class Object> void free_object(Object* self) {
  PyTypeObject* type = Py_TYPE(self);
  type->tp_free(self);
  Py_DECREF(type);
}

PyObject* call_callable(PyObject* self, PyObject* const* args, std::size_t nargs, PyObject* names) {
  ShortCall& call = *reinterpret_cast<Callable*>(self)->call;
  if (call.stale()) Py_RETURN_NONE;
  try {
    return call.call(args, static_cast<std::size_t>(PyVectorcall_NARGS(nargs)), names)
        .release()
        .ptr();
  } catch (...) {
    py::detail::try_translate_exceptions();
    return nullptr;
  }
}

// type(self).__call__ with the arguments of a vectorcall.
PyObject* call_generally(PyObject* self, PyObject* const* args, std::size_t nargs,
                         PyObject* names) {
  const Py_ssize_t n = PyVectorcall_NARGS(nargs), named = names ? PyTuple_GET_SIZE(names) : 0;
  const auto positional = py::reinterpret_steal<py::object>(PyTuple_New(n));
  if (!positional) return nullptr;
  for (Py_ssize_t i = 0; i < n; ++i)
    PyTuple_SET_ITEM(positional.ptr(), i, py::handle(args[i]).inc_ref().ptr());
  py::object keywords;
  if (named > 0) {
    keywords = py::reinterpret_steal<py::object>(PyDict_New());
    if (!keywords) return nullptr;
    for (Py_ssize_t i = 0; i < named; ++i)
      if (PyDict_SetItem(keywords.ptr(), PyTuple_GET_ITEM(names, i), args[n + i]) < 0)
        return nullptr;
  }
  return Py_TYPE(self)->tp_call(self, positional.ptr(), keywords.ptr());
}

PyObject* call_net(PyObject* self, PyObject* const* args, std::size_t nargs, PyObject* names) {
  // Kept alive: while the GIL is released another thread may settle the net anew.
  const auto short_call =
      py::reinterpret_borrow<py::object>(reinterpret_cast<Net*>(self)->short_call);
  PyObject* result = call_callable(short_call.ptr(), args, nargs, names);
  if (result != Py_None) return result;
  Py_DECREF(result);
  return call_generally(self, args, nargs, names);
}

PyObject* settle(PyObject* self, PyObject* call) {
  Net* net = reinterpret_cast<Net*>(self);
  if (call != Py_None && Py_TYPE(call) != callable_type) {
    PyErr_SetString(PyExc_TypeError, "expected a ShortCall or None");
    return nullptr;
  }
  PyObject* kept = call == Py_None ? nullptr : py::handle(call).inc_ref().ptr();
  net->vectorcall = kept ? call_net : nullptr;
  Py_XSETREF(net->short_call, kept);
  Py_RETURN_NONE;
}

// Python never gives a class of its own the flag that makes it look at `vectorcall`, because the
// class may define __call__. Here that is safe: nothing is settled for a net whose __call__ is not
// nn.Module's, and whatever is not settled goes to __call__.
PyObject* init_subclass(PyObject* cls, PyObject*) {
  reinterpret_cast<PyTypeObject*>(cls)->tp_flags |= Py_TPFLAGS_HAVE_VECTORCALL;
  Py_RETURN_NONE;
}

PyTypeObject* make_type(PyType_Spec spec) {
  PyObject* type = PyType_FromSpec(&spec);
  if (!type) throw py::error_already_set();
  return reinterpret_cast<PyTypeObject*>(type);
}

PyTypeObject* make_clock_type() {
  static PyMemberDef members[] = {{"now", T_LONGLONG, offsetof(Clock, now), 0, nullptr},
                                  {nullptr, 0, 0, 0, nullptr}};
  static PyType_Slot slots[] = {
      {Py_tp_doc, const_cast<char*>("Counts changes of structure anywhere.")},
      {Py_tp_members, members},
      {Py_tp_dealloc, reinterpret_cast<void*>(free_object<Clock>)},
      {0, nullptr}};
  return make_type({"gradstack._core.Clock", sizeof(Clock), 0,
                    Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION, slots});
}

PyTypeObject* make_callable_type() {
  static PyMemberDef members[] = {
      {"__vectorcalloffset__", T_PYSSIZET, offsetof(Callable, vectorcall), READONLY, nullptr},
      {nullptr, 0, 0, 0, nullptr}};
  const auto dealloc = +[](Callable* self) {
    delete self->call;
    free_object(self);
  };
  static PyType_Slot slots[] = {
      {Py_tp_doc, const_cast<char*>("A settled call; gives None for arguments that it does not "
                                    "take.")},
      {Py_tp_members, members},
      {Py_tp_call, reinterpret_cast<void*>(PyVectorcall_Call)},
      {Py_tp_dealloc, reinterpret_cast<void*>(dealloc)},
      {0, nullptr}};
  return make_type(
      {"gradstack._core.ShortCall", sizeof(Callable), 0,
       Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION | Py_TPFLAGS_HAVE_VECTORCALL, slots});
}

PyTypeObject* make_net_type() {
  static PyMemberDef members[] = {
      {"__vectorcalloffset__", T_PYSSIZET, offsetof(Net, vectorcall), READONLY, nullptr},
      {nullptr, 0, 0, 0, nullptr}};
  static PyMethodDef methods[] = {
      {"_settle", settle, METH_O, "Let calls try this ShortCall first (None: no more)."},
      {"__init_subclass__", init_subclass, METH_NOARGS | METH_CLASS, nullptr},
      {nullptr, nullptr, 0, nullptr}};
  const auto dealloc = +[](Net* self) {
    Py_XDECREF(self->short_call);
    free_object(self);
  };
  static PyType_Slot slots[] = {
      {Py_tp_doc, const_cast<char*>("Base of nn.Module: what makes calls short.")},
      {Py_tp_members, members},
      {Py_tp_methods, methods},
      {Py_tp_dealloc, reinterpret_cast<void*>(dealloc)},
      {0, nullptr}};
  return make_type(
      {"gradstack._core.NetBase", sizeof(Net), 0, Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE, slots});
}

// Arrays ------------------------------------------------------------------------------------------

template <class T> PyObject* descriptor() {
  static PyObject* const descr =
      numpy->PyArray_DescrFromType_(py::detail::npy_format_descriptor<T>::value);
  return descr;
}

// The array itself if its values are T, aligned, native and C-contiguous.
template <class T> const Array* plain_array(PyObject* object) {
  if (Py_TYPE(object) != numpy->PyArray_Type_) return nullptr;
  const auto* array = reinterpret_cast<const Array*>(object);
  constexpr int kPlain =
      py::detail::npy_api::NPY_ARRAY_C_CONTIGUOUS_ | py::detail::npy_api::NPY_ARRAY_ALIGNED_;
  if ((array->flags & kPlain) != kPlain) return nullptr;
  if (array->descr == descriptor<T>()) return array;
  // Unpickled arrays have a descriptor of their own.
  const auto* descr = reinterpret_cast<const py::detail::PyArrayDescr_Proxy*>(array->descr);
  const bool same =
      descr->type_num == py::detail::npy_format_descriptor<T>::value && descr->byteorder == '=';
  return same ? array : nullptr;
}

}  // namespace

long long clock_now() { return the_clock->now; }

py::object make_short_call(std::unique_ptr<ShortCall> call) {
  auto* self = reinterpret_cast<Callable*>(callable_type->tp_alloc(callable_type, 0));
  if (!self) throw py::error_already_set();
  self->vectorcall = call_callable;
  self->call = call.release();
  return py::reinterpret_steal<py::object>(reinterpret_cast<PyObject*>(self));
}

std::unique_lock<std::mutex> lock_with_gil(std::mutex& mutex) {
  std::unique_lock<std::mutex> lock(mutex, std::try_to_lock);
  if (!lock.owns_lock()) {
    const py::gil_scoped_release release;
    lock.lock();
  }
  return lock;
}

bool has_user_code(const Graph& graph) {
  return std::any_of(graph.stages().begin(), graph.stages().end(),
                     [](const Stage& s) { return s.kind == Kind::Opaque; });
}

template <class T> Samples<T>::Samples(const std::vector<Index>& shape) : shape_{0} {
  shape_.insert(shape_.end(), shape.begin(), shape.end());
  for (const Index n : shape) size_ *= n;
}

template <class T> T* Samples<T>::match(PyObject* object, Extent* extent) const {
  const Array* array = plain_array<T>(object);
  if (!array) return nullptr;
  const int axes = static_cast<int>(shape_.size()) - 1, lead = array->nd - axes;
  if (lead != 0 && lead != 1) return nullptr;
  for (int i = 0; i < axes; ++i)
    if (array->dimensions[lead + i] != shape_[static_cast<std::size_t>(i) + 1]) return nullptr;
  const Extent found{lead ? array->dimensions[0] : 1, lead == 0};
  if (extent->count == 0) *extent = found;
  if (found.count != extent->count || found.single != extent->single || found.count == 0)
    return nullptr;
  return reinterpret_cast<T*>(array->data);
}

template <class T>
const T* Samples<T>::convert(PyObject* object, Extent* extent,
                             std::vector<std::vector<T>>* kept) const {
  if (Py_TYPE(object) != numpy->PyArray_Type_) return nullptr;
  const auto type = find_scalar_type(py::reinterpret_borrow<py::array>(object));
  if (!type) return nullptr;
  const auto* array = reinterpret_cast<const Array*>(object);
  const int axes = static_cast<int>(shape_.size()) - 1, lead = array->nd - axes;
  if (axes != 1 || lead < 0 || lead > 1 || array->dimensions[lead] != size_) return nullptr;
  const Extent found{lead ? array->dimensions[0] : 1, lead == 0};
  if (extent->count == 0) *extent = found;
  if (found.count != extent->count || found.single != extent->single || found.count == 0)
    return nullptr;
  RowSource source;
  source.type = *type;
  source.data = array->data;
  source.rows = found.count;
  source.cols = size_;
  source.row_stride = lead ? array->strides[0] : 0;
  source.col_stride = array->strides[lead];
  std::vector<T>& values = kept->emplace_back(static_cast<std::size_t>(found.count * size_));
  for (Index i = 0; i < found.count; ++i) gather_row(source, i, values.data() + i * size_);
  const bool may_overflow = source.type == Scalar::F64 && sizeof(T) < sizeof(double);
  if (may_overflow && std::any_of(values.begin(), values.end(), [](T v) { return std::isinf(v); }))
    return nullptr;
  return values.data();
}

template <class T> T* Samples<T>::match_out(PyObject* object, Extent extent) const {
  T* values = match(object, &extent);
  const bool writeable = values && (reinterpret_cast<const Array*>(object)->flags &
                                    py::detail::npy_api::NPY_ARRAY_WRITEABLE_);
  return writeable ? values : nullptr;
}

template <class T> py::object Samples<T>::make(Extent extent, T** values) {
  const int skip = extent.single ? 1 : 0;
  shape_[0] = extent.count;
  PyObject* descr = py::handle(descriptor<T>()).inc_ref().ptr();  // the array takes it
  auto array = py::reinterpret_steal<py::object>(numpy->PyArray_NewFromDescr_(
      numpy->PyArray_Type_, descr, static_cast<int>(shape_.size()) - skip, shape_.data() + skip,
      nullptr, nullptr, 0, nullptr));
  if (!array) throw py::error_already_set();
  *values = reinterpret_cast<T*>(reinterpret_cast<Array*>(array.ptr())->data);
  return array;
}

template <class S> const S* match_vector(PyObject* object, Index n) {
  const Array* array = plain_array<S>(object);
  return array && array->nd == 1 && array->dimensions[0] == n
             ? reinterpret_cast<const S*>(array->data)
             : nullptr;
}

template <class T>
ArrayCall<T>::ArrayCall(const Graph& graph, const py::object& w,
                        const std::vector<std::vector<Index>>& outs, bool tuple, double flops)
    : w_(w),
      weights_(vector_view<T>(w, "w", graph.n_params(), false)),
      tuple_(tuple),
      user_code_(has_user_code(graph)),
      flops_(flops) {
  for (const int id : graph.inputs()) in_.emplace_back(graph.stage(id).shape);
  for (const auto& shape : outs) out_.emplace_back(shape);
  if (in_.size() > kMost || out_.size() > kMost)
    throw py::value_error("a short call takes and gives at most " + std::to_string(kMost) +
                          " arrays");
}

template <class T> bool ArrayCall<T>::take_outs(PyObject* given, Extent extent, T** outs) const {
  if (tuple_ && (!PyTuple_CheckExact(given) ||
                 PyTuple_GET_SIZE(given) != static_cast<Py_ssize_t>(out_.size())))
    return false;
  for (std::size_t i = 0; i < out_.size(); ++i) {
    PyObject* array = tuple_ ? PyTuple_GET_ITEM(given, static_cast<Py_ssize_t>(i)) : given;
    outs[i] = out_[i].match_out(array, extent);
    if (!outs[i]) return false;
  }
  return true;
}

template <class T>
py::object ArrayCall<T>::call(PyObject* const* args, std::size_t n, PyObject* names) {
  PyObject* given = Py_None;
  if (names) {
    if (PyTuple_GET_SIZE(names) != 1 || PyTuple_GET_ITEM(names, 0) != out_name) return py::none();
    given = args[n];
  }
  if (n != in_.size()) return py::none();
  Extent extent;
  const T* xs[kMost];
  T* outs[kMost];
  std::vector<std::vector<T>> kept;
  for (std::size_t i = 0; i < n; ++i) {
    xs[i] = in_[i].match(args[i], &extent);
    if (!xs[i]) xs[i] = in_[i].convert(args[i], &extent, &kept);
    if (!xs[i]) return py::none();
  }
  const Index count = extent.count;
  py::object result;
  if (given != Py_None) {
    if (!take_outs(given, extent, outs)) return py::none();
    for (std::size_t o = 0; o < out_.size(); ++o)
      for (std::size_t i = 0; i < n; ++i)
        if (Samples<T>::overlap(outs[o], count * out_[o].size(), xs[i], count * in_[i].size()))
          return py::none();
    result = py::reinterpret_borrow<py::object>(given);
  } else if (!tuple_) {
    result = out_[0].make(extent, &outs[0]);
  } else {
    py::tuple arrays(out_.size());
    for (std::size_t o = 0; o < out_.size(); ++o) arrays[o] = out_[o].make(extent, &outs[o]);
    result = std::move(arrays);
  }
  if (is_small(count)) {
    run(weights_, xs, count, outs, true);
  } else {
    // The arguments stay the caller's: a vectorcall borrows them for as long as it lasts.
    const py::gil_scoped_release release;
    run(weights_, xs, count, outs, false);
  }
  return result;
}

template <class T>
BatchReader<T>::BatchReader(const Graph& graph, const py::object& y)
    : classes_(size_of(graph.stage(graph.outputs()[0]).shape)) {
  for (const int id : graph.inputs()) in_.emplace_back(graph.stage(id).shape);
  if (y.is_none()) return;
  const auto array = y.cast<py::array>();
  target_.labels = array.ndim() == 1;
  if (target_.labels) return;
  target_.dy = array.shape(1);
  dense_.emplace_back(std::vector<Index>{target_.dy});
}

template <class T>
bool BatchReader<T>::read(PyObject* x, PyObject* y, PyObject* sample_weight, Batch* batch) const {
  Extent extent;
  return read_inputs(x, &extent, batch) && read_target(y, extent, batch) &&
         read_weight(sample_weight, batch);
}

template <class T>
bool BatchReader<T>::read_inputs(PyObject* given, Extent* extent, Batch* batch) const {
  const bool several = in_.size() > 1;
  if (several && (!PyTuple_CheckExact(given) ||
                  PyTuple_GET_SIZE(given) != static_cast<Py_ssize_t>(in_.size())))
    return false;
  for (std::size_t i = 0; i < in_.size(); ++i) {
    PyObject* x = several ? PyTuple_GET_ITEM(given, static_cast<Py_ssize_t>(i)) : given;
    const T* values = in_[i].match(x, extent);
    if (!values) return false;
    batch->x.push_back(rows_of(values, extent->count, in_[i].size()));
  }
  batch->count = extent->count;
  return true;
}

template <class T>
bool BatchReader<T>::read_target(PyObject* y, Extent extent, Batch* batch) const {
  batch->labels = target_.labels;
  if (target_.labels) {
    const auto* labels = extent.single ? nullptr : match_vector<std::int64_t>(y, extent.count);
    if (!labels) return false;
    batch->y = labels_of(labels, extent.count);
    return std::all_of(labels, labels + extent.count,
                       [&](std::int64_t k) { return k >= 0 && k < classes_; });
  }
  if (dense_.empty()) return y == Py_None;
  const T* values = dense_[0].match(y, &extent);
  if (!values && target_.dy == 1 && !extent.single) values = match_vector<T>(y, extent.count);
  if (values) batch->y = rows_of(values, extent.count, target_.dy);
  return values != nullptr;
}

template <class T> bool BatchReader<T>::read_weight(PyObject* given, Batch* batch) const {
  if (given == Py_None) return true;
  const T* weight = match_vector<T>(given, batch->count);
  if (!weight) return false;
  const auto allowed = [](T w) { return w >= T(0) && std::isfinite(w); };
  if (!std::all_of(weight, weight + batch->count, allowed)) return false;
  batch->weight = rows_of(weight, batch->count, 1);
  return std::any_of(weight, weight + batch->count, [](T w) { return w > T(0); });
}

void bind_short_call(py::module_& m) {
  numpy = &py::detail::npy_api::get();
  out_name = PyUnicode_InternFromString("out");
  callable_type = make_callable_type();
  net_type = make_net_type();
  PyTypeObject* clock_type = make_clock_type();
  the_clock = reinterpret_cast<Clock*>(clock_type->tp_alloc(clock_type, 0));
  if (!out_name || !the_clock) throw py::error_already_set();
  m.attr("clock") = py::handle(reinterpret_cast<PyObject*>(the_clock));
  m.attr("ShortCall") = py::handle(reinterpret_cast<PyObject*>(callable_type));
  m.attr("NetBase") = py::handle(reinterpret_cast<PyObject*>(net_type));
}

template class Samples<float>;
template class Samples<double>;
template class ArrayCall<float>;
template class ArrayCall<double>;
template class BatchReader<float>;
template class BatchReader<double>;
template const float* match_vector<float>(PyObject*, Index);
template const double* match_vector<double>(PyObject*, Index);
template const std::int64_t* match_vector<std::int64_t>(PyObject*, Index);

}  // namespace gradstack::bindings
