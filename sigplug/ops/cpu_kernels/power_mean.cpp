// The power mean of sets of numbers, forward and backward. See
// sigplug/ops/power_mean.py for the formulas; the notation is the same: c is
// the clamped input, m the maximum of a set, u = c / y.
//
// The formulas work on vectors and do not know whether a lane is a set
// (Columns) or a member of one set (Row).
#include <algorithm>
#include <cmath>

#include "vector_math.h"

namespace sigplug {
namespace {

// Matrices of `columns` columns, each of which is a set of `members` rows; or
// one matrix, whose sets are rows from offsets[set] on (in the list, if there
// is one).
template <typename T>
struct Sets {
  const T* x;
  const bool* mask;  // or null
  int64_t num, members, columns;
  const int64_t* offsets;  // or null
  const int64_t* list;     // or null
  float eps;

  int64_t first(int64_t set) const {
    return offsets ? offsets[set] : set * members;
  }
  int64_t size(int64_t set) const {
    return offsets ? offsets[set + 1] - offsets[set] : members;
  }
};

// Calls function(values, c, counts, place, n): n <= kWidth elements from
// x[place] on, clamped, and which lanes count: the first `lanes`, if the mask
// has them. Others are 0 in c.
template <bool kPositive, typename T, typename Function>
SIGPLUG_INLINE void visit(const Sets<T>& sets, int64_t place, int64_t n,
                          int64_t lanes, const Function& function) {
  const Vec values = load_upto(sets.x + place, n);
  const Vec c = values < sets.eps ? all(sets.eps) : values;
  if (!kPositive && sets.mask) {
    const IntVec counts = load_mask(sets.mask + place, n);
    function(values, counts ? c : Vec{}, counts, place, n);
  } else if (lanes < kWidth) {
    const IntVec counts = first_lanes(lanes);
    function(values, counts ? c : Vec{}, counts, place, n);
  } else {
    function(values, c, IntVec{} - 1, place, n);
  }
}

// One set whose members follow each other; lanes are members.
template <typename T, bool kPositive>
struct Row {
  const Sets<T>& sets;
  int64_t first, size;

  template <typename Function>
  SIGPLUG_INLINE void each(const Function& function) const {
    for_each_vec(size, [&](int64_t i, int64_t n) {
      visit<kPositive>(sets, first + i, n, n, function);
    });
  }
  static Vec max(Vec m) {
    return all(reduce(m, [](float a, float b) { return a > b ? a : b; }));
  }
  static DoubleVec sum(DoubleVec total) {
    return all(sigplug::sum(total));
  }
};

// The same columns of the rows of a set; lanes are sets.
template <typename T, bool kPositive>
struct Columns {
  const Sets<T>& sets;
  int64_t first, size, column, width;

  template <typename Function>
  SIGPLUG_INLINE void each(const Function& function) const {
    for (int64_t k = first; k < first + size; ++k) {
      const int64_t row = sets.list ? sets.list[k] : k;
      visit<kPositive>(sets, row * sets.columns + column, width, kWidth,
                       function);
    }
  }
  static Vec max(Vec m) { return m; }
  static DoubleVec sum(DoubleVec total) { return total; }
};

// Sums are in double: a float would lose small terms beside a large one.
template <typename Set, typename Function>
SIGPLUG_INLINE DoubleVec sum_of(const Set& set, const Function& function) {
  DoubleVec total = all(0.0);
  set.each([&](Vec values, Vec c, IntVec counts, int64_t place, int64_t n) {
    total = total + to_double(function(values, c, counts, place, n));
  });
  return Set::sum(total);
}

template <typename Set>
DoubleVec count_of(const Set& set) {
  if (!set.sets.mask) {
    return all(static_cast<double>(std::max<int64_t>(set.size, 1)));
  }
  IntVec found = {};
  set.each([&](Vec, Vec, IntVec counts, int64_t, int64_t) { found -= counts; });
  // Whole numbers that a float holds.
  return to_double(max(to_float(Set::sum(to_double(to_float(found)))),
                       all(1.0f)));
}

// log2(c) - log2(m), with c = 0 left to the caller. kPositive: all members
// are known to be normal numbers above 0.
template <bool kPositive>
SIGPLUG_INLINE Log2 log_ratio(Vec c, Log2 m) {
  const Log2 log = kPositive ? log2_of_normal(c) : log2(c);
  return {log.exponent - m.exponent, log.fraction - m.fraction};
}

// A power and what the formulas make of it.
struct Power {
  Power() = default;
  explicit Power(DoubleVec value)
      : p(to_float(value)),
        is_one(!any(p != 1.0f)),
        power(factor(value)),
        less_one(factor(value - all(1.0))),
        root(factor(all(1.0) / value)) {}

