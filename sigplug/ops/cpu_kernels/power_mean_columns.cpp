// The power mean over the rows of matrices, column by column: pooled dims
// that are not the last ones, and ragged sets of rows such as the points of
// the pillars.
#include <vector>

#include "power_mean.h"

namespace sigplug {
namespace {

struct Powers {
  const double* p;
  int64_t set_step, column_step;
};

// A matrix, and a set of its rows.
template <typename T>
struct Rows {
  const T* x;
  const bool* mask;  // or null
  float eps;
  int64_t columns;
  int64_t first, num;   // rows that follow each other,
  const int64_t* list;  // or a list of them in place of `first`
  int64_t padding;      // members that are 0 and have no row
};

// Some neighbouring columns of the rows. kPositive: see log2_of_member.
template <typename T, bool kPositive>
struct Slice {
  const Rows<T>& set;
  int64_t column, size;

  // Place of the first of the columns in x.
  int64_t place(int64_t k) const {
    const int64_t row = set.list ? set.list[k] : set.first + k;
    return row * set.columns + column;
  }

  // The members of one column, for the functions in double.
  auto lane(int64_t i) const {
    return [this, i](int64_t k) {
      if (k >= set.num) return Member{0.0f, true, false};
      const int64_t at = place(k) + i;
      return member(load_one(set.x + at), !set.mask || set.mask[at], set.eps);
    };
  }
  int64_t members() const { return set.num + set.padding; }

  // Calls function(values, c, mask, place) for each row; c is 0 and the mask
  // false where there is no member.
  template <typename Function>
  SIGPLUG_INLINE void rows(const Function& function) const {
    for (int64_t k = 0; k < set.num; ++k) {
      const int64_t at = place(k);
      const Vec values = load_upto(set.x + at, size);
      const Vec c = clamp(values, set.eps);
      if (!kPositive && set.mask) {
        const IntVec counts = load_mask(set.mask + at, size);
        function(values, counts ? c : Vec{}, counts, at);
      } else {
        function(values, c, IntVec{} - 1, at);
      }
    }
  }

  // The sum of function(values, c, mask, place) over the rows. In double, as
  // a float would lose small ones beside a large one.
  template <typename Function>
  SIGPLUG_INLINE DoubleVec sum(const Function& function) const {
    DoubleVec total = {};
    rows([&](Vec values, Vec c, IntVec counts, int64_t at) {
      total += to_double(function(values, c, counts, at));
    });
    return total;
  }

