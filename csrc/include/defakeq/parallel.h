#pragma once

#include <cstdint>

#include "defakeq/export.h"

namespace defakeq {

// The operators never start threads: the caller lends them a parallel_for. Results do not depend on
// how many threads it has.
class DEFAKEQ_API Parallel {
 public:
  using Body = void (*)(void* context, int64_t begin, int64_t end);

  virtual ~Parallel();
  virtual int threads() const = 0;
  // Calls body over disjoint ranges that cover [0, n); returns when all are done.
  virtual void run(int64_t n, Body body, void* context) = 0;
};

// Runs everything in the calling thread.
class DEFAKEQ_API Serial final : public Parallel {
 public:
  ~Serial() override;
  int threads() const override { return 1; }
  void run(int64_t n, Body body, void* context) override {
    if (n > 0) body(context, 0, n);
  }
};

}  // namespace defakeq
