// The power mean of contiguous rows, such as the channels of an image.
#include "power_mean.h"

namespace sigplug {
namespace {

// kPositive: see log2_of_member.
template <typename T, bool kPositive>
struct Row {
  const T* x;
  const bool* mask;  // or null
  int64_t n;
  float eps;

  Member operator()(int64_t i) const {
    return member(load_one(x + i), !mask || mask[i], eps);
  }

  int64_t count() const {
    if (!mask) return n;
    int64_t sum = 0;
    for (int64_t i = 0; i < n; ++i) sum += mask[i];
    return sum;
  }

  // The clamped values, 0 where the mask excludes them.
  Vec members(Vec values, int64_t i, int64_t size) const {
    const Vec c = clamp(values, eps);
    return kPositive || !mask ? c : keep(c, i, size);
  }

  // 0 in place of what the mask excludes.
  Vec keep(Vec c, int64_t i, int64_t size) const {
    return load_mask(mask + i, size) ? c : Vec{};
  }
};

SIGPLUG_INLINE Vec first_upto(Vec x, int64_t n) {
  return n == kWidth ? x : first_of(x, n);
}

// The sum over a row of function(values, c, i, n), a vector. In double, as a
// float would lose small ones beside a large one.
template <typename R, typename Function>
SIGPLUG_INLINE double sum_row(const R& row, const Function& function) {
  DoubleVec total = {};
  for_each_vec(row.n, [&](int64_t i, int64_t n) {
    const Vec values = load_upto(row.x + i, n);
    const Vec terms = function(values, row.members(values, i, n), i, n);
    total += to_double(first_upto(terms, n));
  });
  return sum(total);
}

// Largest member, or NaN where one is infinite, negative or not a number.
template <typename R>
float largest_member(const R& row) {
  Vec largest = {}, check = {};
  for_each_vec(row.n, [&](int64_t i, int64_t n) {
    const Vec values = load_upto(row.x + i, n);
    const Vec c = first_upto(row.members(values, i, n), n);
    largest = max(c, largest);
    check += check_numbers(c);
  });
  return sum(check) + reduce(largest, [](float a, float b) {
    return a > b ? a : b;
  });
}

template <typename T, bool kPositive>
float mean_of(const Row<T, kPositive>& row, double p) {
  const float m = p == 1.0 ? 0.0f : largest_member(row);
  if (m >= 0.0f && std::isinf(p)) return m;
  if (!is_ordinary(m, p)) return mean_in_double(row.n, row, p);
  if (p == 1.0) {
    const double sum =
        sum_row(row, [](Vec, Vec c, int64_t, int64_t) { return c; });
    return static_cast<float>(sum / std::max<int64_t>(row.count(), 1));
  }
  if (m == 0.0f) return 0.0f;
  const Log2 scale = log2(all(m));
  const Factor<float> power = factor(p);
  const double sum = sum_row(row, [&](Vec, Vec c, int64_t, int64_t) {
    const Log2 ratio = log2_of_member<kPositive>(c) - scale;
    return if_positive<kPositive>(c, exp2_of_product(ratio, power), Vec{});
  });
  return static_cast<float>(m * std::pow(sum / row.count(), 1.0 / p));
}

// Writes grad * dy/dx where `out` is given; returns dy/dp if it is wanted.
template <bool kWantsP, typename T, bool kPositive>
float slopes_of(const Row<T, kPositive>& row, double p, float y, float grad, T* out) {
  if (!is_ordinary(y, p) || y == 0.0f) {
    return slopes_in_double(row.n, row, p, y, [&](int64_t i, double slope) {
      if (out) store_one(static_cast<float>(grad * slope), out + i);
    });
  }
  const int64_t count = row.count();
  const Log2 scale = log2(all(y));
  const Factor<float> power = factor(p - 1.0);
  const float each = grad / count, inverse = 1.0f / y;
  const Vec at_zero = all(p == 1.0 ? each : 0.0f);
  const double by_power = sum_row(
      row, [&](Vec values, Vec c, int64_t i, int64_t n) {
        const Log2 ratio = log2_of_member<kPositive>(c) - scale;
        const Vec slope = exp2_of_product(ratio, power);
        if (out) {
          Vec by_x = if_positive<kPositive>(c, slope * each, at_zero);
          if (!kPositive && row.mask) by_x = row.keep(by_x, i, n);
          store_upto(values >= row.eps ? by_x : Vec{}, out + i, n);
        }
        if (!kWantsP) return Vec{};
        const Vec ratio_log = ratio.exponent + ratio.fraction;
        return if_positive<kPositive>(
            c, slope * (c * inverse) * ratio_log, Vec{});
      });
  return static_cast<float>(y * by_power * M_LN2 / count / p);
}

}  // namespace
}  // namespace sigplug

using sigplug::Row;

// Calls function(row, r) for the rows, kPositive or not.
template <typename T, typename Function>
static void for_each_row(const T* x, const bool* mask, int64_t rows, int64_t n,
                         float eps, int threads, const Function& function) {
  const bool positive = sigplug::all_positive(mask, eps);
#pragma omp parallel for num_threads(threads)
  for (int64_t r = 0; r < rows; ++r) {
    if (positive) {
      function(Row<T, true>{x + r * n, nullptr, n, eps}, r);
    } else {
      function(Row<T, false>{x + r * n, mask ? mask + r * n : nullptr, n, eps},
               r);
    }
  }
}

// x (rows, n), mask likewise or null, y (rows); row r takes p[r * p_step].
extern "C" bool power_mean_rows_forward(int dtype, const void* x,
                                        const bool* mask, int64_t rows,
                                        int64_t n, const double* p,
                                        int64_t p_step, float eps, float* y,
                                        int threads) {
  return sigplug::dispatch(dtype, [&](auto type) {
    using T = decltype(type);
    for_each_row(static_cast<const T*>(x), mask, rows, n, eps, threads,
                 [&](const auto& row, int64_t r) {
                   y[r] = sigplug::mean_of(row, p[r * p_step]);
                 });
  });
}

// grad_x and grad_p (rows) may be null.
extern "C" bool power_mean_rows_backward(int dtype, const void* x,
                                         const bool* mask, int64_t rows,
                                         int64_t n, const double* p,
                                         int64_t p_step, float eps,
                                         const float* y, const float* grad_y,
                                         void* grad_x, float* grad_p,
                                         int threads) {
  return sigplug::dispatch(dtype, [&](auto type) {
    using T = decltype(type);
    T* const to = static_cast<T*>(grad_x);
    for_each_row(static_cast<const T*>(x), mask, rows, n, eps, threads,
                 [&](const auto& row, int64_t r) {
      T* const out = to ? to + r * n : nullptr;
      const double power = p[r * p_step];
      const float grad = grad_y[r];
      if (grad_p) {
        grad_p[r] = grad * sigplug::slopes_of<true>(row, power, y[r], grad, out);
      } else {
        sigplug::slopes_of<false>(row, power, y[r], grad, out);
      }
    });
  });
}
