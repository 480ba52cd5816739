#include "short_call.hpp"

#include <structmember.h>

#include <algorithm>

#include "bind.hpp"

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

PyObject* call_callable(PyObject* self, PyObject* const* args, std::size_t nargs,
                        PyObject* names) {
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
  return make_type({"gradstack._core.ShortCall", sizeof(Callable), 0,
                    Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION |
                        Py_TPFLAGS_HAVE_VECTORCALL,
                    slots});
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
  return make_type({"gradstack._core.NetBase", sizeof(Net), 0,
                    Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE, slots});
}

// Arrays ------------------------------------------------------------------------------------------

template <class T> PyObject* descriptor() {
  static PyObject* const descr = numpy->PyArray_DescrFromType_(
      py::detail::npy_format_descriptor<T>::value);
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
  const bool same = descr->type_num == py::detail::npy_format_descriptor<T>::value &&
                    descr->byteorder == '=';
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

template <class T>
bool ArrayCall<T>::take_outs(PyObject* given, Extent extent, T** outs) const {
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
  for (std::size_t i = 0; i < n; ++i)
    if (!(xs[i] = in_[i].match(args[i], &extent))) return py::none();
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
  if (!user_code_ && flops_ * static_cast<double>(count) < kHeldFlops) {
    run(weights_, xs, count, outs, true);
  } else {
    // The arguments stay the caller's: a vectorcall borrows them for as long as it lasts.
    const py::gil_scoped_release release;
    run(weights_, xs, count, outs, false);
  }
  return result;
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
template const float* match_vector<float>(PyObject*, Index);
template const double* match_vector<double>(PyObject*, Index);
template const std::int64_t* match_vector<std::int64_t>(PyObject*, Index);

}  // namespace gradstack::bindings
