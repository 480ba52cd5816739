// Calls with everything settled in advance. They read NumPy's structs as they are: pybind11's
// dispatch and conversions alone cost several times what a small net does.
#pragma once

#include <memory>
#include <mutex>

#include "arrays.hpp"

namespace gradstack::bindings {

// Counts changes of structure anywhere in Python: what was settled at the same time still holds.
long long clock_now();

// Settled until the clock moves on.
class ShortCall {
 public:
  ShortCall() : settled_(clock_now()) {}
  virtual ~ShortCall() = default;
  ShortCall(const ShortCall&) = delete;
  ShortCall& operator=(const ShortCall&) = delete;

  // As a vectorcall: n positional arguments, then the values of `names` (a tuple or null). The
  // result, or None if these arguments need the general path. May throw.
  virtual py::object call(PyObject* const* args, std::size_t n, PyObject* names) = 0;
  bool stale() const { return settled_ != clock_now(); }

 private:
  const long long settled_;
};

// The Python object that calls it.
py::object make_short_call(std::unique_ptr<ShortCall> call);

// Waits for a mutex without the GIL: its owner may want that before it lets go.
std::unique_lock<std::mutex> lock_with_gil(std::mutex& mutex);

// Work so small that releasing the GIL and taking it again would be felt.
constexpr double kHeldFlops = 1e6;

bool has_user_code(const Graph& graph);

// What one call was given: so many samples, or one without a batch axis.
struct Extent {
  Index count = 0;  // 0: not known yet
  bool single = false;
};

// One input or output: arrays of one dtype and sample shape, with or without a batch axis.
template <class T> class Samples {
 public:
  explicit Samples(const std::vector<Index>& shape);

  // The values of `object` if it is a C-contiguous array (no subclass) of T and of this shape, with
  // as many samples as *extent says, which the first array settles. Else null.
  T* match(PyObject* object, Extent* extent) const;
  // Else: the values of an array of another real dtype or of other strides, converted into `kept`;
  // null too where one might be too large for T.
  const T* convert(PyObject* object, Extent* extent, std::vector<std::vector<T>>* kept) const;
  // As match, for an array to be written.
  T* match_out(PyObject* object, Extent extent) const;
  py::object make(Extent extent, T** values);
  // Whether the same memory holds values of a and of b.
  static bool overlap(const T* a, Index a_size, const T* b, Index b_size) {
    return a < b + b_size && b < a + a_size;
  }
  Index size() const { return size_; }

 private:
  std::vector<py::ssize_t> shape_;  // begins with the place for the number of samples
  Index size_ = 1;
};

// The values of a C-contiguous (n,) array of S, no subclass; else null.
template <class S> const S* match_vector(PyObject* object, Index n);

// Inputs to outputs at the net's own parameters: f(*xs, out=None).
template <class T> class ArrayCall : public ShortCall {
 public:
  static constexpr std::size_t kMost = 8;  // inputs, and outputs

  // `flops` of one sample decide whether the GIL is released; `user_code`: always. The outputs are
  // given as a tuple, or as the one array that they are.
  ArrayCall(const Graph& graph, const py::object& w, const std::vector<std::vector<Index>>& outs,
            bool tuple, double flops);
  py::object call(PyObject* const* args, std::size_t n, PyObject* names) final;

 protected:
  virtual void run(const T* w, const T* const* xs, Index count, T* const* outs, bool gil) = 0;

 private:
  bool take_outs(PyObject* given, Extent extent, T** outs) const;
  bool is_small(Index count) const {
    return !user_code_ && flops_ * static_cast<double>(count) < kHeldFlops;
  }

  py::object w_;
  const T* weights_;
  std::vector<Samples<T>> in_, out_;
  bool tuple_, user_code_;
  double flops_;
};

// Batches for a cost like the one that was read in full before.
template <class T> class BatchReader {
 public:
  // y: what its targets were converted to.
  BatchReader(const Graph& graph, const py::object& y);

  // The batch, if x (one array or a tuple), y and sample_weight are what the core takes as it is
  // and nothing that the general path would refuse. They must outlive it.
  bool read(PyObject* x, PyObject* y, PyObject* sample_weight, Batch* batch) const;
  TargetSpec target() const { return target_; }

 private:
  bool read_inputs(PyObject* given, Extent* extent, Batch* batch) const;
  bool read_target(PyObject* y, Extent extent, Batch* batch) const;
  bool read_weight(PyObject* given, Batch* batch) const;

  std::vector<Samples<T>> in_, dense_;  // dense_: none, or one
  TargetSpec target_;
  Index classes_;
};

}  // namespace gradstack::bindings
