// Copies whose index is regular, such as transpositions and concatenations of channels: found when
// a program is loaded, run without the index.
#include <algorithm>
#include <cstring>
#include <string>

#include "defakeq/nodes.h"
#include "ops/node_checks.h"

namespace defakeq {

namespace {

constexpr size_t kMostMoves = 256;
// Fewer chunks a move are not worth one.
constexpr int64_t kLeastChunks = 8;
constexpr int64_t kTile = 16;
// What passes through all moves before the next repetitions.
constexpr int64_t kCacheBytes = int64_t{64} << 10;

class Finder {
 public:
  Finder(const int32_t* index, const int32_t* step, int64_t period, int64_t repeats,
         const std::vector<int64_t>& input_chunks)
      : index_(index), step_(step), period_(period), repeats_(repeats) {
    ends_.push_back(0);
    for (const int64_t n : input_chunks) ends_.push_back(ends_.back() + n);
  }

  std::vector<CopyMove> find() {
    std::vector<CopyMove> moves;
    for (int64_t i = 0; i < period_;) {
      const CopyMove run = run_at(i);
      i += run.counts[2];
      if (moves.empty() || !joins(&moves.back(), run)) moves.push_back(run);
      const auto most =
          std::min<size_t>(kMostMoves, static_cast<size_t>(period_ * repeats_ / kLeastChunks));
      if (moves.size() > most) return {};
    }
    for (CopyMove& move : moves) {
      if (move.input == kAcross) return {};
      if (move.input >= 0) move.from -= ends_[static_cast<size_t>(move.input)];
    }
    return moves;
  }

 private:
  static constexpr int64_t kAcross = -2;  // repetitions from several inputs

  int64_t step(int64_t i) const { return step_ == nullptr ? 0 : step_[i]; }

  int64_t input_of(int64_t chunk) const {
    if (chunk < 0) return -1;
    return std::upper_bound(ends_.begin(), ends_.end(), chunk) - ends_.begin() - 1;
  }

  // The input of all repetitions of entry i.
  int64_t input_at(int64_t i) const {
    const int64_t first = input_of(index_[i]);
    return first == input_of(index_[i] + (repeats_ - 1) * step(i)) ? first : kAcross;
  }

  // The longest run from entry i on.
  CopyMove run_at(int64_t i) const {
    CopyMove run;
    run.input = input_at(i);
    run.from = index_[i];
    run.to = i;
    run.counts[0] = repeats_;
    run.from_steps[0] = step(i);
    run.to_steps[0] = period_;
    const auto follows = [&](int64_t at, int64_t apart) {
      return at < period_ && index_[at] - index_[at - 1] == apart && step(at) == step(i) &&
             input_at(at) == run.input;
    };
    if (i + 1 == period_ || !follows(i + 1, index_[i + 1] - index_[i])) return run;
    const int64_t apart = index_[i + 1] - index_[i];
    // what comes next may be a run of its own
    if (apart != 1 && follows(i + 2, 1)) return run;
    run.from_steps[2] = apart;
    while (follows(i + run.counts[2], apart)) ++run.counts[2];
    return run;
  }

  // Whether a run lies behind a move's last group as that behind the one before it; it is then part
  // of the move.
  static bool joins(CopyMove* move, const CopyMove& run) {
    const int64_t groups = move->counts[1];
    const int64_t from = run.from - move->from - (groups - 1) * move->from_steps[1];
    const int64_t to = run.to - move->to - (groups - 1) * move->to_steps[1];
    const bool alike = run.input == move->input && run.counts[2] == move->counts[2] &&
                       run.from_steps[0] == move->from_steps[0] &&
                       run.from_steps[2] == move->from_steps[2];
    if (!alike || (groups > 1 && (from != move->from_steps[1] || to != move->to_steps[1]))) {
      return false;
    }
    move->from_steps[1] = from;
    move->to_steps[1] = to;
    ++move->counts[1];
    return true;
  }

