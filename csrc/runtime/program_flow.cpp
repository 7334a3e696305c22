#include <iterator>
#include <map>

#include "runtime/fields.h"
#include "runtime/program_graph.h"

namespace defakeq {

namespace {

// What has been written of one value: disjoint ranges of elements, adjacent ones merged.
class Written {
 public:
  // False when some of [begin, end) was written before.
  bool add(int64_t begin, int64_t end) {
    auto next = ranges_.lower_bound(begin);
    if (next != ranges_.end() && next->first < end) return false;
    if (next != ranges_.begin()) {
      const auto previous = std::prev(next);
      if (previous->second > begin) return false;
      if (previous->second == begin) {
        begin = previous->first;
        ranges_.erase(previous);
      }
    }
    if (next != ranges_.end() && next->first == end) {
      end = next->second;
      ranges_.erase(next);
    }
    ranges_[begin] = end;
    return true;
  }

  bool covers(int64_t begin, int64_t end) const {
    auto after = ranges_.upper_bound(begin);
    return after != ranges_.begin() && std::prev(after)->second >= end;
  }

 private:
  std::map<int64_t, int64_t> ranges_;
};

}  // namespace

void check_flow(const Graph& graph) {
  std::vector<Written> written(graph.values.size());
  const auto range = [&](int v, int64_t* begin) {
    const Value& value = graph.values[static_cast<size_t>(v)];
    *begin = value.offset;
    return value.offset + value.count;
  };
  for (const Port& port : graph.inputs) {
    const Value& value = graph.values[static_cast<size_t>(port.value)];
    written[static_cast<size_t>(port.value)].add(0, value.count);
  }
  const auto read = [&](const std::string& field, int v) {
    if (graph.values[static_cast<size_t>(v)].tensor != nullptr) return;
    int64_t begin = 0;
    const int64_t end = range(v, &begin);
    if (!written[static_cast<size_t>(graph.root(v))].covers(begin, end)) {
      fields::bad(field, "value " + std::to_string(v) + " before all of it is written",
                  "inputs, constants and results of earlier nodes");
    }
  };
  for (const Node& node : graph.nodes) {
    const std::string at = "node " + shown_string(node.name);
    for (const int v : node.in) {
      if (v >= 0) read(at + " in", v);
    }
    int64_t begin = 0;
    const int64_t end = range(node.out, &begin);
    if (!written[static_cast<size_t>(graph.root(node.out))].add(begin, end)) {
      fields::bad(at + " out", "value " + std::to_string(node.out) + " again",
                  "a value that no other node writes and that is no input");
    }
  }
  for (const Port& port : graph.outputs) read("outputs." + port.name, port.value);
}

}  // namespace defakeq
