// The power mean of sets of numbers. See sigplug/ops/power_mean.py for the
// formulas; the notation is the same: c is the clamped input, m the maximum
// of a set, u = c / y.
#pragma once

#include <algorithm>
#include <cfloat>
#include <cmath>

#include "vector_math.h"

namespace sigplug {

// A set whose largest number (or mean) is in this range is computed in
// float32, by vectors, where p is at least 1; 0 stands for a set of zeros.
// Others are left to the functions in double below.
constexpr float kSmallest = 1e-30f, kLargest = 1e30f;

inline bool is_ordinary(float scale, float p) {
  return (scale == 0.0f || (scale >= kSmallest && scale <= kLargest)) &&
         p >= 1.0f && p <= FLT_MAX;
}

SIGPLUG_INLINE Vec clamp(Vec x, float eps) { return x < eps ? all(eps) : x; }

SIGPLUG_INLINE Log2 operator-(Log2 a, Log2 b) {
  return {a.exponent - b.exponent, a.fraction - b.fraction};
}

// mean^(1/p), where 1/p is more than a float can hold.
SIGPLUG_INLINE Vec root(Vec mean, Vec p) {
  const Log2 log = log2(mean);
  const Vec inverse = 1.0f / p;
  // The two parts of p make these products exact.
  const Factor<Vec> i = factor(inverse), by = factor(p);
  const Vec rest = ((1.0f - i.upper * by.upper) - i.upper * by.lower -
                    i.lower * by.whole) * inverse;
  return exp2(log.exponent * i.upper,
              log.exponent * (i.lower + rest) + log.fraction * inverse);
}

// A member of a set: its clamped value, whether it takes part, and whether
// the clamp lets it pass (a NaN does not).
struct Member {
  float c;
  bool counts, passes;
};

SIGPLUG_INLINE Member member(float x, bool counts, float eps) {
  return {x < eps ? eps : x, counts, x >= eps};
}

// The mean in double, for any numbers; get(i) gives the members.
template <typename Get>
float mean_in_double(int64_t n, const Get& get, float p) {
  double largest = 0.0, sum = 0.0;
  int64_t count = 0;
  for (int64_t i = 0; i < n; ++i) {
    const Member x = get(i);
    if (!x.counts) continue;
    if (!(x.c >= 0.0f)) return NAN;
    largest = std::max<double>(largest, x.c);
    sum += x.c;
    ++count;
  }
  if (count == 0 || largest == 0.0) return 0.0f;
  if (p == 1.0f) return static_cast<float>(sum / count);
  if (std::isinf(p)) return static_cast<float>(largest);
  largest = std::min<double>(largest, FLT_MAX);
  sum = 0.0;
  for (int64_t i = 0; i < n; ++i) {
    const Member x = get(i);
    if (x.counts && x.c > 0.0f) sum += std::pow(x.c / largest, double(p));
  }
  return static_cast<float>(largest * std::pow(sum / count, 1.0 / p));
}

// The slopes in double: put(i, dy/dx) for each member, and dy/dp returned.
template <typename Get, typename Put>
float slopes_in_double(int64_t n, const Get& get, float p, float y,
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
      slope = u == 0.0 ? p == 1.0f : std::pow(u, double(p) - 1.0);
      if (u != 0.0) by_power += slope * u * std::log(u);
      slope /= count;
    }
    put(i, x.counts && x.passes ? slope : 0.0);
  }
  return count == 0 ? 0.0f : static_cast<float>(y * by_power / count / p);
}

}  // namespace sigplug
