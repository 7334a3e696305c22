#include "defakeq/dfq_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstring>
#include <stdexcept>
#include <string_view>
#include <tuple>

#include "runtime/base64.h"
#include "runtime/crc32.h"
#include "runtime/dfq_layer.h"
#include "runtime/fields.h"
#include "runtime/inflate.h"
#include "runtime/joint_tensors.h"
#include "runtime/json.h"
#include "runtime/tensor_type.h"

static_assert(std::endian::native == std::endian::little, "files are read in place");

namespace defakeq {

namespace {

using fields::bad;
using fields::integer;
using fields::list;
using fields::object;
using fields::shown;

constexpr uint64_t kMaxHeader = uint64_t{1} << 24;
constexpr size_t kMaxNetwork = size_t{1} << 24;
constexpr size_t kLengthBytes = 8;
constexpr size_t kCrcDigits = 8;
constexpr std::string_view kHeaderStart =
    R"({"__metadata__":{"format":"defakeq","version":"1","crc32":")";

Json parse_json(const std::string& field, std::string_view text) {
  try {
    return Json::parse(text);
  } catch (const std::runtime_error& error) {
    bad(field, error.what(), "strict JSON");
  }
}

// Header ------------------------------------------------------------------------------------------

TensorView read_entry(const std::string& field, const Json& entry, const uint8_t* payload,
                      int64_t payload_bytes) {
  if (object(field, &entry).size() != 3) {
    bad(field, entry.shown(), "dtype, shape and data_offsets");
  }
  TensorView view;
  view.dtype = fields::one_of<TensorType>(field + " dtype", entry.find("dtype"), kTensorTypeNames);
  const int64_t element = kTensorTypeBytes[static_cast<size_t>(view.dtype)];
  view.shape = tensor_shape(field + " shape", entry.find("shape"));
  const int64_t count = element_count(view.shape, payload_bytes / element);
  if (count < 0) {
    bad(field + " shape", shown(view.shape),
        "no more than the " + std::to_string(payload_bytes) + " bytes of the file");
  }
  const int64_t bytes = count * element;
  const Json::Array& offsets = list(field + " data_offsets", entry.find("data_offsets"), 2, 2);
  const int64_t begin = integer(field + " data_offsets", &offsets[0], 0, payload_bytes);
  const int64_t end = integer(field + " data_offsets", &offsets[1], begin, payload_bytes);
  if (end - begin != bytes || begin % element != 0) {
    bad(field + " data_offsets", shown(entry.find("data_offsets")),
        std::to_string(bytes) + " aligned bytes for its shape");
  }
  view.data = payload + begin;
  view.nbytes = static_cast<size_t>(bytes);
  return view;
}

// Tensors lie end to end and fill the payload.
void check_cover(const DfqFile& file, const uint8_t* payload, int64_t payload_bytes) {
  std::vector<std::tuple<int64_t, int64_t, const std::string*>> spans;
  for (const auto& [name, view] : file.tensors) {
    const int64_t begin = view.data - payload;
    spans.emplace_back(begin, begin + static_cast<int64_t>(view.nbytes), &name);
  }
  std::sort(spans.begin(), spans.end());
  int64_t at = 0;
  for (const auto& [begin, end, name] : spans) {
    if (begin != at) {
      bad("tensor " + shown_string(*name) + " data_offsets", "a start at " + std::to_string(begin),
          "a start at " + std::to_string(at));
    }
    at = end;
  }
  if (at != payload_bytes) {
    bad("data_offsets", std::to_string(at) + " bytes of tensors",
        "the " + std::to_string(payload_bytes) + " of the file");
  }
}

void read_metadata(const Json* json, std::string_view header, DfqFile* file) {
  for (const auto& [key, value] : object("__metadata__", json)) {
    if (value.string() == nullptr) bad("__metadata__." + key, value.shown(), "a string");
    file->metadata[key] = *value.string();
  }
  for (const char* key : {"format", "version", "crc32", "network"}) {
    if (file->metadata.count(key) == 0) {
      bad(std::string("__metadata__.") + key, "nothing", "a string");
    }
  }
  const std::pair<const char*, const char*> fixed[] = {{"format", "defakeq"}, {"version", "1"}};
  for (const auto& [key, accepted] : fixed) {
    const std::string& found = file->metadata[key];
    if (found != accepted) {
      bad(std::string("__metadata__.") + key, shown_string(found), shown_string(accepted));
    }
  }
  if (header.substr(0, kHeaderStart.size()) != kHeaderStart) {
    bad("header", shown_string(header.substr(0, kHeaderStart.size())),
        "a start of " + std::string(kHeaderStart));
  }
}

// The CRC-32 of the file with zeros in the place of the checksum's own digits.
void check_crc(const std::string& digits, const uint8_t* data, size_t bytes) {
  const size_t at = kLengthBytes + kHeaderStart.size();
  const uint8_t zeros[kCrcDigits] = {'0', '0', '0', '0', '0', '0', '0', '0'};
  uint32_t crc = crc32(data, at);
  crc = crc32(zeros, kCrcDigits, crc);
  crc = crc32(data + at + kCrcDigits, bytes - at - kCrcDigits, crc);
  std::string computed(kCrcDigits, '0');
  for (size_t i = 0; i < kCrcDigits; ++i) {
    computed[i] = "0123456789abcdef"[(crc >> (4 * (kCrcDigits - 1 - i))) & 15];
  }
  if (digits != computed) {
    bad("crc32", shown_string(digits), shown_string(computed) + ", the checksum of the content");
  }
}

// The network's JSON, which a compact header has as base64 of a deflate stream.
void unpack_network(std::string* text) {
  if (text->substr(0, 1) == "{") return;
  std::vector<uint8_t> packed;
  if (!decode_base64(*text, &packed) || packed.empty()) {
    bad("network", shown_string(*text), "JSON, or base64 of a deflate stream of it");
  }
  try {
    *text = inflate(packed, kMaxNetwork);
  } catch (const std::runtime_error& error) {
    bad("network", std::string("a bad deflate stream, ") + error.what(),
        "a whole one, of at most " + std::to_string(kMaxNetwork) + " bytes");
  }
}

void read_layers(DfqFile* file) {
  unpack_network(&file->metadata["network"]);
  const Json network = parse_json("network", file->metadata["network"]);
  object("network", &network);
  const Json* tensors = network.find("tensors");
  if (tensors != nullptr) split_joint_tensors(*tensors, file);
  for (const auto& [name, json] : object("network.layers", network.find("layers"))) {
    if (name.empty()) bad("network.layers", "an empty name", "a non-empty string");
    file->layers.push_back(read_layer(*file, name, json));
  }
}

}  // namespace

