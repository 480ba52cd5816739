// Zeroth-order methods, and the losses of whole populations.
#include "bind.hpp"
#include "gradstack/registry.hpp"
#include "gradstack/search.hpp"
#include "signals.hpp"

namespace gradstack::bindings {
namespace {

template <class T> class Rows final : public Members<T> {
 public:
  Rows(const T* rows, Index n) : rows_(rows), n_(n) {}
  const T* member(Index m, bool, T*) const override { return rows_ + m * n_; }

 private:
  const T* rows_;
  Index n_;
};

template <class T> class PyPopulation {
 public:
  PyPopulation(std::shared_ptr<Graph> graph, std::shared_ptr<Cost<T>> cost,
               const std::vector<py::object>& xs, const py::object& y,
               const py::object& sample_weight)
      : kept_(py::make_tuple(xs, y, sample_weight)) {  // the core reads them
    const auto [batch, target] = make_batch(*graph, xs, y, sample_weight, *cost);
    core_ = std::make_unique<Population<T>>(std::move(graph), active_kernels<T>(), std::move(cost),
                                            batch, target);
  }

  // Losses of the parameters in the rows of w.
  py::array_t<double> evaluate(const py::array& w, int threads) {
    if (w.ndim() != 2) throw py::value_error("w: expected two axes (members, parameters)");
    const Index count = w.shape(0);
    const Rows<T> rows(dense_rows<T>(w, "w", count, core_->n_params()), core_->n_params());
    py::array_t<double> losses(count);
    double* to = losses.mutable_data();
    interruptible([&](const std::function<bool()>& interrupted) {
      const std::lock_guard<std::mutex> lock(mutex_);
      core_->run(count, threads, interrupted, [&](const Worker& worker, TeamError& error) {
        core_->evaluate(rows, count, to, worker, error);
      });
    });
    return losses;
  }

  Index generation(Search<T>& search, Index left, int threads) {
    if (search.size() != core_->n_params())
      throw py::value_error("search: it is of another size than the net");
    return interruptible([&](const std::function<bool()>& interrupted) {
      const std::lock_guard<std::mutex> lock(mutex_);
      return run_generation(search, *core_, left, threads, interrupted);
    });
  }

 private:
  py::object kept_;
  std::unique_ptr<Population<T>> core_;
  std::mutex mutex_;
};

template <class T> class PySearch {
 public:
  PySearch(const std::string& method, const py::array_t<T>& x0, const py::array_t<T>& scale,
           Index population, Index budget, std::uint64_t seed) {
    SearchOptions<T> options;
    options.x0.assign(x0.data(), x0.data() + x0.size());
    options.scale.assign(scale.data(), scale.data() + scale.size());
    options.population = population;
    options.budget = budget;
    options.seed = seed;
    core_ = make_search(method, active_kernels<T>(), std::move(options));
  }

  // The points of the next generation, (count, n); none when `left` evaluations are too few.
  py::array_t<T> ask(Index left) {
    asked_ = core_->ask(left);
    py::array_t<T> points = new_rows<T>(asked_, core_->size());
    T* to = points.mutable_data();
    for (Index m = 0; m < asked_; ++m) {
      T* row = to + m * core_->size();
      const T* from = core_->member(m, false, row);
      if (from != row) std::copy(from, from + core_->size(), row);
    }
    return points;
  }

  void tell(const py::object& values) {
    core_->tell(vector_view<double>(values, "values", asked_, false), Worker{});
  }

  py::array_t<T> best() const { return py::array_t<T>(core_->size(), core_->best()); }
  Search<T>& core() { return *core_; }

 private:
  std::unique_ptr<Search<T>> core_;
  Index asked_ = 0;
};

}  // namespace

template <class T> void bind_search(py::module_& m) {
  using py::arg;
  using S = PySearch<T>;
  py::class_<S>(m, "Search")
      .def(py::init<const std::string&, const py::array_t<T>&, const py::array_t<T>&, Index, Index,
                    std::uint64_t>(),
           arg("method"), arg("x0"), arg("scale"), arg("population"), arg("budget"), arg("seed"))
      .def("ask", &S::ask, arg("left"))
      .def("tell", &S::tell, arg("values"))
      .def_property_readonly("best", &S::best)
      .def_property_readonly("best_value", [](S& s) { return s.core().best_value(); })
      .def_property_readonly("step", [](S& s) { return s.core().step(); })
      .def_property_readonly("generation", [](S& s) { return s.core().generation(); });
  using P = PyPopulation<T>;
  py::class_<P>(m, "Population")
      .def(py::init<std::shared_ptr<Graph>, std::shared_ptr<Cost<T>>,
                    const std::vector<py::object>&, const py::object&, const py::object&>(),
           arg("graph"), arg("cost"), arg("xs"), arg("y"), arg("sample_weight") = py::none())
      .def("evaluate", &P::evaluate, arg("w"), arg("threads") = 0)
      .def(
          "generation",
          [](P& p, S& search, Index left, int threads) {
            return p.generation(search.core(), left, threads);
          },
          arg("search"), arg("left"), arg("threads") = 0);
}

template void bind_search<float>(py::module_&);
template void bind_search<double>(py::module_&);

}  // namespace gradstack::bindings
