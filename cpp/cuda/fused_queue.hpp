// The launches of the fused MLP, for the translation unit that instantiates them.
#pragma once

#include "fused_mlp.hpp"
#include "kernels.hpp"

namespace gradstack::device {

// f.template operator()<Half, kWidth>() for the kernel of an MLP: one for nets up to 64 wide, one
// for wider ones.
template <class F> void visit_mlp(const DeviceMlp& m, F&& f) {
  Index widest = 0;
  for (int l = 0; l < m.layers; ++l) widest = m.layer[l].out > widest ? m.layer[l].out : widest;
  const bool bf16 = m.half == DeviceHalf::Bf16;
  if (widest <= 64)
    bf16 ? f.template operator()<Bf16, 64>() : f.template operator()<Fp16, 64>();
  else
    bf16 ? f.template operator()<Bf16, 128>() : f.template operator()<Fp16, 128>();
}

template <class L> void KernelQueue<L>::mlp_forward(const DeviceMlp& m) {
  visit_mlp(m, [&]<class Half, int kWidth>() {
    MlpForward<Half, kWidth> body;
    body.m = m;
    body.work = mlp_work<kWidth>(m, mlp_forward_blocks(m), 1, 0);
    launch_.tiles("mlp_forward", body.work.blocks, body.work.shared, body);
  });
}

template <class L> void KernelQueue<L>::mlp_backward(const DeviceMlp& m) {
  visit_mlp(m, [&]<class Half, int kWidth>() {
    MlpBackward<Half, kWidth> body;
    body.m = m;
    body.work = mlp_work<kWidth>(m, mlp_backward_blocks(m), 2, m.dx ? 0 : 1);
    launch_.tiles("mlp_backward", body.work.blocks, body.work.shared, body);
    launch_.each("mlp_gradients", body.work.slot_at[m.layers], MlpGradients{m, body.work});
  });
}

}  // namespace gradstack::device
