// The Gaussian focal loss of logits: loss and slope of a cell take one
// exponential, one logarithm and one division. With B the probability that is
// raised to alpha and L = 1 - B the one in the logarithm (at a peak
// L = sigmoid(x), elsewhere B = sigmoid(x)), a cell costs -w B^alpha log L.
#include <algorithm>
#include <cmath>
#include <type_traits>
#include <vector>

#include "vector_math.h"

namespace sigplug {
namespace {

struct Focal {
  float alpha, gamma, pos_weight, neg_weight;
  float low, high;  // bounds of the probability, 0 and 1 without a clip
  float eps;        // inside the logarithm

  bool clips() const { return low > 0.0f; }
};

// In the order in which gaussian_focal_loss.py writes them.
inline Focal read(const float* o) {
  return {o[0], o[1], o[2], o[3], o[4], o[5], o[6]};
}

// What is added up between two roundings to double.
constexpr int64_t kBlock = 16 * kWidth;
// What a thread takes at a time.
constexpr int64_t kPiece = 4096;

SIGPLUG_INLINE Vec pow(Vec base, float exponent) {
  const Log2 log = log2(base);
  Vec result = exp2_of_product(log, factor(exponent));
  result = log.exponent * exponent < 126.0f ? result : all(INFINITY);
  return base > 0.0f ? result : (base == 0.0f ? Vec{} : all(NAN));
}

// base^exponent; kExponent gives it where it is a usual whole number.
template <int kExponent>
SIGPLUG_INLINE Vec pow(Vec base, float exponent) {
  if (kExponent == 0) return all(1.0f);
  if (kExponent == 2) return base * base;
  if (kExponent == 4) return (base * base) * (base * base);
  return pow(base, exponent);
}

struct Cells {
  Vec loss, slope;
};

template <int kAlpha, int kGamma, bool kClips>
SIGPLUG_INLINE Cells compute(const Focal& f, Vec x, Vec t) {
  const IntVec peak = t == 1.0f;
  const Vec weight = peak
      ? all(f.pos_weight)
      : pow<kGamma>(1.0f - t, f.gamma) * f.neg_weight;
  Vec loss, slope;
  if (kClips) {
    // mmdet's order of operations: 1 - q loses the same digits.
    const Vec free = 1.0f / (1.0f + exp(-x));
    const Vec q = min(max(free, all(f.low)), all(f.high));
    const Vec not_q = 1.0f - q;
    const Vec base = peak ? not_q : q;
    const Vec rest = peak ? q : not_q;
    const Vec log_rest = log(rest + f.eps);
    const Vec raised = pow<kAlpha>(base, f.alpha);
    loss = -raised * log_rest;
    slope = base * (rest / (rest + f.eps)) - f.alpha * rest * log_rest;
    slope = (free >= f.low) & (free <= f.high) ? raised * slope : Vec{};
  } else {
    // base = sigmoid(s), and -log(1 - base) = softplus(s).
    const Vec s = peak ? -x : x;
    const IntVec positive = s > 0.0f;
    const Vec e = exp(positive ? -s : s);
    const Vec large = 1.0f / (1.0f + e), small = e * large;
    const Vec base = positive ? large : small;
    const Vec rest = positive ? small : large;
    const Vec softplus = (positive ? s : Vec{}) + log1p_of_unit(e);
    const Vec raised = pow<kAlpha>(base, f.alpha);
    loss = raised * softplus;
    slope = raised * (f.alpha * rest * softplus + base);
  }
  // A NaN passes the comparisons above unseen.
  const IntVec known = x == x;
  loss = weight * (known ? loss : x);
  slope = weight * (known ? slope : x);
  return {loss, peak ? -slope : slope};
}

// Loss and slope of a vector of cells.
template <int kAlpha, int kGamma, bool kClips>
SIGPLUG_INLINE Cells cells(const Focal& f, Vec x, Vec t) {
  Cells out = compute<kAlpha, kGamma, kClips>(f, x, t);
  if (kGamma == 0) {
    // A peak is background too, as 0^0 = 1.
    const Cells background =
        compute<kAlpha, kGamma, kClips>(f, x, Vec{});
    const IntVec peak = t == 1.0f;
    out.loss += peak ? background.loss : Vec{};
    out.slope += peak ? background.slope : Vec{};
  }
  return out;
}

// Calls function(cells) with the form of cells() that the options need.
template <typename Function>
void choose_cells(const Focal& f, const Function& function) {
  const auto with = [&](auto alpha, auto gamma) {
    constexpr int kAlpha = decltype(alpha)::value;
    constexpr int kGamma = decltype(gamma)::value;
    if (f.clips()) {
      function([&](Vec x, Vec t) { return cells<kAlpha, kGamma, true>(f, x, t); });
    } else {
      function([&](Vec x, Vec t) { return cells<kAlpha, kGamma, false>(f, x, t); });
    }
  };
  using Any = std::integral_constant<int, -1>;
  using None = std::integral_constant<int, 0>;
  if (f.alpha == 2.0f && f.gamma == 4.0f) {
    with(std::integral_constant<int, 2>{}, std::integral_constant<int, 4>{});
  } else if (f.gamma == 0.0f) {
    with(Any{}, None{});
  } else {
    with(Any{}, Any{});
  }
}

// Each piece is added up by itself and the pieces in their order: the bits of
// the sum do not depend on the number of threads. Losses, sum and slopes are
// written where they are not null.
template <typename T, typename CellsOf>
void compute_all(const CellsOf& cells, const T* logits, const float* target,
                 int64_t size, float* losses, double* sum_of_all,
                 float* slopes, int threads) {
  const int64_t pieces = (size + kPiece - 1) / kPiece;
  std::vector<double> partial(pieces);
#pragma omp parallel for num_threads(threads)
  for (int64_t k = 0; k < pieces; ++k) {
    const int64_t end = std::min(size, (k + 1) * kPiece);
    double total = 0.0;
    for (int64_t first = k * kPiece; first < end; first += kBlock) {
      Vec part = {};
      for_each_vec(std::min(kBlock, end - first), [&](int64_t i, int64_t n) {
        const Cells c = cells(load_upto(logits + first + i, n),
                              load_upto(target + first + i, n));
        if (losses) store_upto(c.loss, losses + first + i, n);
        if (slopes) store_upto(c.slope, slopes + first + i, n);
        part += first_of(c.loss, n);
      });
      total += sum(part);
    }
    partial[k] = total;
  }
  if (!sum_of_all) return;
  *sum_of_all = 0.0;
  for (const double total : partial) *sum_of_all += total;
}

}  // namespace
}  // namespace sigplug

// The loss of each cell, their sum, and the derivative of each cell.
extern "C" void gaussian_focal_loss(int dtype, const void* logits,
                                    const float* target, int64_t size,
                                    const float* options, float* losses,
                                    double* sum, float* slopes,
                                    int threads) {
  const sigplug::Focal f = sigplug::read(options);
  sigplug::dispatch(dtype, [&](auto type) {
    sigplug::choose_cells(f, [&](const auto& cells) {
      sigplug::compute_all(cells, static_cast<const decltype(type)*>(logits),
                           target, size, losses, sum, slopes, threads);
    });
  });
}
