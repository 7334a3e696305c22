// AVX2 without a dot-product instruction: 32 products take vpmaddubsw, vpmaddwd and vpaddd.
#include "kernels/peak.h"

#include <immintrin.h>

namespace defakeq {

namespace {

// Ten independent chains hide the latency of the additions.
int64_t int8_macs(int64_t rounds) {
  const __m256i a = _mm256_set1_epi8(3), b = _mm256_set1_epi8(-2), ones = _mm256_set1_epi16(1);
  __m256i s0 = _mm256_setzero_si256(), s1 = s0, s2 = s0, s3 = s0, s4 = s0, s5 = s0, s6 = s0,
          s7 = s0, s8 = s0, s9 = s0;
#define DEFAKEQ_STEP(sum)                  \
  "vpmaddubsw %[b], %[a], %%ymm14\n\t"     \
  "vpmaddwd %[ones], %%ymm14, %%ymm14\n\t" \
  "vpaddd %%ymm14, %[" #sum "], %[" #sum "]\n\t"
  for (int64_t r = 0; r < rounds; ++r) {
    __asm__ volatile(DEFAKEQ_STEP(s0) DEFAKEQ_STEP(s1) DEFAKEQ_STEP(s2) DEFAKEQ_STEP(s3)
                         DEFAKEQ_STEP(s4) DEFAKEQ_STEP(s5) DEFAKEQ_STEP(s6) DEFAKEQ_STEP(s7)
                             DEFAKEQ_STEP(s8) DEFAKEQ_STEP(s9)
                     : [s0] "+x"(s0), [s1] "+x"(s1), [s2] "+x"(s2), [s3] "+x"(s3), [s4] "+x"(s4),
                       [s5] "+x"(s5), [s6] "+x"(s6), [s7] "+x"(s7), [s8] "+x"(s8), [s9] "+x"(s9)
                     : [a] "x"(a), [b] "x"(b), [ones] "x"(ones)
                     : "xmm14");
  }
#undef DEFAKEQ_STEP
  return rounds * 10 * 32;
}

int64_t fp32_macs(int64_t rounds) {
  const __m256 a = _mm256_set1_ps(0.5f), b = _mm256_set1_ps(0.25f);
  __m256 s0 = _mm256_setzero_ps(), s1 = s0, s2 = s0, s3 = s0, s4 = s0, s5 = s0, s6 = s0, s7 = s0,
         s8 = s0, s9 = s0, s10 = s0, s11 = s0;
#define DEFAKEQ_STEP(sum) "vfmadd231ps %[b], %[a], %[" #sum "]\n\t"
  for (int64_t r = 0; r < rounds; ++r) {
    __asm__ volatile(DEFAKEQ_STEP(s0) DEFAKEQ_STEP(s1) DEFAKEQ_STEP(s2) DEFAKEQ_STEP(s3)
                         DEFAKEQ_STEP(s4) DEFAKEQ_STEP(s5) DEFAKEQ_STEP(s6) DEFAKEQ_STEP(s7)
                             DEFAKEQ_STEP(s8) DEFAKEQ_STEP(s9) DEFAKEQ_STEP(s10) DEFAKEQ_STEP(s11)
                     : [s0] "+x"(s0), [s1] "+x"(s1), [s2] "+x"(s2), [s3] "+x"(s3), [s4] "+x"(s4),
                       [s5] "+x"(s5), [s6] "+x"(s6), [s7] "+x"(s7), [s8] "+x"(s8), [s9] "+x"(s9),
                       [s10] "+x"(s10), [s11] "+x"(s11)
                     : [a] "x"(a), [b] "x"(b));
  }
#undef DEFAKEQ_STEP
  return rounds * 12 * 8;
}

uint64_t read(const void* data, size_t bytes) {
  const __m256i* p = static_cast<const __m256i*>(data);
  __m256i digest[8] = {};
  for (size_t i = 0; i < bytes / 32; i += 8) {
    for (size_t j = 0; j < 8; ++j) {
      digest[j] = _mm256_xor_si256(digest[j], _mm256_load_si256(p + i + j));
    }
  }
  for (size_t j = 1; j < 8; ++j) digest[0] = _mm256_xor_si256(digest[0], digest[j]);
  return static_cast<uint64_t>(_mm256_extract_epi64(digest[0], 0) ^
                               _mm256_extract_epi64(digest[0], 3));
}

}  // namespace

const PeakLoops* peak_loops_avx2() {
  static constexpr PeakLoops kLoops = {"avx2", int8_macs, fp32_macs, read};
  return &kLoops;
}

}  // namespace defakeq
