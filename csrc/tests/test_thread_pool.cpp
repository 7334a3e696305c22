#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "defakeq/thread_pool.h"

namespace defakeq {
namespace {

// Adds one to each index that it is given.
struct Counts {
  explicit Counts(size_t n) : counts(n) {}
  std::vector<std::atomic<int>> counts;
  ThreadPool* nested = nullptr;

  static void body(void* context, int64_t begin, int64_t end) {
    auto& self = *static_cast<Counts*>(context);
    for (int64_t i = begin; i < end; ++i) {
      if (self.nested == nullptr) {
        ++self.counts[static_cast<size_t>(i)];
      } else {
        const auto one = [](void* count, int64_t first, int64_t last) {
          *static_cast<std::atomic<int>*>(count) += static_cast<int>(last - first);
        };
        self.nested->run(5, one, &self.counts[static_cast<size_t>(i)]);
      }
    }
  }

  bool all(int value) const {
    for (const auto& count : counts) {
      if (count != value) return false;
    }
    return true;
  }
};

TEST(ThreadPool, GivesEveryIndexOnce) {
  for (const int threads : {1, 2, 3, 7}) {
    ThreadPool pool(threads);
    EXPECT_EQ(pool.threads(), threads);
    for (const size_t n : {0, 1, 2, 5, 100}) {
      Counts counts(n);
      for (int round = 1; round <= 50; ++round) {
        pool.run(static_cast<int64_t>(n), Counts::body, &counts);
        ASSERT_TRUE(counts.all(round)) << threads << " threads, " << n << " indices";
      }
    }
  }
}

TEST(ThreadPool, WakesParkedThreads) {
  ThreadPool pool(3);
  Counts counts(64);
  for (int round = 1; round <= 20; ++round) {
    pool.run(64, Counts::body, &counts);
    ASSERT_TRUE(counts.all(round));
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
}

TEST(ThreadPool, CallsFromSeveralThreadsAndFromInside) {
  ThreadPool pool(3);
  std::vector<std::thread> callers;
  std::atomic<int> wrong{0};
  for (int caller = 0; caller < 4; ++caller) {
    callers.emplace_back([&] {
      for (int round = 0; round < 100; ++round) {
        Counts counts(33);
        counts.nested = round % 2 == 0 ? nullptr : &pool;
        pool.run(33, Counts::body, &counts);
        if (!counts.all(round % 2 == 0 ? 1 : 5)) ++wrong;
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
  EXPECT_EQ(wrong, 0);
}

TEST(ThreadPool, ErrorsReachTheCaller) {
  ThreadPool pool(3);
  for (int64_t at = 0; at < 9; ++at) {
    try {
      pool.run(
          9,
          [](void* context, int64_t begin, int64_t end) {
            const int64_t bad = *static_cast<int64_t*>(context);
            if (begin <= bad && bad < end) throw std::runtime_error(std::to_string(bad));
          },
          &at);
      ADD_FAILURE() << at;
    } catch (const std::runtime_error& error) {
      EXPECT_EQ(error.what(), std::to_string(at));
    }
    Counts counts(9);
    pool.run(9, Counts::body, &counts);
    EXPECT_TRUE(counts.all(1));
  }
}

TEST(ThreadPool, RefusesOtherSizes) {
  EXPECT_THROW(ThreadPool(0), std::invalid_argument);
  EXPECT_THROW(ThreadPool(-1), std::invalid_argument);
  EXPECT_THROW(ThreadPool(1025), std::invalid_argument);
}

}  // namespace
}  // namespace defakeq
