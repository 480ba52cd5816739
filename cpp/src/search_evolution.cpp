// A (mu/mu_w, lambda) evolution strategy that costs O(n) a point: mirrored (antithetic) normal
// samples, rank-shaped utilities, one variance per coordinate (Ros and Hansen 2008, "A simple
// modification in CMA-ES achieving linear time and space complexity") and two-point step-size
// adaptation (Hansen 2008): a pair of points lies along the last move, and which of the two is
// better says whether the step was too short or too long.
//
// Stairs and plateaus: equal values share their utilities, and a generation without any difference
// only widens the step.
#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <numeric>

#include "at.hpp"
#include "search_methods.hpp"

namespace gradstack {
namespace {

constexpr double kPlateauGrowth = 1.5;
constexpr double kStepMemory = 0.7;    // of the two-point signal
constexpr double kStepDamping = 0.5;   // times sqrt(n)
constexpr double kVarianceRate = 0.3;  // times mu_eff / (n + mu_eff)

constexpr Index kPatience = 40;  // generations without a better point before a new start
constexpr std::array<double, 5> kRestartSteps = {4, 1, 8, 2, 0.5};

// max(0, log(n / 2 + 1) - log(rank)), ranks 1..n, summing to 1.
std::vector<double> utilities(Index n) {
  std::vector<double> u(at(n));
  for (Index i = 0; i < n; ++i)
    u[at(i)] = std::max(
        0.0, std::log(static_cast<double>(n) / 2 + 1) - std::log(static_cast<double>(i + 1)));
  const double sum = std::accumulate(u.begin(), u.end(), 0.0);
  for (double& x : u) x /= sum;
  return u;
}

template <class T> class Evolution final : public Search<T> {
 public:
  Evolution(const Kernels<T>& kernels, SearchOptions<T> options)
      : Search<T>(kernels, std::move(options)),
        default_pairs_(pairs_of(options.population)),
        shift_(at(this->n_)),
        first_scale_(this->scale_) {}

 protected:
  Index open(Index left) override {
    pairs_ = std::min(default_pairs_, left / 2);
    return 2 * pairs_;
  }

  // Members 2 p and 2 p + 1 are a pair.
  void point(Index m, bool follows, T* x) const override {
    T z[Search<T>::kTile];
    const bool mirrored = m % 2 == 1;
    for (Index begin = 0; begin < this->n_ && !(mirrored && follows); begin += Search<T>::kTile) {
      const Index n = std::min(Search<T>::kTile, this->n_ - begin);
      direction(m / 2, begin, n, z);
      this->move(begin, n, this->sigma_, z, x + begin);
    }
    if (mirrored) this->mirror(x);
  }

  void update(const double* values, const Worker& worker) override {
    if (worker.leader()) rank(values);
    worker.sync();
    if (flat_) return;
    this->each_tile(worker, [&](Index begin, Index n, Index tile) { recombine(begin, n, tile); });
    worker.sync();
    if (!worker.leader()) return;
    const double norm = std::sqrt(this->sum_of_tiles());
    shift_gain_ = norm > 0 ? std::sqrt(static_cast<double>(this->free_)) / norm : 0;
  }

 private:
  Index pairs_of(Index population) const {
    if (population > 0) return std::max<Index>(1, population / 2);
    return static_cast<Index>(
        std::ceil(2 + 1.5 * std::log(static_cast<double>(std::max<Index>(1, this->free_)))));
  }

  // z of a pair; the first lies along the last move of the mean, as long as a normal sample.
  void direction(Index pair, Index begin, Index n, T* z) const {
    if (pair == 0 && shift_gain_ > 0) {
      for (Index i = 0; i < n; ++i) z[i] = static_cast<T>(shift_gain_) * shift_[at(begin + i)];
    } else {
      this->k_.normal(n, this->key(pair), static_cast<std::uint32_t>(begin), z);
    }
  }

  bool stalled() {
    stalled_ = this->best_value() < last_best_ ? 0 : stalled_ + 1;
    last_best_ = this->best_value();
    return stalled_ >= kPatience;
  }

  // From the best point, with the first scales again and a wider or narrower step: among stairs of
  // many widths the strategy may have settled on one that leads nowhere.
  void restart() {
    std::copy_n(this->best(), this->n_, this->mean_.begin());
    this->scale_ = first_scale_;
    this->set_step(kRestartSteps[restarts_++ % kRestartSteps.size()]);
    shift_gain_ = signal_ = 0;
    stalled_ = 0;
  }

  // What each pair counts, and the new step.
  void rank(const double* values) {
    const Index count = 2 * pairs_;
    order_.resize(at(count));
    std::iota(order_.begin(), order_.end(), Index{0});
    std::stable_sort(order_.begin(), order_.end(),
                     [&](Index a, Index b) { return values[a] < values[b]; });
    flat_ = values[order_.front()] == values[order_.back()];
    if (stalled()) {
      restart();
      flat_ = true;
      return;
    }
    if (flat_) {
      this->set_step(this->sigma_ * kPlateauGrowth);
      shift_gain_ = 0;
      return;
    }
    const std::vector<double> by_rank = utilities(count);
    std::vector<double> utility(at(count)), position(at(count));
    double squares = 0;
    for (Index i = 0, end = 0; i < count; i = end) {
      double sum = 0;
      while (end < count && values[order_[at(end)]] == values[order_[at(i)]])
        sum += by_rank[at(end++)];
      for (Index j = i; j < end; ++j) {
        utility[at(order_[at(j)])] = sum / static_cast<double>(end - i);
        position[at(order_[at(j)])] = static_cast<double>(i + end - 1) / 2;
      }
    }
    for (const double u : by_rank) squares += u * u;
    const double mu = 1 / squares, n = static_cast<double>(this->free_);
    variance_rate_ = kVarianceRate * mu / (n + mu);
    difference_.resize(at(pairs_));
    sum_.resize(at(pairs_));
    for (Index p = 0; p < pairs_; ++p) {
      difference_[at(p)] = utility[at(2 * p)] - utility[at(2 * p + 1)];
      sum_[at(p)] = utility[at(2 * p)] + utility[at(2 * p + 1)];
    }
    if (shift_gain_ == 0) return;
    const double signal = (position[1] - position[0]) / static_cast<double>(count - 1);
    signal_ = kStepMemory * signal_ + (1 - kStepMemory) * signal;
    this->set_step(this->sigma_ * std::exp(signal_ / (kStepDamping * std::sqrt(n))));
  }

  // Moves the mean by the weighted directions, and each variance towards that of the better points.
  void recombine(Index begin, Index n, Index tile) {
    T z[Search<T>::kTile], shift[Search<T>::kTile] = {}, square[Search<T>::kTile] = {};
    for (Index p = 0; p < pairs_; ++p) {
      const T difference = static_cast<T>(difference_[at(p)]), sum = static_cast<T>(sum_[at(p)]);
      if (sum == T(0)) continue;
      direction(p, begin, n, z);
      for (Index i = 0; i < n; ++i) {
        shift[i] += difference * z[i];
        square[i] += sum * z[i] * z[i];
      }
    }
    double norm = 0;
    this->move(begin, n, this->sigma_, shift, this->mean_.data() + begin);
    for (Index i = 0; i < n; ++i) {
      T& scale = this->scale_[at(begin + i)];
      if (scale == T(0)) shift[i] = 0;
      const double excess = std::clamp(static_cast<double>(square[i]) - 1, -2.0, 2.0);
      scale *= static_cast<T>(std::exp(0.5 * variance_rate_ * excess));
      shift_[at(begin + i)] = shift[i];
      norm += static_cast<double>(shift[i]) * static_cast<double>(shift[i]);
    }
    this->tile_sums_[at(tile)] = norm;
  }

  const Index default_pairs_;
  Index pairs_ = 0;
  std::vector<T> shift_;   // last move of the mean, in units of sigma * scale
  double shift_gain_ = 0;  // makes it as long as a normal sample; 0: there is none
  double signal_ = 0;
  bool flat_ = false;
  std::vector<T> first_scale_;
  double last_best_ = std::numeric_limits<double>::infinity();
  Index stalled_ = 0;  // generations since the best point
  std::size_t restarts_ = 0;
  double variance_rate_ = 0;
  std::vector<Index> order_;
  std::vector<double> difference_, sum_;  // of the utilities of a pair
};

}  // namespace

template <class T>
std::unique_ptr<Search<T>> make_evolution(const Kernels<T>& kernels, SearchOptions<T> options) {
  return std::make_unique<Evolution<T>>(kernels, std::move(options));
}

template std::unique_ptr<Search<float>> make_evolution(const Kernels<float>&, SearchOptions<float>);
template std::unique_ptr<Search<double>> make_evolution(const Kernels<double>&,
                                                        SearchOptions<double>);

}  // namespace gradstack
