// Between samples as rows and samples as lanes: transposes, and sums over lanes.
#pragma once

#include "flat.hpp"
#include "shuffle.hpp"

namespace gradstack {
inline namespace GRADSTACK_UNIT {

template <class T>
void gather_rows(Index count, Index d, Index lanes, const T* const* rows, T* block, T* tiles) {
  using V = Vec<T>;
  // One cache line of every row at a time: 32 rows a multiple of a page apart share few cache sets.
  // So many rows at once are beyond what the hardware prefetches.
  constexpr Index kLine = 64 / static_cast<Index>(sizeof(T)), kAhead = 4 * kLine;
  for (Index line = 0; line < d; line += kLine) {
    const Index end = d - line < kLine ? d : line + kLine;
    for (Index lane = 0; lane < lanes; lane += V::size) {
      const T* row[V::size];
      for (Index i = 0; i < V::size; ++i) {
        row[i] = rows[lane + i < count ? lane + i : count - 1] + line;
        if (line + kAhead < d) __builtin_prefetch(row[i] + kAhead);
      }
      for (Index j = line; j < end; j += V::size) {
        const Index features = end - j < V::size ? end - j : V::size;
        V square[V::size];
#pragma GCC unroll 16
        for (int i = 0; i < V::size; ++i) square[i] = load(row[i] + (j - line), features);
        if (tiles != nullptr) {
          T* to = tiles + (j / kPanel * lanes + lane) * kPanel + j % kPanel;
#pragma GCC unroll 16
          for (int i = 0; i < V::size; ++i) store(to + i * kPanel, square[i], features);
        }
        transpose(square);
        T* to = block + j * lanes + lane;
#pragma GCC unroll 16
        for (int i = 0; i < V::size; ++i) {
          if (i < features) square[i].store(to + i * lanes);
        }
      }
    }
  }
}

template <class T>
void rows_to_block(Index count, Index d, Index lanes, const T* rows, Index ldr, T* block) {
  if (lanes == 1) {
    for_each_vector<T>(d, [&](Index j, Index n) { store(block + j, load(rows + j, n), n); });
    return;
  }
  const T* row[kLanes];
  for (Index i = 0; i < count; ++i) row[i] = rows + i * ldr;
  gather_rows<T>(count, d, lanes, row, block, nullptr);
}

template <class T>
void block_to_rows(Index count, Index d, Index lanes, const T* block, T* rows, Index ldr,
                   bool accumulate) {
  using V = Vec<T>;
  if (lanes == 1) {
    if (accumulate) {
      add(d, rows, block, rows);
    } else {
      for_each_vector<T>(d, [&](Index j, Index n) { store(rows + j, load(block + j, n), n); });
    }
    return;
  }
  constexpr Index kLine = 64 / static_cast<Index>(sizeof(T));
  for (Index line = 0; line < d; line += kLine) {
    const Index end = d - line < kLine ? d : line + kLine;
    for (Index lane = 0; lane < count; lane += V::size) {
      for (Index j = line; j < end; j += V::size) {
        const Index features = end - j < V::size ? end - j : V::size;
        V square[V::size];
#pragma GCC unroll 16
        for (int i = 0; i < V::size; ++i) {
          // A feature past the end is read as the last one and not stored.
          square[i] = V::load(block + (j + (i < features ? i : features - 1)) * lanes + lane);
        }
        transpose(square);
#pragma GCC unroll 16
        for (int i = 0; i < V::size; ++i) {
          if (lane + i < count) {
            T* to = rows + (lane + i) * ldr + j;
            store(to, accumulate ? load(to, features) + square[i] : square[i], features);
          }
        }
      }
    }
  }
}

template <class T>
void sum_lanes(Index rows, Index lanes, Index segments, Index seg_stride, const T* x, T* out,
               bool accumulate) {
  using V = Vec<T>;
  for_each_vector<T>(rows, [&](Index r, Index count) {
    V result(T(0));
    if (lanes == 1) {
      for (Index s = 0; s < segments; ++s) result += load(x + s * seg_stride + r, count);
    } else {
      V sums[V::size];
#pragma GCC unroll 16
      for (int i = 0; i < V::size; ++i) {
        sums[i] = V(T(0));
        if (i >= count) continue;
        for (Index s = 0; s < segments; ++s) {
          const T* row = x + s * seg_stride + (r + i) * lanes;
          for (Index lane = 0; lane < lanes; lane += V::size) sums[i] += V::load(row + lane);
        }
      }
      result = sum_each(sums);
    }
    store(out + r, accumulate ? load(out + r, count) + result : result, count);
  });
}

}  // namespace GRADSTACK_UNIT
}  // namespace gradstack
