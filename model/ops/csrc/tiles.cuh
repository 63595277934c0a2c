// In which order the queries are computed.
//
// The queries of an encoder layer are the tokens of the last levels. Neighbours on a map sample
// neighbouring tokens, so the warps of a block, which share an L1 cache, compute a tile of 4 x 3
// queries and not a part of a row. The order in memory is that of the caller.
#pragma once

#include "call.cuh"

namespace lite_detr {

constexpr int kTileWidth = 4, kTileHeight = 3;
constexpr int kQueriesOfTile = kTileWidth * kTileHeight;

// The query with a number in the order of computation; -1 if there is none: beyond the last one,
// or in a tile that reaches beyond its map.
template <class Math, class Sizes>
int query_at(const Call& call, const Sizes& sizes, int number) {
  if (!call.tiled) return number < call.queries ? number : -1;
  // Unsigned: quotients by constants are cheaper.
  const int tile = static_cast<unsigned>(number) / kQueriesOfTile;
  const unsigned inner = static_cast<unsigned>(number) % kQueriesOfTile;
  int found = 0;  // levels without queries have no tiles: the next one has the same first tile
  for (int i = 1; i < sizes.levels; ++i)
    if (tile >= call.levels[i].first_tile) found = i;
  const Level& level = call.levels[found];
  const int own = tile - level.first_tile;
  // An exact quotient, as `cuda.py` allows at most 2^20 tiles.
  const int row = Math::floor((static_cast<float>(own) + 0.5f) * level.inverse_across);
  const int y = row * kTileHeight + static_cast<int>(inner / kTileWidth);
  const int x = (own - row * level.tiles_across) * kTileWidth + static_cast<int>(inner % kTileWidth);
  if (y >= level.height || x >= level.width) return -1;
  return level.start - (call.tokens - call.queries) + y * level.width + x;
}

}  // namespace lite_detr
