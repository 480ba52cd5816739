// Elementary functions for Vec<float> and Vec<double>: branch-free, both precisions from one text.
//
// Each function is a reduction of its argument to a short interval and a polynomial fitted there
// (weighted Remez exchange, coefficients rounded one after the other). The worst errors, measured
// by tests/cpp/test_simd_math.cpp, are stated there. Everywhere NaN gives NaN, limits at infinity
// are exact, and denormal arguments and results are treated like any other number.
#pragma once

#include "simd.hpp"

namespace gradstack {
inline namespace GRADSTACK_UNIT {
namespace simd {

// c0 + c1 x + c2 x^2 + ...
template <class T, class... Cs> GS_INLINE Vec<T> horner(Vec<T> x, T c0, Cs... cs) {
  if constexpr (sizeof...(Cs) == 0) {
    return Vec<T>(c0);
  } else {
    return fma(horner(x, cs...), x, Vec<T>(c0));
  }
}

template <class T> struct Constants;

template <> struct Constants<float> {
  using Word = std::uint32_t;
  static constexpr int mantissa_bits = 23;
  static constexpr Word bias = 127;
  static constexpr float integer_shift = 0x1.8p23f;  // x + this holds round(x) in its low bits
  static constexpr float two_to_mantissa = 0x1p23f;
  // log(2) in two parts: products of the first with an exponent are exact.
  static constexpr float ln2_hi = 0.693359375f, ln2_lo = -2.12194440e-4f;
  static constexpr float exp_min = -104.0f, exp_max = 89.0f;  // 0 and infinity beyond
  static constexpr float expm1_min = -30.0f;                  // -1 beyond
  static constexpr float tanh_max = 10.0f, erfc_max = 10.5f;  // 1 and 0 beyond
  static constexpr float tiny = 0x1p-30f;                     // expm1(x) = log1p(x) = x below
  static constexpr Word upper_half = ~Word{0xfff};            // squares of such numbers are exact
  static constexpr float erfc_shift = 2.5f;
};

template <> struct Constants<double> {
  using Word = std::uint64_t;
  static constexpr int mantissa_bits = 52;
  static constexpr Word bias = 1023;
  static constexpr double integer_shift = 0x1.8p52;
  static constexpr double two_to_mantissa = 0x1p52;
  static constexpr double ln2_hi = 0x1.62e42feep-1, ln2_lo = 0x1.a39ef35793c76p-33;
  static constexpr double exp_min = -746.0, exp_max = 710.0;
  static constexpr double expm1_min = -60.0;
  static constexpr double tanh_max = 20.0, erfc_max = 28.0;
  static constexpr double tiny = 0x1p-60;
  static constexpr Word upper_half = ~Word{0x7ffffff};
  static constexpr double erfc_shift = 4.0;
};

// 2^(i - bias) for 0 < i < 2 bias + 1.
template <class T> GS_INLINE Vec<T> power_of_two(typename Vec<T>::Bits i) {
  return from_bits<T>(i << Constants<T>::mantissa_bits);
}

// (exp(r) - 1 - r) / r^2 for |r| <= log(2) / 2.
GS_INLINE Vec<float> exp_tail(Vec<float> r) {
  return horner(r, 0.5f, 0.166666657f, 0.0416664928f, 0.00833354425f, 0.00139323401f,
                0.000197634377f);
}
GS_INLINE Vec<double> exp_tail(Vec<double> r) {
  return horner(r, 0.5, 0.16666666666666677, 0.041666666666666685, 0.0083333333333217904,
                0.0013888888888893688, 0.00019841269885373348, 2.4801587279043543e-05,
                2.7557245103403034e-06, 2.7557329384888711e-07, 2.5108709804043113e-08,
                2.0893998851348983e-09);
}

// x + x_lo = k log(2) + r with an integer k; p = exp(r) - 1.
template <class T> struct ExpParts {
  Vec<T> p;
  typename Vec<T>::Bits k;  // modulo 2^32 or 2^64

  GS_INLINE ExpParts(Vec<T> x, Vec<T> x_lo) {
    using C = Constants<T>;
    using V = Vec<T>;
    const V shifted = fma(x, V(1.44269504088896340736), V(C::integer_shift));
    const V whole = shifted - V(C::integer_shift);
    const V r = fma(whole, V(-C::ln2_lo), fma(whole, V(-C::ln2_hi), x)) + x_lo;
    p = fma(r * r, exp_tail(r), r);
    k = bits(shifted) - bits(V(C::integer_shift));
  }
};

// exp(x + x_lo), |x_lo| <= 0.1; the sum is never rounded.
template <class T> GS_INLINE Vec<T> exp_sum(Vec<T> x, Vec<T> x_lo) {
  using C = Constants<T>;
  const ExpParts<T> e(math::clamp(x, Vec<T>(C::exp_min), Vec<T>(C::exp_max)), x_lo);
  // 2^k as a product of two powers, which together reach every exponent, denormals and infinity
  // included.
  const auto twice_biased = e.k + 2 * C::bias;
  const auto half = twice_biased >> 1;
  return (e.p + Vec<T>(1)) * power_of_two<T>(half) * power_of_two<T>(twice_biased - half);
}

// log(1 + f) / s - 2, s = f / (2 + f), as a function of z = s^2; 1/sqrt(2) <= 1 + f <= sqrt(2).
GS_INLINE Vec<float> log_tail(Vec<float> z) {
  return z * horner(z, 0.666666627f, 0.400009722f, 0.284987926f, 0.242788538f);
}
GS_INLINE Vec<double> log_tail(Vec<double> z) {
  return z * horner(z, 0.66666666666666663, 0.40000000000004937, 0.28571428569404139,
                    0.22222222608294845, 0.18181778233595211, 0.15386994683121866,
                    0.13252007862269993, 0.13236114584409467);
}

// log(x) + correction for positive normal x, with the exponent lowered by `shift`.
template <class T> GS_INLINE Vec<T> log_sum(Vec<T> x, Vec<T> shift, Vec<T> correction) {
  using C = Constants<T>;
  using V = Vec<T>;
  const auto root_half = bits(V(0.70710678118654752440));
  const auto raised = bits(x) - root_half + bits(V(1));
  const auto exponent = raised >> C::mantissa_bits;  // biased
  const auto m = (raised & ((typename C::Word{1} << C::mantissa_bits) - 1)) + root_half;
  const V k = from_bits<T>(exponent + bits(V(C::two_to_mantissa))) -
              V(C::two_to_mantissa + static_cast<T>(C::bias)) - shift;
  const V f = from_bits<T>(m) - V(1);
  const V s = f / (V(2) + f);
  const V half_square = V(0.5) * f * f;
  const V tail = s * (half_square + log_tail(s * s));
  return fma(k, V(C::ln2_hi), f - (half_square - (tail + fma(k, V(C::ln2_lo), correction))));
}

}  // namespace simd

template <class T> GS_INLINE Vec<T> exp(Vec<T> x) { return simd::exp_sum(x, Vec<T>(0)); }

template <class T> GS_INLINE Vec<T> expm1(Vec<T> x) {
  using C = simd::Constants<T>;
  using V = Vec<T>;
  const simd::ExpParts<T> e(math::clamp(x, V(C::expm1_min), V(C::exp_max)), V(0));
  // 2^k (1 + p) - 1 with half of the power, which stays finite wherever the result does.
  const V half = simd::power_of_two<T>(e.k + (C::bias - 1));
  const V y = V(2) * fma(half, e.p, half - V(0.5));
  return select(abs(x) < V(C::tiny), x, y);
}

template <class T> GS_INLINE Vec<T> log(Vec<T> x) {
  using C = simd::Constants<T>;
  using V = Vec<T>;
  const auto denormal = x < V(kMinNormal<T>);
  const V scaled = select(denormal, x * V(C::two_to_mantissa), x);
  const V y = simd::log_sum(scaled, select(denormal, V(C::mantissa_bits), V(0)), V(0));
  const V inf(__builtin_inf());
  const V limit = select(x == V(0), -inf, select(x < V(0), V(__builtin_nan("")), x));
  return select((x > V(0)) & (x < inf), y, limit);
}

template <class T> GS_INLINE Vec<T> log1p(Vec<T> x) {
  using C = simd::Constants<T>;
  using V = Vec<T>;
  const V u = V(1) + x;
  // What the sum lost, relative to u.
  const V lost = select(x < V(1), x - (u - V(1)), V(1) - (u - x)) / u;
  const V y = simd::log_sum(u, V(0), lost);
  const V inf(__builtin_inf());
  const V limit = select(x == V(-1), -inf, select(x < V(-1), V(__builtin_nan("")), x));
  return select((x > V(-1)) & (x < inf) & (abs(x) >= V(C::tiny)), y, limit);
}

namespace simd {

// tanh(r) / r for |r| <= log(2) / 4, u = r^2.
GS_INLINE Vec<float> tanh_core(Vec<float> u) { return horner(u, 1.0f, -0.33331272f, 0.131106734f); }
GS_INLINE Vec<double> tanh_core(Vec<double> u) {
  return horner(u, 1.0, -0.3333333333333249, 0.13333333332784292, -0.053968252782946056,
                0.02186937078390036, -0.008857311081695515, 0.0034448662826063454);
}

}  // namespace simd

// With x = k log(2) / 2 + r and t = tanh(r), the addition theorem for K = 2^(k - 1):
//   tanh(x) = ((K + 1/2) t + (K - 1/2)) / ((K + 1/2) + (K - 1/2) t).
// It is odd in every bit (-0 too: 0 - 0 is +0, hence the subtractions) and at most 1. log(2) / 2 in
// one part will do: where k is large the result hardly depends on r.
template <class T> GS_INLINE Vec<T> tanh(Vec<T> x) {
  using C = simd::Constants<T>;
  using V = Vec<T>;
  const V shift(C::integer_shift + T(C::bias - 1));  // even, so that ties are symmetric
  const V a = maximum(V(-C::tanh_max), minimum(V(C::tanh_max), x));
  const V shifted = fma(a, V(2.88539008177792681472), shift);
  const V r = fma(shifted - shift, V(-0.34657359027997265471), a);
  const V two_k = simd::power_of_two<T>(bits(shifted));
  const V t = r * simd::tanh_core(r * r);
  const V sum = two_k + V(0.5), difference = V(0.5) - two_k;
  return fms(sum, t, difference) / fnma(difference, t, sum);
}

namespace simd {

// From here on erfc is computed on its own; nearer to 0 it is 1 - erf.
inline constexpr double kErfcFrom = 0.6;

// (x + c) exp(x^2) erfc(x) as a function of t = (x - c) / (x + c), x >= kErfcFrom,
// c = erfc_shift.
GS_INLINE Vec<float> erfc_core(Vec<float> t) {
  return horner(t, 1.05403185f, -0.804651856f, 0.453911901f, -0.17125003f, 0.0283876564f,
                0.008379573f, -0.0049092453f, -0.000390625501f, 0.000758715498f);
}
GS_INLINE Vec<double> erfc_core(Vec<double> t) {
  return horner(t, 1.0959956610004911, -0.97654872908088197, 0.77320870226525662,
                -0.54085383131324827, 0.33085158787692798, -0.1740109372392008,
                0.076381514932501726, -0.026370053355097435, 0.0061120554055181754,
                -0.0002809587201230127, -0.00045505114763218739, 0.00017681202700131423,
                -3.6408461537482778e-06, -1.8858386843288293e-05, 4.707148526885552e-06,
                1.4196551862667703e-06, -8.628812840673243e-07, -7.1188994531694275e-08,
                1.3521824233165683e-07, -7.2360825702145336e-10, -1.7299624424139948e-08);
}

// erfc(a) for a >= kErfcFrom.
template <class T> GS_INLINE Vec<T> erfc_tail(Vec<T> a) {
  using C = Constants<T>;
  using V = Vec<T>;
  const V x = minimum(V(C::erfc_max), a);
  const V c(C::erfc_shift);
  const V t = (x - c) / (x + c);
  // exp(-x^2) with the square carried in two parts.
  const V hi = from_bits<T>(bits(x) & C::upper_half);
  const V lo = (x - hi) * (x + hi);
  return exp_sum(-hi * hi, -lo) * erfc_core(t) / (x + c);
}

// erf(x) / x - 1 as a function of x^2 <= 1.
GS_INLINE Vec<float> erf_core(Vec<float> z) {
  return horner(z, 0.128379166f, -0.37612626f, 0.112835787f, -0.0268533472f, 0.0051871622f,
                -0.00079978531f, 7.80690316e-05f);
}
GS_INLINE Vec<double> erf_core(Vec<double> z) {
  return horner(z, 0.12837916709551256, -0.37612638903183343, 0.1128379167093687,
                -0.026866170641932294, 0.0052239775963952998, -0.00085483254626946752,
                0.00012055279645878396, -1.4924445703617488e-05, 1.644385976136506e-06,
                -1.6181419402400747e-07, 1.3604088078349063e-08, -7.5815184251444588e-10);
}

}  // namespace simd

template <class T> GS_INLINE Vec<T> erfc(Vec<T> x) {
  using V = Vec<T>;
  const V near = V(1) - fma(x, simd::erf_core(x * x), x);
  const V tail = simd::erfc_tail(abs(x));
  return select(abs(x) < V(simd::kErfcFrom), near, select(x < V(0), V(2) - tail, tail));
}

template <class T> GS_INLINE Vec<T> erf(Vec<T> x) {
  using V = Vec<T>;
  const V far = copysign(V(1) - simd::erfc_tail(abs(x)), x);
  return select(abs(x) < V(1), fma(x, simd::erf_core(x * x), x), far);
}

namespace simd {

// x = k pi/2 + r, |r| <= pi/4; the low two bits of `quadrant` are those of k.
template <class T> struct Quadrant {
  Vec<T> r;
  typename Vec<T>::Bits quadrant;
};

// Up to here k pi/2 is exact to well below an ulp of r; larger arguments go to the C library.
inline constexpr double kTrigMax = 1e6;

// pi/2 in three parts; products of the first two with k < 2^20 are exact.
inline constexpr double kHalfPi1 = 0x1.921fb544p+0, kHalfPi2 = 0x1.0b4611a6p-34,
                        kHalfPi3 = 0x1.3198a2e037073p-69;

GS_INLINE Quadrant<double> reduce_quadrant(Vec<double> x) {
  using V = Vec<double>;
  const V shift(Constants<double>::integer_shift);
  const V shifted = fma(x, V(0.63661977236758134308), shift);
  const V k = shifted - shift;
  // Each difference is exact or leaves its rounding error in `lost`.
  const V a = x - k * V(kHalfPi1);
  const V b = k * V(kHalfPi2);
  const V c = a - b;
  const V lost = (a - c) - b;
  return {c + fma(k, V(-kHalfPi3), lost), bits(shifted)};
}

// Half a float vector: as many lanes as a whole double vector has.
using HalfFloat = typename Native<float, kVecBytes / 2>::type;

// The lower or upper half of a float vector, and both halves as one. Templates over the vector
// type, so that shuffles of other widths are never looked at.
template <int kHalf, class Whole> GS_INLINE HalfFloat half_of(Whole x) {
  if constexpr (sizeof(Whole) == 16) {
    return __builtin_shufflevector(x, x, 2 * kHalf, 2 * kHalf + 1);
  } else if constexpr (sizeof(Whole) == 32) {
    constexpr int i = 4 * kHalf;
    return __builtin_shufflevector(x, x, i, i + 1, i + 2, i + 3);
  } else {
    constexpr int i = 8 * kHalf;
    return __builtin_shufflevector(x, x, i, i + 1, i + 2, i + 3, i + 4, i + 5, i + 6, i + 7);
  }
}
template <class Half> GS_INLINE Vec<float> joined(Half lo, Half hi) {
  if constexpr (sizeof(Half) == 8) {
    return __builtin_shufflevector(lo, hi, 0, 1, 2, 3);
  } else if constexpr (sizeof(Half) == 16) {
    return __builtin_shufflevector(lo, hi, 0, 1, 2, 3, 4, 5, 6, 7);
  } else {
    return __builtin_shufflevector(lo, hi, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  }
}

// Reduced in double precision, half a vector at a time.
struct HalfQuadrant {
  HalfFloat r, k;
  GS_INLINE explicit HalfQuadrant(HalfFloat x) {
    using V = Vec<double>;
    const V wide = __builtin_convertvector(x, V::Native);
    const V shift(Constants<double>::integer_shift);
    const V whole = fma(wide, V(0.63661977236758134308), shift) - shift;
    const V rest = fma(whole, V(-kHalfPi2), fma(whole, V(-kHalfPi1), wide));
    r = __builtin_convertvector(rest.v, HalfFloat);
    k = __builtin_convertvector(whole.v, HalfFloat);
  }
};
GS_INLINE Quadrant<float> reduce_quadrant(Vec<float> x) {
  const HalfQuadrant lo(half_of<0>(x.v)), hi(half_of<1>(x.v));
  const Vec<float> k = joined(lo.k, hi.k);
  return {joined(lo.r, hi.r), bits(k + Vec<float>(Constants<float>::integer_shift))};
}

// (sin(r) - r) / r^3 and (cos(r) - 1 + r^2 / 2) / r^4 as functions of r^2.
GS_INLINE Vec<float> sin_tail(Vec<float> z) {
  return horner(z, -0.166666552f, 0.00833218731f, -0.000195178975f);
}
GS_INLINE Vec<double> sin_tail(Vec<double> z) {
  return horner(z, -0.1666666666666663, 0.0083333333333218407, -0.00019841269829358503,
                2.7557313538496878e-06, -2.5050734385361191e-08, 1.5895433008320515e-10);
}
GS_INLINE Vec<float> cos_tail(Vec<float> z) {
  return horner(z, 0.0416666456f, -0.00138873013f, 2.44306702e-05f);
}
GS_INLINE Vec<double> cos_tail(Vec<double> z) {
  return horner(z, 0.041666666666666602, -0.0013888888888874441, 2.4801587289636314e-05,
                -2.7557314387469883e-07, 2.0875727058978719e-09, -1.1359802471593803e-11);
}

// Lanes beyond kTrigMax, one by one. Out of line: it is rare and would bloat every caller.
template <class T> __attribute__((noinline, cold)) void large_trig(const T* x, T* y, bool cosine) {
  for (Index i = 0; i < Vec<T>::size; ++i) {
    if (math::abs(x[i]) >= T(kTrigMax)) y[i] = cosine ? math::cos(x[i]) : math::sin(x[i]);
  }
}

// sin(x), or cos(x) = sin(x + pi/2).
template <class T, bool kCosine> GS_INLINE Vec<T> sin_or_cos(Vec<T> x) {
  using V = Vec<T>;
  const Quadrant<T> q = reduce_quadrant(x);
  const auto k = q.quadrant + typename Constants<T>::Word{kCosine};
  const V z = q.r * q.r;
  const V sine = fma(q.r * z, sin_tail(z), q.r);
  const V half = V(0.5) * z;
  const V head = V(1) - half;
  const V cosine = head + fma(z * z, cos_tail(z), (V(1) - head) - half);
  const Mask<T> odd{(k & 1) != 0};
  const auto sign = (k & 2) << (8 * static_cast<int>(sizeof(T)) - 2);
  V y = from_bits<T>(bits(select(odd, cosine, sine)) ^ sign);
  if constexpr (!kCosine) y = select(x == V(0), x, y);  // the reduction loses the sign of -0
  const Mask<T> large = abs(x) >= V(kTrigMax);
  if (any(large)) [[unlikely]] {
    T in[V::size], out[V::size];
    x.store(in);
    y.store(out);
    large_trig(in, out, kCosine);
    y = V::load(out);
  }
  return y;
}

}  // namespace simd

template <class T> GS_INLINE Vec<T> sin(Vec<T> x) { return simd::sin_or_cos<T, false>(x); }
template <class T> GS_INLINE Vec<T> cos(Vec<T> x) { return simd::sin_or_cos<T, true>(x); }

}  // namespace GRADSTACK_UNIT
}  // namespace gradstack
