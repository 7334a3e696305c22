// The integer products of 3x3 convolutions of stride 1 by Winograd's F(4x4, 3x3), some lines of
// tiles at a time.
#pragma once

#include <cstdint>

#include "defakeq/parallel.h"
#include "kernels/kernel_table.h"
#include "kernels/winograd_args.h"
#include "ops/activations.h"
#include "ops/arena.h"
#include "pack/packed_layer.h"

namespace defakeq {

class Winograd {
 public:
  // For chunks of up to `chunk` images.
  Winograd(const PackedLayer& layer, const KernelTable& kernels, const Images& images,
           const Activations& activations, int64_t chunk, int tasks);

  // Whether that is faster than the direct products. Nothing else is called where it is not.
  bool pays() const { return pays_; }
  // Whether a task has lines of tiles of its own; else tasks share the strips of all lines.
  bool by_rows() const { return by_rows_; }
  void place(Arena& arena);

  // Lines of tiles of `count` images, and where they begin among the rows of outputs.
  int64_t lines(int64_t count) const { return count * image_lines_; }
  int64_t row_of(int64_t line) const;
  // Those that a task takes at once, of `lines` that it has.
  int64_t lines_at_once(int64_t lines) const;
  // The most rows that are at once in a task's hands.
  int64_t rows_at_once() const { return held_rows_; }

  void start();
  // Transforms the activations of lines [begin, end), which a task holds from then on.
  void load(int64_t task, int64_t begin, int64_t end);
  // The same of all lines, which the tasks hold together.
  void load_shared(int64_t count, Parallel& parallel);
  // Sums of (code - zero_point) * x of 16 outputs, of rows [row0, row1) of whole lines that the
  // task holds, as `part` of the sums of a strip.
  void multiply(int64_t task, const uint8_t* codes, const int32_t* zero_point, int64_t row0,
                int64_t row1, int part) const;
  // [rows][kStripLanes] from row0 on
  const int32_t* sums(int64_t task, int64_t row0) const;
  // As many zeros as there may be rows, and outputs of a strip.
  const int32_t* zeros() const { return zeros_; }
  static constexpr int64_t kStripLanes = int64_t{kTileBlocks} * kBlock;

 private:
  bool fits() const;
  void choose();
  int64_t line_of(int64_t row) const;
  void transform(int64_t task, int64_t begin, int64_t end);
  int64_t holder(int64_t task) const { return by_rows_ ? task : 0; }

  const PackedLayer& layer_;
  const KernelTable& kernels_;
  const Images& images_;
  const Activations& activations_;
  int64_t chunk_;
  int tasks_;
  bool pays_ = false, by_rows_ = true;
  int64_t line_tiles_ = 0, image_lines_ = 0;  // tiles a line, lines an image
  int64_t most_lines_ = 0;                    // that a task has loaded at once
  int64_t held_rows_ = 0;                     // and their rows
  int64_t channels_ = 0, steps_ = 0;          // as they are stored

  int64_t v_tiles_ = 0;  // of a task, or of all
  int64_t v_stride_ = 0, u_stride_ = 0;
  WinogradTile* tiles_ = nullptr;
  int16_t* v_ = nullptr;
  int16_t* u_ = nullptr;
  int32_t* products_ = nullptr;
  int32_t* sums_ = nullptr;
  int32_t* zeros_ = nullptr;
  int64_t* first_line_ = nullptr;  // a task: of its loaded lines
};

}  // namespace defakeq
