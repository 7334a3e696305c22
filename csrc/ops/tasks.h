#pragma once

#include <algorithm>
#include <cstdint>

#include "defakeq/parallel.h"

namespace defakeq {

// Cuts `items` into one contiguous range a task, at most one task a thread, and calls
// fn(task, begin, end). The task number indexes per-task scratch.
template <class Fn>
void for_tasks(Parallel& parallel, int64_t items, Fn&& fn) {
  if (items <= 0) return;
  const int64_t tasks = std::min<int64_t>(std::max(parallel.threads(), 1), items);
  if (tasks == 1) {
    fn(int64_t{0}, int64_t{0}, items);
    return;
  }
  struct Context {
    Fn* fn;
    int64_t items, tasks;
  } context{&fn, items, tasks};
  parallel.run(
      tasks,
      [](void* p, int64_t begin, int64_t end) {
        const Context& c = *static_cast<Context*>(p);
        for (int64_t t = begin; t < end; ++t) {
          const int64_t first = c.items * t / c.tasks, last = c.items * (t + 1) / c.tasks;
          if (first < last) (*c.fn)(t, first, last);
        }
      },
      &context);
}

}  // namespace defakeq
