// Elementary functions over a vector type, made of explicit fma steps so that every ISA returns the
// same bits. The vector types live in the anonymous namespace of their files, so no instantiation
// is shared between ISAs.
#pragma once

#define DQ_INLINE static inline __attribute__((always_inline))
#define DQ_MEMBER inline __attribute__((always_inline))

namespace defakeq::simd {

// exp of x in [-87, 88]: x = n ln 2 + r, a degree-6 polynomial in r (relative error below 2^-22),
// exponent set by integer arithmetic.
template <class V>
DQ_INLINE typename V::F exp_within(typename V::F x) {
  using F = typename V::F;
  const typename V::I n = V::rne(V::mul(x, V::set1(1.44269504088896341f)));
  const F fn = V::to_f(n);
  F r = V::fma(fn, V::set1(-0.693145751953125f), x);
  r = V::fma(fn, V::set1(-1.42860682030941723212e-6f), r);
  F p = V::set1(1.0f / 720.0f);
  p = V::fma(p, r, V::set1(1.0f / 120.0f));
  p = V::fma(p, r, V::set1(1.0f / 24.0f));
  p = V::fma(p, r, V::set1(1.0f / 6.0f));
  p = V::fma(p, r, V::set1(0.5f));
  p = V::fma(p, r, V::set1(1.0f));
  p = V::fma(p, r, V::set1(1.0f));
  return V::scale2(p, n);
}

// exp, of x clamped to [-87, 88]. NaN gives the value at -87.
template <class V>
DQ_INLINE typename V::F exp(typename V::F x) {
  return exp_within<V>(V::min(V::max(x, V::set1(-87.0f)), V::set1(88.0f)));
}

template <class V>
DQ_INLINE typename V::F sigmoid(typename V::F x) {
  const typename V::F one = V::set1(1.0f);
  return V::div(one, V::add(one, exp<V>(V::sub(V::set1(0.0f), x))));
}

// Abramowitz and Stegun, Handbook of Mathematical Functions, 7.1.26: absolute error below 1.5e-7.
template <class V>
DQ_INLINE typename V::F erf(typename V::F x) {
  using F = typename V::F;
  const F a = V::abs(x);
  const F one = V::set1(1.0f);
  const F t = V::div(one, V::fma(a, V::set1(0.3275911f), one));
  F p = V::set1(1.061405429f);
  p = V::fma(p, t, V::set1(-1.453152027f));
  p = V::fma(p, t, V::set1(1.421413741f));
  p = V::fma(p, t, V::set1(-0.284496736f));
  p = V::fma(p, t, V::set1(0.254829592f));
  p = V::mul(p, t);
  const F e = exp<V>(V::mul(V::sub(V::set1(0.0f), a), a));
  return V::copysign(V::fma(V::sub(V::set1(0.0f), p), e, one), x);
}

template <class V>
DQ_INLINE typename V::F gelu(typename V::F x) {
  const typename V::F half = V::mul(x, V::set1(0.5f));
  return V::fma(half, erf<V>(V::mul(x, V::set1(0.70710678118654752f))), half);
}

template <class V>
DQ_INLINE typename V::F hardswish(typename V::F x) {
  typename V::F t = V::max(V::add(x, V::set1(3.0f)), V::set1(0.0f));
  t = V::min(t, V::set1(6.0f));
  return V::mul(x, V::mul(t, V::set1(1.0f / 6.0f)));
}

}  // namespace defakeq::simd