  Vec p;
  bool is_one;
  Factor<Vec> power, less_one, root;
};

template <template <typename, bool> class Set, typename T, bool kPositive>
SIGPLUG_INLINE Vec mean_of(const Set<T, kPositive>& set, const Power& by) {
  const DoubleVec count = count_of(set);
  if (by.is_one) {
    return to_float(
        sum_of(set, [](Vec, Vec c, IntVec, int64_t, int64_t) { return c; }) /
        count);
  }
  Vec m = all(-INFINITY), invalid = {};
  set.each([&](Vec, Vec c, IntVec counts, int64_t, int64_t) {
    m = max(c, m);
    invalid += c >= 0.0f ? Vec{} : all(NAN);
  });
  m = Set<T, kPositive>::max(m);
  // A NaN, or a negative number, whose powers are not defined.
  const DoubleVec valid =
      Set<T, kPositive>::sum(to_double(invalid));
  const Log2 scale = log2(m);
  const DoubleVec total = sum_of(
      set, [&](Vec, Vec c, IntVec, int64_t, int64_t) {
        const Vec term =
            exp2_of_product(log_ratio<kPositive>(c, scale), by.power);
        return c > 0.0f ? term : Vec{};
      });
  const Vec mean = to_float(total / count);
  const Vec y = m * exp2_of_product(log2(mean), by.root);
  const IntVec usual = (m > 0.0f) & (m < INFINITY) & (by.p < INFINITY);
  return (usual ? y : max(m, Vec{})) + to_float(valid);
}

// Writes grad * dy/dx where `out` is given; returns dy/dp if it is wanted.
template <bool kWantsP, template <typename, bool> class Set, typename T,
          bool kPositive>
SIGPLUG_INLINE Vec slopes_of(const Set<T, kPositive>& set, const Power& by,
                             Vec y, Vec grad, T* out) {
  const Vec count = to_float(count_of(set));
  const Log2 scale = log2(y);
  // NaN if y is not finite.
  const Vec each = grad / count + (y - y);
  const Vec at_zero = by.p == 1.0f ? each : Vec{};
  const Vec inverse = min(1.0f / y, all(FLT_MAX));
  const DoubleVec total = sum_of(
      set, [&](Vec values, Vec c, IntVec counts, int64_t place, int64_t n) {
        const Log2 ratio = log_ratio<kPositive>(c, scale);
        const Vec slope = exp2_of_product(ratio, by.less_one);  // u^(p-1)
        if (out) {
          const Vec by_x = c > 0.0f ? slope * each : at_zero;
          const IntVec passes = counts & (values >= set.sets.eps);
          store_upto(passes ? by_x : Vec{}, out + place, n);
        }
        if (!kWantsP) return Vec{};
        const Vec log_u = ratio.exponent + ratio.fraction;  // to base 2
        return c > 0.0f ? slope * (c * inverse) * log_u : Vec{};
      });
  // dy/dp = (y/p) mean(u^p ln u).
  const Vec by_p = y / by.p *
      to_float(total * all(M_LN2) / to_double(count));
  return y == 0.0f ? Vec{} : by_p;
}

// Calls function(set, place, n) for all sets: the results are n lanes from
// `place` on.
template <bool kPositive, typename T, typename Function>
void for_each_set(const Sets<T>& sets, int threads, const Function& function) {
  const bool rows = sets.columns == 1 && !sets.list;
#pragma omp parallel for collapse(2) num_threads(threads)
  for (int64_t set = 0; set < sets.num; ++set) {
    for (int64_t column = 0; column < sets.columns; column += kWidth) {
      const int64_t first = sets.first(set), size = sets.size(set);
      if (rows) {
        function(Row<T, kPositive>{sets, first, size}, set, 0, 1);
      } else {
        const int64_t n = std::min<int64_t>(kWidth, sets.columns - column);
        function(Columns<T, kPositive>{sets, first, size, column, n}, set,
                 column, n);
      }
    }
  }
}

template <typename T, typename Function>
void choose(const Sets<T>& sets, int threads, const Function& function) {
  if (!sets.mask && sets.eps >= FLT_MIN) {
    for_each_set<true>(sets, threads, function);
  } else {
    for_each_set<false>(sets, threads, function);
  }
}

// One power for all sets, without steps, or one of each.
struct Powers {
  const double* p;
  int64_t set_step, column_step;
  bool shared = !set_step && !column_step;
  Power first = Power(all(shared ? p[0] : 1.0));

