#include "defakeq/thread_pool.h"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <stdexcept>
#include <string>
#include <system_error>
#include <thread>
#include <vector>

namespace defakeq {

namespace {

// True in a worker, and in a thread inside run(): nested calls are serial.
thread_local bool t_inside = false;

void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// The parts of a network follow each other within microseconds: waking a parked thread costs more.
constexpr std::chrono::microseconds kSpin{100};

// True once `done` is; false when it is time to park.
template <class Done>
bool spin(bool allowed, Done&& done) {
  if (!allowed) return done();
  const auto end = std::chrono::steady_clock::now() + kSpin;
  do {
    for (int i = 0; i < 64; ++i) {
      if (done()) return true;
      relax();
    }
  } while (std::chrono::steady_clock::now() < end);
  return false;
}

class Workers {
 public:
  explicit Workers(int count)
      : parts_(count + 1),
        owner_(getpid()),
        spins_(count < static_cast<int>(std::thread::hardware_concurrency())) {
    threads_.reserve(static_cast<size_t>(count));
    try {
      for (int i = 0; i < count; ++i) threads_.emplace_back([this, i] { loop(i + 1); });
    } catch (const std::system_error& error) {
      join();
      throw std::runtime_error("threads: found " + std::to_string(parts_) +
                               "; the system starts no more than " +
                               std::to_string(threads_.size() + 1) + ": " + error.what());
    }
  }

  ~Workers() { join(); }

  pid_t owner() const { return owner_; }

  void run(int64_t n, Parallel::Body body, void* context) {
    n_ = n;
    body_ = body;
    context_ = context;
    error_ = nullptr;
    pending_.store(parts_ - 1, std::memory_order_relaxed);
    bool wake;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      round_.fetch_add(1, std::memory_order_release);
      wake = parked_ > 0;
    }
    if (wake) wake_.notify_all();
    t_inside = true;
    part(0);
    t_inside = false;
    const auto done = [this] { return pending_.load(std::memory_order_acquire) == 0; };
    if (!spin(spins_, done)) {
      std::unique_lock<std::mutex> lock(mutex_);
      done_.wait(lock, done);
    }
    if (error_) std::rethrow_exception(error_);
  }

 private:
  void join() {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      stop_ = true;
    }
    wake_.notify_all();
    for (std::thread& thread : threads_) thread.join();
  }

  void part(int index) {
    const int64_t begin = n_ * index / parts_, end = n_ * (index + 1) / parts_;
    if (begin >= end) return;
    try {
      body_(context_, begin, end);
    } catch (...) {
      const std::lock_guard<std::mutex> lock(mutex_);
      if (!error_) error_ = std::current_exception();
    }
  }

  void loop(int index) {
    t_inside = true;
    uint64_t seen = 0;
    for (;;) {
      const auto started = [&] {
        return stop_.load(std::memory_order_relaxed) ||
               round_.load(std::memory_order_acquire) != seen;
      };
      if (!spin(spins_, started)) {
        std::unique_lock<std::mutex> lock(mutex_);
        ++parked_;
        wake_.wait(lock, started);
        --parked_;
      }
      if (stop_.load(std::memory_order_relaxed)) return;
      seen = round_.load(std::memory_order_acquire);
      part(index);
      if (pending_.fetch_sub(1, std::memory_order_acq_rel) == 1) {
        // Under the lock, so that a caller about to wait does not miss it.
        const std::lock_guard<std::mutex> lock(mutex_);
        done_.notify_one();
      }
    }
  }

  const int64_t parts_;
  const pid_t owner_;
  const bool spins_;
  std::vector<std::thread> threads_;
  std::mutex mutex_;
  std::condition_variable wake_, done_;
  std::atomic<bool> stop_{false};
  std::atomic<uint64_t> round_{0};
  std::atomic<int64_t> pending_{0};
  int64_t n_ = 0;
  int parked_ = 0;
  Parallel::Body body_ = nullptr;
  void* context_ = nullptr;
  std::exception_ptr error_;
};

}  // namespace

struct ThreadPool::State {
  int threads;
  std::mutex busy;
  std::unique_ptr<Workers> workers;
};

ThreadPool::ThreadPool(int threads) {
  if (threads < 1 || threads > 1024) {
    throw std::invalid_argument("threads: found " + std::to_string(threads) +
                                ", accepted: 1 to 1024");
  }
  state_ = std::make_unique<State>();
  state_->threads = threads;
}

ThreadPool::~ThreadPool() {
  // A forked child has the objects of its parent's threads, but not the threads.
  if (state_->workers && state_->workers->owner() != getpid()) (void)state_->workers.release();
}

int ThreadPool::threads() const { return state_->threads; }

void ThreadPool::run(int64_t n, Body body, void* context) {
  if (n <= 0) return;
  if (n == 1 || state_->threads == 1 || t_inside) return body(context, 0, n);
  const std::unique_lock<std::mutex> lock(state_->busy, std::try_to_lock);
  if (!lock.owns_lock()) return body(context, 0, n);
  if (state_->workers && state_->workers->owner() != getpid()) (void)state_->workers.release();
  if (!state_->workers) state_->workers = std::make_unique<Workers>(state_->threads - 1);
  state_->workers->run(n, body, context);
}

}  // namespace defakeq
