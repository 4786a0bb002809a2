// What the compiler knows.

// Whether it has a 16-bit float, of which older ones know nothing.
extern "C" bool knows_float16() {
#ifdef __FLT16_MANT_DIG__
  return true;
#else
  return false;
#endif
}
