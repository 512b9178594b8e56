// Sixteen whole rows at a time, four of them side by side in a vector: what a tile and its blocks exchange is a
// transposition of words, and the bits inside of a word are permuted for four rows at once.
//
// Tiles of fewer rows or columns go row by row, as the tile is defined.
#pragma once
#include "tile.h"

namespace lutkern {

// The same word of four rows. Vectors of GCC and Clang: every processor of the ABI floor has them.
using RowWords = uint32_t __attribute__((vector_size(16)));

LK_FN RowWords load_words(const uint8_t* p) {
  RowWords words;
  memcpy(&words, p, sizeof(words));
  return words;
}

LK_FN void store_words(uint8_t* p, RowWords words) { memcpy(p, &words, sizeof(words)); }

// Lanes of a, then lanes of b, numbered through
template <int... kLane, class V>
LK_FN V shuffle(V a, V b) {
#if defined(__clang__)
  return __builtin_shufflevector(a, b, kLane...);
#else
  return __builtin_shuffle(a, b, V{kLane...});
#endif
}

// Four words of four rows each: rows in, columns out.
LK_FN void transpose(RowWords* w) {
  const RowWords low01 = shuffle<0, 4, 1, 5>(w[0], w[1]);
  const RowWords low23 = shuffle<0, 4, 1, 5>(w[2], w[3]);
  const RowWords high01 = shuffle<2, 6, 3, 7>(w[0], w[1]);
  const RowWords high23 = shuffle<2, 6, 3, 7>(w[2], w[3]);
  w[0] = shuffle<0, 1, 4, 5>(low01, low23);
  w[1] = shuffle<2, 3, 6, 7>(low01, low23);
  w[2] = shuffle<0, 1, 4, 5>(high01, high23);
  w[3] = shuffle<2, 3, 6, 7>(high01, high23);
}

// Words of four rows, n of them and at least four, which lie row_bytes apart. The last four may overlap those before.
template <int n>
LK_FN void load_rows(const uint8_t* rows, int64_t row_bytes, RowWords* words) {
  for (int u = 0; u < n; u += 4) {
    const int first = u + 4 <= n ? u : n - 4;
    RowWords square[4];
    for (int r = 0; r < 4; ++r) square[r] = load_words(rows + r * row_bytes + 4 * first);
    transpose(square);
    for (int i = 0; i < 4; ++i) words[first + i] = square[i];
  }
}

template <int n>
LK_FN void store_rows(const RowWords* words, int64_t row_bytes, uint8_t* rows) {
  for (int u = 0; u < n; u += 4) {
    const int first = u + 4 <= n ? u : n - 4;
    RowWords square[4];
    for (int i = 0; i < 4; ++i) square[i] = words[first + i];
    transpose(square);
    for (int r = 0; r < 4; ++r) store_words(rows + r * row_bytes + 4 * first, square[r]);
  }
}

// Words that stay as they are need no place in between.
template <int n>
LK_FN void put_plain(const uint8_t* rows, int64_t row_bytes, uint8_t* body) {
  for (int u = 0; u < n; u += 4) {
    const int first = u + 4 <= n ? u : n - 4;
    for (int r = 0; r < kTileRows; r += 4) {
      RowWords square[4];
      for (int i = 0; i < 4; ++i) square[i] = load_words(rows + (r + i) * row_bytes + 4 * first);
      transpose(square);
      for (int i = 0; i < 4; ++i) store_words(body + 4 * ((first + i) * kTileRows + r), square[i]);
    }
  }
}

template <int n>
LK_FN void get_plain(const uint8_t* body, int64_t row_bytes, uint8_t* rows) {
  for (int r = 0; r < kTileRows; r += 4) {
    for (int u = 0; u < n; u += 4) {
      const int first = u + 4 <= n ? u : n - 4;
      RowWords square[4];
      for (int i = 0; i < 4; ++i) square[i] = load_words(body + 4 * ((first + i) * kTileRows + r));
      transpose(square);
      for (int i = 0; i < 4; ++i) store_words(rows + (r + i) * row_bytes + 4 * first, square[i]);
    }
  }
}

template <class T>
LK_FN void put_panel(const uint8_t* blocks, int64_t row_bytes, uint8_t* body, uint8_t* tail) {
  if constexpr (T::Order::kPlain) {
    put_plain<T::kWords>(blocks + T::kBodyFrom, row_bytes, body);
  } else {
    for (int r = 0; r < kTileRows; r += 4) {
      RowWords words[T::kWords];
      load_rows<T::kWords>(blocks + r * row_bytes + T::kBodyFrom, row_bytes, words);
      T::Order::stored(words);
      for (int u = 0; u < T::kWords; ++u) store_words(body + 4 * (u * kTileRows + r), words[u]);
    }
  }
  for (int i = 0; i < T::kTailBytes / T::kTailItem; ++i) {
    for (int r = 0; r < kTileRows; ++r) {
      memcpy(tail + T::kTailItem * (i * kTileRows + r), blocks + r * row_bytes + T::kTailFrom + T::kTailItem * i,
             T::kTailItem);
    }
  }
}

template <class T>
LK_FN void get_panel(const uint8_t* body, const uint8_t* tail, int64_t row_bytes, uint8_t* blocks) {
  if constexpr (T::Order::kPlain) {
    get_plain<T::kWords>(body, row_bytes, blocks + T::kBodyFrom);
  } else {
    for (int r = 0; r < kTileRows; r += 4) {
      RowWords words[T::kWords];
      for (int u = 0; u < T::kWords; ++u) words[u] = load_words(body + 4 * (u * kTileRows + r));
      T::Order::natural(words);
      store_rows<T::kWords>(words, row_bytes, blocks + r * row_bytes + T::kBodyFrom);
    }
  }
  for (int i = 0; i < T::kTailBytes / T::kTailItem; ++i) {
    for (int r = 0; r < kTileRows; ++r) {
      memcpy(blocks + r * row_bytes + T::kTailFrom + T::kTailItem * i, tail + T::kTailItem * (i * kTileRows + r),
             T::kTailItem);
    }
  }
}

}  // namespace lutkern
