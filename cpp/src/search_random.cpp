// Local random search: normal steps of random length from the best point so far. Points of equal
// value are taken, so that the search wanders over plateaus; a step that succeeds sets the length
// of those to come.
#include <algorithm>
#include <cmath>

#include "gradstack/random.hpp"
#include "search_methods.hpp"

namespace gradstack {
namespace {

constexpr Index kPopulation = 8;
constexpr double kPlateauGrowth = 2, kFailureShrink = 0.9;

template <class T> class RandomSearch final : public Search<T> {
 public:
  RandomSearch(const Kernels<T>& kernels, SearchOptions<T> options)
      : Search<T>(kernels, std::move(options)),
        population_(options.population > 0 ? options.population : kPopulation) {}

 protected:
  Index open(Index left) override {
    if (this->generation_ == 1) value_ = this->best_value();
    return points_ = std::min(population_, left);
  }

  void point(Index m, bool, T* x) const override {
    T z[Search<T>::kTile];
    for (Index begin = 0; begin < this->n_; begin += Search<T>::kTile) {
      const Index n = std::min(Search<T>::kTile, this->n_ - begin);
      this->k_.normal(n, this->key(m), static_cast<std::uint32_t>(begin), z);
      this->move(begin, n, length(m), z, x + begin);
    }
  }

  void update(const double* values, const Worker& worker) override {
    if (!worker.leader()) return;
    const double* lowest = std::min_element(values, values + points_);
    const bool flat = std::all_of(values, values + points_, [&](double v) { return v == value_; });
    if (*lowest > value_) {
      this->set_step(this->sigma_ * kFailureShrink);
      return;
    }
    const Index winner = lowest - values;
    const double length = this->length(winner);
    point(winner, false, this->mean_.data());  // element by element, in place
    if (flat)
      this->set_step(this->sigma_ * kPlateauGrowth);
    else if (*lowest < value_)
      this->set_step(length);
    value_ = *lowest;
  }

 private:
  // Log-normal around the current step.
  double length(Index m) const { return this->sigma_ * std::exp(normal<double>(this->key(~m), 0)); }

  const Index population_;
  Index points_ = 0;
  double value_ = 0;  // of the point that steps start from
};

}  // namespace

template <class T>
std::unique_ptr<Search<T>> make_random_search(const Kernels<T>& kernels, SearchOptions<T> options) {
  return std::make_unique<RandomSearch<T>>(kernels, std::move(options));
}

template std::unique_ptr<Search<float>> make_random_search(const Kernels<float>&,
                                                           SearchOptions<float>);
template std::unique_ptr<Search<double>> make_random_search(const Kernels<double>&,
                                                            SearchOptions<double>);

}  // namespace gradstack
