// Graph, and Python objects as opaque blocks of it.
#include "bind.hpp"
#include "gradstack/parallel.hpp"

namespace gradstack::bindings {
namespace {

// A Python module with forward/vjp/jvp on NumPy batches.
class PyFunction final : public OpaqueFunction {
 public:
  explicit PyFunction(py::object impl) : impl_(std::move(impl)) {}
  // The last owner may be a plan that is replaced while the GIL is released.
  ~PyFunction() override {
    const py::gil_scoped_acquire gil;
    impl_ = py::object();
  }

  void forward(Index n, Index d_in, Index d_out, const float* x, float* y) const override {
    call("forward", n, d_out, y, rows(n, d_in, x));
  }
  void forward(Index n, Index d_in, Index d_out, const double* x, double* y) const override {
    call("forward", n, d_out, y, rows(n, d_in, x));
  }
  void vjp(Index n, Index d_in, Index d_out, const float* x, const float* dy,
           float* dx) const override {
    call2("vjp", n, d_in, dx, d_in, x, d_out, dy);
  }
  void vjp(Index n, Index d_in, Index d_out, const double* x, const double* dy,
           double* dx) const override {
    call2("vjp", n, d_in, dx, d_in, x, d_out, dy);
  }
  void jvp(Index n, Index d_in, Index d_out, const float* x, const float* dx,
           float* dy) const override {
    call2("jvp", n, d_out, dy, d_in, x, d_in, dx);
  }
  void jvp(Index n, Index d_in, Index d_out, const double* x, const double* dx,
           double* dy) const override {
    call2("jvp", n, d_out, dy, d_in, x, d_in, dx);
  }
  const py::object& impl() const { return impl_; }

 private:
  // Without the GIL: arrays are made where it is held.
  template <class T> struct Rows {
    Index n, d;
    const T* data;
  };
  template <class T> static Rows<T> rows(Index n, Index d, const T* data) { return {n, d, data}; }

  template <class T> static py::array_t<T> copy(const Rows<T>& r) {
    return py::array_t<T>({r.n, r.d}, r.data);
  }

  template <class T, class... A>
  void call(const char* method, Index n, Index d, T* out, const A&... arguments) const {
    const py::gil_scoped_acquire gil;
    const DefaultFloats floats;
    const py::object result = impl_.attr(method)(copy(arguments)...);
    const auto array = py::array_t<T, py::array::c_style | py::array::forcecast>::ensure(result);
    if (!array) throw py::error_already_set();
    if (array.ndim() != 2 || array.shape(0) != n || array.shape(1) != d) {
      const std::string got = py::str(array.attr("shape")).template cast<std::string>();
      throw py::value_error(
          std::string(method) + " of " +
          py::str(py::type::of(impl_).attr("__name__")).template cast<std::string>() +
          " returned shape " + got + ", expected (" + std::to_string(n) + ", " + std::to_string(d) +
          ")");
    }
    std::copy(array.data(), array.data() + n * d, out);
  }

  template <class T>
  void call2(const char* method, Index n, Index d, T* out, Index d1, const T* first, Index d2,
             const T* second) const {
    call(method, n, d, out, rows(n, d1, first), rows(n, d2, second));
  }

