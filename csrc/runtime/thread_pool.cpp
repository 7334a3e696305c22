#include "defakeq/thread_pool.h"

#include <unistd.h>

#include <algorithm>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

namespace defakeq {

namespace {

// True in a worker, and in a thread inside run(): nested calls are serial.
thread_local bool t_inside = false;

class Workers {
 public:
  explicit Workers(int count) : parts_(count + 1), owner_(getpid()) {
    threads_.reserve(static_cast<size_t>(count));
    for (int i = 0; i < count; ++i) threads_.emplace_back([this, i] { loop(i + 1); });
  }

  ~Workers() {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      stop_ = true;
    }
    wake_.notify_all();
    for (std::thread& thread : threads_) thread.join();
  }

  pid_t owner() const { return owner_; }

  void run(int64_t n, Parallel::Body body, void* context) {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      n_ = n;
      body_ = body;
      context_ = context;
      pending_ = parts_ - 1;
      error_ = nullptr;
      ++round_;
    }
    wake_.notify_all();
    t_inside = true;
    part(0);
    t_inside = false;
    std::unique_lock<std::mutex> lock(mutex_);
    done_.wait(lock, [this] { return pending_ == 0; });
    if (error_) std::rethrow_exception(error_);
  }

 private:
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
      {
        std::unique_lock<std::mutex> lock(mutex_);
        wake_.wait(lock, [&] { return stop_ || round_ != seen; });
        if (stop_) return;
        seen = round_;
      }
      part(index);
      const std::lock_guard<std::mutex> lock(mutex_);
      if (--pending_ == 0) done_.notify_one();
    }
  }

  const int64_t parts_;
  const pid_t owner_;
  std::vector<std::thread> threads_;
  std::mutex mutex_;
  std::condition_variable wake_, done_;
  bool stop_ = false;
  uint64_t round_ = 0;
  int64_t n_ = 0, pending_ = 0;
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
