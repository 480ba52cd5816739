// Costs C(y, ybar) as the trainer sees them: per-sample losses and gradients on batches.
#pragma once

#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "gradstack/backend.hpp"

namespace gradstack {

enum class Reduction { Mean, Sum };

// A cost of the table, or one given by the user. Dense targets are (count, dy) rows or
// [dy][lanes] blocks of T; labels are int64.
template <class T> class Cost {
 public:
  virtual ~Cost() = default;

  // Checks that outputs of d features go with targets: dense ones of dy features, or labels
  // (`labels`), or none (dy = 0). Throws std::invalid_argument.
  virtual void check_target(Index d, Index dy, bool labels) const = 0;
  // L(x, y, w) counts as this much in the average (w[y] under class weights, else 1).
  virtual double normaliser(std::int64_t) const { return 1; }
  virtual bool weighs_classes() const { return false; }
  // Throws std::invalid_argument when the cost has no gradient.
  virtual void require_gradient() const {}
  // Factor from the averaged per-sample loss to one term of a sum reduction (d for costs that
  // average over components).
  virtual double sum_factor(Index) const { return 1; }
  Reduction reduction() const { return reduction_; }

  // Table costs work on one block of samples at a time, on any worker; a user's cost sees the rows
  // of all samples at once: loss (count,), grad (count, d) or null. One of the two is implemented.
  virtual bool by_block() const = 0;
  virtual void block(const Kernels<T>&, CostArgs<T>) const {}
  virtual void rows(Index /*count*/, Index /*d*/, const T* /*ybar*/, Index /*dy*/, const T* /*y*/,
                    const std::int64_t* /*labels*/, T* /*loss*/, T* /*grad*/) const {}
  // hv = (d2L/dybar2) v, (count, d) each. Throws std::invalid_argument where the cost has none.
  virtual void curvature_rows(Index /*count*/, Index /*d*/, const T* /*ybar*/, Index /*dy*/,
                              const T* /*y*/, const std::int64_t* /*labels*/, const T* /*v*/,
                              T* /*hv*/) const {
    throw std::invalid_argument("cost: it has no second derivative");
  }

 protected:
  Reduction reduction_ = Reduction::Mean;
};

template <class T> class TableCost final : public Cost<T> {
 public:
  // Throws std::invalid_argument: unknown name, wrong number of parameters, class weights that the
  // cost does not take or that are negative or not finite.
  TableCost(const std::string& name, std::vector<double> params, std::vector<T> class_weight,
            Reduction reduction);

  void check_target(Index d, Index dy, bool labels) const override;
  double normaliser(std::int64_t label) const override;
  bool weighs_classes() const override { return !class_weight_.empty(); }
  void require_gradient() const override;
  double sum_factor(Index d) const override;
  bool by_block() const override { return true; }
  void block(const Kernels<T>& kernels, CostArgs<T> args) const override;
  const std::string& name() const { return name_; }
  int id() const { return id_; }
  const std::vector<double>& params() const { return params_; }  // kMaxCostParams
  const std::vector<T>& class_weight() const { return class_weight_; }

 private:
  std::string name_;
  int id_;
  std::vector<double> params_;
  std::vector<T> class_weight_;
};

// A cost on row-major arrays. scale[i] multiplies the gradient of sample i; null: 1.
template <class T> struct CostRows {
  Index count = 0, d = 0, dy = 0;
  const T* ybar = nullptr;               // (count, d)
  const T* y = nullptr;                  // (count, dy) or null
  const std::int64_t* labels = nullptr;  // (count,) or null
  const T* scale = nullptr;              // (count,) or null
  T* loss = nullptr;                     // (count,) or null
  T* grad = nullptr;                     // (count, d) or null
  const T* v = nullptr;                  // (count, d) or null
  T* hv = nullptr;                       // (d2L/dybar2) v times scale, (count, d); null without v
};

template <class T>
void evaluate_rows(const Cost<T>& cost, const Kernels<T>& kernels, const CostRows<T>& rows);

extern template class TableCost<float>;
extern template class TableCost<double>;

}  // namespace gradstack
