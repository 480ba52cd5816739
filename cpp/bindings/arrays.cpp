#include "arrays.hpp"

#include "device_tensor.hpp"

namespace gradstack::bindings {

std::optional<Scalar> find_scalar_type(const py::array& a) {
  const py::dtype dtype = a.dtype();
  const char kind = dtype.kind();
  const py::ssize_t size = dtype.itemsize();
  const char order = dtype.byteorder();
  if (order == '=' || order == '|' || order == '<') {
    if (kind == 'b') return Scalar::Bool;
    if (kind == 'f' && size == 2) return Scalar::F16;
    if (kind == 'f' && size == 4) return Scalar::F32;
    if (kind == 'f' && size == 8) return Scalar::F64;
    if (kind == 'i' || kind == 'u') {
      const bool is_signed = kind == 'i';
      switch (size) {
        case 1:
          return is_signed ? Scalar::I8 : Scalar::U8;
        case 2:
          return is_signed ? Scalar::I16 : Scalar::U16;
        case 4:
          return is_signed ? Scalar::I32 : Scalar::U32;
        case 8:
          return is_signed ? Scalar::I64 : Scalar::U64;
        default:
          break;
      }
    }
  }
  return std::nullopt;
}

namespace {

std::string describe(const py::array& a) {
  std::string text = "shape (";
  for (py::ssize_t i = 0; i < a.ndim(); ++i) text += (i ? ", " : "") + std::to_string(a.shape(i));
  return text + ") of dtype " + py::str(a.dtype()).cast<std::string>();
}

py::array as_array(const py::handle& object, const std::string& name) {
  if (!py::isinstance<py::array>(object))
    throw py::type_error(name + ": expected a NumPy array, got " +
                         py::str(py::type::of(object).attr("__name__")).cast<std::string>());
  return py::reinterpret_borrow<py::array>(object);
}

Scalar scalar_type(const py::array& a, const std::string& name) {
  if (const auto type = find_scalar_type(a)) return *type;
  throw py::type_error(name + ": got dtype " + py::str(a.dtype()).cast<std::string>() +
                       ", expected a real number type of this machine's byte order");
}

template <class T> void check_dtype(const py::array& a, const std::string& name) {
  if (!py::dtype::of<T>().is(a.dtype()) && scalar_type(a, name) != scalar_of<T>())
    throw py::type_error(name + ": got " + describe(a) + ", expected dtype " +
                         py::str(py::dtype::of<T>()).cast<std::string>());
}

bool contiguous(const py::array& a) { return (a.flags() & py::array::c_style) != 0; }

template <class T>
py::array checked_rows(const py::handle& object, const std::string& name, Index count, Index d) {
  const py::array a = as_array(object, name);
  check_dtype<T>(a, name);
  if (a.ndim() != 2 || a.shape(0) != count || a.shape(1) != d || !contiguous(a))
    throw py::value_error(name + ": got " + describe(a) + ", expected contiguous shape (" +
                          std::to_string(count) + ", " + std::to_string(d) + ")");
  return a;
}

}  // namespace

template <class T>
T* vector_view(const py::handle& object, const char* name, Index n, bool writable) {
  const py::array a = as_array(object, name);
  check_dtype<T>(a, name);
  if (a.ndim() != 1 || a.shape(0) != n || !contiguous(a))
    throw py::value_error(std::string(name) + ": got " + describe(a) +
                          ", expected a contiguous vector of " + std::to_string(n) + " values");
  if (writable && !a.writeable())
    throw py::value_error(std::string(name) + ": the array is read-only");
  return static_cast<T*>(const_cast<void*>(a.data()));
}

RowSource rows_view(const py::handle& object, const std::string& name, Index cols) {
  if (const DeviceTensor* tensor = device_tensor(object))
    return device_rows(*tensor, name, -1, cols);
  const py::array a = as_array(object, name);
  if (a.ndim() != 2 || a.shape(1) != cols)
    throw py::value_error(name + ": got " + describe(a) + ", expected (samples, " +
                          std::to_string(cols) + ")");
  return {static_cast<const char*>(a.data()),
          a.shape(0),
          cols,
          a.strides(0),
          a.strides(1),
          scalar_type(a, name)};
}

RowSource column_view(const py::handle& object, const std::string& name, Index rows) {
  const py::array a = as_array(object, name);
  if (a.ndim() != 1 || a.shape(0) != rows)
    throw py::value_error(name + ": got " + describe(a) + ", expected shape (" +
                          std::to_string(rows) + ",)");
  return {static_cast<const char*>(a.data()),
          rows,
          1,
          a.strides(0),
          a.itemsize(),
          scalar_type(a, name)};
}

template <class T>
const T* dense_rows(const py::handle& object, const std::string& name, Index count, Index d) {
  if constexpr (sizeof(T) == sizeof(float))
    if (const DeviceTensor* tensor = device_tensor(object))
      return static_cast<const T*>(
          static_cast<const void*>(device_rows(*tensor, name, count, d).data));
  return static_cast<const T*>(checked_rows<T>(object, name, count, d).data());
}

template <class T>
T* out_rows(const py::handle& object, const std::string& name, Index count, Index d) {
  if (device_tensor(object)) return const_cast<T*>(dense_rows<T>(object, name, count, d));
  const py::array a = checked_rows<T>(object, name, count, d);
  if (!a.writeable()) throw py::value_error(name + ": the array is read-only");
  return static_cast<T*>(const_cast<void*>(a.data()));
}

std::vector<RowSource> input_views(const Graph& graph, const std::vector<py::object>& xs,
                                   Index* count) {
  if (xs.size() != graph.inputs().size())
    throw py::value_error("x: got " + std::to_string(xs.size()) + " inputs, the net takes " +
                          std::to_string(graph.inputs().size()));
  std::vector<RowSource> views;
  for (std::size_t i = 0; i < xs.size(); ++i) {
    const std::string name = xs.size() == 1 ? "x" : "x[" + std::to_string(i) + "]";
    views.push_back(rows_view(xs[i], name, size_of(graph.stage(graph.inputs()[i]).shape)));
    if (views[i].rows != views[0].rows)
      throw py::value_error(name + ": has " + std::to_string(views[i].rows) +
                            " samples, x[0] has " + std::to_string(views[0].rows));
  }
  *count = views[0].rows;
  return views;
}

Target target_view(const py::object& y, Index count, Index classes) {
  Target target;
  if (y.is_none()) return target;
  if (const DeviceTensor* tensor = device_tensor(y)) {
    const Index d = tensor->shape().empty() ? 0 : tensor->shape().back();
    target.source = device_rows(*tensor, "y", count, d);
    target.spec.dy = d;
    return target;
  }
  const py::array a = as_array(y, "y");
  if (a.ndim() >= 1 && a.shape(0) != count)
    throw py::value_error("y: has " + std::to_string(a.shape(0)) + " samples, x has " +
                          std::to_string(count));
  if (a.ndim() == 2) {
    target.source = rows_view(y, "y", a.shape(1));
    target.spec.dy = a.shape(1);
    return target;
  }
  target.source = column_view(y, "y", count);
  target.spec.labels = true;
  if (target.source.type >= Scalar::F16)
    throw py::type_error("y: got " + describe(a) + ", expected integer labels");
  for (Index i = 0; i < count; ++i) {
    const std::int64_t label = label_at(target.source, i);
    if (label < 0 || label >= classes)
      throw py::value_error("y: label " + std::to_string(label) + " of sample " +
                            std::to_string(i) + " is outside 0.." + std::to_string(classes - 1));
  }
  return target;
}

template <class T>
std::pair<Batch, TargetSpec> make_batch(const Graph& graph, const std::vector<py::object>& xs,
                                        const py::object& y, const py::object& sample_weight,
                                        const Cost<T>& cost) {
  if (graph.outputs().size() != 1)
    throw py::value_error("cost: a cost compares one output with y, the net has " +
                          std::to_string(graph.outputs().size()));
  const Stage& output = graph.stage(graph.outputs()[0]);
  Batch batch;
  batch.x = input_views(graph, xs, &batch.count);
  if (batch.count == 0) throw py::value_error("x: expected at least one sample");
  const Index d = size_of(output.shape);
  const Target target = target_view(y, batch.count, d);
  if (output.kind == Kind::Nearest) {
    // Vector quantisation: the target of the chosen prototype is the input itself.
    if (!y.is_none())
      throw py::value_error("y: NearestNeighbour learns without targets, expected None");
    const Index features = graph.parameter(output.weight_id).shape[1];
    cost.check_target(features, features, false);
  } else {
    cost.check_target(d, target.spec.dy, target.spec.labels);
  }
  batch.y = target.source;
  batch.labels = target.spec.labels;
  if (!sample_weight.is_none())
    batch.weight = column_view(sample_weight, "sample_weight", batch.count);
  return {batch, target.spec};
}

template std::pair<Batch, TargetSpec> make_batch(const Graph&, const std::vector<py::object>&,
                                                 const py::object&, const py::object&,
                                                 const Cost<float>&);
template std::pair<Batch, TargetSpec> make_batch(const Graph&, const std::vector<py::object>&,
                                                 const py::object&, const py::object&,
                                                 const Cost<double>&);
template float* vector_view(const py::handle&, const char*, Index, bool);
template double* vector_view(const py::handle&, const char*, Index, bool);
template const float* dense_rows(const py::handle&, const std::string&, Index, Index);
template const double* dense_rows(const py::handle&, const std::string&, Index, Index);
template float* out_rows(const py::handle&, const std::string&, Index, Index);
template double* out_rows(const py::handle&, const std::string&, Index, Index);

}  // namespace gradstack::bindings
