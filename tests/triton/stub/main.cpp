// Runs every layer of a folder on made-up addresses.
#include <cstdio>
#include <exception>

#include "defakeq_aot.h"

int main(int, char** arguments) {
  try {
    defakeq_aot::Network network(arguments[1]);
    for (const std::string& layer : network.layers()) {
      std::printf("layer %s\n", layer.c_str());
      defakeq_aot::Operands operands;
      for (const auto& tensor : network.tensors(layer)) {
        if (tensor.name == "x") operands.x = 0x1000;
        if (tensor.name == "out") operands.out = 0x2000;
        if (tensor.name == "residual") operands.residual = 0x3000;
        if (tensor.name == "half") operands.half = 0x4000;
      }
      network.run(layer, operands, nullptr);
    }
    defakeq_aot::Operands none;
    if (!network.layers().empty()) network.run(network.layers()[0], none, nullptr);
  } catch (const std::exception& error) {
    std::printf("error %s\n", error.what());
    return 3;
  }
}
