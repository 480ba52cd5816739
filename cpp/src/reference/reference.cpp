// The reference backend: every kernel as the plainest possible loop. It is the oracle the other
// backends are tested against, so clarity comes before speed everywhere in this file.
#include "gradstack/backend.hpp"
#include "gradstack/random.hpp"
#include "kernel_tables.hpp"

namespace gradstack {
namespace {

template <class T> void gemm(const Gemm<T>& g) {
  for (Index block = 0; block < g.blocks; ++block) {
    const T* b_block = g.b + block * g.b_block;
    T* c_block = g.c + block * g.c_block;
    for (Index m = 0; m < g.m; ++m) {
      for (Index n = 0; n < g.n; ++n) {
        T sum = T(0);
        if (g.accumulate) {
          sum = c_block[m * g.ldc + n];
        } else if (g.bias != nullptr) {
          sum = g.bias[m];
        }
        for (Index segment = 0; segment < g.segments; ++segment) {
          const T* a = g.a + m * g.a_row + segment * g.a_seg;
          const T* b = b_block + n + segment * g.b_seg;
          for (Index k = 0; k < g.k; ++k)
            sum += a[k * g.a_col] * b[g.b_rows != nullptr ? g.b_rows[k] : k * g.ldb];
        }
        c_block[m * g.ldc + n] = sum;
      }
    }
  }
}

template <class T>
void gemv(Index m, Index k, const T* a, Index lda, const T* x, const T* bias, T* y) {
  for (Index i = 0; i < m; ++i) {
    T sum = bias != nullptr ? bias[i] : T(0);
    for (Index j = 0; j < k; ++j) sum += a[i * lda + j] * x[j];
    y[i] = sum;
  }
}

template <class T>
void gemv_few(Index samples, Index m, Index k, const T* a, Index lda, const T* x, Index ldx,
              const T* bias, T* y, Index ldy) {
  for (Index s = 0; s < samples; ++s) gemv(m, k, a, lda, x + s * ldx, bias, y + s * ldy);
}

template <class T>
void gemv_t(Index m, Index k, const T* a, Index lda, const T* y, T* x, bool accumulate) {
  for (Index j = 0; j < k; ++j) {
    T sum = accumulate ? x[j] : T(0);
    for (Index i = 0; i < m; ++i) sum += a[i * lda + j] * y[i];
    x[j] = sum;
  }
}

template <class T>
void ger(Index m, Index k, const T* y, const T* x, T* a, Index lda, bool accumulate) {
  for (Index i = 0; i < m; ++i) {
    for (Index j = 0; j < k; ++j) {
      const T product = y[i] * x[j];
      a[i * lda + j] = accumulate ? a[i * lda + j] + product : product;
    }
  }
}

template <class T> void sparse_rows(const SparseRows<T>& p) {
  for (Index r = 0; r < p.rows; ++r) {
    for (Index l = 0; l < p.lanes; ++l) {
      T& y = p.y[r * p.lanes + l];
      T sum = p.accumulate ? y : p.bias != nullptr ? p.bias[r] : T(0);
      for (Index t = p.begin[r]; t < p.begin[r + 1]; ++t)
        sum += p.w[p.edge[t]] * p.x[p.other[t] * p.lanes + l];
      y = sum;
    }
  }
}

template <class T> void sparse_products(const SparseProducts<T>& p) {
  for (Index e = 0; e < p.n; ++e) {
    T sum = T(0);
    for (Index s = 0; s < p.segments; ++s) {
      for (Index l = 0; l < p.lanes; ++l)
        sum += p.a[s * p.a_segment + p.edges[2 * e] * p.lanes + l] *
               p.b[s * p.b_segment + p.edges[2 * e + 1] * p.lanes + l];
    }
    p.out[e] = p.accumulate ? p.out[e] + sum : sum;
  }
}

template <class T>
void rows_to_block(Index count, Index d, Index lanes, const T* rows, Index ldr, T* block) {
  for (Index j = 0; j < d; ++j) {
    for (Index l = 0; l < lanes; ++l) {
      const Index sample = l < count ? l : count - 1;
      block[j * lanes + l] = rows[sample * ldr + j];
    }
  }
}

template <class T>
void gather_rows(Index count, Index d, Index lanes, const T* const* rows, T* block, T* tiles) {
  for (Index j = 0; j < d; ++j) {
    for (Index l = 0; l < lanes; ++l) {
      const T value = rows[l < count ? l : count - 1][j];
      block[j * lanes + l] = value;
      if (tiles) tiles[(j / kPanel * lanes + l) * kPanel + j % kPanel] = value;
    }
  }
}

template <class T>
void block_to_rows(Index count, Index d, Index lanes, const T* block, T* rows, Index ldr,
                   bool accumulate) {
  for (Index l = 0; l < count; ++l) {
    for (Index j = 0; j < d; ++j) {
      const T value = block[j * lanes + l];
      rows[l * ldr + j] = accumulate ? rows[l * ldr + j] + value : value;
    }
  }
}

template <class T>
void sum_lanes(Index rows, Index lanes, Index segments, Index seg_stride, const T* x, T* out,
               bool accumulate) {
  for (Index r = 0; r < rows; ++r) {
    T sum = T(0);
    for (Index segment = 0; segment < segments; ++segment) {
      for (Index l = 0; l < lanes; ++l) sum += x[segment * seg_stride + r * lanes + l];
    }
    out[r] = accumulate ? out[r] + sum : sum;
  }
}

template <class T> void add(Index n, const T* a, const T* b, T* out) {
  for (Index i = 0; i < n; ++i) out[i] = a[i] + b[i];
}

template <class T> void mul(Index n, const T* a, const T* b, T* out, bool accumulate) {
  for (Index i = 0; i < n; ++i) out[i] = accumulate ? out[i] + a[i] * b[i] : a[i] * b[i];
}

template <class T> void div(Index n, const T* a, const T* b, T* out) {
  for (Index i = 0; i < n; ++i) out[i] = a[i] / b[i];
}

template <class T> void axpy(Index n, T alpha, const T* x, T* y, bool accumulate) {
  for (Index i = 0; i < n; ++i) y[i] = accumulate ? y[i] + alpha * x[i] : alpha * x[i];
}

template <class T> void softmax(Index d, Index lanes, const T* s, T* z, bool log) {
  for (Index l = 0; l < lanes; ++l) {
    T largest = s[l];
    for (Index j = 1; j < d; ++j) {
      if (s[j * lanes + l] > largest) largest = s[j * lanes + l];
    }
    T sum = T(0);
    for (Index j = 0; j < d; ++j) sum += math::exp(s[j * lanes + l] - largest);
    for (Index j = 0; j < d; ++j) {
      const T shifted = s[j * lanes + l] - largest;
      z[j * lanes + l] = log ? shifted - math::log(sum) : math::exp(shifted) / sum;
    }
  }
}

// softmax:     ds_j = z_j (dz_j - sum_i z_i dz_i)
// log-softmax: ds_j = dz_j - exp(z_j) sum_i dz_i
template <class T>
void softmax_backward(Index d, Index lanes, const T* z, const T* dz, T* ds, bool log,
                      bool accumulate) {
  for (Index l = 0; l < lanes; ++l) {
    T sum = T(0);
    for (Index j = 0; j < d; ++j) {
      const Index i = j * lanes + l;
      sum += log ? dz[i] : z[i] * dz[i];
    }
    for (Index j = 0; j < d; ++j) {
      const Index i = j * lanes + l;
      const T value = log ? dz[i] - math::exp(z[i]) * sum : z[i] * (dz[i] - sum);
      ds[i] = accumulate ? ds[i] + value : value;
    }
  }
}

template <class T>
void dropout(Index d, Index lanes, const std::uint64_t* key, std::uint32_t threshold, T scale,
             const T* s, T* z, bool accumulate) {
  for (Index j = 0; j < d; ++j) {
    for (Index l = 0; l < lanes; ++l) {
      const Index i = j * lanes + l;
      const bool keep = uniform_bits(key[l], static_cast<std::uint32_t>(j)) >= threshold;
      const T value = keep ? s[i] * scale : T(0);
      z[i] = accumulate ? z[i] + value : value;
    }
  }
}

template <class T> void normal(Index n, std::uint64_t key, std::uint32_t first, T* out) {
  for (Index i = 0; i < n; ++i)
    out[i] = gradstack::normal<T>(key, first + static_cast<std::uint32_t>(i));
}

template <class T, class Op> struct Pointwise {
  static void forward(Index n, const double* p, const T* s, T* z) {
    const Op op(p);
    for (Index i = 0; i < n; ++i) z[i] = op.h(s[i]);
  }

  static void backward(Index n, const double* p, const T* s, const T* z, const T* dz, T* ds) {
    const Op op(p);
    for (Index i = 0; i < n; ++i) {
      if constexpr (Op::has_d1_from_z) {
        ds[i] = dz[i] * (z != nullptr ? op.d1_from_z(z[i]) : op.d1(s[i]));
      } else {
        ds[i] = dz[i] * op.d1(s[i]);
      }
    }
  }

  static void derivative(Index n, const double* p, int order, const T* s, T* out) {
    const Op op(p);
    for (Index i = 0; i < n; ++i) {
      switch (order) {
        case 0:
          out[i] = op.h(s[i]);
          break;
        case 1:
          out[i] = op.d1(s[i]);
          break;
        case 2:
          out[i] = op.d2(s[i]);
          break;
        default:
          out[i] = op.d3(s[i]);
      }
    }
  }
};

template <class T, class Rule> struct Update {
  static void apply(const UpdateArgs<T>& args) {
    const Rule rule(args.c);
    const bool outer = args.factor != nullptr;
    for (Index i = 0; i < (outer ? args.rows * args.n : args.n); ++i) {
      T state[kMaxState] = {};
      for (int k = 0; k < Rule::info.n_state; ++k) {
        if (args.state[k] != nullptr) state[k] = args.state[k][i];
      }
      rule(args.w[i], outer ? args.factor[i / args.n] * args.g[i % args.n] : args.g[i], state);
      for (int k = 0; k < Rule::info.n_state; ++k) {
        if (args.state[k] != nullptr) args.state[k][i] = state[k];
      }
    }
  }
};

template <class T>
constexpr Kernels<T> kTable = {
    .name = "reference",
    .vector = 1,
    .gemm = gemm<T>,
    .gemv = gemv<T>,
    .gemv_few = gemv_few<T>,
    .gemv_t = gemv_t<T>,
    .ger = ger<T>,
    .sparse_rows = sparse_rows<T>,
    .sparse_products = sparse_products<T>,
    .rows_to_block = rows_to_block<T>,
    .gather_rows = gather_rows<T>,
    .block_to_rows = block_to_rows<T>,
    .sum_lanes = sum_lanes<T>,
    .add = add<T>,
    .mul = mul<T>,
    .div = div<T>,
    .axpy = axpy<T>,
    .softmax = softmax<T>,
    .softmax_backward = softmax_backward<T>,
    .dropout = dropout<T>,
    .normal = normal<T>,
    .pointwise = PointwiseTable<T, Pointwise, PointwiseOps>::rows,
    .update = UpdateTable<T, Update, UpdateRules>::rows,
    .cost = CostTable<T, T, Costs>::rows,
};

}  // namespace

const Kernels<float>& reference_kernels(float) { return kTable<float>; }
const Kernels<double>& reference_kernels(double) { return kTable<double>; }

}  // namespace gradstack
