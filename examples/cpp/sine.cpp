// Learns y = sin(x) from samples, predicts, and compares the network's derivative with cos(x):
// graph, training, prediction and differentiation from C++ alone.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <gradstack/gradstack.hpp>
#include <memory>
#include <string>
#include <vector>

namespace gs = gradstack;

namespace {

// x -> Linear(1, 32) -> tanh -> Linear(32, 32) -> tanh -> Linear(32, 1) -> y
std::shared_ptr<const gs::Graph> make_graph() {
  auto graph = std::make_shared<gs::Graph>();
  gs::Stage input;
  input.kind = gs::Kind::Input;
  input.name = "x";
  input.shape = {1};
  graph->add(input);

  std::string previous = "x";
  const std::vector<gs::Index> widths = {1, 32, 32, 1};
  for (std::size_t layer = 0; layer + 1 < widths.size(); ++layer) {
    const std::string name = "linear" + std::to_string(layer);
    graph->parameter(name + ".weight", {widths[layer + 1], widths[layer]});
    graph->parameter(name + ".bias", {widths[layer + 1]});
    gs::Stage linear;
    linear.kind = gs::Kind::Linear;
    linear.name = name;
    linear.inputs = {previous};
    linear.weight = name + ".weight";
    linear.bias = name + ".bias";
    graph->add(linear);
    previous = name;

    if (layer + 2 < widths.size()) {
      gs::Stage tanh;
      tanh.kind = gs::Kind::Pointwise;
      tanh.name = "tanh" + std::to_string(layer);
      tanh.inputs = {previous};
      tanh.op = "tanh";
      graph->add(tanh);
      previous = tanh.name;
    }
  }
  graph->finish({previous});
  return graph;
}

// Uniform in +-1/sqrt(fan in), layer by layer.
std::vector<float> initial_parameters(const gs::Graph& graph) {
  std::vector<float> w(static_cast<std::size_t>(graph.n_params()));
  gs::Rng rng(0);
  double bound = 1;
  for (const gs::Parameter& parameter : graph.parameters()) {
    // A weight is followed by the bias of the same layer, which shares its bound.
    if (parameter.shape.size() == 2) bound = 1 / std::sqrt(static_cast<double>(parameter.shape[1]));
    for (gs::Index i = 0; i < parameter.size; ++i) {
      w[static_cast<std::size_t>(parameter.offset + i)] =
          static_cast<float>(bound * (2 * rng.uniform() - 1));
    }
  }
  return w;
}

// A view of a column of values.
gs::RowSource column(const std::vector<float>& values) {
  gs::RowSource rows;
  rows.data = reinterpret_cast<const char*>(values.data());
  rows.rows = static_cast<gs::Index>(values.size());
  rows.cols = 1;
  rows.row_stride = rows.col_stride = sizeof(float);
  rows.type = gs::scalar_of<float>();
  return rows;
}

}  // namespace

int main() {
  const double pi = std::acos(-1.0);
  const auto graph = make_graph();
  const gs::Kernels<float>& kernels = gs::active_kernels<float>();
  std::vector<float> w = initial_parameters(*graph);

  // Train on 1024 samples.
  std::vector<float> x(1024), y(1024);
  gs::Rng rng(1);
  for (std::size_t i = 0; i < x.size(); ++i) {
    x[i] = static_cast<float>(pi * (2 * rng.uniform() - 1));
    y[i] = std::sin(x[i]);
  }
  const auto cost = std::make_shared<gs::TableCost<float>>(
      "MSELoss", std::vector<double>{}, std::vector<float>{}, gs::Reduction::Mean);
  const gs::UpdateInfo& adam = gs::rule_info(gs::find_rule("adam"));
  std::vector<double> hyper;
  for (int i = 0; i < adam.n_hyper; ++i) hyper.push_back(adam.hyper[i].value);
  const auto optimizer = std::make_shared<gs::Optimizer<float>>("adam", hyper, graph->n_params(),
                                                                gs::OptimizerOptions{});
  gs::Trainer<float> trainer(graph, kernels, cost, optimizer, {});

  gs::Batch data;
  data.x = {column(x)};
  data.y = column(y);
  data.count = static_cast<gs::Index>(x.size());
  const gs::TargetSpec target{.dy = 1, .labels = false};
  gs::FitOptions options;
  options.batch_size = 32;
  trainer.begin(w.data(), data, target, options);
  constexpr int kEpochs = 200;
  for (int epoch = 0; epoch < kEpochs; ++epoch) {
    const double lr = 5e-3 * 0.5 * (1 + std::cos(pi * epoch / kEpochs));
    const std::vector<double> lrs(static_cast<std::size_t>(trainer.steps_per_epoch()), lr);
    const auto losses =
        trainer.run(lrs.data(), static_cast<gs::Index>(lrs.size()), [] { return false; });
    if ((epoch + 1) % 50 == 0) std::printf("epoch %d, loss %.2e\n", epoch + 1, losses.back());
  }

  // Predict and differentiate on a grid: dy/dx is the pullback of ones.
  std::vector<float> grid(101), ones(101, 1.0f), ybar(101), dx(101);
  for (std::size_t i = 0; i < grid.size(); ++i) {
    grid[i] = static_cast<float>(0.9 * pi * (static_cast<double>(i) / 50 - 1));
  }
  const auto count = static_cast<gs::Index>(grid.size());
  gs::Program<float> program(graph, kernels);
  program.forward(w.data(), {column(grid)}, count, {ybar.data()}, {});
  gs::Linearization<float> point(graph, kernels, w.data(), {column(grid)}, count, false, {});
  point.vjp({ones.data()}, {dx.data()}, nullptr);

  double value_error = 0, slope_error = 0;
  for (std::size_t i = 0; i < grid.size(); ++i) {
    value_error = std::max(value_error, std::abs(ybar[i] - std::sin(static_cast<double>(grid[i]))));
    slope_error = std::max(slope_error, std::abs(dx[i] - std::cos(static_cast<double>(grid[i]))));
  }
  std::printf("backend %s, %td parameters\n", kernels.name, graph->n_params());
  std::printf("largest error: value %.4f, slope %.4f\n", value_error, slope_error);
  return value_error < 0.02 && slope_error < 0.1 ? 0 : 1;
}
