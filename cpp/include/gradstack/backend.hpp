// The table of kernels a backend fills. Everything above this line of the architecture is written
// against `Kernels<T>` and knows neither instruction set nor device.
//
// Layout: a per-sample variable with d features is stored in blocks of `lanes` samples,
// [block][feature][lanes] (feature-major inside a block, samples contiguous); `lanes` is kLanes, a
// half or quarter of it for small batches, or 1 for a few samples (then a block is a plain
// vector). Rows r0..r1 of a block are therefore one contiguous range, and pointwise kernels only
// see flat ranges.
#pragma once

#include "gradstack/config.hpp"

namespace gradstack {

// C[m][n] = init + sum over segments g and k of A * B, with
//   A = a[m * a_row + k * a_col + g * a_seg],  B = b[k * ldb + g * b_seg + n],  C = c[m * ldc + n].
// All three products of a dense layer are this one shape with n vectorised:
//   forward  S[out][lanes]  = bias + W[out][in] Z[in][lanes]       a = W (a_row = ldw, a_col = 1)
//   dZ       dZ[in][lanes]  = W^T dS                               a = W (a_row = 1, a_col = ldw)
//   dW       dW[out][in]    = sum_blocks dS[out][lanes] Zt[lanes][in]   one segment per block
// Several column blocks that share A (the sample blocks of a batch, the 32-wide feature tiles of
// dW) are one call: block j uses b + j * b_block and c + j * c_block, so A is fetched once for all.
//
// Every element of C is one chain of (fused) multiply-adds, init first, then g and k in order:
// its bits depend on k and segments alone, not on m, n, blocks or the place of the element. Callers
// may therefore split m, n and blocks in any way. C overlaps neither A nor B.
template <class T> struct Gemm {
  Index m = 0, n = 0, k = 0, segments = 1;
  const T* a = nullptr;
  Index a_row = 0, a_col = 1, a_seg = 0;
  const T* b = nullptr;
  Index ldb = 0, b_seg = 0;
  // Not null: row k of B is at b + b_rows[k], in one segment, with a_col = 1 and ldb = 0.
  const Index* b_rows = nullptr;
  T* c = nullptr;
  Index ldc = 0;
  Index blocks = 1, b_block = 0, c_block = 0;
  const T* bias = nullptr;  // per row m; null: 0
  bool accumulate = false;  // init = C (then bias must be null)
};

// One update rule's call on a flat range. Meaning of `c` (host-computed constants of this step) is
// the rule's own, see updates.hpp. state[i] are the rule's state vectors at the same range.
//
// The gradient of a single sample, y x^T, is used without being written down: with `factor` (y) the
// range is `rows` rows of n values, and the gradient of row r is factor[r] times g (x).
template <class T> struct UpdateArgs {
  Index n = 0;
  T* w = nullptr;
  const T* g = nullptr;
  T* state[4] = {nullptr, nullptr, nullptr, nullptr};
  const double* c = nullptr;  // kMaxUpdateConstants constants
  const T* factor = nullptr;
  Index rows = 1;
};

template <class T> struct PointwiseKernels {
  // z = h(s). s and z may alias.
  void (*forward)(Index n, const double* p, const T* s, T* z);
  // ds = dz * h'(s); `z` = h(s), or null when not at hand; `s` may be null iff has_d1_from_z.
  // ds may alias dz.
  void (*backward)(Index n, const double* p, const T* s, const T* z, const T* dz, T* ds);
  // out = h^{(order)}(s), order 0..3.
  void (*derivative)(Index n, const double* p, int order, const T* s, T* out);
  bool has_d1_from_z;
};

// A cost evaluated on one block of `lanes` samples. `scale[l]` multiplies sample l's gradient (it
// holds sample weight / normaliser, 0 in padding lanes). `loss[l]` is the unscaled L(x, y, w).
template <class T> struct CostArgs {
  Index d = 0;   // features of ybar
  Index dy = 0;  // features of y (dense targets)
  Index lanes = 1;
  const T* ybar = nullptr;              // [d][lanes]
  const T* y = nullptr;                 // [dy][lanes], dense targets; else null
  const std::int64_t* label = nullptr;  // [lanes], class targets; else null
  const T* weight = nullptr;            // [d] class weights or null
  const double* p = nullptr;            // the cost's parameters
  const T* scale = nullptr;             // [lanes]
  T* loss = nullptr;                    // [lanes] or null
  T* grad = nullptr;                    // [d][lanes] or null: scale[l] * dL_l/dybar
  // second order: hv = scale[l] * (d2L/dybar2) v
  const T* v = nullptr;  // [d][lanes]
  T* hv = nullptr;       // [d][lanes]
};

// y[r] (+)= sum over the terms t of row r of w[edge[t]] x[other[t]], [row][lanes] each; a row is
// one chain of multiply-adds in the order of its terms.
template <class T> struct SparseRows {
  Index rows = 0, lanes = 1;
  const Index* begin = nullptr;  // rows + 1: row r has the terms begin[r] .. begin[r + 1]
  const std::int32_t* other = nullptr;
  const std::int32_t* edge = nullptr;
  const T* w = nullptr;
  const T* x = nullptr;
  T* y = nullptr;           // does not overlap x
  const T* bias = nullptr;  // per row; null: 0
  bool accumulate = false;  // then bias must be null
};

// out[e] (+)= sum over segments and lanes of a[edges[2 e]] b[edges[2 e + 1]], for n edges.
template <class T> struct SparseProducts {
  Index n = 0, lanes = 1, segments = 1;
  const std::int32_t* edges = nullptr;
  const T* a = nullptr;
  Index a_segment = 0;
  const T* b = nullptr;
  Index b_segment = 0;
  T* out = nullptr;
  bool accumulate = false;
};

template <class T> struct Kernels {
  const char* name;  // "reference", or the instruction set: "v2", "v3", "v4", "neon"
  Index vector;      // `lanes` is 1 or a multiple of it

  void (*gemm)(const Gemm<T>&);
  // One sample, in a block of one lane:
  void (*gemv)(Index m, Index k, const T* a, Index lda, const T* x, const T* bias,
               T* y);  // y = A x + bias
  // The same for several (as many as kFewSamples at best), which share what is read of A: y[s][m]
  // from x[s][k].
  void (*gemv_few)(Index samples, Index m, Index k, const T* a, Index lda, const T* x, Index ldx,
                   const T* bias, T* y, Index ldy);
  void (*gemv_t)(Index m, Index k, const T* a, Index lda, const T* y, T* x,
                 bool accumulate);  // x[k] (+)= A^T y
  void (*ger)(Index m, Index k, const T* y, const T* x, T* a, Index lda,
              bool accumulate);  // A (+)= y x^T

  void (*sparse_rows)(const SparseRows<T>&);
  void (*sparse_products)(const SparseProducts<T>&);

  // rows[b][d] (row stride ldr) <-> block [d][lanes]; `count` <= lanes samples; padding lanes
  // repeat the last sample so that padding is exactly as finite as the data.
  void (*rows_to_block)(Index count, Index d, Index lanes, const T* rows, Index ldr, T* block);
  // The same for rows wherever they lie, lanes > 1; and, unless null, to `tiles` [panel][lanes]
  // [kPanel], see Variable::tiles, of which features past d are not written.
  void (*gather_rows)(Index count, Index d, Index lanes, const T* const* rows, T* block, T* tiles);
  void (*block_to_rows)(Index count, Index d, Index lanes, const T* block, T* rows, Index ldr,
                        bool accumulate);
  // out[r] (+)= sum over lanes of x[r][l], for `segments` blocks seg_stride apart (bias gradients).
  void (*sum_lanes)(Index rows, Index lanes, Index segments, Index seg_stride, const T* x, T* out,
                    bool accumulate);

  // Flat ranges.
  void (*add)(Index n, const T* a, const T* b, T* out);  // out = a + b
  void (*mul)(Index n, const T* a, const T* b, T* out, bool accumulate);
  void (*div)(Index n, const T* a, const T* b, T* out);               // out = a / b
  void (*axpy)(Index n, T alpha, const T* x, T* y, bool accumulate);  // y (+)= alpha x

  // Over the features of a block, per lane. log: log-softmax instead of softmax.
  void (*softmax)(Index d, Index lanes, const T* s, T* z, bool log);
  void (*softmax_backward)(Index d, Index lanes, const T* z, const T* dz, T* ds, bool log,
                           bool accumulate);

  // z = keep ? s * scale : 0 with the library's counter-based stream; key[l] identifies sample l
  // (random.hpp), threshold is the drop probability as a 32-bit fraction.
  void (*dropout)(Index d, Index lanes, const std::uint64_t* key, std::uint32_t threshold, T scale,
                  const T* s, T* z, bool accumulate);

  // out[i] = the standard normal value number first + i under `key` (random.hpp).
  void (*normal)(Index n, std::uint64_t key, std::uint32_t first, T* out);

  const PointwiseKernels<T>* pointwise;         // indexed by OpId
  void (*const* update)(const UpdateArgs<T>&);  // indexed by RuleId
  void (*const* cost)(const CostArgs<T>&);      // indexed by CostId
};

// The naive oracle, also reachable through the registry (registry.hpp).
const Kernels<float>& reference_kernels(float);
const Kernels<double>& reference_kernels(double);

}  // namespace gradstack
