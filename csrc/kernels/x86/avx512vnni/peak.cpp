// One vpdpbusd does 64 products and adds them to 16 sums.
#include "kernels/peak.h"

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>

namespace defakeq {

namespace {

// Twelve independent chains hide the latency of the instruction.
// clang-format off
#define DEFAKEQ_STEPS                                                                  \
  DEFAKEQ_STEP(s0) DEFAKEQ_STEP(s1) DEFAKEQ_STEP(s2) DEFAKEQ_STEP(s3)                  \
  DEFAKEQ_STEP(s4) DEFAKEQ_STEP(s5) DEFAKEQ_STEP(s6) DEFAKEQ_STEP(s7)                  \
  DEFAKEQ_STEP(s8) DEFAKEQ_STEP(s9) DEFAKEQ_STEP(s10) DEFAKEQ_STEP(s11)
#define DEFAKEQ_SUMS                                                                   \
  [s0] "+v"(s0), [s1] "+v"(s1), [s2] "+v"(s2), [s3] "+v"(s3), [s4] "+v"(s4),           \
  [s5] "+v"(s5), [s6] "+v"(s6), [s7] "+v"(s7), [s8] "+v"(s8), [s9] "+v"(s9),           \
  [s10] "+v"(s10), [s11] "+v"(s11)
// clang-format on

int64_t int8_macs(int64_t rounds) {
  const __m512i a = _mm512_set1_epi8(3), b = _mm512_set1_epi8(-2);
  __m512i s0 = _mm512_setzero_si512(), s1 = s0, s2 = s0, s3 = s0, s4 = s0, s5 = s0, s6 = s0,
          s7 = s0, s8 = s0, s9 = s0, s10 = s0, s11 = s0;
#define DEFAKEQ_STEP(sum) "vpdpbusd %[b], %[a], %[" #sum "]\n\t"
  for (int64_t r = 0; r < rounds; ++r) {
    __asm__ volatile(DEFAKEQ_STEPS : DEFAKEQ_SUMS : [a] "v"(a), [b] "v"(b));
  }
#undef DEFAKEQ_STEP
  return rounds * 12 * 64;
}

int64_t fp32_macs(int64_t rounds) {
  const __m512 a = _mm512_set1_ps(0.5f), b = _mm512_set1_ps(0.25f);
  __m512 s0 = _mm512_setzero_ps(), s1 = s0, s2 = s0, s3 = s0, s4 = s0, s5 = s0, s6 = s0, s7 = s0,
         s8 = s0, s9 = s0, s10 = s0, s11 = s0;
#define DEFAKEQ_STEP(sum) "vfmadd231ps %[b], %[a], %[" #sum "]\n\t"
  for (int64_t r = 0; r < rounds; ++r) {
    __asm__ volatile(DEFAKEQ_STEPS : DEFAKEQ_SUMS : [a] "v"(a), [b] "v"(b));
  }
#undef DEFAKEQ_STEP
  return rounds * 12 * 16;
}

uint64_t read(const void* data, size_t bytes) {
  const __m512i* p = static_cast<const __m512i*>(data);
  __m512i digest[8] = {};
  for (size_t i = 0; i < bytes / 64; i += 8) {
    for (size_t j = 0; j < 8; ++j) {
      digest[j] = _mm512_xor_si512(digest[j], _mm512_load_si512(p + i + j));
    }
  }
  for (size_t j = 1; j < 8; ++j) digest[0] = _mm512_xor_si512(digest[0], digest[j]);
  return static_cast<uint64_t>(_mm512_reduce_or_epi64(digest[0]));
}

}  // namespace

const PeakLoops* peak_loops_avx512vnni() {
  static constexpr PeakLoops kLoops = {"avx512vnni", int8_macs, fp32_macs, read};
  return &kLoops;
}

}  // namespace defakeq
