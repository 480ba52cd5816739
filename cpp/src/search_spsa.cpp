// Simultaneous perturbation stochastic approximation (Spall 1992): the slope along a random corner
// of a cube, from two values, is an estimate of the gradient. Here several corners are averaged,
// the iterate itself is a point too, and steps are in units of the running size of the estimates,
// so that nothing depends on the scale of the values. Gains decay as Spall advises (1998,
// "Implementation of the simultaneous perturbation algorithm"); a generation without differences
// (a plateau) widens the perturbation instead.
#include <algorithm>
#include <cmath>

#include "at.hpp"
#include "gradstack/random.hpp"
#include "search_methods.hpp"

namespace gradstack {
namespace {

constexpr double kPlateauGrowth = 1.5;
constexpr double kGainDecay = 0.602, kWidthDecay = 0.101;
constexpr double kFirstWidth = 0.5, kFirstMove = 0.25;  // in units of the step
constexpr double kSizeMemory = 0.95;                    // of the size of the estimates

template <class T> class Spsa final : public Search<T> {
 public:
  Spsa(const Kernels<T>& kernels, SearchOptions<T> options)
      : Search<T>(kernels, std::move(options)),
        default_pairs_(options.population > 0 ? std::max<Index>(1, options.population / 2) : 4),
        estimate_(at(this->n_)) {}

 protected:
  // 2 k points around the iterate, then the iterate.
  Index open(Index left) override {
    pairs_ = std::min(default_pairs_, (left - 1) / 2);
    return 2 * pairs_ + 1;
  }

  void point(Index m, bool follows, T* x) const override {
    if (m == 2 * pairs_) {
      std::copy(this->mean_.begin(), this->mean_.end(), x);
      return;
    }
    T corner[Search<T>::kTile];
    const double width = this->width();
    const bool mirrored = m % 2 == 1;
    for (Index begin = 0; begin < this->n_ && !(mirrored && follows); begin += Search<T>::kTile) {
      const Index n = std::min(Search<T>::kTile, this->n_ - begin);
      corner_of(m / 2, begin, n, corner);
      this->move(begin, n, width, corner, x + begin);
    }
    if (mirrored) this->mirror(x);
  }

  void update(const double* values, const Worker& worker) override {
    if (worker.leader()) slopes_of(values);
    worker.sync();
    if (flat_) return;
    this->each_tile(worker, [&](Index begin, Index n, Index tile) {
      T corner[Search<T>::kTile];
      T* estimate = estimate_.data() + begin;
      std::fill_n(estimate, n, T(0));
      for (Index p = 0; p < pairs_; ++p) {
        corner_of(p, begin, n, corner);
        for (Index i = 0; i < n; ++i) estimate[i] += static_cast<T>(slopes_[at(p)]) * corner[i];
      }
      double size = 0;
      for (Index i = 0; i < n; ++i)
        if (this->scale_[at(begin + i)] != T(0)) size += std::abs(static_cast<double>(estimate[i]));
      this->tile_sums_[at(tile)] = size;
    });
    worker.sync();
    if (worker.leader()) {
      const double size = this->sum_of_tiles() / static_cast<double>(this->free_);
      size_ = size_ > 0 ? kSizeMemory * size_ + (1 - kSizeMemory) * size : size;
      move_ = size_ > 0 ? -kFirstMove * this->sigma_ * gain() / size_ : 0;
      ++updates_;
    }
    worker.sync();
    this->each_tile(worker, [&](Index begin, Index n, Index) {
      this->move(begin, n, move_, estimate_.data() + begin, this->mean_.data() + begin);
    });
  }

 private:
  double width() const {
    return kFirstWidth * this->sigma_ / std::pow(static_cast<double>(updates_ + 1), kWidthDecay);
  }
  double gain() const {
    const double stability =
        0.1 * static_cast<double>(this->budget_) / static_cast<double>(2 * default_pairs_ + 1);
    return std::pow((stability + 1) / (stability + 1 + static_cast<double>(updates_)), kGainDecay);
  }

  void corner_of(Index pair, Index begin, Index n, T* corner) const {
    const std::uint64_t key = this->key(pair);
    for (Index i = 0; i < n; i += 32) {  // a word of random bits has 32 signs; tiles begin with one
      const std::uint32_t bits = uniform_bits(key, static_cast<std::uint32_t>((begin + i) / 32));
      for (Index j = i; j < std::min(n, i + 32); ++j)
        corner[j] = bits >> (j - i) & 1 ? T(1) : T(-1);
    }
  }

  // Slope of each pair. Where there is no value, the worst of the generation stands in.
  void slopes_of(const double* values) {
    double worst = -std::numeric_limits<double>::infinity();
    for (Index m = 0; m < 2 * pairs_; ++m)
      if (std::isfinite(values[m])) worst = std::max(worst, values[m]);
    slopes_.assign(at(pairs_), 0.0);
    flat_ = true;
    for (Index p = 0; p < pairs_; ++p) {
      const double high = std::min(values[2 * p], worst), low = std::min(values[2 * p + 1], worst);
      if (high == low || !std::isfinite(high - low)) continue;
      flat_ = false;
      slopes_[at(p)] = (high - low) / (2 * width() * static_cast<double>(pairs_));
    }
    if (flat_) this->set_step(this->sigma_ * kPlateauGrowth);
  }

  const Index default_pairs_;
  Index pairs_ = 0;
  Index updates_ = 0;
  std::vector<T> estimate_;  // of the gradient, in units of scale
  std::vector<double> slopes_;
  double size_ = 0;  // running mean of |estimate|
  double move_ = 0;
  bool flat_ = false;
};

}  // namespace

template <class T>
std::unique_ptr<Search<T>> make_spsa(const Kernels<T>& kernels, SearchOptions<T> options) {
  return std::make_unique<Spsa<T>>(kernels, std::move(options));
}

template std::unique_ptr<Search<float>> make_spsa(const Kernels<float>&, SearchOptions<float>);
template std::unique_ptr<Search<double>> make_spsa(const Kernels<double>&, SearchOptions<double>);

}  // namespace gradstack
