#pragma once

#include <memory>

#include "defakeq/export.h"
#include "defakeq/parallel.h"

namespace defakeq {

// Threads that sleep between calls. run() may be called from several threads at once: one of them
// gets the pool, the others do their work themselves. After fork() the child starts its own
// threads.
class DEFAKEQ_API ThreadPool final : public Parallel {
 public:
  // Throws std::invalid_argument unless 1 <= threads <= 1024. Threads start at the first run().
  explicit ThreadPool(int threads);
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;
  ~ThreadPool() override;

  int threads() const override;
  // The first exception that a body throws is thrown here, after all ranges are done.
  void run(int64_t n, Body body, void* context) override;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace defakeq
