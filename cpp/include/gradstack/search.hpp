// Zeroth-order methods: they see a function through its values alone. A method asks for the values
// of a generation of points and is told them; where it looks next depends on their order (evolution
// strategies, random search) or on their differences (SPSA).
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "gradstack/backend.hpp"
#include "gradstack/population.hpp"

namespace gradstack {

template <class T> struct SearchOptions {
  std::vector<T> x0;
  std::vector<T> scale;    // initial step of each coordinate; 0: it never moves
  Index population = 0;    // points of a generation; 0: the method's own choice
  Index budget = 0;        // evaluations that the whole search may use
  std::uint64_t seed = 0;  // the search is a pure function of these options and the values
};

template <class T> class Search : public Members<T> {
 public:
  // Opens the next generation: its number of points, at most `left`; 0 when that is too few. The
  // first generation is x0 alone.
  Index ask(Index left);
  const T* member(Index m, bool follows, T* scratch) const final;
  // The values of all points of the generation. SPMD, complete on return; NaN counts as infinity.
  void tell(const double* values, const Worker& worker);

  Index size() const { return n_; }
  const T* best() const { return best_.data(); }  // lowest point told so far, first of equals
  double best_value() const { return best_value_; }
  double step() const { return sigma_; }  // current step, in units of `scale`
  Index generation() const { return generation_; }

 protected:
  Search(const Kernels<T>& kernels, SearchOptions<T> options);

  static constexpr Index kTile = 1024;  // coordinates handled at a time

  virtual Index open(Index left) = 0;
  virtual void point(Index m, bool follows, T* x) const = 0;
  virtual void update(const double* values, const Worker& worker) = 0;

  std::uint64_t key(Index stream) const;
  // x = mean + factor * scale * z.
  void move(Index begin, Index n, double factor, const T* z, T* x) const;
  // f(first coordinate, number, tile number) for this worker's share.
  template <class F> void each_tile(const Worker& worker, F&& f) const {
    worker.for_each(tiles_, [&](Index tile) {
      const Index begin = tile * kTile;
      f(begin, n_ - begin < kTile ? n_ - begin : kTile, tile);
    });
  }
  void mirror(T* x) const;  // x = 2 mean - x
  double sum_of_tiles() const;
  void set_step(double sigma);

  const Kernels<T>& k_;
  const std::uint64_t seed_;
  const Index n_, tiles_;
  const Index budget_;
  Index free_ = 0;  // coordinates that move
  Index count_ = 0;
  Index generation_ = -1;
  std::vector<T> mean_, scale_;
  double sigma_ = 1;
  std::vector<double> tile_sums_;

 private:
  std::vector<T> best_;
  double best_value_;
  std::vector<double> values_;
};

// "es", "spsa" or "random". Throws std::invalid_argument for another name.
template <class T>
std::unique_ptr<Search<T>> make_search(const std::string& method, const Kernels<T>& kernels,
                                       SearchOptions<T> options);

// One generation of `search` on a population: asks, evaluates and tells without leaving the team.
// Returns the evaluations made. Throws Interrupted when `interrupted` returned true; the search is
// then between two generations.
template <class T>
Index run_generation(Search<T>& search, Population<T>& population, Index left, int threads,
                     const std::function<bool()>& interrupted);

extern template class Search<float>;
extern template class Search<double>;

}  // namespace gradstack
