// A driver that only writes down what it is asked, to test the loader without a GPU.
#include <cuda.h>

#include <cstdint>
#include <cstdio>
#include <cstring>
#include <map>
#include <string>

static uint64_t next_address = 0x10000;
static int modules = 0;

extern "C" {
CUresult CUDAAPI cuGetErrorString(CUresult error, const char** text) {
  *text = error == CUDA_ERROR_INVALID_IMAGE ? "device kernel image is invalid" : "stub error";
  return CUDA_SUCCESS;
}
CUresult CUDAAPI cuModuleLoadData(CUmodule* module, const void* image) {
  if (std::memcmp(image,
                  "\x7f"
                  "ELF",
                  4) != 0)
    return CUDA_ERROR_INVALID_IMAGE;
  *module = reinterpret_cast<CUmodule>(static_cast<uintptr_t>(++modules));
  return CUDA_SUCCESS;
}
CUresult CUDAAPI cuModuleUnload(CUmodule) {
  --modules;
  if (modules == 0) std::printf("unloaded\n");
  return CUDA_SUCCESS;
}
CUresult CUDAAPI cuModuleGetFunction(CUfunction* function, CUmodule, const char* name) {
  static std::map<std::string, int> names;
  *function =
      reinterpret_cast<CUfunction>(const_cast<char*>(names.emplace(name, 0).first->first.c_str()));
  return CUDA_SUCCESS;
}
CUresult CUDAAPI cuFuncSetAttribute(CUfunction, CUfunction_attribute, int value) {
  std::printf("shared %d\n", value);
  return CUDA_SUCCESS;
}
CUresult CUDAAPI cuMemAlloc(CUdeviceptr* memory, size_t size) {
  *memory = next_address;
  next_address += (size + 255) / 256 * 256;
  std::printf("alloc %llu %zu\n", *memory, size);
  return CUDA_SUCCESS;
}
CUresult CUDAAPI cuMemFree(CUdeviceptr) { return CUDA_SUCCESS; }
CUresult CUDAAPI cuMemcpyHtoD(CUdeviceptr to, const void*, size_t size) {
  std::printf("copy %llu %zu\n", to, size);
  return CUDA_SUCCESS;
}
CUresult CUDAAPI cuMemsetD8Async(CUdeviceptr to, unsigned char value, size_t size, CUstream) {
  std::printf("fill %llu %d %zu\n", to, value, size);
  return CUDA_SUCCESS;
}
CUresult CUDAAPI cuLaunchKernel(CUfunction function, unsigned gx, unsigned gy, unsigned gz,
                                unsigned threads, unsigned, unsigned, unsigned shared, CUstream,
                                void** arguments, void**) {
  std::printf("launch %s %u %u %u %u %u", reinterpret_cast<const char*>(function), gx, gy, gz,
              threads, shared);
  std::printf(" %016llx\n", *static_cast<unsigned long long*>(arguments[0]));
  return CUDA_SUCCESS;
}
}