  Vec counts() const {
    if (!set.mask) {
      return all(static_cast<float>(std::max<int64_t>(members(), 1)));
    }
    const Vec found = to_float(
        sum([](Vec, Vec, IntVec counts, int64_t) { return to_float(-counts); }));
    return max(found, all(1.0f));
  }
};

SIGPLUG_INLINE DoubleVec powers(const Powers& p, int64_t set, int64_t column,
                                int64_t size) {
  DoubleVec out = DoubleVec{} + 1.0;
  for (int64_t i = 0; i < size; ++i) {
    out[i] = p.p[set * p.set_step + (column + i) * p.column_step];
  }
  return out;
}

SIGPLUG_INLINE bool any(IntVec x) {
  int32_t found = 0;
  for (int i = 0; i < kWidth; ++i) found |= x[i];
  return found != 0;
}

SIGPLUG_INLINE IntVec not_ordinary(Vec scale, Vec p) {
  return ~(((scale == 0.0f) | ((scale >= kSmallest) & (scale <= kLargest))) &
           (p >= 1.0f) & (p <= kLargestPower));
}

template <typename T, bool kPositive>
Vec mean_of(const Slice<T, kPositive>& slice, DoubleVec p) {
  Vec m = {}, check = {};
  slice.rows([&](Vec, Vec c, IntVec, int64_t) {
    m = max(c, m);
    check += check_numbers(c);
  });
  m = check == 0.0f ? m : all(NAN);
  Vec y;
  const Vec rounded = to_float(p);
  if (!any(rounded != 1.0f)) {
    const DoubleVec total =
        slice.sum([](Vec, Vec c, IntVec, int64_t) { return c; });
    return to_float(total / to_double(slice.counts()));
  }
  if (!any(~((rounded == INFINITY) & (m >= 0.0f)))) return m;
  const Log2 scale = log2(m);
  const Factor<Vec> power = factor(p);
  const DoubleVec total = slice.sum([&](Vec, Vec c, IntVec, int64_t) {
    const Log2 ratio = log2_of_member<kPositive>(c) - scale;
    return if_positive<kPositive>(c, exp2_of_product(ratio, power), Vec{});
  });
  const Vec mean = to_float(total / to_double(slice.counts()));
  y = m > 0.0f ? m * root(mean, p) : Vec{};
  const IntVec others = not_ordinary(m, rounded);
  if (any(others)) {
    for (int64_t i = 0; i < slice.size; ++i) {
      if (others[i]) {
        y[i] = mean_in_double(slice.members(), slice.lane(i), p[i]);
      }
    }
  }
  return y;
}

template <bool kAdd>
SIGPLUG_INLINE void put(Vec x, float* out, int64_t size) {
  store_upto(kAdd ? load_upto(out, size) + x : x, out, size);
}

template <bool kAdd, typename Out>
SIGPLUG_INLINE void put(Vec x, Out* out, int64_t size) {
  store_upto(x, out, size);
}

// Writes grad * dy/dx where `out` is given, or adds it to what is there (only
// in float32); returns dy/dp.
template <bool kAdd, typename T, bool kPositive, typename Out>
Vec slopes_of(const Slice<T, kPositive>& slice, DoubleVec p, Vec y, Vec grad,
              Out* out) {
  const Vec counts = slice.counts();
  const IntVec others = not_ordinary(y, to_float(p));
  const Log2 scale = log2(y);
  const Factor<Vec> power = factor(p - 1.0);
  const Vec each = grad / counts, inverse = 1.0f / y;
  const Vec at_zero = to_float(p) == 1.0f ? each : Vec{};
  const DoubleVec total = slice.sum(
      [&](Vec values, Vec c, IntVec members, int64_t at) {
        const Log2 ratio = log2_of_member<kPositive>(c) - scale;
        const Vec slope = exp2_of_product(ratio, power);
        if (out) {
          const Vec by_x = if_positive<kPositive>(c, slope * each, at_zero);
          const IntVec passes =
              members & (values >= slice.set.eps) & ~others;
          put<kAdd>(passes ? by_x : Vec{}, out + at, slice.size);
        }
        const Vec ratio_log = ratio.exponent + ratio.fraction;
        return if_positive<kPositive>(
            c, slope * (c * inverse) * ratio_log, Vec{});
      });
  Vec by_p = y * (to_float(total) * static_cast<float>(M_LN2)) / counts / to_float(p);
  by_p = y == 0.0f ? Vec{} : by_p;
  if (any(others)) {
    for (int64_t i = 0; i < slice.size; ++i) {
      if (!others[i]) continue;
      by_p[i] = slopes_in_double(
          slice.members(), slice.lane(i), p[i], y[i],
          [&](int64_t k, double by_x) {
            if (!out || k >= slice.set.num) return;
            Out* const cell = out + slice.place(k) + i;
            const float before = kAdd ? load_one(cell) : 0.0f;
            store_one(before + static_cast<float>(grad[i] * by_x), cell);
          });
    }
  }
  return by_p;
}

// Where the sets are: `members` rows each that follow each other, or those of
// a list from offsets[set] to offsets[set + 1], or of the windows of images.
struct Sets {
  int64_t num, columns, members;
  const int64_t* offsets;  // or null
  const int64_t* list;     // or null: the rows as they are
};

template <typename T>
Rows<T> rows_of(const Sets& sets, const T* x, const bool* mask, float eps,
                int64_t set) {
  const int64_t first =
      sets.offsets ? sets.offsets[set] : set * sets.members;
  const int64_t num =
      sets.offsets ? sets.offsets[set + 1] - first : sets.members;
  const int64_t* const list = sets.list ? sets.list + first : nullptr;
  return {x, mask, eps, sets.columns, first, num, list, 0};
}

// Images of shape (images, extent..., columns), and windows over the extent.
struct Windows {
  int64_t images, columns;
  int64_t extent[3], kernel[3], stride[3], padding[3], num[3];

  int64_t per_image() const { return num[0] * num[1] * num[2]; }

  // Lists the rows of a window; what is missing of it is padding.
  template <typename T>
  Rows<T> rows_of(const T* x, float eps, int64_t image, int64_t window,
                  std::vector<int64_t>& list) const {
    int64_t begin[3], end[3];
    for (int axis = 2, rest = window; axis >= 0; --axis) {
      const int64_t start =
          rest % num[axis] * stride[axis] - padding[axis];
      begin[axis] = std::max<int64_t>(0, start);
      end[axis] = std::min(extent[axis], start + kernel[axis]);
      rest /= num[axis];
    }
    list.clear();
    for (int64_t i = begin[0]; i < end[0]; ++i) {
      for (int64_t j = begin[1]; j < end[1]; ++j) {
        for (int64_t k = begin[2]; k < end[2]; ++k) {
          list.push_back(
              ((image * extent[0] + i) * extent[1] + j) * extent[2] + k);
        }
      }
    }
    const int64_t found = static_cast<int64_t>(list.size());
    const int64_t padded = kernel[0] * kernel[1] * kernel[2] - found;
    return {x, nullptr, eps, columns, 0, found, list.data(), padded};
  }
};

// Result and gradients of a set, of which `set` is the row.
struct Result {
  const Powers& p;
  float* y;
  const float* grad_y;
  float* grad_p;  // or null
  int64_t columns;

