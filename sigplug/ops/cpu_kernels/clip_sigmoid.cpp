// The clipped sigmoid. See sigplug/ops/clip_sigmoid.py.
#include <algorithm>

#include "vector_math.h"

namespace sigplug {
namespace {

constexpr int64_t kPiece = 4096;

SIGPLUG_INLINE Vec sigmoid(Vec x) {
  const Vec y = 1.0f / (1.0f + exp(-x));
  return x == x ? y : x;
}

// sigmoid(x) of x <= 0, down to the smallest subnormal number.
SIGPLUG_INLINE Vec lower_tail(Vec x) {
  const Vec normal = max(x, all(-80.0f));
  const Vec e = exp(normal) * exp(x - normal);
  const Vec y = e / (1.0f + e);
  return x == x ? y : x;
}

// Writes function(i, size), a vector, for all elements.
template <typename T, typename Function>
void map(int64_t n, T* out, int threads, const Function& function) {
#pragma omp parallel for num_threads(threads)
  for (int64_t piece = 0; piece < n; piece += kPiece) {
    for_each_vec(std::min(kPiece, n - piece), [&](int64_t j, int64_t size) {
      store_upto(function(piece + j, size), out + piece + j, size);
    });
  }
}

}  // namespace
}  // namespace sigplug

using sigplug::IntVec;
using sigplug::Vec;

extern "C" bool clip_sigmoid_forward(int dtype, const void* x, int64_t n,
                                     float low, float high, void* y,
                                     int threads) {
  return sigplug::dispatch(dtype, [&](auto type) {
    using T = decltype(type);
    const T* const in = static_cast<const T*>(x);
    sigplug::map(n, static_cast<T*>(y), threads, [&](int64_t i, int64_t size) {
      const Vec s = sigplug::sigmoid(sigplug::load_upto(in + i, size));
      const Vec clipped = s < low ? sigplug::all(low) : s;
      return clipped > high ? sigplug::all(high) : clipped;
    });
  });
}

// The slope times grad_y. `sigmoid`, float32, is used where it is given.
extern "C" bool clip_sigmoid_backward(int dtype, const void* grad_y,
                                      const void* x, const float* sigmoid,
                                      int64_t n, float low, float high,
                                      bool straight_through, void* grad_x,
                                      int threads) {
  return sigplug::dispatch(dtype, [&](auto type) {
    using T = decltype(type);
    const T* const in = static_cast<const T*>(x);
    const T* const grad = static_cast<const T*>(grad_y);
    sigplug::map(
        n, static_cast<T*>(grad_x), threads, [&](int64_t i, int64_t size) {
          const Vec g = sigplug::load_upto(grad + i, size);
          if (straight_through) {
            const Vec v = sigplug::load_upto(in + i, size);
            // The tail where it is small: 1 - y loses its digits near 1.
            const Vec tail = sigplug::lower_tail(v > 0.0f ? -v : v);
            return g * (1.0f - tail) * tail;
          }
          const Vec y = sigmoid
              ? sigplug::load_upto(sigmoid + i, size)
              : sigplug::sigmoid(sigplug::load_upto(in + i, size));
          const IntVec inside = (y >= low) & (y <= high);
          return inside ? g * (1.0f - y) * y : Vec{};
        });
  });
}

// Whether this compiler has a 16-bit float.
extern "C" bool knows_float16() {
#ifdef __FLT16_MANT_DIG__
  return true;
#else
  return false;
#endif
}
