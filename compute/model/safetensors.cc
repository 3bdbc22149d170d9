// Format: 8 bytes, the header's length, little-endian; the header, a JSON object of
// {name: {"dtype", "shape", "data_offsets": [begin, end]}} and perhaps "__metadata__"; the data.

#include "compute/model/safetensors.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <nlohmann/json.hpp>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "compute/base/bfloat16.h"
#include "compute/model/bounded_json.h"

namespace fourierkv {
namespace {

static_assert(std::endian::native == std::endian::little);

constexpr size_t kLengthBytes = 8;
constexpr uint64_t kMaxHeaderBytes = 100'000'000;
constexpr size_t kMaxIndexBytes = size_t{64} << 20;
constexpr size_t kMaxShardBytes = size_t{1} << 40;
constexpr size_t kMaxShards = 4096;
constexpr size_t kMaxDimensions = 8;
constexpr int kMaxDepth = 4;
constexpr char kSingleFile[] = "model.safetensors";
constexpr char kIndexFile[] = "model.safetensors.index.json";

// Both empty lists and lists of other things are left to the caller.
bool AsSizes(const nlohmann::json& json, std::vector<int64_t>* out) {
  if (!json.is_array()) return false;
  for (const nlohmann::json& value : json) {
    if (!value.is_number_unsigned()) return false;
    const uint64_t size = value.get<uint64_t>();
    if (size > static_cast<uint64_t>(INT64_MAX)) return false;
    out->push_back(static_cast<int64_t>(size));
  }
  return true;
}

bool ParseType(const std::string& name, TensorType* type, int64_t* bytes) {
  if (name == "BF16") return *type = TensorType::kBf16, *bytes = 2, true;
  if (name == "F16") return *type = TensorType::kF16, *bytes = 2, true;
  if (name == "F32") return *type = TensorType::kF32, *bytes = 4, true;
  return false;
}

// Fills everything but the name. Returns what is wrong, or nothing.
std::string ParseTensor(const nlohmann::json& json, std::span<const std::byte> data,
                        TensorView* tensor, std::pair<int64_t, int64_t>* range) {
  if (!json.is_object()) return "is not an object";
  const auto dtype = json.find("dtype"), shape = json.find("shape"),
             offsets = json.find("data_offsets");
  if (dtype == json.end() || !dtype->is_string()) return "dtype is missing or not a string";
  int64_t element_bytes = 0;
  if (!ParseType(dtype->get_ref<const std::string&>(), &tensor->type, &element_bytes)) {
    return absl::StrCat("dtype is ", ForMessage(dtype->get_ref<const std::string&>()),
                        "; it must be BF16, F16 or F32");
  }
  if (shape == json.end() || !AsSizes(*shape, &tensor->shape) ||
      tensor->shape.size() > kMaxDimensions) {
    return absl::StrCat("shape must be a list of at most ", kMaxDimensions, " sizes");
  }
  tensor->elements = 1;
  int64_t bytes = element_bytes;
  for (int64_t size : tensor->shape) {
    if (__builtin_mul_overflow(bytes, size, &bytes)) return "shape: the product overflows";
    tensor->elements *= size;
  }
  std::vector<int64_t> ends;
  if (offsets == json.end() || !AsSizes(*offsets, &ends) || ends.size() != 2) {
    return "data_offsets must be a list of two sizes";
  }
  const int64_t begin = ends[0], end = ends[1];
  if (begin > end) return absl::StrCat("data_offsets end before they begin: ", begin, ", ", end);
  if (end > static_cast<int64_t>(data.size())) {
    return absl::StrCat("data_offsets end at ", end, ", but the file has only ", data.size(),
                        " bytes of data: it is truncated");
  }
  if (end - begin != bytes) {
    return absl::StrCat("data_offsets span ", end - begin, " bytes, but shape and dtype need ",
                        bytes);
  }
  tensor->data = data.subspan(begin, bytes);
  *range = {begin, end};
  return "";
}

bool StaysInFolder(const std::string& file_name) {
  return !file_name.empty() && file_name.size() <= 255 &&
         file_name.find('/') == std::string::npos && file_name.find('\0') == std::string::npos &&
         file_name != "." && file_name != "..";
}

}  // namespace

void TensorView::ToFloat(float* out) const {
  if (type == TensorType::kF32) {
    if (elements > 0) std::memcpy(out, data.data(), data.size());
    return;
  }
  for (int64_t i = 0; i < elements; ++i) {
    uint16_t bits;
    std::memcpy(&bits, data.data() + 2 * i, sizeof bits);
    out[i] = type == TensorType::kBf16 ? Bf16ToFloat(bits) : Fp16ToFloat(bits);
  }
}

absl::StatusOr<std::unique_ptr<SafetensorsFolder>> SafetensorsFolder::Open(
    const std::string& folder) {
  auto result = std::make_unique<SafetensorsFolder>();
  const std::string index_path = absl::StrCat(folder, "/", kIndexFile);
  auto index = MappedFile::Open(index_path, kMaxIndexBytes);
  if (index.ok()) {
    absl::Status s = result->AddIndexedShards(folder, (*index)->text(), index_path);
    if (!s.ok()) return s;
    return result;
  }
  if (!absl::IsNotFound(index.status())) return index.status();
  absl::Status s = result->AddShard(folder, kSingleFile);
  if (absl::IsNotFound(s)) {
    return absl::NotFoundError(
        absl::StrCat("the folder ", folder, " holds neither ", kSingleFile, " nor ", kIndexFile));
  }
  if (!s.ok()) return s;
  return result;
}

absl::Status SafetensorsFolder::AddIndexedShards(const std::string& folder,
                                                 absl::string_view index_text,
                                                 const std::string& index_path) {
  absl::StatusOr<nlohmann::json> index = ParseBoundedJson(index_text, index_path, kMaxDepth);
  if (!index.ok()) return index.status();
  const auto map = index->find("weight_map");
  if (map == index->end() || !map->is_object() || map->empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat(index_path, ": weight_map must name a file for every tensor"));
  }
  std::set<std::string> files;
  for (const auto& [tensor, file] : map->items()) {
    if (!file.is_string() || !StaysInFolder(file.get_ref<const std::string&>())) {
      return absl::InvalidArgumentError(
          absl::StrCat(index_path, ": weight_map of tensor ", ForMessage(tensor),
                       " must be the name of a file in the same folder"));
    }
    files.insert(file.get<std::string>());
    if (files.size() > kMaxShards) {
      return absl::InvalidArgumentError(
          absl::StrCat(index_path, ": weight_map names more than ", kMaxShards, " files"));
    }
  }
  for (const std::string& file : files) {
    if (absl::Status s = AddShard(folder, file); !s.ok()) return s;
  }
  for (const auto& [tensor, file] : map->items()) {
    if (Find(tensor) == nullptr) {
      return absl::InvalidArgumentError(
          absl::StrCat(index_path, ": weight_map promises tensor ", ForMessage(tensor), " in ",
                       ForMessage(file.get_ref<const std::string&>()), ", which does not hold it"));
    }
  }
  return absl::OkStatus();
}

