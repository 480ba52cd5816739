#include "gradstack/search.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>

#include "at.hpp"
#include "gradstack/random.hpp"
#include "search_methods.hpp"

namespace gradstack {
namespace {

constexpr std::uint64_t kStream = 0x5ea4c4;  // tells these draws from other uses of a seed
constexpr double kMaxStep = 1e12;            // on a plateau without end the step stops growing

}  // namespace

template <class T>
Search<T>::Search(const Kernels<T>& kernels, SearchOptions<T> options)
    : k_(kernels),
      seed_(options.seed),
      n_(static_cast<Index>(options.x0.size())),
      tiles_((n_ + kTile - 1) / kTile),
      budget_(options.budget),
      mean_(std::move(options.x0)),
      scale_(std::move(options.scale)),
      tile_sums_(at(tiles_)),
      best_(mean_),
      best_value_(std::numeric_limits<double>::infinity()) {
  if (n_ == 0) throw std::invalid_argument("x0: expected at least one value");
  if (scale_.size() != mean_.size())
    throw std::invalid_argument("step: got " + std::to_string(scale_.size()) + " values, x0 has " +
                                std::to_string(n_));
  free_ = n_ - std::count(scale_.begin(), scale_.end(), T(0));
}

template <class T> Index Search<T>::ask(Index left) {
  ++generation_;
  count_ = left < 1 ? 0 : generation_ == 0 ? 1 : free_ == 0 ? 0 : open(left);
  return count_;
}

template <class T> const T* Search<T>::member(Index m, bool follows, T* scratch) const {
  if (generation_ == 0) return mean_.data();
  point(m, follows, scratch);
  return scratch;
}

template <class T> void Search<T>::tell(const double* values, const Worker& worker) {
  if (worker.leader()) {
    values_.assign(values, values + count_);
    for (double& value : values_)
      if (std::isnan(value)) value = std::numeric_limits<double>::infinity();
    const auto lowest = std::min_element(values_.begin(), values_.end());
    if (*lowest < best_value_) {
      best_value_ = *lowest;
      if (generation_ > 0) point(lowest - values_.begin(), false, best_.data());
    }
  }
  worker.sync();
  if (generation_ > 0) update(values_.data(), worker);
  worker.sync();
}

template <class T> std::uint64_t Search<T>::key(Index stream) const {
  return sample_key(seed_, kStream, static_cast<std::uint64_t>(generation_),
                    static_cast<std::uint64_t>(stream));
}

template <class T>
void Search<T>::move(Index begin, Index n, double factor, const T* z, T* x) const {
  const T f = static_cast<T>(factor);
  const T *mean = mean_.data() + begin, *scale = scale_.data() + begin;
  for (Index i = 0; i < n; ++i) x[i] = mean[i] + f * scale[i] * z[i];
}

template <class T> void Search<T>::mirror(T* x) const {
  for (Index i = 0; i < n_; ++i) x[i] = mean_[at(i)] - (x[i] - mean_[at(i)]);
}

template <class T> double Search<T>::sum_of_tiles() const {
  double sum = 0;
  for (double part : tile_sums_) sum += part;
  return sum;
}

template <class T> void Search<T>::set_step(double sigma) {
  sigma_ = std::clamp(sigma, 1 / kMaxStep, kMaxStep);
}

template <class T>
std::unique_ptr<Search<T>> make_search(const std::string& method, const Kernels<T>& kernels,
                                       SearchOptions<T> options) {
  if (method == "es") return make_evolution(kernels, std::move(options));
  if (method == "spsa") return make_spsa(kernels, std::move(options));
  if (method == "random") return make_random_search(kernels, std::move(options));
  throw std::invalid_argument("method: got '" + method + "', expected 'es', 'spsa' or 'random'");
}

template <class T>
Index run_generation(Search<T>& search, Population<T>& population, Index left, int threads,
                     const std::function<bool()>& interrupted) {
  const Index count = search.ask(left);
  if (count == 0) return 0;
  std::vector<double> losses(at(count));
  population.run(count, threads, interrupted, [&](const Worker& worker, TeamError& error) {
    population.evaluate(search, count, losses.data(), worker, error);
    if (!error.stopped()) search.tell(losses.data(), worker.unstoppable());
  });
  return count;
}

template class Search<float>;
template class Search<double>;
#define GS_INSTANTIATE(T)                                                                \
  template std::unique_ptr<Search<T>> make_search(const std::string&, const Kernels<T>&, \
                                                  SearchOptions<T>);                     \
  template Index run_generation(Search<T>&, Population<T>&, Index, int,                  \
                                const std::function<bool()>&);
GS_INSTANTIATE(float)
GS_INSTANTIATE(double)
#undef GS_INSTANTIATE

}  // namespace gradstack
