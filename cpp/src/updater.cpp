#include "gradstack/updater.hpp"

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <string>

namespace gradstack {
namespace {

constexpr Index kPiece = 4096;  // values updated per call: a few cache pages, enough to share out
constexpr Index kMaskedPart = 256;

// Position of a rule's weight decay among its hyperparameters, or -1.
int weight_decay_index(int rule) {
  const UpdateInfo& info = rule_info(rule);
  for (int i = 0; i < info.n_hyper; ++i)
    if (same_name(info.hyper[i].name, "weight_decay")) return i;
  return -1;
}

}  // namespace

template <class T>
Optimizer<T>::Optimizer(const std::string& rule, std::vector<double> hyper, Index n_params,
                        OptimizerOptions options)
    : rule_(find_rule(rule.c_str())),
      hyper_(std::move(hyper)),
      n_params_(n_params),
      options_(options) {
  if (rule_ < 0) throw std::invalid_argument("rule: '" + rule + "' is not an update rule");
  const UpdateInfo& info = rule_info(rule_);
  if (static_cast<int>(hyper_.size()) != info.n_hyper)
    throw std::invalid_argument("hyper: " + rule + " takes " + std::to_string(info.n_hyper) +
                                " values, got " + std::to_string(hyper_.size()));
  hyper_.resize(kMaxHyper, 0.0);
  state_.resize(static_cast<std::size_t>(info.n_state * n_params_));
  scalars_.assign(kMaxUpdateScalars, 0.0);
  for (int i = 0; i < info.n_scalars; ++i)
    scalars_[static_cast<std::size_t>(i)] = info.scalars[i].value;
  for (int i = 0; i < info.n_state; ++i)
    std::fill_n(state(i), n_params_, static_cast<T>(rule_state_init(rule_, hyper_.data(), i)));
}

template <class T> int Optimizer<T>::n_state() const { return rule_info(rule_).n_state; }

template <class T>
Updater<T>::Updater(const Graph& graph, const Kernels<T>& kernels, Optimizer<T>& optimizer,
                    const std::vector<char>& frozen)
    : graph_(graph), k_(kernels), optimizer_(optimizer), frozen_(frozen) {
  if (optimizer.n_params() != graph.n_params())
    throw std::invalid_argument("optimizer: made for " + std::to_string(optimizer.n_params()) +
                                " parameters, the net has " + std::to_string(graph.n_params()));
  const auto& parameters = graph.parameters();
  frozen_.resize(parameters.size(), 0);
  masks_.assign(parameters.size(), nullptr);
  for (const Parameter& p : parameters) is_bias_.push_back(p.shape.size() <= 1);
  std::vector<char> used(parameters.size(), 0);
  for (const Stage& stage : graph.stages()) {
    if (stage.weight_id >= 0) used[static_cast<std::size_t>(stage.weight_id)] = 1;
    if (stage.edges) is_bias_[static_cast<std::size_t>(stage.weight_id)] = 0;  // one axis as well
    if (stage.bias_id >= 0) used[static_cast<std::size_t>(stage.bias_id)] = 1;
    if (stage.mask) masks_[static_cast<std::size_t>(stage.weight_id)] = stage.mask.get();
  }
  // What no block uses has no gradient: not even weight decay moves it, as in PyTorch.
  for (std::size_t i = 0; i < used.size(); ++i) frozen_[i] = frozen_[i] || !used[i];
  for (std::size_t i = 0; i < parameters.size(); ++i)
    for (Index at = 0; at < parameters[i].size && !frozen_[i]; at += kPiece)
      pieces_.push_back({static_cast<int>(i), at, std::min(kPiece, parameters[i].size - at)});
  piece_norms_.resize(pieces_.size());
}

template <class T>
void open_step(Optimizer<T>& optimizer, double lr, double* with_decay, double* without_decay) {
  const std::int64_t t = optimizer.steps + 1;
  double* scalars = optimizer.scalars().data();
  double hyper[kMaxHyper];
  std::copy(optimizer.hyper().begin(), optimizer.hyper().end(), hyper);
  rule_constants(optimizer.rule(), hyper, lr, t, scalars, with_decay);
  if (const int decay = weight_decay_index(optimizer.rule()); decay >= 0) hyper[decay] = 0;
  rule_constants(optimizer.rule(), hyper, lr, t, scalars, without_decay);
  optimizer.steps = t;
}

template <class T> void Updater<T>::begin(T* w, double lr) {
  w_ = w;
  scalars_before_ = optimizer_.scalars();
  open_step(optimizer_, lr, with_decay_, without_decay_);
}

template <class T> void Updater<T>::cancel() {
  optimizer_.scalars() = scalars_before_;
  --optimizer_.steps;
}

// Parameters, state and constants of an update from `offset` on.
template <class T> UpdateArgs<T> Updater<T>::arguments(int parameter, Index offset) {
  const Index at = graph_.parameter(parameter).offset + offset;
  const bool decays =
      optimizer_.options().decay_bias || !is_bias_[static_cast<std::size_t>(parameter)];
  UpdateArgs<T> args{.w = w_ + at, .c = decays ? with_decay_ : without_decay_};
  for (int i = 0; i < optimizer_.n_state(); ++i)
    if (rule_uses_state(optimizer_.rule(), optimizer_.hyper().data(), i))
      args.state[i] = optimizer_.state(i) + at;
  return args;
}

template <class T> void Updater<T>::apply(int parameter, Index offset, Index n, T* g) {
  const std::size_t id = static_cast<std::size_t>(parameter);
  if (frozen_[id]) return;
  clip_value(g, n);
  const auto update = [&](Index at, Index count, T* w) {
    UpdateArgs<T> args = arguments(parameter, offset + at);
    args.n = count;
    args.w = w;
    args.g = g + at;
    k_.update[optimizer_.rule()](args);
  };
  T* w = w_ + graph_.parameter(parameter).offset + offset;
  if (!masks_[id]) return update(0, n, w);
  // Weight decay would move a masked weight though its gradient is zero: update a copy and take
  // over the connected ones.
  const std::uint8_t* mask = masks_[id]->data() + offset;
  T moved[kMaskedPart];
  for (Index at = 0; at < n; at += kMaskedPart) {
    const Index count = std::min(kMaskedPart, n - at);
    std::copy(w + at, w + at + count, moved);
    update(at, count, moved);
    for (Index i = 0; i < count; ++i)
      if (mask[at + i]) w[at + i] = moved[i];
  }
}

template <class T>
bool Updater<T>::apply_outer(int parameter, Index offset, Index rows, Index n, const T* y,
                             const T* x) {
  const std::size_t id = static_cast<std::size_t>(parameter);
  const bool short_rows = n < 2 * k_.vector;  // better as one range
  if (masks_[id] || short_rows || optimizer_.options().clip_value > 0) return false;
  if (frozen_[id]) return true;
  UpdateArgs<T> args = arguments(parameter, offset);
  args.n = n;
  args.g = x;
  args.factor = y;
  args.rows = rows;
  k_.update[optimizer_.rule()](args);
  return true;
}

template <class T> void Updater<T>::apply_piece(Index piece, T* g) {
  const Piece& p = pieces_[static_cast<std::size_t>(piece)];
  apply(p.parameter, p.offset, p.n, g + graph_.parameter(p.parameter).offset + p.offset);
}

template <class T> void Updater<T>::piece_range(Index piece, Index* begin, Index* n) const {
  const Piece& p = pieces_[static_cast<std::size_t>(piece)];
  *begin = graph_.parameter(p.parameter).offset + p.offset;
  *n = p.n;
}

template <class T> void Updater<T>::entries(std::uint8_t* what) const {
  std::fill_n(what, graph_.n_params(), std::uint8_t{0});
  for (std::size_t id = 0; id < frozen_.size(); ++id) {
    if (frozen_[id]) continue;
    const Parameter& p = graph_.parameters()[id];
    const bool decays = optimizer_.options().decay_bias || !is_bias_[id];
    for (Index i = 0; i < p.size; ++i) {
      const bool connected = !masks_[id] || (*masks_[id])[static_cast<std::size_t>(i)] != 0;
      what[p.offset + i] = static_cast<std::uint8_t>(kUpdatesState | (connected ? kMoves : 0) |
                                                     (decays ? kDecays : 0));
    }
  }
}

template <class T> void Updater<T>::apply_all(const Worker& worker, T* g) {
  if (!fusable()) clip_norm(worker, g);
  worker.for_each(pieces(), [&](Index piece) { apply_piece(piece, g); });
  worker.sync();
}

template <class T> void Updater<T>::clip_value(T* g, Index n) const {
  if (const T limit = static_cast<T>(optimizer_.options().clip_value); limit > 0)
    for (Index i = 0; i < n; ++i) g[i] = std::clamp(g[i], -limit, limit);
}

// g *= max_norm / (||g|| + 1e-6) if that is below 1, as PyTorch's clip_grad_norm_, with the norm
// after clipping by value. Norms are summed piece by piece in order, so the result does not depend
// on the number of workers.
template <class T> void Updater<T>::clip_norm(const Worker& worker, T* g) {
  worker.for_each(pieces(), [&](Index piece) {
    Index begin, n;
    piece_range(piece, &begin, &n);
    clip_value(g + begin, n);
    double sum = 0;
    for (Index i = begin; i < begin + n; ++i)
      sum += static_cast<double>(g[i]) * static_cast<double>(g[i]);
    piece_norms_[static_cast<std::size_t>(piece)] = sum;
  });
  worker.sync();
  double sum = 0;
  for (double part : piece_norms_) sum += part;
  const double scale = optimizer_.options().clip_norm / (std::sqrt(sum) + 1e-6);
  if (scale >= 1) return;
  worker.for_each(pieces(), [&](Index piece) {
    Index begin, n;
    piece_range(piece, &begin, &n);
    k_.axpy(n, static_cast<T>(scale), g + begin, g + begin, false);
  });
  // No barrier: a worker updates the same pieces that it has scaled.
}

template void open_step(Optimizer<float>&, double, double*, double*);
template void open_step(Optimizer<double>&, double, double*, double*);
template class Optimizer<float>;
template class Optimizer<double>;
template class Updater<float>;
template class Updater<double>;

}  // namespace gradstack
