#include "ops/node_checks.h"

#include <cmath>

namespace defakeq {

void check_pointer(const char* field, const void* data) {
  if (data == nullptr) refuse(field, "a null pointer", "data of the stated shape");
}

void check_quantization(const char* field, const Quantization& q) {
  const std::string name = field;
  check_range((name + ".bits").c_str(), q.bits, 4, 8);
  const int64_t half = int64_t{1} << (q.bits - 1);
  check_range((name + ".zero_point").c_str(), q.zero_point, -half, half - 1);
  if (!(std::isfinite(q.scale) && q.scale > 0.0f)) {
    refuse(name + ".scale", std::to_string(q.scale), "a finite positive number");
  }
}

void check_operand(const char* field, const Operand& x) {
  check_pointer(field, x.data);
  if (x.dtype == DType::kInt8) check_quantization(field, x.quantization);
}

void check_int8(const char* field, const Operand& x) {
  if (x.dtype != DType::kInt8) refuse(field, "float32", "int8");
  check_operand(field, x);
}

Post result_post(const Result& out) {
  check_pointer("out", out.data);
  Post post;
  post.out_dtype = out.dtype;
  if (out.dtype == DType::kInt8) {
    const Quantization& q = out.quantization;
    check_quantization("out", q);
    const int32_t half = 1 << (q.bits - 1);
    post.inv_scale = 1.0f / q.scale;
    post.zero_point = q.zero_point;
    post.low = static_cast<float>(-half - q.zero_point);
    post.high = static_cast<float>(half - 1 - q.zero_point);
  }
  return post;
}

}  // namespace defakeq
