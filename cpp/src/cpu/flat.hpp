// Kernels over flat ranges: elementwise arithmetic, pointwise functions, update rules.
#pragma once

#include "gradstack/backend.hpp"
#include "gradstack/ops.hpp"
#include "gradstack/updates.hpp"
#include "simd.hpp"
#include "simd_math.hpp"

namespace gradstack {
inline namespace GRADSTACK_UNIT {

// f(i, count) for consecutive vectors; count < Vec<T>::size in the last one only. Being inlined
// twice, f needs no branch of its own on whole vectors.
template <class T, class F> GS_INLINE void for_each_vector(Index n, F&& f) {
  constexpr Index size = Vec<T>::size;
  Index i = 0;
  for (; i + size <= n; i += size) f(i, size);
  if (i < n) f(i, n - i);
}

template <class T> GS_INLINE Vec<T> load(const T* p, Index count) {
  return Lanes<Vec<T>>::load(p, count);
}

template <class T> GS_INLINE void store(T* p, Vec<T> x, Index count) {
  Lanes<Vec<T>>::store(p, x, count);
}

template <class T> void add(Index n, const T* a, const T* b, T* out) {
  for_each_vector<T>(n, [&](Index i, Index count) {
    store(out + i, load(a + i, count) + load(b + i, count), count);
  });
}

template <class T> void mul(Index n, const T* a, const T* b, T* out, bool accumulate) {
  if (accumulate) {
    for_each_vector<T>(n, [&](Index i, Index count) {
      store(out + i, fma(load(a + i, count), load(b + i, count), load(out + i, count)), count);
    });
  } else {
    for_each_vector<T>(n, [&](Index i, Index count) {
      store(out + i, load(a + i, count) * load(b + i, count), count);
    });
  }
}

template <class T> void div(Index n, const T* a, const T* b, T* out) {
  for_each_vector<T>(n, [&](Index i, Index count) {
    store(out + i, load(a + i, count) / load(b + i, count), count);
  });
}

template <class T> void axpy(Index n, T alpha, const T* x, T* y, bool accumulate) {
  const Vec<T> factor(alpha);
  if (accumulate) {
    for_each_vector<T>(n, [&](Index i, Index count) {
      store(y + i, fma(factor, load(x + i, count), load(y + i, count)), count);
    });
  } else {
    for_each_vector<T>(
        n, [&](Index i, Index count) { store(y + i, factor * load(x + i, count), count); });
  }
}

template <class T, class Op> struct Pointwise {
  static void forward(Index n, const double* p, const T* s, T* z) {
    const Op op(p);
    for_each_vector<T>(
        n, [&](Index i, Index count) { store(z + i, op.h(load(s + i, count)), count); });
  }

  static void backward(Index n, const double* p, const T* s, const T* z, const T* dz, T* ds) {
    const Op op(p);
    if constexpr (Op::has_d1_from_z) {
      if (z != nullptr) {
        for_each_vector<T>(n, [&](Index i, Index count) {
          store(ds + i, load(dz + i, count) * op.d1_from_z(load(z + i, count)), count);
        });
        return;
      }
    }
    for_each_vector<T>(n, [&](Index i, Index count) {
      store(ds + i, load(dz + i, count) * op.d1(load(s + i, count)), count);
    });
  }

  static void derivative(Index n, const double* p, int order, const T* s, T* out) {
    const Op op(p);
    const auto apply = [&](auto&& h) {
      for_each_vector<T>(
          n, [&](Index i, Index count) { store(out + i, h(load(s + i, count)), count); });
    };
    switch (order) {
      case 0:
        return apply([&](Vec<T> x) { return op.h(x); });
      case 1:
        return apply([&](Vec<T> x) { return op.d1(x); });
      case 2:
        return apply([&](Vec<T> x) { return op.d2(x); });
      default:
        return apply([&](Vec<T> x) { return op.d3(x); });
    }
  }
};

template <class T, class Rule> struct Update {
  static void apply(const UpdateArgs<T>& args) {
    // A copy that no store can alias: its pointers stay in registers.
    UpdateArgs<T> a = args;
    const Rule rule(a.c);
    if (a.factor == nullptr) {
      return range(a, rule, [&](Index i, Index count) { return load(a.g + i, count); });
    }
    for (Index r = 0; r < args.rows; ++r) {
      const Vec<T> factor(a.factor[r]);
      range(a, rule, [&](Index i, Index count) { return factor * load(a.g + i, count); });
      a.w += a.n;
      for (T*& state : a.state) state = state != nullptr ? state + a.n : nullptr;
    }
  }

 private:
  // gradient(i, count): a vector of it.
  template <class G>
  GS_INLINE static void range(const UpdateArgs<T>& a, const Rule& rule, G&& gradient) {
    if constexpr (requires { rule.stateless(); }) {
      if (rule.stateless()) {  // on single samples half of a step is spent here
        // Left to the hardware, lines to be written come late from the L2 cache.
        constexpr Index kAhead = 1024 / static_cast<Index>(sizeof(T));
        for_each_vector<T>(a.n, [&](Index i, Index count) {
          __builtin_prefetch(a.w + i + kAhead, 1);
          store(a.w + i, rule.stateless(load(a.w + i, count), gradient(i, count)), count);
        });
        return;
      }
    }
    for_each_vector<T>(a.n, [&](Index i, Index count) {
      // State that these hyper-parameters do not need has no memory.
      Vec<T> state[kMaxState];
#pragma GCC unroll 4
      for (int k = 0; k < Rule::info.n_state; ++k) {
        state[k] = a.state[k] != nullptr ? load(a.state[k] + i, count) : Vec<T>(T(0));
      }
      Vec<T> w = load(a.w + i, count);
      rule(w, gradient(i, count), state);
      store(a.w + i, w, count);
#pragma GCC unroll 4
      for (int k = 0; k < Rule::info.n_state; ++k) {
        if (a.state[k] != nullptr) store(a.state[k] + i, state[k], count);
      }
    });
  }
};

}  // namespace GRADSTACK_UNIT
}  // namespace gradstack