  const int32_t* index_;
  const int32_t* step_;
  int64_t period_, repeats_;
  std::vector<int64_t> ends_;
};

struct Range {
  int64_t begin, end;
};

// One dimension of a move: steps in bytes.
struct Dimension {
  int64_t count;
  int64_t from, to;
};

// Calls fn(from, to) for each pair of the two dimensions, of which b has more.
template <class Fn>
void for_pairs(const Dimension& a, const Dimension& b, const char* from, char* to, Fn&& fn) {
  if (a.count > b.count) return for_pairs(b, a, from, to, fn);
  for (int64_t i = 0; i < a.count; ++i) {
    const char* x = from + i * a.from;
    char* y = to + i * a.to;
    for (int64_t j = 0; j < b.count; ++j, x += b.from, y += b.to) fn(x, y);
  }
}

void copy_runs(const Dimension& a, const Dimension& b, size_t bytes, const char* from, char* to) {
  const auto fixed = [&]<size_t kBytes>() {
    for_pairs(a, b, from, to, [](const char* x, char* y) { std::memcpy(y, x, kBytes); });
  };
  switch (bytes) {
    case 1:
      return fixed.template operator()<1>();
    case 2:
      return fixed.template operator()<2>();
    case 4:
      return fixed.template operator()<4>();
    case 8:
      return fixed.template operator()<8>();
    case 16:
      return fixed.template operator()<16>();
    default:
      for_pairs(a, b, from, to, [&](const char* x, char* y) { std::memcpy(y, x, bytes); });
  }
}

template <class Word>
Word load(const char* from) {
  Word word;
  std::memcpy(&word, from, sizeof(word));
  return word;
}

// Four rows of four bytes to the columns: pairs change places, then single bytes.
void transpose_block(const char* from, int64_t from_step, char* to, int64_t to_step, uint8_t) {
  constexpr uint32_t kLow = 0xffff, kEven = 0xff00ff;
  uint32_t row[4], pair[4];
  for (int i = 0; i < 4; ++i) row[i] = load<uint32_t>(from + i * from_step);
  for (int i = 0; i < 2; ++i) {
    pair[i] = (row[i] & kLow) | (row[i + 2] << 16);
    pair[i + 2] = (row[i] >> 16) | (row[i + 2] & ~kLow);
  }
  for (int i = 0; i < 4; i += 2) {
    const uint32_t column[2] = {(pair[i] & kEven) | ((pair[i + 1] & kEven) << 8),
                                ((pair[i] >> 8) & kEven) | (pair[i + 1] & ~kEven)};
    for (int j = 0; j < 2; ++j) std::memcpy(to + (i + j) * to_step, &column[j], 4);
  }
}

void transpose_block(const char* from, int64_t from_step, char* to, int64_t to_step, float) {
  for (int i = 0; i < 4; ++i) {
    for (int j = 0; j < 4; ++j)
      std::memcpy(to + j * to_step + i * 4, from + i * from_step + j * 4, 4);
  }
}

// Inputs are adjacent along a, outputs along b: in tiles, so that each line of cache is taken once.
template <class T>
void transpose(const Dimension& a, const Dimension& b, const char* from, char* to) {
  constexpr int64_t kSize = sizeof(T), kBlock = 4;
  const int64_t whole_a = a.count / kBlock * kBlock, whole_b = b.count / kBlock * kBlock;
  const auto blocks = [&](int64_t i0, int64_t i1, int64_t j0, int64_t j1) {
    for (int64_t i = i0; i < i1; i += kBlock) {
      for (int64_t j = j0; j < j1; j += kBlock) {
        transpose_block(from + i * kSize + j * b.from, b.from, to + i * a.to + j * kSize, a.to,
                        T{});
      }
    }
  };
  for (int64_t i = 0; i < whole_a; i += kTile) {
    for (int64_t j = 0; j < whole_b; j += kTile) {
      blocks(i, std::min(i + kTile, whole_a), j, std::min(j + kTile, whole_b));
    }
  }
  const auto single = [&](int64_t i, int64_t j) {
    std::memcpy(to + i * a.to + j * kSize, from + i * kSize + j * b.from, kSize);
  };
  for (int64_t i = 0; i < a.count; ++i) {
    for (int64_t j = i < whole_a ? whole_b : 0; j < b.count; ++j) single(i, j);
  }
}

void run_move(const MoveArgs& args, CopyMove move, const Range& repeats, const Range& groups) {
  const int64_t bytes = args.chunk_bytes;
  move.from += repeats.begin * move.from_steps[0] + groups.begin * move.from_steps[1];
  move.to += repeats.begin * move.to_steps[0] + groups.begin * move.to_steps[1];
  move.counts[0] = repeats.end - repeats.begin;
  move.counts[1] = groups.end - groups.begin;
  const auto dimension = [&](int d) {
    return Dimension{move.counts[d], move.from_steps[d] * bytes, move.to_steps[d] * bytes};
  };
  const Dimension outer = dimension(0), inner = dimension(1), row = dimension(2);
  char* to = static_cast<char*>(args.out) + move.to * bytes;
  const auto run = static_cast<size_t>(move.counts[2] * bytes);
  if (move.input < 0) {
    return for_pairs(outer, inner, to, to,
                     [&](const char*, char* y) { std::memset(y, args.fill, run); });
  }
  const char* from = static_cast<const char*>(args.inputs[move.input]) + move.from * bytes;
  if (move.counts[2] == 1 || move.from_steps[2] == 1) {
    return copy_runs(outer, inner, run, from, to);
  }
  // Tiles along the dimension whose inputs are adjacent, forwards or backwards.
  const auto adjacent = [&](int d) { return std::abs(move.from_steps[d]) == 1; };
  const bool by_repeats = adjacent(0) && move.counts[0] > 1;
  const bool tiles = (by_repeats || adjacent(1)) && (bytes == 1 || bytes == 4);
  Dimension along = by_repeats ? outer : inner;
  const Dimension& rest = by_repeats ? inner : outer;
  if (along.from < 0) {
    from += (along.count - 1) * along.from;
    to += (along.count - 1) * along.to;
    along.from = -along.from;
    along.to = -along.to;
  }
  for (int64_t i = 0; i < rest.count; ++i) {
    const char* x = from + i * rest.from;
    char* y = to + i * rest.to;
    if (!tiles) {
      for_pairs(along, row, x, y,
                [&](const char* p, char* q) { std::memcpy(q, p, static_cast<size_t>(bytes)); });
    } else if (bytes == 1) {
      transpose<uint8_t>(along, row, x, y);
    } else {
      transpose<float>(along, row, x, y);
    }
  }
}

}  // namespace

std::vector<CopyMove> copy_moves(const int32_t* index, const int32_t* step, int64_t period,
                                 int64_t repeats, const std::vector<int64_t>& input_chunks) {
  check_pointer("index", index);
  check_size("period", period);
  check_range("repeats", repeats, 1, step == nullptr ? 1 : kMaxSize);
  int64_t chunks = 0;
  for (const int64_t n : input_chunks) {
    check_range("input_chunks", n, 0, INT32_MAX);
    chunks += n;
  }
  for (int64_t i = 0; i < period; ++i) {
    const int64_t last = index[i] + (repeats - 1) * (step == nullptr ? 0 : step[i]);
    if (std::min<int64_t>(index[i], last) < -1 || std::max<int64_t>(index[i], last) >= chunks) {
      refuse("index", std::to_string(index[i]) + " to " + std::to_string(last),
             "-1 to " + std::to_string(chunks - 1) + ", the chunks of the inputs");
    }
  }
  return Finder(index, step, period, repeats, input_chunks).find();
}

void move_chunks(const MoveArgs& args, Parallel& parallel) {
  check_range("count", args.count, 1, kMaxSize);
  check_size("chunk_bytes", args.chunk_bytes);
  check_pointer("moves", args.moves);
  check_pointer("out", args.out);
  for (int64_t i = 0; i < args.count; ++i) {
    const int64_t input = args.moves[i].input;
    if (input >= 0) check_pointer("inputs", args.inputs[input]);
  }
  const int64_t repeats = args.moves[0].counts[0], period = args.moves[0].to_steps[0];
  if (repeats == 1) {
    for (int64_t i = 0; i < args.count; ++i) {
      const CopyMove& move = args.moves[i];
      const int64_t tiles = (move.counts[1] + kTile - 1) / kTile;
      share(parallel, tiles, kTile * move.counts[2] * args.chunk_bytes,
            [&](int64_t, int64_t begin, int64_t end) {
              run_move(args, move, {0, 1}, {begin * kTile, std::min(end * kTile, move.counts[1])});
            });
    }
    return;
  }
  const int64_t bytes = period * args.chunk_bytes;
  const int64_t at_once = (kCacheBytes / bytes + kTile) / kTile * kTile;
  share(parallel, (repeats + at_once - 1) / at_once, at_once * bytes,
        [&](int64_t, int64_t begin, int64_t end) {
          for (int64_t block = begin; block < end; ++block) {
            const Range rows = {block * at_once, std::min((block + 1) * at_once, repeats)};
            for (int64_t i = 0; i < args.count; ++i) {
              run_move(args, args.moves[i], rows, {0, args.moves[i].counts[1]});
            }
          }
        });
}

}  // namespace defakeq
