// Matrix products with what may follow them in the same call of a vendor's library. What the
// library has is asked product by product, and whether it gives what the op table gives is tried
// out once: NVIDIA's documentation says neither what its ReLU makes of NaN, nor its derivative at
// 0, nor which GELU it has and how exactly. Everything else is a kernel of our own behind the
// product.
#pragma once

#include <map>
#include <tuple>

#include "gradstack/device.hpp"

namespace gradstack::device {

class ProductQueue : public DeviceQueue {
 public:
  void gemm(const DeviceGemm& g) final;
  bool fuses(const DeviceGemm& g) final;

 protected:
  // What the library's call does beside the product: nothing, add the bias; add the bias, if there
  // is one, apply op and leave its bits, if they are wanted; the sums of A; multiply with the
  // slope; that and the sums of C.
  enum class Call { Product, Bias, Op, ASums, Slope, SlopeSums };
  // Makes it, or with `run` unset only says whether it could. False: the library has no such call.
  virtual bool product(const DeviceGemm& g, Call call, bool run) = 0;
  // In place s = h(s + bias), and bits where h' is 1 unless that is null.
  virtual void bias_forward(const DeviceOp& op, Index rows, Index cols, DeviceIn bias, DeviceOut s,
                            std::uint8_t* bits) = 0;

 private:
  // Which of the library's epilogues give what the op table gives.
  struct Agreement {
    bool op = false, bits = false, slope = false, sums = false;
  };
  using Key = std::tuple<Epilogue, DeviceType, DeviceType, bool>;
  const Agreement& agreement(const DeviceOp& op, const DeviceGemm& g);
  Agreement try_out(const DeviceOp& op, const DeviceGemm& like);
  bool fuses_op(const DeviceGemm& g);

  std::map<Key, Agreement> agreements_;
};

}  // namespace gradstack::device
