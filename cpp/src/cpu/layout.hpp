// Between samples as rows and samples as lanes: transposes, and sums over lanes.
#pragma once

#include "flat.hpp"
#include "shuffle.hpp"

namespace gradstack {
inline namespace GRADSTACK_UNIT {

// A square of samples x features, from one cache line of every row: into the block with features as
// rows, and as it is into the tile. Whole squares, by far the most, need no branches.
template <bool kWhole, class T>
GS_INLINE void gather_square(const T* const* row, Index at, Index features, Index lanes, T* block,
                             T* tile) {
  using V = Vec<T>;
  const Index width = kWhole ? V::size : features;
  V square[V::size];
#pragma GCC unroll 16
  for (int i = 0; i < V::size; ++i) square[i] = load(row[i] + at, width);
  if (tile != nullptr) {
#pragma GCC unroll 16
    for (int i = 0; i < V::size; ++i) store(tile + i * kPanel, square[i], width);
  }
  transpose(square);
#pragma GCC unroll 16
  for (int i = 0; i < V::size; ++i) {
    if (i < width) square[i].store(block + i * lanes);
  }
}

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
        T* to = block + j * lanes + lane;
        T* tile =
            tiles == nullptr ? nullptr : tiles + (j / kPanel * lanes + lane) * kPanel + j % kPanel;
        if (end - j >= V::size)
          gather_square<true>(row, j - line, V::size, lanes, to, tile);
        else
          gather_square<false>(row, j - line, end - j, lanes, to, tile);
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

// The way back: a square of features x samples into rows of samples.
template <bool kWhole, class T>
GS_INLINE void scatter_square(const T* block, Index lanes, Index features, Index samples, T* rows,
                              Index ldr, bool accumulate) {
  using V = Vec<T>;
  const Index width = kWhole ? V::size : features, height = kWhole ? V::size : samples;
  V square[V::size];
#pragma GCC unroll 16
  for (int i = 0; i < V::size; ++i) {
    // A feature past the end is read as the last one and not stored.
    square[i] = V::load(block + (i < width ? i : width - 1) * lanes);
  }
  transpose(square);
  if (accumulate) {
#pragma GCC unroll 16
    for (int i = 0; i < V::size; ++i) {
      if (i < height) square[i] += load(rows + i * ldr, width);
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < V::size; ++i) {
    if (i < height) store(rows + i * ldr, square[i], width);
  }
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
        const Index features = end - j, samples = count - lane;
        const T* from = block + j * lanes + lane;
        T* to = rows + lane * ldr + j;
        if (features >= V::size && samples >= V::size)
          scatter_square<true>(from, lanes, V::size, V::size, to, ldr, accumulate);
        else
          scatter_square<false>(from, lanes, features < V::size ? features : V::size,
                                samples < V::size ? samples : V::size, to, ldr, accumulate);
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
      for (int i = 0; i < V::size; ++i) sums[i] = V(T(0));
      for (Index s = 0; s < segments; ++s) {
        const T* from = x + s * seg_stride + r * lanes;
        for (Index lane = 0; lane < lanes; lane += V::size) {
#pragma GCC unroll 16
          for (int i = 0; i < V::size; ++i) {
            if (i < count) sums[i] += V::load(from + i * lanes + lane);
          }
        }
      }
      result = sum_each(sums);
    }
    store(out + r, accumulate ? load(out + r, count) + result : result, count);
  });
}

}  // namespace GRADSTACK_UNIT
}  // namespace gradstack
