#include "weightshare/parallel.hpp"

#include <atomic>
#include <exception>
#include <mutex>

#if defined(_OPENMP)
#include <omp.h>
#endif

namespace weightshare {
namespace {

std::atomic<bool> serial_only{false};

/// Hands out blocks and keeps the first exception.
class Blocks {
 public:
  explicit Blocks(std::size_t n_blocks) : n_blocks_(n_blocks) {}

  bool take(std::size_t& block) {
    if (stopped_.load(std::memory_order_relaxed)) {
      return false;
    }
    block = next_.fetch_add(1, std::memory_order_relaxed);
    return block < n_blocks_;
  }

  void stop_with_current_exception() {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (!error_) {
      error_ = std::current_exception();
    }
    stopped_.store(true, std::memory_order_relaxed);
  }

  void rethrow() const {
    if (error_) {
      std::rethrow_exception(error_);
    }
  }

 private:
  std::size_t n_blocks_;
  std::atomic<std::size_t> next_{0};
  std::atomic<bool> stopped_{false};
  std::mutex mutex_;
  std::exception_ptr error_;
};

void work(Blocks& blocks, const std::function<void(std::size_t)>& body, const std::function<void()>& poll,
    bool is_caller) {
  try {
    for (std::size_t block = 0; blocks.take(block);) {
      body(block);
      if (is_caller && poll) {
        poll();
      }
    }
  } catch (...) {
    blocks.stop_with_current_exception();
  }
}

bool must_be_serial() {
#if defined(_OPENMP)
  return serial_only.load() || omp_in_parallel() != 0;
#else
  return true;
#endif
}

}  // namespace

void for_blocks(
    std::size_t n_blocks, const Execution& execution, const std::function<void(std::size_t)>& body) {
  Blocks blocks(n_blocks);
  if (n_blocks <= 1 || execution.threads <= 1 || must_be_serial()) {
    work(blocks, body, execution.poll, true);
    return blocks.rethrow();
  }
#if defined(_OPENMP)
  const auto wanted = static_cast<std::size_t>(execution.threads);
  const int team = static_cast<int>(wanted < n_blocks ? wanted : n_blocks);
#pragma omp parallel num_threads(team)
  work(blocks, body, execution.poll, omp_get_thread_num() == 0);
#endif
  blocks.rethrow();
}

// Always: the parent's parallel region may have been that of another library on the same runtime.
void after_fork_in_child() {
  serial_only.store(true);
}

int openmp_version() {
#if defined(_OPENMP)
  return _OPENMP;
#else
  return 0;
#endif
}

}  // namespace weightshare