  template <typename T>
  void forward(const Rows<T>& rows, int64_t set) const {
    for (int64_t column = 0; column < columns; column += kWidth) {
      with_slice(rows, column, [&](const auto& slice) {
        const DoubleVec power = powers(p, set, column, slice.size);
        store_upto(mean_of(slice, power), y + set * columns + column,
                   slice.size);
      });
    }
  }

  template <bool kAdd, typename T, typename Out>
  void backward(const Rows<T>& rows, int64_t set, int64_t column,
                Out* grad_x) const {
    with_slice(rows, column, [&](const auto& slice) {
      const int64_t at = set * columns + column;
      const Vec grad = load_upto(grad_y + at, slice.size);
      const Vec by_p =
          slopes_of<kAdd>(slice, powers(p, set, column, slice.size),
                          load_upto(y + at, slice.size), grad, grad_x);
      if (grad_p) store_upto(grad * by_p, grad_p + at, slice.size);
    });
  }

  // Calls function with the slice that begins with this column.
  template <typename T, typename Function>
  SIGPLUG_INLINE void with_slice(const Rows<T>& rows, int64_t column,
                                 const Function& function) const {
    const int64_t size = std::min<int64_t>(kWidth, columns - column);
    if (all_positive(rows.mask, rows.eps)) {
      function(Slice<T, true>{rows, column, size});
    } else {
      function(Slice<T, false>{rows, column, size});
    }
  }
};

}  // namespace
}  // namespace sigplug

using sigplug::Powers;
using sigplug::Result;
using sigplug::Sets;
using sigplug::Windows;

// x (rows, columns), mask likewise or null, y (sets, columns).
extern "C" bool power_mean_columns_forward(int dtype, const void* x,
                                           const bool* mask, const Sets* sets,
                                           const Powers* p, float eps,
                                           float* y, int threads) {
  return sigplug::dispatch(dtype, [&](auto type) {
    using T = decltype(type);
    const Result result{*p, y, nullptr, nullptr, sets->columns};
#pragma omp parallel for num_threads(threads)
    for (int64_t set = 0; set < sets->num; ++set) {
      result.forward(sigplug::rows_of(*sets, static_cast<const T*>(x), mask,
                                      eps, set), set);
    }
  });
}

// grad_x and grad_p (sets, columns) may be null.
extern "C" bool power_mean_columns_backward(
    int dtype, const void* x, const bool* mask, const Sets* sets,
    const Powers* p, float eps, float* y, const float* grad_y, void* grad_x,
    float* grad_p, int threads) {
  return sigplug::dispatch(dtype, [&](auto type) {
    using T = decltype(type);
    const Result result{*p, y, grad_y, grad_p, sets->columns};
#pragma omp parallel for num_threads(threads)
    for (int64_t set = 0; set < sets->num; ++set) {
      const auto rows =
          sigplug::rows_of(*sets, static_cast<const T*>(x), mask, eps, set);
      for (int64_t i = 0; i < sets->columns; i += sigplug::kWidth) {
        result.backward<false>(rows, set, i, static_cast<T*>(grad_x));
      }
    }
  });
}

// x (images, extent..., columns), y (images, windows..., columns).
extern "C" bool power_mean_windows_forward(int dtype, const void* x,
                                           const Windows* windows,
                                           const Powers* p, float eps,
                                           float* y, int threads) {
  return sigplug::dispatch(dtype, [&](auto type) {
    using T = decltype(type);
    const Result result{*p, y, nullptr, nullptr, windows->columns};
    const int64_t per_image = windows->per_image();
#pragma omp parallel num_threads(threads)
    {
      std::vector<int64_t> list;
#pragma omp for
      for (int64_t set = 0; set < windows->images * per_image; ++set) {
        result.forward(
            windows->rows_of(static_cast<const T*>(x), eps, set / per_image,
                             set % per_image, list),
            set);
      }
    }
  });
}

// Adds to grad_x, float32, which may be null like grad_p. Windows overlap:
// a thread has some columns of an image for itself.
extern "C" bool power_mean_windows_backward(int dtype, const void* x,
                                            const Windows* windows,
                                            const Powers* p, float eps,
                                            float* y, const float* grad_y,
                                            float* grad_x, float* grad_p,
                                            int threads) {
  return sigplug::dispatch(dtype, [&](auto type) {
    using T = decltype(type);
    const Result result{*p, y, grad_y, grad_p, windows->columns};
    const int64_t per_image = windows->per_image();
    const int64_t slices =
        (windows->columns + sigplug::kWidth - 1) / sigplug::kWidth;
#pragma omp parallel num_threads(threads)
    {
      std::vector<int64_t> list;
#pragma omp for
      for (int64_t k = 0; k < windows->images * slices; ++k) {
        const int64_t image = k / slices;
        for (int64_t window = 0; window < per_image; ++window) {
          const auto rows = windows->rows_of(static_cast<const T*>(x), eps,
                                             image, window, list);
          result.backward<true>(rows, image * per_image + window,
                                k % slices * sigplug::kWidth, grad_x);
        }
      }
    }
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
