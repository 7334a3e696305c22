// defakeq::Program for Python: float32 numpy arrays in and out.
#include "bindings/python_program.h"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "bindings/python_arrays.h"
#include "defakeq/program.h"

namespace py = pybind11;

namespace {

using defakeq::NodeInfo;
using defakeq::Program;
using defakeq::ProgramPort;

std::string text(const std::vector<int64_t>& shape) {
  std::string out = "[N";
  for (const int64_t size : shape) out += ", " + std::to_string(size);
  return out + "]";
}

std::vector<py::array> run(Program& program, const std::vector<py::array>& inputs,
                           std::vector<double>* seconds) {
  const std::vector<ProgramPort>& ports = program.inputs();
  if (inputs.size() != ports.size()) {
    throw std::invalid_argument("inputs: found " + std::to_string(inputs.size()) +
                                "; accepted is one array for each of the program's " +
                                std::to_string(ports.size()) + " inputs");
  }
  int64_t batch = ports.empty() ? 1 : -1;
  std::vector<py::array> kept;
  std::vector<const float*> in;
  for (size_t i = 0; i < ports.size(); ++i) {
    const py::array& x = inputs[i];
    bool good = py::dtype::of<float>().equal(x.dtype()) &&
                x.ndim() == static_cast<py::ssize_t>(ports[i].shape.size()) + 1;
    for (size_t d = 0; good && d < ports[i].shape.size(); ++d) {
      good = x.shape(static_cast<py::ssize_t>(d) + 1) == ports[i].shape[d];
    }
    if (!good) {
      throw std::invalid_argument("input '" + ports[i].name + "': found " +
                                  defakeq::python::describe(x) + "; accepted is float32" +
                                  text(ports[i].shape));
    }
    if (batch < 0) batch = x.shape(0);
    if (x.shape(0) != batch) {
      throw std::invalid_argument("input '" + ports[i].name + "': found a batch of " +
                                  std::to_string(x.shape(0)) + "; accepted is " +
                                  std::to_string(batch) + ", that of the first input");
    }
    py::array dense = py::array::ensure(x, py::array::c_style);
    if (!dense) throw py::error_already_set();
    in.push_back(static_cast<const float*>(dense.data()));
    kept.push_back(std::move(dense));
  }
  std::vector<py::array> results;
  std::vector<float*> out;
  for (const ProgramPort& port : program.outputs()) {
    std::vector<py::ssize_t> shape{batch};
    shape.insert(shape.end(), port.shape.begin(), port.shape.end());
    py::array_t<float> result(shape);
    out.push_back(result.mutable_data());
    results.push_back(std::move(result));
  }
  if (seconds != nullptr) seconds->resize(program.nodes().size());
  {
    const py::gil_scoped_release release;
    program.run(in.data(), out.data(), batch, seconds == nullptr ? nullptr : seconds->data());
  }
  return results;
}

Program of_bytes(const py::buffer& data, int threads) {
  const py::buffer_info info = data.request();
  if (info.itemsize != 1 || info.ndim != 1 || (info.size > 1 && info.strides[0] != 1)) {
    throw std::invalid_argument("data: found a buffer of " + std::to_string(info.ndim) +
                                " dimensions and items of " + std::to_string(info.itemsize) +
                                " bytes; accepted are bytes, or one contiguous dimension of them");
  }
  const auto bytes = static_cast<size_t>(info.size);
  const py::gil_scoped_release release;
  if (reinterpret_cast<uintptr_t>(info.ptr) % sizeof(uint64_t) == 0) {
    return Program::parse(info.ptr, bytes, threads);
  }
  std::vector<uint64_t> aligned((bytes + sizeof(uint64_t) - 1) / sizeof(uint64_t));
  std::memcpy(aligned.data(), info.ptr, bytes);
  return Program::parse(aligned.data(), bytes, threads);
}

py::list ports_of(const std::vector<ProgramPort>& ports) {
  py::list list;
  for (const ProgramPort& port : ports) {
    py::dict d;
    d["name"] = port.name;
    d["shape"] = py::tuple(py::cast(port.shape));
    list.append(d);
  }
  return list;
}

py::list nodes_of(const Program& program) {
  py::list list;
  for (const NodeInfo& node : program.nodes()) {
    py::dict d;
    d["name"] = node.name;
    d["op"] = node.op;
    d["kernel"] = node.kernel;
    d["shape"] = py::tuple(py::cast(node.shape));
    d["macs"] = node.macs;
    d["macs_skipped"] = node.macs_skipped;
    d["weight_bytes"] = node.weight_bytes;
    list.append(d);
  }
  return list;
}

py::dict info_of(const Program& program) {
  const defakeq::ProgramInfo& info = program.info();
  py::dict d;
  d["packed_bytes"] = info.packed_bytes;
  d["arena_bytes"] = info.arena_bytes;
  d["live_bytes"] = info.live_bytes;
  d["macs"] = info.macs;
  d["load_seconds"] = info.load_seconds;
  d["read_seconds"] = info.read_seconds;
  d["pack_seconds"] = info.pack_seconds;
  return d;
}

}  // namespace

void bind_program(py::module_& m) {
  py::class_<Program>(m, "Program", "A whole network, loaded for this processor.")
      .def(py::init([](const std::string& path, int threads) {
             const py::gil_scoped_release release;
             return Program::load(path, threads);
           }),
           py::arg("path"), py::arg("threads") = 1)
      .def_static("of_bytes", &of_bytes, py::arg("data"), py::arg("threads") = 1,
                  "The program of a file's content: a contiguous buffer of bytes.")
      .def_property_readonly("inputs", [](const Program& p) { return ports_of(p.inputs()); })
      .def_property_readonly("outputs", [](const Program& p) { return ports_of(p.outputs()); })
      .def_property_readonly("nodes", &nodes_of)
      .def_property_readonly("info", &info_of)
      .def_property("threads", &Program::threads,
                    [](Program& p, int threads) {
                      const py::gil_scoped_release release;
                      p.set_threads(threads);
                    })
      .def(
          "run",
          [](Program& p, const std::vector<py::array>& inputs) { return run(p, inputs, nullptr); },
          py::arg("inputs"), "Arrays [N, *shape] in the order of inputs -> those of outputs.")
      .def(
          "profile",
          [](Program& p, const std::vector<py::array>& inputs) {
            std::vector<double> seconds;
            run(p, inputs, &seconds);
            return seconds;
          },
          py::arg("inputs"), "Runs once; the seconds of each node.");
}
