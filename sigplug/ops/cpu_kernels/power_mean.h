// The power mean of sets of numbers. See sigplug/ops/power_mean.py for the
// formulas; the notation is the same: c is the clamped input, m the maximum
// of a set, u = c / y.
#pragma once

#include <algorithm>
#include <cmath>

#include "vector_math.h"

namespace sigplug {

// NaN where numbers are infinite, negative or not numbers, else 0.
SIGPLUG_INLINE Vec check_numbers(Vec c) {
  return c >= 0.0f ? c * 0.0f : all(NAN);
}

// A set whose largest number (or mean) is in this range is computed in
// float32, by vectors, where p is at least 1 and so small that exponents keep
// their digits; 0 stands for a set of zeros. Others are left to the functions
// in double below.
constexpr float kSmallest = 1e-30f, kLargest = 1e30f, kLargestPower = 1e6f;

inline bool is_ordinary(float scale, double p) {
  return (scale == 0.0f || (scale >= kSmallest && scale <= kLargest)) &&
         p >= 1.0 && p <= kLargestPower;
}

SIGPLUG_INLINE Vec clamp(Vec x, float eps) { return x < eps ? all(eps) : x; }

SIGPLUG_INLINE Log2 operator-(Log2 a, Log2 b) {
  return {a.exponent - b.exponent, a.fraction - b.fraction};
}

// Where all members are known to be positive normal numbers, two checks of
// each can be left out.
template <bool kPositive>
SIGPLUG_INLINE Log2 log2_of_member(Vec c) {
  return kPositive ? log2_of_normal(c) : log2(c);
}

template <bool kPositive>
SIGPLUG_INLINE Vec if_positive(Vec c, Vec then, Vec otherwise) {
  if (kPositive) return then;
  return c > 0.0f ? then : otherwise;
}

inline bool all_positive(const bool* mask, float eps) {
  return !mask && eps >= FLT_MIN;
}

// mean^(1/p).
SIGPLUG_INLINE Vec root(Vec mean, DoubleVec p) {
  return exp2_of_product(log2(mean), factor(1.0 / p));
}

// A member of a set: its clamped value, whether it takes part, and whether
// the clamp, if there is one, lets it pass (a NaN does not).
struct Member {
  float c;
  bool counts, passes;
};

SIGPLUG_INLINE Member member(float x, bool counts, float eps) {
  return {x < eps ? eps : x, counts, x >= eps || eps == -INFINITY};
}

// The mean in double, for any numbers; get(i) gives the members.
template <typename Get>
float mean_in_double(int64_t n, const Get& get, double p) {
  double largest = -INFINITY, sum = 0.0;
  int64_t count = 0;
  for (int64_t i = 0; i < n; ++i) {
    const Member x = get(i);
    if (!x.counts) continue;
    // Powers of negative numbers are not defined; the maximum is.
    if (!(x.c >= 0.0f || (x.c < 0.0f && std::isinf(p)))) return NAN;
    largest = std::max<double>(largest, x.c);
    sum += x.c;
    ++count;
  }
  if (count == 0 || largest == 0.0) return 0.0f;
  if (p == 1.0) return static_cast<float>(sum / count);
  if (std::isinf(p)) return static_cast<float>(largest);
  largest = std::min<double>(largest, FLT_MAX);
  sum = 0.0;
  for (int64_t i = 0; i < n; ++i) {
    const Member x = get(i);
    if (x.counts && x.c > 0.0f) sum += std::pow(x.c / largest, p);
  }
  return static_cast<float>(largest * std::pow(sum / count, 1.0 / p));
}

// The slopes in double: put(i, dy/dx) for each member, and dy/dp returned.
template <typename Get, typename Put>
float slopes_in_double(int64_t n, const Get& get, double p, float y,
                       const Put& put) {
  int64_t count = 0, ties = 0;
  for (int64_t i = 0; i < n; ++i) {
    const Member x = get(i);
    count += x.counts;
    ties += x.counts && x.c == y;
  }
  const double scale = y == 0.0f ? 1.0 : (y > FLT_MAX ? FLT_MAX : y);
  double by_power = 0.0;
  for (int64_t i = 0; i < n; ++i) {
    const Member x = get(i);
    double slope = 0.0;
    if (std::isinf(p)) {
      slope = x.counts && x.c == y ? 1.0 / ties : 0.0;
    } else if (x.counts) {
      const double u = x.c / scale;
      slope = u == 0.0 ? p == 1.0 : std::pow(u, p - 1.0);
      if (u != 0.0) by_power += slope * u * std::log(u);
      slope /= count;
    }
    put(i, x.counts && x.passes ? slope : 0.0);
  }
  return count == 0 ? 0.0f : static_cast<float>(y * by_power / count / p);
}

}  // namespace sigplug