absl::Status SafetensorsFolder::AddShard(const std::string& folder, const std::string& file_name) {
  const std::string path = absl::StrCat(folder, "/", file_name);
  auto file = MappedFile::Open(path, kMaxShardBytes);
  if (!file.ok()) return file.status();
  const std::span<const std::byte> bytes = (*file)->bytes();
  if (bytes.size() < kLengthBytes) {
    return absl::DataLossError(
        absl::StrCat(path, " has ", bytes.size(), " bytes and no header: it is truncated"));
  }
  uint64_t header_bytes;
  std::memcpy(&header_bytes, bytes.data(), kLengthBytes);
  if (header_bytes > kMaxHeaderBytes) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": the header's length is ", header_bytes,
                                                   "; at most ", kMaxHeaderBytes,
                                                   " are allowed. Is this a safetensors file?"));
  }
  if (header_bytes > bytes.size() - kLengthBytes) {
    return absl::DataLossError(absl::StrCat(path, ": the header has ", header_bytes,
                                            " bytes, the file only ", bytes.size(),
                                            ": it is truncated"));
  }
  Shard shard;
  shard.file = *std::move(file);
  shard.header = bytes.subspan(kLengthBytes, header_bytes);
  shard.data = bytes.subspan(kLengthBytes + header_bytes);
  if (absl::Status s = AddTensors(shard); !s.ok()) return s;
  shards_.emplace(file_name, std::move(shard));
  return absl::OkStatus();
}

absl::Status SafetensorsFolder::AddTensors(const Shard& shard) {
  const std::string& path = shard.file->path();
  const absl::string_view text(reinterpret_cast<const char*>(shard.header.data()),
                               shard.header.size());
  absl::StatusOr<nlohmann::json> header =
      ParseBoundedJson(text, absl::StrCat(path, ": the header"), kMaxDepth);
  if (!header.ok()) return header.status();
  std::vector<std::pair<int64_t, int64_t>> ranges;
  for (const auto& [name, json] : header->items()) {
    if (name == "__metadata__") continue;
    const std::string where = absl::StrCat(path, ": tensor ", ForMessage(name), ": ");
    const auto error = [&where](absl::string_view problem) { return absl::StrCat(where, problem); };
    TensorView tensor;
    tensor.name = name;
    std::pair<int64_t, int64_t> range;
    const std::string problem = ParseTensor(json, shard.data, &tensor, &range);
    if (!problem.empty()) {
      const bool truncated = problem.find("truncated") != std::string::npos;
      return truncated ? absl::DataLossError(error(problem))
                       : absl::InvalidArgumentError(error(problem));
    }
    if (range.first < range.second) ranges.push_back(range);
    if (!tensors_.emplace(name, std::move(tensor)).second) {
      return absl::InvalidArgumentError(error("another file holds it too"));
    }
  }
  std::sort(ranges.begin(), ranges.end());
  for (size_t i = 1; i < ranges.size(); ++i) {
    if (ranges[i].first < ranges[i - 1].second) {
      return absl::InvalidArgumentError(absl::StrCat(
          path, ": two tensors overlap at byte ", ranges[i].first, " of the data (data_offsets)"));
    }
  }
  return absl::OkStatus();
}

const TensorView* SafetensorsFolder::Find(const std::string& name) const {
  const auto it = tensors_.find(name);
  return it == tensors_.end() ? nullptr : &it->second;
}

absl::StatusOr<TensorView> SafetensorsFolder::Get(const std::string& name,
                                                  const std::vector<int64_t>& shape) const {
  const TensorView* tensor = Find(name);
  if (tensor == nullptr) {
    return absl::InvalidArgumentError(
        absl::StrCat("the weights hold no tensor ", name, ", which config.json calls for"));
  }
  if (tensor->shape != shape) {
    return absl::InvalidArgumentError(
        absl::StrCat("tensor ", name, " has shape [", absl::StrJoin(tensor->shape, ", "),
                     "]; config.json calls for [", absl::StrJoin(shape, ", "), "]"));
  }
  return *tensor;
}

void SafetensorsFolder::AddContent(Sha256& hash) const {
  for (const auto& [name, shard] : shards_) {
    hash.AddString(name);
    hash.AddU64(shard.header.size()).AddBytes(shard.header.data(), shard.header.size());
    hash.AddU64(shard.data.size()).AddU64(Checksum(shard.data));
  }
}

}  // namespace fourierkv