const DfqLayer* DfqFile::find_layer(const std::string& name) const {
  for (const DfqLayer& layer : layers) {
    if (layer.name == name) return &layer;
  }
  return nullptr;
}

DfqFile parse_dfq(const void* memory, size_t bytes) {
  const auto* data = static_cast<const uint8_t*>(memory);
  if (reinterpret_cast<uintptr_t>(data) % kLengthBytes != 0) {
    throw std::invalid_argument("data: found an odd address; accepted is one aligned to 8 bytes");
  }
  if (bytes < kLengthBytes) {
    bad("header length", "a file of " + std::to_string(bytes) + " bytes", "at least 8 bytes");
  }
  uint64_t length = 0;
  std::memcpy(&length, data, kLengthBytes);
  const uint64_t limit = std::min<uint64_t>(kMaxHeader, bytes - kLengthBytes);
  if (length > limit || length % kLengthBytes != 0) {
    bad("header length", std::to_string(length), "a multiple of 8 up to " + std::to_string(limit));
  }
  const std::string_view text(reinterpret_cast<const char*>(data) + kLengthBytes, length);
  const uint8_t* payload = data + kLengthBytes + length;
  const auto payload_bytes = static_cast<int64_t>(bytes - kLengthBytes - length);

  DfqFile file;
  {
    const Json header = parse_json("header", text);
    object("header", &header);
    read_metadata(header.find("__metadata__"), text, &file);
    for (const auto& [name, entry] : *header.object()) {
      if (name == "__metadata__") continue;
      const std::string field = "tensor " + shown_string(name);
      file.tensors.emplace(name, read_entry(field, entry, payload, payload_bytes));
    }
  }
  check_cover(file, payload, payload_bytes);
  check_crc(file.metadata["crc32"], data, bytes);
  read_layers(&file);
  return file;
}

DfqFile read_dfq(const std::string& path) {
  const auto system_error = [&path](const char* what) {
    throw std::runtime_error(path + ": cannot " + what + ": " + std::strerror(errno));
  };
  const int descriptor = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (descriptor < 0) system_error("open");
  struct stat info = {};
  const bool regular = fstat(descriptor, &info) == 0 && S_ISREG(info.st_mode);
  const auto bytes = regular ? static_cast<size_t>(info.st_size) : 0;
  void* mapped =
      bytes == 0 ? MAP_FAILED : mmap(nullptr, bytes, PROT_READ, MAP_PRIVATE, descriptor, 0);
  const int map_error = errno;
  close(descriptor);
  if (!regular) bad(path, "something else", "a regular file");
  if (bytes == 0) bad(path, "an empty file", "a .dfq file");
  if (mapped == MAP_FAILED) {
    errno = map_error;
    system_error("map");
  }
  const std::shared_ptr<const void> storage(
      mapped, [bytes](const void* at) { munmap(const_cast<void*>(at), bytes); });
  DfqFile file = parse_dfq(mapped, bytes);
  file.storage = storage;
  return file;
}

}  // namespace defakeq
