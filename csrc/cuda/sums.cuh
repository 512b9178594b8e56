// One block and 32 rows: the tiles of one or several matrices with staged activations, shared out to the warps.
//
//   segment   a row of tiles of one matrix, and a factor; segments lie one after another in shared memory
//   item      a tile of a segment, in order of segments; warp w has the items w, w + warps, ...
//
//   load the words of the first item
//   for each item: sum = dot256(words, staged), which loads the words of the next as it uses these up
//                  the last of a segment: give the sum to the sink
//
// So the next words are under way while these are multiplied, in the same registers. Which warp has which item depends
// on their number only, and sums of warps are added in the order of warps: the same numbers from run to run.
// The caller guarantees a filled table, staged activations and segments, and a barrier after them; begin() needs the
// segments only, so that the first loads are under way meanwhile.
#pragma once
#include "dot.cuh"

namespace lutkern {
namespace cuda {

struct Segment {
  const uint8_t* tiles;
  float factor;
};

LK_DEVICE void store_segment(uint8_t* segments, int i, const Segment& segment) {
  const uint64_t bits = reinterpret_cast<uintptr_t>(segment.tiles);
  store16(segments + kSegmentBytes * i, Words4{low_word(bits), high_word(bits), bits_of_float(segment.factor), 0});
}

LK_DEVICE Segment load_segment(const uint8_t* segments, int i) {
  const Words4 words = load16(segments + kSegmentBytes * i);
  const uint64_t bits = words.x | static_cast<uint64_t>(words.y) << 32;
  return {reinterpret_cast<const uint8_t*>(static_cast<uintptr_t>(bits)), float_of_bits(words.z)};
}

// Tiles [begin, end) of each segment; item 0 is tile `first` of segment `segment`.
struct Items {
  int count;
  int segment;
  int first;
  int begin;
  int end;
  int shared_x;  // 1: all segments meet the same activations, 0: each has its own, one after another
};

// Sums of one row by one warp, before the unit of the format
struct SumOfAll {
  enum : int { kSums = 1 };
  float sum[1];
  LK_MEMBER void add(int, float factor, float value) { sum[0] = fma_f32(factor, value, sum[0]); }
};
struct SumOfEach {
  enum : int { kSums = 2 };
  float sum[2];
  LK_MEMBER void add(int segment, float, float value) {
    if (segment == 0) {
      sum[0] += value;
    } else {
      sum[1] += value;
    }
  }
};

template <class Block>
struct Walk {
  Items items;
  const uint8_t* segments;
  int item;     // of this warp
  int segment;  // and where it is
  int tile;
  const uint8_t* from;
  uint32_t row;  // in the tile: the lane
  LaneWords<Block> words;

  LK_MEMBER void begin(const Items& all, const uint8_t* all_segments, uint32_t lane) {
    items = all;
    row = kept(lane);
    segments = all_segments;
    item = static_cast<int>(warp());
    segment = all.segment;
    tile = all.first + item;
    words = {};  // without a value on every path they would live, as registers, from one walk to the next
    if (item >= all.count) return;
    find_segment();
    load_words(words, from, row);
  }

  template <class Sink>
  LK_MEMBER void run(const Dot<Block>& dot, const uint8_t* staged, Sink& sink) {
    const int warps = static_cast<int>(threads() / 32);
    const int x_back = items.shared_x * kStagedTile * (items.end - items.begin);
    const uint8_t* x = staged + kStagedTile * item - x_back * segment;
    float sum = 0.0f;
#pragma unroll 1
    while (item < items.count) {
      const uint8_t* this_x = x;
      const int this_segment = segment;
      item += warps;
      tile += warps;
      from += warps * Tile<Block>::kBytes;
      x += warps * kStagedTile;
      const bool more = item < items.count;
      const bool last = tile >= items.end || !more;
      if (last && more) {
        find_segment();
        x -= x_back * (segment - this_segment);
      }
      sum = dot256<Block>(words, dot, this_x, more, from, row, sum);
      if (last) {
        sink.add(this_segment, load_segment(segments, this_segment).factor, sum);
        sum = 0.0f;
      }
    }
  }

 private:
  LK_MEMBER void find_segment() {
    while (tile >= items.end) {
      tile -= items.end - items.begin;
      ++segment;
    }
    from = load_segment(segments, segment).tiles + static_cast<int64_t>(tile) * Tile<Block>::kBytes;
  }
};

// Adds what the warps have, in their order; warp 0 has the sums of lane l's row in the end. sums: kSums numbers for
// each thread. Barriers before its next use are the caller's.
template <class Sink>
LK_DEVICE void add_warps(Sink& sink, uint8_t* sums) {
#pragma unroll
  for (uint32_t k = 0; k < Sink::kSums; ++k) store4(sums + 4 * (k * threads() + thread()), bits_of_float(sink.sum[k]));
  barrier();
  if (warp() > 0) return;
#pragma unroll
  for (uint32_t k = 0; k < Sink::kSums; ++k) {
    for (uint32_t i = lane() + 32; i < threads(); i += 32) {
      sink.sum[k] += float_of_bits(load4(sums + 4 * (k * threads() + i)));
    }
  }
}

}  // namespace cuda
}  // namespace lutkern
