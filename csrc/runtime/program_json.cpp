#include <algorithm>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "runtime/fields.h"
#include "runtime/node_fields.h"
#include "runtime/node_reader.h"
#include "runtime/program_graph.h"
#include "runtime/tensor_type.h"

namespace defakeq {

namespace {

using fields::bad;
using fields::integer;
using fields::shown;

constexpr int64_t kMaxCount = 32768;  // values, nodes
constexpr size_t kMaxPorts = 256;
constexpr size_t kMaxRank = 8;

constexpr const char* kLayouts[] = {"plain", "nchw"};

std::vector<int64_t> read_shape(const std::string& field, const Json* json) {
  std::vector<int64_t> shape;
  int64_t count = 1;
  for (const Json& size : fields::list(field, json, 1, kMaxRank)) {
    shape.push_back(integer(field, &size, 1, kMaxElements));
    if (shape.back() > kMaxElements / count) {
      bad(field, shown(json), "at most 2^31 elements");
    }
    count *= shape.back();
  }
  return shape;
}

int64_t product(const std::vector<int64_t>& shape) {
  int64_t count = 1;
  for (const int64_t size : shape) count *= size;
  return count;
}

// The columns of a constant's tensor [rows][columns] that make it [rows][index].
const TensorView* read_columns(const DfqFile& file, const std::string& at, const Json* json,
                               const Value& value) {
  const TensorView* index = find_tensor(file, at, json, TensorType::kInt32, "I32");
  const std::vector<int64_t>& shape = value.tensor->shape;
  const int64_t columns = shape.empty() ? 1 : std::max<int64_t>(shape.back(), 1);
  const int64_t rows = product(shape) / columns;
  if (index->shape.size() != 1 || index->shape[0] < 1 || rows * index->shape[0] != value.count) {
    bad(at, shown(*index),
        "I32 whose count times " + std::to_string(rows) + " rows is " +
            std::to_string(value.count) + " elements");
  }
  const auto* entries = reinterpret_cast<const int32_t*>(index->data);
  for (int64_t i = 0; i < index->shape[0]; ++i) {
    if (entries[i] < 0 || entries[i] >= columns) {
      bad(at, std::to_string(entries[i]), "indices from 0 to " + std::to_string(columns - 1));
    }
  }
  return index;
}

Value read_value(const DfqFile& file, const std::string& at, const Json& json, int64_t values) {
  fields::object(at, &json);
  Value value;
  value.dtype = fields::one_of<DType>(at + ".dtype", json.find("dtype"), kDTypeNames);
  value.shape = read_shape(at + ".shape", json.find("shape"));
  value.count = product(value.shape);
  if (value.dtype == DType::kInt8) value.quantization = fields::quantization(at, json);
  if (const Json* base = json.find("base")) {
    value.base = static_cast<int>(integer(at + ".base", base, 0, values - 1));
    value.offset = integer(at + ".offset", json.find("offset"), 0, kMaxElements);
  }
  if (const Json* name = json.find("tensor")) {
    const std::string field = at + ".tensor";
    if (value.base >= 0) bad(field, name->shown(), "no tensor for a view");
    const bool is_float = value.dtype == DType::kFloat32;
    const std::string accepted =
        (is_float ? "F32 with shape " : "I8 with shape ") + fields::shown(value.shape);
    value.tensor = find_tensor(file, field, name,
                               is_float ? TensorType::kFloat32 : TensorType::kInt8, accepted);
    if (json.find("index") != nullptr) {
      value.index = read_columns(file, at + ".index", json.find("index"), value);
    } else if (value.tensor->shape != value.shape) {
      bad(field, shown(*value.tensor), accepted);
    }
    if (is_float) require_finite(field, *value.tensor);
  }
  return value;
}

void check_view(const std::string& at, const std::vector<Value>& values, const Value& view) {
  const Value& base = values[static_cast<size_t>(view.base)];
  if (base.base >= 0 || base.tensor != nullptr) {
    bad(at + ".base", std::to_string(view.base), "a value that is no view and no constant");
  }
  if (base.dtype != view.dtype ||
      (view.dtype == DType::kInt8 && !same(base.quantization, view.quantization))) {
    bad(at + ".base", "another type or quantization", "those of the view");
  }
  if (view.offset > base.count - view.count) {
    bad(at + ".offset", std::to_string(view.offset),
        "an offset that leaves " + std::to_string(view.count) + " of the base's " +
            std::to_string(base.count) + " elements");
  }
}

std::vector<Port> read_ports(const char* key, const Json& program, bool inputs, size_t least,
                             std::vector<Value>* values) {
  std::vector<Port> ports;
  std::set<std::string> names;
  const std::string list_at = std::string("program.") + key;
  const auto last = static_cast<int64_t>(values->size()) - 1;
  for (const Json& json : fields::list(list_at, program.find(key), least, kMaxPorts)) {
    const std::string at = list_at + "[" + std::to_string(ports.size()) + "]";
    fields::object(at, &json);
    Port port;
    port.name = fields::text(at + ".name", json.find("name"));
    if (!names.insert(port.name).second) {
      bad(at + ".name", shown_string(port.name) + " again", "a name once");
    }
    port.value = static_cast<int>(integer(at + ".value", json.find("value"), 0, last));
    port.nchw = fields::name_of(at + ".layout", json.find("layout"), kLayouts, 2) == 1;
    Value& value = (*values)[static_cast<size_t>(port.value)];
    if (port.nchw && value.shape.size() != 3) {
      bad(at + ".layout", "\"nchw\" for shape " + fields::shown(value.shape),
          "\"plain\", or a value of shape [h, w, c]");
    }
    if (inputs) {
      if (value.base >= 0 || value.tensor != nullptr || value.is_input) {
        bad(at + ".value", std::to_string(port.value),
            "a value that is no view, no constant and no other input");
      }
      value.is_input = true;
    }
    ports.push_back(std::move(port));
  }
  return ports;
}

}  // namespace

Graph read_graph(const DfqFile& file) {
  const auto text = file.metadata.find("network");
  if (text == file.metadata.end()) bad("network", "nothing", "the network's JSON");
  const Json network = Json::parse(text->second);
  const Json* program = network.find("program");
  if (program == nullptr) {
    bad("network.program", "nothing", "a program: a file of one, not of separate layers");
  }
  fields::object("network.program", program);
  integer("program.version", program->find("version"), 1, 1);
  Graph graph;
  const Json::Array& values = fields::list("program.values", program->find("values"), 1, kMaxCount);
  for (const Json& json : values) {
    const std::string at = "values[" + std::to_string(graph.values.size()) + "]";
    graph.values.push_back(read_value(file, at, json, static_cast<int64_t>(values.size())));
  }
  for (size_t v = 0; v < graph.values.size(); ++v) {
    if (graph.values[v].base >= 0) {
      check_view("values[" + std::to_string(v) + "]", graph.values, graph.values[v]);
    }
  }
  graph.inputs = read_ports("inputs", *program, true, 0, &graph.values);
  graph.outputs = read_ports("outputs", *program, false, 1, &graph.values);
  for (const Json& json : fields::list("program.nodes", program->find("nodes"), 0, kMaxCount)) {
    graph.nodes.push_back(read_node(file, graph.values, json, graph.nodes.size()));
  }
  check_flow(graph);
  return graph;
}

}  // namespace defakeq
