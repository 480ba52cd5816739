#include <algorithm>
#include <cmath>

#include "bind.hpp"
#include "gradstack/registry.hpp"
#include "gradstack/trainer.hpp"
#include "py_trainer.hpp"
#include "short_call.hpp"

namespace gradstack::bindings {
namespace {

template <class T>
std::shared_ptr<Optimizer<T>> make_optimizer(const std::string& rule, std::vector<double> hyper,
                                             Index n_params, std::optional<double> clip_norm,
                                             std::optional<double> clip_value, bool decay_bias) {
  OptimizerOptions options;
  const auto positive = [](std::optional<double> value, const char* name) {
    if (value && !(*value > 0))
      throw py::value_error(std::string(name) + ": got " + std::to_string(*value) +
                            ", expected a number > 0");
    return value.value_or(0.0);
  };
  options.clip_norm = positive(clip_norm, "clip_norm");
  options.clip_value = positive(clip_value, "clip_value");
  options.decay_bias = decay_bias;
  return std::make_shared<Optimizer<T>>(rule, std::move(hyper), n_params, options);
}

// A view into memory that `owner` keeps alive.
template <class S>
py::array_t<S> view(std::vector<py::ssize_t> shape, S* data, const py::object& owner) {
  return py::array_t<S>(std::move(shape), data, owner);
}

// Steps of an optimiser with gradients that the caller has computed.
template <class T> class PyUpdater {
 public:
  PyUpdater(std::shared_ptr<Graph> graph, std::shared_ptr<Optimizer<T>> optimizer,
            const std::vector<std::string>& frozen)
      : graph_(std::move(graph)),
        optimizer_(std::move(optimizer)),
        updater_(*graph_, active_kernels<T>(), *optimizer_, frozen_parameters(*graph_, frozen)) {}

  void step(const py::object& w, const py::object& dw, double lr) {
    T* weights = vector_view<T>(w, "w", graph_->n_params(), true);
    const T* given = vector_view<T>(dw, "dw", graph_->n_params(), false);
    gradient_.assign(given, given + graph_->n_params());  // clipping works in place
    if (!std::all_of(gradient_.begin(), gradient_.end(), [](T g) { return std::isfinite(g); }))
      throw NonFiniteLoss("dw holds NaN or infinity; no update was made");
    const FlushDenormals flush;
    updater_.begin(weights, lr);
    updater_.apply_all(Worker{}, gradient_.data());
  }

 private:
  std::shared_ptr<Graph> graph_;
  std::shared_ptr<Optimizer<T>> optimizer_;
  Updater<T> updater_;
  std::vector<T> gradient_;
};

// Steps on batches like the one before: f(x, y, sample_weight, lr) -> loss.
template <class T> class StepCall final : public ShortCall {
  using Core = PyTrainer<T, Trainer<T>>;

 public:
  // y: what the targets were converted to in the step before.
  StepCall(const py::object& trainer, const py::object& w, const py::object& y, int threads,
           std::uint64_t seed)
      : owner_(trainer),
        trainer_(trainer.cast<Core&>()),
        w_(w),
        weights_(vector_view<T>(w, "w", trainer_.graph().n_params(), true)),
        threads_(threads),
        seed_(seed),
        reader_(trainer_.graph(), y) {}

  py::object call(PyObject* const* args, std::size_t n, PyObject* names) override {
    if (n != 4 || names) return py::none();
    Batch batch;
    if (!reader_.read(args[0], args[1], args[2], &batch)) return py::none();
    const double lr = PyFloat_AsDouble(args[3]);
    if (lr == -1.0 && PyErr_Occurred()) throw py::error_already_set();
    return py::float_(trainer_.short_step(weights_, batch, reader_.target(), lr, threads_, seed_));
  }

 private:
  py::object owner_;
  Core& trainer_;
  py::object w_;
  T* weights_;
  int threads_;
  std::uint64_t seed_;
  BatchReader<T> reader_;
};

}  // namespace

template <class T> void bind_trainer(py::module_& m) {
  using py::arg;
  using Opt = Optimizer<T>;
  py::class_<Opt, std::shared_ptr<Opt>>(m, "Optimizer")
      .def(py::init(&make_optimizer<T>), arg("rule"), arg("hyper"), arg("n_params"), py::kw_only(),
           arg("clip_norm") = py::none(), arg("clip_value") = py::none(), arg("decay_bias") = true)
      .def_property_readonly("state",
                             [](py::object self) {
                               Opt& o = self.cast<Opt&>();
                               return view<T>({o.n_state(), o.n_params()}, o.state().data(), self);
                             })
      .def_property_readonly("scalars",
                             [](py::object self) {
                               Opt& o = self.cast<Opt&>();
                               return view<double>({static_cast<py::ssize_t>(o.scalars().size())},
                                                   o.scalars().data(), self);
                             })
      .def_readwrite("t", &Opt::steps);
  using Up = PyUpdater<T>;
  py::class_<Up>(m, "Updater")
      .def(
          py::init<std::shared_ptr<Graph>, std::shared_ptr<Opt>, const std::vector<std::string>&>(),
          arg("graph"), arg("optimizer"), py::kw_only(), arg("frozen") = std::vector<std::string>{})
      .def("step", &Up::step, arg("w"), arg("dw"), arg("lr"));
  using Tr = PyTrainer<T, Trainer<T>>;
  py::class_<Tr> trainer(m, "Trainer");
  trainer.def(py::init([](const std::shared_ptr<Graph>& graph, const std::shared_ptr<Cost<T>>& cost,
                          std::shared_ptr<Opt> optimizer, const std::vector<std::string>& frozen) {
                return std::make_unique<Tr>(cost, graph, active_kernels<T>(), cost,
                                            std::move(optimizer),
                                            frozen_parameters(*graph, frozen));
              }),
              arg("graph"), arg("cost"), arg("optimizer"), py::kw_only(),
              arg("frozen") = std::vector<std::string>{});
  def_trainer(trainer);
  trainer.def(
      "short_call",
      [](const py::object& self, const py::object& w, const py::object& y, int threads,
         std::uint64_t seed) {
        return make_short_call(std::make_unique<StepCall<T>>(self, w, y, threads, seed));
      },
      arg("w"), arg("y"), arg("threads"), arg("seed"));
}

template void bind_trainer<float>(py::module_&);
template void bind_trainer<double>(py::module_&);

}  // namespace gradstack::bindings