  py::object impl_;
};

Shape to_shape(const py::handle& object) {
  Shape shape;
  for (const py::handle extent : py::reinterpret_borrow<py::object>(object))
    shape.push_back(extent.cast<Index>());
  return shape;
}

py::tuple to_tuple(const Shape& shape) {
  py::tuple tuple(shape.size());
  for (std::size_t i = 0; i < shape.size(); ++i) tuple[i] = shape[i];
  return tuple;
}

std::shared_ptr<const std::vector<std::uint8_t>> to_mask(const py::object& object) {
  if (object.is_none()) return nullptr;
  const auto array = py::array_t<bool, py::array::c_style | py::array::forcecast>::ensure(object);
  if (!array) throw py::error_already_set();
  return std::make_shared<const std::vector<std::uint8_t>>(array.data(),
                                                           array.data() + array.size());
}

void add(Graph& graph, const std::string& kind, const std::string& name,
         const std::vector<std::string>& inputs, const py::kwargs& attrs) {
  Stage stage;
  stage.kind = find_kind(kind);
  stage.name = name;
  stage.inputs = inputs;
  for (const auto& [key, value] : attrs) {
    const std::string attr = key.cast<std::string>();
    if (attr == "shape")
      stage.shape = to_shape(value);
    else if (attr == "weight")
      stage.weight = value.cast<std::string>();
    else if (attr == "bias")
      stage.bias = value.is_none() ? "" : value.cast<std::string>();
    else if (attr == "mask")
      stage.mask = to_mask(py::reinterpret_borrow<py::object>(value));
    else if (attr == "edges")
      stage.edges = value.cast<std::shared_ptr<Connectivity>>();
    else if (attr == "op")
      stage.op = value.cast<std::string>();
    else if (attr == "params")
      stage.params = value.cast<std::vector<double>>();
    else if (attr == "p")
      stage.rate = value.cast<double>();
    else if (attr == "begin")
      stage.begin = value.cast<Index>();
    else if (attr == "end")
      stage.end = value.cast<Index>();
    else if (attr == "impl")
      stage.opaque = std::make_shared<PyFunction>(py::reinterpret_borrow<py::object>(value));
    else
      throw py::type_error("add: got an unexpected attribute '" + attr + "'");
  }
  graph.add(std::move(stage));
}

py::array_t<std::int32_t> edge_list(const Connectivity& edges) {
  return py::array_t<std::int32_t>({edges.size(), Index{2}}, edges.edges().data());
}

py::dict describe(const Stage& stage) {
  py::dict row;
  row["name"] = stage.name;
  row["kind"] = kind_name(stage.kind);
  row["inputs"] = stage.inputs;
  row["shape"] = to_tuple(stage.shape);
  switch (stage.kind) {
    case Kind::Linear:
      row["bias"] = stage.bias.empty() ? py::object(py::none()) : py::object(py::str(stage.bias));
      if (stage.mask)
        row["mask"] = py::array_t<bool>(static_cast<py::ssize_t>(stage.mask->size()),
                                        reinterpret_cast<const bool*>(stage.mask->data()));
      else
        row["mask"] = py::none();
      [[fallthrough]];
    case Kind::Nearest:
      row["weight"] = stage.weight;
      break;
    case Kind::SparseLinear:
      row["weight"] = stage.weight;
      row["bias"] = stage.bias.empty() ? py::object(py::none()) : py::object(py::str(stage.bias));
      row["edges"] = std::const_pointer_cast<Connectivity>(stage.edges);
      break;
    case Kind::Pointwise:
      row["op"] = stage.op;
      row["params"] = stage.params;
      break;
    case Kind::Dropout:
      row["p"] = stage.rate;
      break;
    case Kind::Slice:
      row["begin"] = stage.begin;
      row["end"] = stage.end;
      break;
    case Kind::Opaque:
      row["impl"] = static_cast<const PyFunction&>(*stage.opaque).impl();
      break;
    default:
      break;
  }
  return row;
}

py::list shapes(const Graph& graph, const std::vector<int>& ids) {
  py::list list;
  for (int id : ids) list.append(to_tuple(graph.stage(id).shape));
  return list;
}

}  // namespace

void bind_graph(py::module_& m) {
  // Checked and sorted once for all traces of a layer.
  py::class_<Connectivity, std::shared_ptr<Connectivity>>(m, "Connectivity")
      .def(
          py::init([](Index out, Index in, const py::array_t<std::int32_t, py::array::c_style>& e) {
            if (e.ndim() != 2 || e.shape(1) != 2) throw py::value_error("edges: expected (E, 2)");
            return std::make_shared<Connectivity>(
                out, in, std::vector<std::int32_t>(e.data(), e.data() + e.size()));
          }),
          py::arg("out_features"), py::arg("in_features"), py::arg("edges"))
      .def_property_readonly("edges", &edge_list)
      .def_property_readonly("in_features", &Connectivity::in);
  py::class_<Graph, std::shared_ptr<Graph>>(m, "Graph")
      .def(py::init<>())
      .def(
          "parameter",
          [](Graph& g, const std::string& name, const py::object& shape) {
            g.parameter(name, to_shape(shape));
          },
          py::arg("name"), py::arg("shape"))
      .def("add", &add, py::arg("kind"), py::arg("name"), py::arg("inputs"))
      .def("finish", &Graph::finish, py::arg("outputs"))
      .def_property_readonly("n_params", &Graph::n_params)
      .def_property_readonly("input_shapes", [](const Graph& g) { return shapes(g, g.inputs()); })
      .def_property_readonly("output_shapes", [](const Graph& g) { return shapes(g, g.outputs()); })
      .def_property_readonly("outputs",
                             [](const Graph& g) {
                               std::vector<std::string> names;
                               for (int id : g.outputs()) names.push_back(g.stage(id).name);
                               return names;
                             })
      .def("stages",
           [](const Graph& g) {
             py::list rows;
             for (const Stage& stage : g.stages()) rows.append(describe(stage));
             return rows;
           })
      .def("parameters", [](const Graph& g) {
        py::list rows;
        for (const Parameter& p : g.parameters()) {
          py::dict row;
          row["name"] = p.name;
          row["shape"] = to_tuple(p.shape);
          row["offset"] = p.offset;
          rows.append(row);
        }
        return rows;
      });
}

}  // namespace gradstack::bindings
