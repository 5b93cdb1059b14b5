#pragma once

#include <cstddef>
#include <functional>

namespace weightshare {

/// How a call may use the machine.
struct Execution {
  /// Threads to use, at least 1. Results do not depend on it.
  int threads = 1;
  /// Called now and then on the caller's thread; what it throws ends the call. May be empty.
  std::function<void()> poll;
};

/// Runs body(block) for every block in [0, n_blocks), on up to `execution.threads` threads.
///
/// Blocks run in any order, so each must write only what is its own. The first exception of a body or
/// of the poll stops the rest and is rethrown on the caller's thread. Runs on the caller's thread alone
/// when there is one block or one thread, inside another parallel region, without OpenMP, and in a
/// process that was forked (the threads of the OpenMP runtime do not survive a fork).
void for_blocks(
    std::size_t n_blocks, const Execution& execution, const std::function<void(std::size_t)>& body);

/// To be called in the child after fork().
void after_fork_in_child();

/// OpenMP's version date, such as 201511, or 0 when built without OpenMP.
int openmp_version();

}  // namespace weightshare
