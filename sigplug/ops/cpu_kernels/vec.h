// Vectors of floats by the vector extension of GCC and Clang, and how they
// are loaded and stored, as float32 whatever the type in memory.
#pragma once

#include <cstdint>
#include <cstring>

#define SIGPLUG_INLINE inline __attribute__((always_inline))

namespace sigplug {

#if defined(__AVX512F__)
constexpr int kWidth = 16;
#elif defined(__AVX2__)
constexpr int kWidth = 8;
#else
constexpr int kWidth = 4;
#endif

typedef float Vec __attribute__((vector_size(4 * kWidth)));
// What comparisons give: all bits set where true.
typedef int32_t IntVec __attribute__((vector_size(4 * kWidth)));

// As many doubles, in two halves: a vector beyond the registers of the machine
// would be kept in memory.
struct DoubleVec {
  typedef double Half __attribute__((vector_size(4 * kWidth)));
  Half low, high;
};

SIGPLUG_INLINE DoubleVec all(double x) {
  const DoubleVec::Half half = DoubleVec::Half{} + x;
  return {half, half};
}

SIGPLUG_INLINE DoubleVec operator+(DoubleVec a, DoubleVec b) {
  return {a.low + b.low, a.high + b.high};
}
SIGPLUG_INLINE DoubleVec operator-(DoubleVec a, DoubleVec b) {
  return {a.low - b.low, a.high - b.high};
}
SIGPLUG_INLINE DoubleVec operator*(DoubleVec a, DoubleVec b) {
  return {a.low * b.low, a.high * b.high};
}
SIGPLUG_INLINE DoubleVec operator/(DoubleVec a, DoubleVec b) {
  return {a.low / b.low, a.high / b.high};
}

SIGPLUG_INLINE Vec all(float x) { return Vec{} + x; }

template <typename To, typename From>
SIGPLUG_INLINE To cast_bits(From from) {
  static_assert(sizeof(To) == sizeof(From), "sizes must agree");
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

SIGPLUG_INLINE Vec to_float(IntVec x) { return __builtin_convertvector(x, Vec); }
SIGPLUG_INLINE IntVec to_int(Vec x) { return __builtin_convertvector(x, IntVec); }

typedef float HalfVec __attribute__((vector_size(2 * kWidth)));

SIGPLUG_INLINE DoubleVec to_double(Vec x) {
  HalfVec halves[2];
  std::memcpy(halves, &x, sizeof x);
  return {__builtin_convertvector(halves[0], DoubleVec::Half),
          __builtin_convertvector(halves[1], DoubleVec::Half)};
}
SIGPLUG_INLINE Vec to_float(DoubleVec x) {
  const HalfVec halves[2] = {__builtin_convertvector(x.low, HalfVec),
                             __builtin_convertvector(x.high, HalfVec)};
  Vec out;
  std::memcpy(&out, halves, sizeof out);
  return out;
}

SIGPLUG_INLINE Vec max(Vec a, Vec b) { return a > b ? a : b; }
SIGPLUG_INLINE Vec min(Vec a, Vec b) { return a < b ? a : b; }

// Of all elements, by halves: in a chain each step would wait for the last.
template <typename V, typename Function>
SIGPLUG_INLINE auto reduce(V x, const Function& function) {
  for (int half = sizeof x / sizeof x[0] / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) x[i] = function(x[i], x[i + half]);
  }
  return x[0];
}

template <typename V>
SIGPLUG_INLINE auto sum(V x) {
  return reduce(x, [](auto a, auto b) { return a + b; });
}

SIGPLUG_INLINE double sum(DoubleVec x) { return sum(x.low + x.high); }

struct BFloat16 {
  uint16_t bits;
};

SIGPLUG_INLINE Vec load(const float* x) {
  Vec out;
  std::memcpy(&out, x, sizeof out);
  return out;
}

SIGPLUG_INLINE void store(Vec x, float* out) {
  std::memcpy(out, &x, sizeof x);
}

SIGPLUG_INLINE Vec load(const BFloat16* x) {
  uint16_t bits __attribute__((vector_size(2 * kWidth)));
  std::memcpy(&bits, x, sizeof bits);
  return cast_bits<Vec>(__builtin_convertvector(bits, IntVec) << 16);
}

// Rounds to nearest even; a NaN stays one.
SIGPLUG_INLINE void store(Vec x, BFloat16* out) {
  typedef uint32_t Bits __attribute__((vector_size(4 * kWidth)));
  typedef uint16_t Half __attribute__((vector_size(2 * kWidth)));
  const Bits bits = cast_bits<Bits>(x);
  const Bits rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  const Half half = __builtin_convertvector(
      x == x ? cast_bits<IntVec>(rounded) : IntVec{} + 0x7fc0, Half);
  std::memcpy(out, &half, sizeof half);
}

// Calls function(i, n) for the n <= kWidth elements from i on. The compiler
// makes a loop of full vectors, for which n is a constant, and a rest.
template <typename Function>
SIGPLUG_INLINE void for_each_vec(int64_t size, const Function& function) {
  int64_t i = 0;
  for (; i + kWidth <= size; i += kWidth) function(i, int64_t{kWidth});
  if (i < size) function(i, size - i);
}

// The first n <= kWidth elements of a vector; the others are 0.
template <typename T>
SIGPLUG_INLINE Vec load_upto(const T* x, int64_t n) {
  if (n == kWidth) return load(x);
  T buffer[kWidth] = {};
  std::memcpy(buffer, x, n * sizeof(T));
  return load(buffer);
}

template <typename T>
SIGPLUG_INLINE void store_upto(Vec x, T* out, int64_t n) {
  if (n == kWidth) return store(x, out);
  T buffer[kWidth];
  store(x, buffer);
  std::memcpy(out, buffer, n * sizeof(T));
}

// A mask, of n <= kWidth booleans; false behind them.
SIGPLUG_INLINE IntVec load_mask(const bool* mask, int64_t n) {
  int8_t bytes __attribute__((vector_size(kWidth))) = {};
  std::memcpy(&bytes, mask, n);
  return __builtin_convertvector(bytes, IntVec) != 0;
}

// All bits set in the first n lanes.
SIGPLUG_INLINE IntVec first_lanes(int64_t n) {
  IntVec out = {};
  for (int64_t i = 0; i < n; ++i) out[i] = -1;
  return out;
}

// 0 in place of all but the first n elements.
SIGPLUG_INLINE Vec first_of(Vec x, int64_t n) {
  return n == kWidth ? x : (first_lanes(n) ? x : Vec{});
}

SIGPLUG_INLINE bool any(IntVec x) {
  return reduce(x, [](int32_t a, int32_t b) { return a | b; }) != 0;
}

// Calls function(T{}) with the type that the Python side names by a number.
template <typename Function>
void dispatch(int dtype, const Function& function) {
  dtype == 0 ? function(float{}) : function(BFloat16{});
}

}  // namespace sigplug