  const Power& load(int64_t set, int64_t column, int64_t n,
                    Power& own) const {
    if (shared) return first;
    double each[kWidth];
    for (int64_t i = 0; i < kWidth; ++i) {
      const int64_t k = column + std::min(i, n - 1);
      each[i] = p[set * set_step + k * column_step];
    }
    DoubleVec out;
    std::memcpy(&out, each, sizeof out);
    return own = Power(out);
  }
};

}  // namespace
}  // namespace sigplug

using namespace sigplug;

// y is (sets, columns).
extern "C" void power_mean_forward(
    int dtype, const void* x, const bool* mask, int64_t num, int64_t members,
    int64_t columns, const int64_t* offsets, const int64_t* list,
    const double* p, int64_t p_set, int64_t p_column, float eps, float* y,
    int threads) {
  dispatch(dtype, [&](auto type) {
    using T = decltype(type);
    const Sets<T> sets{static_cast<const T*>(x), mask, num, members, columns,
                       offsets, list, eps};
    const Powers powers{p, p_set, p_column};
    choose(sets, threads, [&](const auto& set, int64_t k, int64_t column,
                              int64_t n) {
      Power own;
      store_upto(mean_of(set, powers.load(k, column, n, own)),
                 y + k * columns + column, n);
    });
  });
}

// grad_x and grad_p, (sets, columns), may be null.
extern "C" void power_mean_backward(
    int dtype, const void* x, const bool* mask, int64_t num, int64_t members,
    int64_t columns, const int64_t* offsets, const int64_t* list,
    const double* p, int64_t p_set, int64_t p_column, float eps,
    const float* y, const float* grad_y, void* grad_x, float* grad_p,
    int threads) {
  dispatch(dtype, [&](auto type) {
    using T = decltype(type);
    const Sets<T> sets{static_cast<const T*>(x), mask, num, members, columns,
                       offsets, list, eps};
    const Powers powers{p, p_set, p_column};
    choose(sets, threads, [&](const auto& set, int64_t k, int64_t column,
                              int64_t n) {
      const int64_t place = k * columns + column;
      // A row has one result, in all lanes.
      const bool row = columns == 1;
      const Vec grad = row ? all(grad_y[place]) : load_upto(grad_y + place, n);
      const Vec result = row ? all(y[place]) : load_upto(y + place, n);
      Power own;
      const Power& power = powers.load(k, column, n, own);
      T* const out = static_cast<T*>(grad_x);
      if (grad_p) {
        const Vec by_p = slopes_of<true>(set, power, result, grad, out);
        store_upto(grad * by_p, grad_p + place, n);
      } else {
        slopes_of<false>(set, power, result, grad, out);
      }
    });
  });
}

// The members of each segment in their order: offsets (segments + 1) and
// rows (n). Returns whether each segment is already in one piece, in order.
extern "C" bool group_rows(const int64_t* index, int64_t n, int64_t segments,
                           int64_t* offsets, int64_t* rows) {
  std::fill(offsets, offsets + segments + 1, 0);
  bool ordered = true;
  for (int64_t i = 0; i < n; ++i) {
    ++offsets[index[i] + 1];
    ordered &= i == 0 || index[i - 1] <= index[i];
  }
  for (int64_t s = 0; s < segments; ++s) offsets[s + 1] += offsets[s];
  if (ordered) return true;
  // The next free place of each segment, which ends as the start of the next.
  for (int64_t i = 0; i < n; ++i) rows[offsets[index[i]]++] = i;
  for (int64_t s = segments; s > 0; --s) offsets[s] = offsets[s - 1];
  offsets[0] = 0;
  return false;
}
