#include "gradstack/plan.hpp"

#include <algorithm>
#include <stdexcept>

#include "blocks/block.hpp"

namespace gradstack {

Index lanes_for(Index vector, Index batch) {
  if (batch <= kFewSamples) return 1;
  Index lanes = kLanes;
  while (lanes / 2 >= std::max({batch, vector, kFewestLanes})) lanes /= 2;
  return lanes;
}

Index capacity_for(Index vector, Index batch) {
  return batch == 1 ? 1 : std::max(kFewSamples, lanes_for(vector, batch));
}

template <class T>
Plan<T>::Plan(std::shared_ptr<const Graph> graph, const Kernels<T>& kernels, PlanOptions options)
    : graph_(std::move(graph)),
      kernels_(kernels),
      options_(std::move(options)),
      lanes_(lanes_for(kernels.vector, options_.batch)),
      count_(options_.batch),
      n_blocks_((count_ + lanes_ - 1) / lanes_),
      fusion_(*graph_, options_.fuse && !options_.jet_gradients && options_.jet_order < 2) {
  if (options_.batch < 1) throw std::invalid_argument("batch: expected at least one sample");
  options_.frozen.resize(graph_->parameters().size(), 0);
  find_shared_parameters();
  find_wanted_gradients();
  find_tangents();
  allocate();
  build_linear_specs();
  build_blocks();
}

template <class T> Plan<T>::~Plan() = default;

template <class T> void Plan<T>::set_count(Index count) {
  if (count < 1 || count > options_.batch)
    throw std::invalid_argument("count: got " + std::to_string(count) + ", expected 1.." +
                                std::to_string(options_.batch));
  if (count == count_) return;  // divisions are felt where the work is a single sample's
  count_ = count;
  n_blocks_ = (count + lanes_ - 1) / lanes_;
}

template <class T> Index Plan<T>::block_samples(Index block) const {
  return std::min(lanes_, count_ - block * lanes_);
}

template <class T> bool Plan<T>::wants_dw(int parameter) const {
  return parameter >= 0 && options_.gradients && options_.want_dw &&
         !options_.frozen[index(parameter)];
}

// Parameters that several blocks share, blocks that have something to prepare.
template <class T> void Plan<T>::find_shared_parameters() {
  parameter_uses_.assign(graph_->parameters().size(), 0);
  for (const Stage& stage : graph_->stages()) {
    has_masks_ = has_masks_ || stage.mask || stage.kind == Kind::Nearest;
    if (stage.weight_id >= 0) ++parameter_uses_[index(stage.weight_id)];
    if (stage.bias_id >= 0) ++parameter_uses_[index(stage.bias_id)];
  }
  shares_parameters_ =
      std::any_of(parameter_uses_.begin(), parameter_uses_.end(), [](int n) { return n > 1; });
}

// A gradient is computed only if it leads to an input or a parameter that wants one.
template <class T> void Plan<T>::find_wanted_gradients() {
  const auto& stages = graph_->stages();
  wants_grad_.assign(stages.size(), 0);
  needs_tiles_.assign(stages.size(), 0);
  if (!options_.gradients) return;
  // Whoever starts backward writes them. What depends on one has a gradient that goes back into it.
  for (int output : graph_->outputs()) wants_grad_[index(fusion_.base[index(output)])] = 1;
  for (std::size_t i = 0; i < stages.size(); ++i) {
    const Stage& stage = stages[i];
    bool wants = wants_grad_[i] != 0 || (stage.kind == Kind::Input && options_.want_dx) ||
                 static_cast<int>(i) == options_.want_stage;
    wants = wants || wants_dw(stage.weight_id) || wants_dw(stage.bias_id);
    for (int input : stage.in) wants = wants || wants_grad_[index(fusion_.base[index(input)])];
    wants_grad_[i] = wants;
    if (stage.kind == Kind::Linear && wants_dw(stage.weight_id))
      needs_tiles_[index(fusion_.base[index(stage.in[0])])] = 1;
  }
}

// A variable that depends on no direction has zero derivatives and no memory for them.
template <class T> void Plan<T>::find_tangents() {
  const auto& stages = graph_->stages();
  has_tangent_.assign(stages.size(), 0);
  if (options_.jet_order == 0) return;
  for (std::size_t i = 0; i < stages.size(); ++i) {
    bool has = stages[i].kind == Kind::Input
                   ? options_.input_tangents
                   : options_.parameter_tangents && stages[i].weight_id >= 0;
    for (int input : stages[i].in) has = has || has_tangent_[index(fusion_.base[index(input)])];
    has_tangent_[i] = has;
  }
}

template <class T> void Plan<T>::allocate() {
  const auto& stages = graph_->stages();
  const Index samples = blocks() * lanes_;
  variables_.resize(stages.size());
  owned_rows_.assign(graph_->inputs().size(), nullptr);
  scattered_.assign(graph_->inputs().size(), std::vector<const T*>(index(options_.batch)));
  bound_.resize(graph_->inputs().size());
  // Backwards, so that a fused Linear finds the buffers of its pointwise block: they share one
  // gradient (dC/ds overwrites dC/dz), and one value where h' is had from z.
  for (std::size_t i = stages.size(); i-- > 0;) {
    Variable<T>& v = variables_[i];
    v.d = size_of(stages[i].shape);
    if (fusion_.base[i] != static_cast<int>(i)) continue;
    if (const int fused = fusion_.pointwise[i]; fused >= 0) {
      const Variable<T>& z = variables_[index(fused)];
      const bool overwrite_s =
          !options_.gradients || kernels_.pointwise[graph_->stage(fused).op_id].has_d1_from_z;
      v.value =
          overwrite_s && options_.jet_order == 0 ? z.value : arena_.allocate<T>(samples * v.d);
      v.grad = z.grad;
      v.tangent = z.tangent;
      continue;
    }
    v.value = arena_.allocate<T>(samples * v.d);
    if (wants_grad_[i]) v.grad = arena_.allocate<T>(samples * v.d);
    if (has_tangent_[i]) {
      v.tangent = arena_.allocate<T>(samples * v.d);
      if (options_.jet_order > 1) v.second = arena_.allocate<T>(samples * v.d);
      if (options_.jet_gradients && v.grad) {
        v.grad_tangent = arena_.allocate<T>(samples * v.d);
        if (v.second) v.grad_second = arena_.allocate<T>(samples * v.d);
      }
      if (options_.jet_gradients && needs_tiles_[i]) {
        v.tangent_tiles =
            lanes_ == 1 ? v.tangent : arena_.allocate<T>(samples * v.panels() * kPanel);
        if (v.second)
          v.second_tiles =
              lanes_ == 1 ? v.second : arena_.allocate<T>(samples * v.panels() * kPanel);
      }
    }
    if (needs_tiles_[i])
      v.tiles = lanes_ == 1 ? v.value : arena_.allocate<T>(samples * v.panels() * kPanel);
  }
}

template <class T> void Plan<T>::build_linear_specs() {
  const auto& stages = graph_->stages();
  linear_.resize(stages.size());
  std::vector<char> tiles_made(stages.size(), 0);
  for (std::size_t i = 0; i < stages.size(); ++i) {
    const Stage& stage = stages[i];
    if (stage.kind != Kind::Linear) continue;
    linear_[i] = std::make_unique<LinearSpec<T>>();
    LinearSpec<T>& spec = *linear_[i];
    const std::size_t in = index(fusion_.base[index(stage.in[0])]);
    const int fused = fusion_.pointwise[i];
    spec.in.v = &variables_[in];
    spec.s = spec.out = &variables_[i];
    if (fused >= 0) {
      spec.out = &variables_[index(fused)];
      spec.fused = {graph_->stage(fused).op_id, graph_->stage(fused).params.data()};
      spec.keeps_s = spec.s->value != spec.out->value;
    }
    spec.weight = &graph_->parameter(stage.weight_id);
    spec.weight_id = stage.weight_id;
    spec.want_dw = wants_dw(stage.weight_id);
    if (stage.bias_id >= 0) {
      spec.bias = &graph_->parameter(stage.bias_id);
      spec.bias_id = stage.bias_id;
      spec.want_db = wants_dw(stage.bias_id);
    }
    spec.mask = stage.mask.get();
    const bool first = spec.want_dw && lanes_ > 1 && !tiles_made[in];
    tiles_made[in] = tiles_made[in] || first;
    spec.make_tiles = first && stages[in].kind != Kind::Input;  // those are made from the rows
    spec.make_jet_tiles = first && variables_[in].tangent_tiles;
    // Smaller weights stay in the L1 cache from run to run.
    spec.begins = options_.batch == 1 && spec.want_dw && !spec.mask &&
                  stages[in].kind == Kind::Input && graph_->inputs().size() == 1 &&
                  spec.weight->size * static_cast<Index>(sizeof(T)) > (Index{32} << 10);
    // The sole consumer of a fused pair multiplies by h' while its tile of dZ is in cache.
    if (const int producer = fusion_.producer(*graph_, static_cast<int>(i));
        producer >= 0 && variables_[in].grad) {
      LinearSpec<T>& below = *linear_[index(producer)];
      spec.producer = &below;
      below.consumer_applies_derivative = true;
    }
  }
}

template <class T> void Plan<T>::build_blocks() {
  const auto& stages = graph_->stages();
  // In the order of backward the first to write a gradient overwrites, the others add. Outputs are
  // written first, by the cost.
  std::vector<char> written(stages.size(), 0), parameter_written(graph_->parameters().size(), 0);
  for (int output : graph_->outputs()) written[index(fusion_.base[index(output)])] = 1;
  const int last = graph_->outputs()[0];
  if (options_.gradients && graph_->outputs().size() == 1 &&
      graph_->stage(fusion_.base[index(last)]).kind == Kind::Nearest) {
    const Stage& nearest = graph_->stage(fusion_.base[index(last)]);
    chosen_ = std::make_unique<Variable<T>>();
    chosen_->d = graph_->parameter(nearest.weight_id).shape[1];
    chosen_->value = arena_.allocate<T>(blocks() * lanes_ * chosen_->d);
    chosen_->grad = arena_.allocate<T>(blocks() * lanes_ * chosen_->d);
  }
  for (std::size_t i = stages.size(); i-- > 0;)
    if (auto block = make_block(static_cast<int>(i), written, parameter_written))
      blocks_.push_back(std::move(block));
  std::reverse(blocks_.begin(), blocks_.end());
}

template <class T>
std::unique_ptr<Block<T>> Plan<T>::make_block(int id, std::vector<char>& written,
                                              std::vector<char>& parameter_written) {
  const Stage& stage = graph_->stage(id);
  if (stage.kind == Kind::Input || stage.kind == Kind::Reshape || fusion_.fused_away[index(id)])
    return nullptr;
  const Geometry<T> geometry{this, &kernels_};
  Variable<T>* out = &variables_[index(id)];
  std::vector<In<T>> in;
  for (int input : stage.in) {
    const std::size_t base = index(fusion_.base[index(input)]);
    in.push_back({&variables_[base], written[base] != 0});
    written[base] = 1;
  }
  const auto writes_again = [&](int parameter) {
    if (parameter < 0) return false;
    const bool again = parameter_written[index(parameter)] != 0;
    parameter_written[index(parameter)] = 1;
    return again;
  };
  switch (stage.kind) {
    case Kind::Linear: {
      LinearSpec<T>& spec = *linear_[index(id)];
      spec.in = in[0];
      spec.accumulate_dw = writes_again(stage.weight_id);
      spec.accumulate_db = writes_again(stage.bias_id);
      return make_linear<T>(geometry, &spec, arena_);
    }
    case Kind::SparseLinear: {
      SparseSpec<T> spec;
      spec.in = in[0];
      spec.out = out;
      spec.edges = stage.edges.get();
      spec.weight = &graph_->parameter(stage.weight_id);
      spec.weight_id = stage.weight_id;
      spec.want_dw = wants_dw(stage.weight_id);
      spec.accumulate_dw = writes_again(stage.weight_id);
      if (stage.bias_id >= 0) {
        spec.bias = &graph_->parameter(stage.bias_id);
        spec.bias_id = stage.bias_id;
        spec.want_db = wants_dw(stage.bias_id);
        spec.accumulate_db = writes_again(stage.bias_id);
      }
      return make_sparse<T>(geometry, spec);
    }
    case Kind::Pointwise:
      return make_pointwise<T>(geometry, in[0], out, {stage.op_id, stage.params.data()});
    case Kind::Concat:
      return make_concat<T>(geometry, in, out);
    case Kind::Slice:
      return make_slice<T>(geometry, in[0], stage.begin, out);
    case Kind::Softmax:
    case Kind::LogSoftmax:
      return make_softmax<T>(geometry, in[0], out, stage.kind == Kind::LogSoftmax, arena_);
    case Kind::Dropout:
      return make_dropout<T>(geometry, in[0], out, stage.rate, id);
    case Kind::Nearest:
      return make_nearest<T>(geometry, in[0], out, chosen_.get(),
                             &graph_->parameter(stage.weight_id), stage.weight_id,
                             wants_dw(stage.weight_id), writes_again(stage.weight_id), arena_);
    case Kind::Opaque:
      return make_opaque<T>(geometry, in[0], out, stage, arena_);
    default:
      return make_binary<T>(geometry, stage.kind, in[0], in[1], out);
  }
}

template <class T> void Plan<T>::bind_input(std::size_t i, const T* rows, Index ld) {
  bound_[i] = {rows, ld, nullptr};
  if (lanes_ > 1) return;
  Variable<T>& v = variables_[index(graph_->inputs()[i])];
  if (count_ > 1 && ld != v.d) {  // the samples' blocks lie behind one another
    T* copies = input_rows(i);
    for (Index s = 0; s < count_; ++s) std::copy_n(rows + s * ld, v.d, copies + s * v.d);
    rows = copies;
  }
  v.value = const_cast<T*>(rows);  // only read: nothing writes an input's values
  if (v.tiles) v.tiles = v.value;
}

template <class T> const T** Plan<T>::bind_scattered(std::size_t i) {
  bound_[i] = {nullptr, 0, scattered_[i].data()};
  return scattered_[i].data();
}

template <class T> T* Plan<T>::input_rows(std::size_t i) {
  const Variable<T>& v = variables_[index(graph_->inputs()[i])];
  if (!owned_rows_[i]) owned_rows_[i] = arena_.allocate<T>(options_.batch * v.d);
  return owned_rows_[i];
}

template <class T> void Plan<T>::forward(const Run<T>& run, const Worker& worker) {
  if (lanes_ > 1 && !run.same_inputs) {
    for (std::size_t i = 0; i < bound_.size(); ++i) {
      const InputRows<T>& in = bound_[i];
      const Variable<T>& v = variables_[index(graph_->inputs()[i])];
      worker.for_each(blocks(), [&](Index b) {
        const Index first = b * lanes_, n = block_samples(b);
        const T* regular[kLanes];
        for (Index s = 0; !in.each && s < n; ++s) regular[s] = in.rows + (first + s) * in.ld;
        kernels_.gather_rows(n, v.d, lanes_, in.each ? in.each + first : regular,
                             v.value + first * v.d,
                             v.tiles ? v.tiles + first * v.panels() * kPanel : nullptr);
      });
    }
  }
  if (has_masks_)
    for (const auto& block : blocks_) block->prepare(run, worker);
  worker.sync();
  for (const auto& block : blocks_) {
    block->forward(run, worker);
    worker.sync();
  }
}

template <class T> bool Plan<T>::begins_next() const {
  return std::any_of(linear_.begin(), linear_.end(),
                     [](const auto& spec) { return spec && spec->begins; });
}

template <class T> void Plan<T>::backward(const Run<T>& run, const Worker& worker) {
  for (std::size_t i = blocks_.size(); i-- > 0;) {
    blocks_[i]->backward_data(run, worker);
    worker.sync();
    if (run.dw) blocks_[i]->backward_weights(run, worker);
  }
  worker.sync();
}

template <class T> void Plan<T>::push(const Run<T>& run, const Worker& worker) {
  for (const auto& block : blocks_) {
    block->push(run, worker);
    worker.sync();
  }
}

template <class T> void Plan<T>::backward_jet(const Run<T>& run, const Worker& worker) {
  for (std::size_t i = blocks_.size(); i-- > 0;) {
    blocks_[i]->backward_jet(run, worker);
    worker.sync();
    if (run.dw) blocks_[i]->backward_jet_weights(run, worker);
  }
  worker.sync();
}

// backward_data of every block, and f(block) once the gradient of its output is complete.
template <class T>
template <class F>
void Plan<T>::backward_each(const Run<T>& run, const Worker& worker, F&& f) {
  for (std::size_t i = blocks_.size(); i-- > 0;) {
    blocks_[i]->backward_data(run, worker);
    worker.sync();
    f(*blocks_[i]);
    worker.sync();
  }
}

template <class T>
void Plan<T>::per_sample_gradients(const Run<T>& run, const Worker& worker, T* rows, Index ld) {
  for (std::size_t i = 0; i < parameter_uses_.size(); ++i) {
    if (parameter_uses_[i] > 0) continue;  // no block writes it
    const Parameter& p = graph_->parameters()[i];
    worker.for_each(count_, [&](Index s) { std::fill_n(rows + s * ld + p.offset, p.size, T(0)); });
  }
  backward_each(run, worker,
                [&](Block<T>& block) { block.per_sample_gradients(worker, rows, ld); });
}

template <class T>
void Plan<T>::per_sample_squared_norms(const Run<T>& run, const Worker& worker, T* norms) {
  if (worker.leader()) std::fill_n(norms, count_, T(0));
  backward_each(run, worker,
                [&](Block<T>& block) { block.per_sample_squared_norms(worker, norms); });
}

template <class T>
void Plan<T>::per_sample_products(const Run<T>& run, const Worker& worker, const T* v,
                                  T* products) {
  if (worker.leader()) std::fill_n(products, count_, T(0));
  backward_each(run, worker,
                [&](Block<T>& block) { block.per_sample_products(worker, v, products); });
}

template <class T>
void Plan<T>::per_sample_squares(const Run<T>& run, const Worker& worker, T* sum, bool accumulate) {
  backward_each(run, worker,
                [&](Block<T>& block) { block.per_sample_squares(worker, sum, accumulate); });
}

template class Plan<float>;
template class Plan<double>;

}  // namespace gradstack
