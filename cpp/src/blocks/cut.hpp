// How a layer's products are divided among workers.
#pragma once

#include <algorithm>

#include "gradstack/backend.hpp"

namespace gradstack {

inline constexpr Index kTileRows = 24;  // fewest rows worth a call of their own

inline Index tiles(Index rows) { return (rows + kTileRows - 1) / kTileRows; }

// A product cut into items of work: groups of rows times groups of sample blocks. Results do not
// depend on the cut, so it may follow the size of the team.
struct Cut {
  Index rows, row_groups, blocks, block_groups;  // per group, and how many

  // Groups are as large as the caches allow (a group of blocks shares what it reads of W, a group
  // of rows what it reads of Z), then smaller until the workers' shares are about equal.
  Cut(Index n_rows, Index most_rows, Index n_blocks, Index most_blocks, int workers) {
    blocks = n_blocks < most_blocks ? n_blocks : most_blocks;
    // One item, without the divisions: they would be felt with a single sample.
    if (workers == 1 && n_rows <= most_rows && n_blocks <= most_blocks) {
      rows = n_rows;
      row_groups = block_groups = 1;
      return;
    }
    row_groups = (n_rows + most_rows - 1) / most_rows;
    if (workers > 1) {
      const Index most_groups = tiles(n_rows);
      if (n_blocks >= workers && n_blocks < workers * most_blocks)
        blocks = (n_blocks + workers - 1) / workers;
      else if (most_groups * n_blocks < workers * most_blocks)
        blocks = 1;
      block_groups = (n_blocks + blocks - 1) / blocks;
      const auto idle = [&](Index groups) {  // sixteenths of the team's time
        const Index items = groups * block_groups, rounds = (items + workers - 1) / workers;
        return 16 * (rounds * workers - items) / (rounds * workers);
      };
      while (row_groups < most_groups && idle(row_groups) > 0) ++row_groups;
    }
    block_groups = (n_blocks + blocks - 1) / blocks;
    constexpr Index kRound = 12;  // whole tiles of every instruction set
    rows = ((n_rows + row_groups - 1) / row_groups + kRound - 1) / kRound * kRound;
    row_groups = (n_rows + rows - 1) / rows;
  }

  Index items() const { return row_groups * block_groups; }
};

// One item: rows [r0, r0 + rows) of blocks [block, block + blocks).
struct Item {
  Index group, r0, rows, block, blocks;

  Item(const Cut& cut, Index item, Index n_rows, Index n_blocks)
      : group(cut.block_groups == 1 ? item : item / cut.block_groups),
        r0(group * cut.rows),
        rows(std::min(cut.rows, n_rows - r0)),
        block((item - group * cut.block_groups) * cut.blocks),
        blocks(std::min(cut.blocks, n_blocks - block)) {}
};

}  // namespace gradstack
