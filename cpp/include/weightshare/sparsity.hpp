#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "weightshare/buffer.hpp"
#include "weightshare/parallel.hpp"

namespace weightshare {

/// Which elements of a task vector x_j - base are kept.
enum class Keep : std::uint8_t {
  all,
  none,
  magnitude,  ///< keys above `key`, and those equal to it before the place `cutoff`
  band,       ///< of those, the ones that `top_key` and `top_cutoff` do not keep
  random,     ///< where the random word is below `bound`
  ranked,     ///< where it is below a bound that grows with the rank of |x_j - base| in its row
  held,       ///< where a bit is set, as `chunk_norms` told
  variance,   ///< as magnitude, of the variance over the tensors; the same for all of them
};

/// The mask of one tensor. Keys are those of selection.hpp; places are flat indices in the whole tensor.
struct Mask {
  Keep keep = Keep::all;
  std::int64_t key = 0;
  std::int64_t cutoff = 0;
  std::int64_t top_key = 0;
  std::int64_t top_cutoff = 0;
  std::uint64_t stream = 0;  ///< key of the random words; word i is that of element i of the whole tensor
  std::int64_t bound = 0;    ///< 0 to 2^32
  const std::uint8_t* bits = nullptr;  ///< of the stretch that is at hand, lowest first
  double least = 0.0;  ///< probability that the least of a row is kept; ranks share the span evenly
  double most = 0.0;   ///< probability that the greatest is kept; a row of one is kept by their mean
};

/// Task vectors x_j - base of a stretch of a tensor, each behind a mask.
///
/// Computed in float32, or in float64 when any w or the base is f64. Ranks in a row ascend with the
/// magnitude, NaN last; of equal magnitudes the earlier has the higher rank.
struct TaskVectors {
  std::span<const ConstBuffer> w;
  const ConstBuffer* base = nullptr;
  std::span<const Mask> masks;  ///< one for each w
  std::size_t start = 0;        ///< flat index in the whole tensor of the first element; a row begins there
  std::size_t row = 1;          ///< elements of a row, for ranked masks
  std::size_t chunk = 1;        ///< elements that are taken together; whole rows for ranked masks
  bool wide = false;            ///< whether to compute in float64, or in float32
};

/// Sums of |x_j - base|^power of each chunk, and of those that the masks keep: all[c * n + j], kept[c * n +
/// j].
///
/// power is 1 or 2. Float64 in eight lanes by the index in the chunk, so that a chunk always gives the same
/// bits; the last chunk may be short. With `bits`, tells which elements the masks of kind `ranked` and
/// `random` keep, a row of (count + 7) / 8 bytes for each w, so that they need not be drawn again; chunks are
/// then multiples of 8.
void chunk_norms(std::span<double> all, std::span<double> kept, const TaskVectors& vectors, int power,
    std::span<std::uint8_t> bits, const Execution& execution);

/// How task vectors are summed.
struct Ballot {
  std::span<const double> coefficients;  ///< c_j
  std::span<const double> votes;         ///< v_j; empty means that there is no election
  std::span<const double> weights;       ///< d_j; empty means that the sum is not divided
  double tiny = 0.0;                     ///< a divisor of at most this magnitude
  double instead = 1.0;                  ///< is replaced by this
  double strength = 1.0;
};

/// out = base + strength * sum_j m_j c_j t_j / sum_j m_j d_j, where t_j is the masked task vector.
///
/// The election: S is the sign of sum_j v_j t_j, plus for zero, and m_j = 1 where v_j t_j is of that sign
/// and not zero. Without one, m_j = 1. Where the sum is zero out is the base, bit for bit; where the votes
/// are NaN out is NaN. Sums run in the order of j; each result is rounded once to the element of out.
/// Source: Yadav et al. 2023, arXiv:2306.01708; Yu et al. 2024, arXiv:2311.03099; Deep et al. 2024,
/// arXiv:2406.11617; Davari and Belilovsky 2023, arXiv:2312.06795; Wan et al. 2024, arXiv:2408.07990.
void sum_task_vectors(
    const Buffer& out, const TaskVectors& vectors, const Ballot& ballot, const Execution& execution);

}  // namespace weightshare
