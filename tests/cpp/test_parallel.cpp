#include "weightshare/parallel.hpp"

#include <atomic>
#include <chrono>
#include <stdexcept>
#include <thread>
#include <vector>

#include <doctest/doctest.h>

using namespace weightshare;

TEST_CASE("every block is run once, whatever the number of threads") {
  for (const int threads : {1, 2, 3, 8}) {
    std::vector<std::atomic<int>> runs(1000);
    for_blocks(runs.size(), {threads, {}}, [&](std::size_t block) { ++runs[block]; });
    for (const auto& count : runs) {
      CHECK(count == 1);
    }
  }
}

TEST_CASE("no block, no call") {
  bool called = false;
  for_blocks(0, {2, {}}, [&](std::size_t) { called = true; });
  CHECK_FALSE(called);
}

TEST_CASE("an exception leaves the region on the caller's thread and stops the rest") {
  for (const int threads : {1, 4}) {
    std::atomic<int> runs{0};
    const auto body = [&](std::size_t block) {
      ++runs;
      if (block == 3) {
        throw std::out_of_range("block 3");
      }
    };
    CHECK_THROWS_AS(for_blocks(100000, {threads, {}}, body), std::out_of_range);
    CHECK(runs < 100000);
  }
}

TEST_CASE("what the poll throws ends the call") {
  for (const int threads : {1, 2}) {
    std::atomic<int> runs{0};
    const Execution execution{threads, [] { throw std::runtime_error("interrupted"); }};
    const auto body = [&](std::size_t) {
      std::this_thread::sleep_for(std::chrono::microseconds(10));
      ++runs;
    };
    CHECK_THROWS_AS(for_blocks(100000, execution, body), std::runtime_error);
    CHECK(runs < 100000);
  }
}

TEST_CASE("a region inside a region runs, serially") {
  std::atomic<int> runs{0};
  for_blocks(4, {2, {}}, [&](std::size_t) { for_blocks(5, {2, {}}, [&](std::size_t) { ++runs; }); });
  CHECK(runs == 20);
}
