// Blocks to tiles and back, over threads.
#pragma once
#include "../parallel.h"
#include "../tensor.h"

namespace lutkern {

// Bytes of a row of tiles, 16 rows of a weight with that many columns: a multiple of 64.
int64_t tile_row_bytes(FormatId format, int64_t cols);

// Columns first .. first + n - 1 of a row of tiles as blocks, n_rows of them, row_bytes apart. first is a multiple of
// 256; cols and n are columns of the weight.
void get_tiles(FormatId format, int64_t cols, const uint8_t* tiles, int64_t first, int64_t n, int n_rows,
               int64_t row_bytes, uint8_t* blocks);

// Up to 16 rows of blocks as one row of tiles, every byte of it written
void put_tiles(FormatId format, int64_t cols, const uint8_t* blocks, int64_t row_bytes, int n_rows, uint8_t* tiles);

// The whole weight
void to_tiles(const Weight& blocks, uint8_t* tiles, const Runner& runner);
void to_blocks(const Weight& tiles, uint8_t* blocks, const Runner& runner);

}  // namespace lutkern
