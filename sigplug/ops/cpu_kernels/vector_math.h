// Exponentials and logarithms of vectors: no branches, no calls, no tables.
// The polynomials are minimax fits on the stated intervals.
#pragma once

#include <cfloat>

#include "vec.h"

namespace sigplug {

// Floats beyond 2^23 have no fraction: there and back, |x| < 2^22 becomes the
// nearest integer.
constexpr float kShift = 12582912.0f;  // 1.5 * 2^23

SIGPLUG_INLINE Vec shift_fraction_out(Vec x) { return x + kShift; }
SIGPLUG_INLINE Vec shift_back(Vec x) { return x - kShift; }

// 2^n for an integer n in [-127, 127]; n = -127 gives 0.
SIGPLUG_INLINE Vec power_of_two(Vec n) {
  return cast_bits<Vec>((to_int(n) + 127) << 23);
}

// A positive normal float as 2^exponent * (1 + fraction), with 1 + fraction
// between sqrt(1/2) and sqrt(2), where a logarithm is closest to 0.
struct Split {
  Vec exponent, fraction;
};

SIGPLUG_INLINE Split split(Vec x) {
  const int32_t sqrt_half = 0x3f3504f3;
  const IntVec bits = cast_bits<IntVec>(x);
  const IntVec exponent = (bits - sqrt_half) >> 23;
  return {to_float(exponent), cast_bits<Vec>(bits - (exponent << 23)) - 1.0f};
}

// A logarithm to base 2, in two parts that are not added: the integer part
// would take digits away from the other one.
struct Log2 {
  Vec exponent, fraction;
};

// Of positive normal floats; absolute error 2^-26 (log2(1 + f) = f P(f)).
SIGPLUG_INLINE Log2 log2_of_normal(Vec x) {
  const Split parts = split(x);
  const Vec f = parts.fraction;
  Vec s = f * 0.12541246f - 0.21030335f;
  s = s * f + 0.21737938f;
  s = s * f - 0.23851943f;
  s = s * f + 0.28765666f;
  s = s * f - 0.3607212f;
  s = s * f + 0.48092252f;
  s = s * f - 0.72134715f;
  s = s * f + 1.4426949f;
  return {parts.exponent, s * f};
}

// Of positive floats.
SIGPLUG_INLINE Log2 log2(Vec x) {
  const IntVec subnormal = x < FLT_MIN;
  const Log2 log = log2_of_normal(subnormal ? x * 16777216.0f : x);
  return {log.exponent - (subnormal ? all(24.0f) : Vec{}), log.fraction};
}

// 2^(high + low) of less than 127, relative error 2^-23; 0 below -126.
SIGPLUG_INLINE Vec exp2(Vec high, Vec low) {
  const Vec x = high + low;
  const Vec shifted = shift_fraction_out(x);
  const Vec r = (high - shift_back(shifted)) + low;
  Vec s = r * 1.5353362e-4f + 1.3398874e-3f;
  s = s * r + 9.6184374e-3f;
  s = s * r + 5.5503324e-2f;
  s = s * r + 0.24022648f;
  s = s * r + 0.6931472f;
  s = s * r + 1.0f;
  // The last bits of `shifted` are those of the integer.
  const IntVec exponent = cast_bits<IntVec>(shifted) << 23;
  const Vec result = cast_bits<Vec>(cast_bits<IntVec>(s) + exponent);
  return x >= -126.0f ? result : Vec{};
}

// A factor in two parts. The product of the upper one and an exponent is
// exact, the lower one holds what a float cannot.
template <typename V>
struct Factor {
  V whole, upper, lower;
};

SIGPLUG_INLINE Factor<float> factor(double x) {
  const float whole = static_cast<float>(x);
  const float upper = cast_bits<float>(cast_bits<int32_t>(whole) & ~0xfff);
  return {whole, upper, static_cast<float>(x - upper)};
}

SIGPLUG_INLINE Factor<Vec> factor(DoubleVec x) {
  const Vec whole = to_float(x);
  const Vec upper = cast_bits<Vec>(cast_bits<IntVec>(whole) & ~0xfff);
  return {whole, upper, to_float(x - to_double(upper))};
}

// 2^(factor * log).
template <typename V>
SIGPLUG_INLINE Vec exp2_of_product(Log2 log, Factor<V> by) {
  return exp2(log.exponent * by.upper,
              log.exponent * by.lower + log.fraction * by.whole);
}

// e^x, relative error 2^-23; 0 below -88 and e^88 above 88.
SIGPLUG_INLINE Vec exp(Vec x) {
  x = max(min(x, all(88.0f)), all(-88.0f));
  const Vec n = shift_back(shift_fraction_out(x * 1.44269504f));
  // ln 2 in two parts, of which the first has zeros at its end.
  const Vec r = (x - n * 0.693145752f) - n * 1.42860677e-6f;
  Vec s = r * 1.38146132e-3f + 8.36870983e-3f;
  s = s * r + 4.16683874e-2f;
  s = s * r + 0.166665207f;
  s = s * r + 0.499999935f;
  return ((s * r) * r + r + 1.0f) * power_of_two(n);
}

// log(2^exponent * (1 + f)), relative error 2^-23 also close to 0.
SIGPLUG_INLINE Vec log_of_split(Vec exponent, Vec f) {
  Vec s = f * -7.63449864e-2f + 0.127615779f;
  s = s * f - 0.13160182f;
  s = s * f + 0.142017579f;
  s = s * f - 0.166233574f;
  s = s * f + 0.200012269f;
  s = s * f - 0.25000821f;
  s = s * f + 0.333333317f;
  const Vec square = f * f;
  const Vec low = s * (f * square) - exponent * 2.12194440e-4f;
  return exponent * 0.693359375f + ((low - square * 0.5f) + f);
}

// log(x) of positive normal floats.
SIGPLUG_INLINE Vec log(Vec x) {
  const Split parts = split(x);
  return log_of_split(parts.exponent, parts.fraction);
}

// log(1 + x) for x in [0, 1].
SIGPLUG_INLINE Vec log1p_of_unit(Vec x) {
  const IntVec halve = x > 0.41421356f;
  return log_of_split(halve ? all(1.0f) : Vec{}, halve ? x * 0.5f - 0.5f : x);
}

}  // namespace sigplug
