#include "compute/model/safetensors.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <random>
#include <string>

#include "absl/strings/str_cat.h"
#include "tests/compute/model/temp_folder.h"

namespace fourierkv {
namespace {

using testing::AllOf;
using testing::HasSubstr;

std::string Length(uint64_t n) { return {reinterpret_cast<const char*>(&n), sizeof n}; }

std::string File(const std::string& header, const std::string& data) {
  return Length(header.size()) + header + data;
}

std::string Tensor(const std::string& name, const std::string& dtype, const std::string& shape,
                   const std::string& offsets) {
  return absl::StrCat("\"", name, "\":{\"dtype\":\"", dtype, "\",\"shape\":[", shape,
                      "],\"data_offsets\":[", offsets, "]}");
}

template <typename... T>
std::string Bits(T... values) {
  std::string bytes;
  (bytes.append(reinterpret_cast<const char*>(&values), sizeof values), ...);
  return bytes;
}

class SafetensorsTest : public testing::Test {
 protected:
  absl::StatusOr<std::unique_ptr<SafetensorsFolder>> Open() {
    return SafetensorsFolder::Open(folder_.path());
  }
  absl::Status OpenFile(const std::string& content) {
    folder_.Write("model.safetensors", content);
    return Open().status();
  }
  // The single file with these tensors and 8 bytes of data.
  absl::Status OpenTensors(const std::string& tensors) {
    return OpenFile(File("{" + tensors + "}", "01234567"));
  }
  TempFolder folder_;
};

void ExpectInvalid(const absl::Status& status, const std::string& a, const std::string& b) {
  EXPECT_TRUE(absl::IsInvalidArgument(status)) << status;
  EXPECT_THAT(std::string(status.message()), AllOf(HasSubstr(a), HasSubstr(b)));
}

TEST_F(SafetensorsTest, ReadsEveryTypeExactly) {
  const std::string data = Bits(uint16_t{0x3fc0}, uint16_t{0xc000}, uint16_t{0x3c01}, 2.5f);
  ASSERT_TRUE(
      OpenFile(File("{\"__metadata__\":{\"format\":\"pt\"}," + Tensor("a", "BF16", "1,2", "0,4") +
                        "," + Tensor("b", "F16", "1", "4,6") + "," +
                        Tensor("c", "F32", "", "6,10") + "," + Tensor("none", "F32", "3,0", "0,0") +
                        "}",
                    data))
          .ok());
  auto weights = Open();
  float a[2], b, c;
  (*weights)->Get("a", {1, 2})->ToFloat(a);
  (*weights)->Get("b", {1})->ToFloat(&b);
  (*weights)->Get("c", {})->ToFloat(&c);
  EXPECT_EQ(a[0], 1.5f);
  EXPECT_EQ(a[1], -2.0f);
  EXPECT_EQ(b, 1.0f + 0x1p-10f);
  EXPECT_EQ(c, 2.5f);
  EXPECT_EQ((*weights)->size(), 4);
  EXPECT_EQ((*weights)->Find("__metadata__"), nullptr);
}

TEST_F(SafetensorsTest, GetNamesWhatIsMissingOrMisshapen) {
  ASSERT_TRUE(OpenTensors(Tensor("a", "F32", "2", "0,8")).ok());
  auto weights = Open();
  ExpectInvalid((*weights)->Get("b", {2}).status(), "no tensor b", "config.json");
  ExpectInvalid((*weights)->Get("a", {2, 1}).status(), "[2]", "[2, 1]");
}

TEST_F(SafetensorsTest, RefusesLyingTensors) {
  ExpectInvalid(OpenTensors(Tensor("w", "I64", "1", "0,8")), "tensor w: dtype is I64", "BF16");
  ExpectInvalid(OpenTensors(Tensor("w", "F32", "1", "0,8")), "span 8 bytes", "need 4");
  ExpectInvalid(OpenTensors(Tensor("w", "F32", "2", "8,0")), "tensor w", "end before they begin");
  ExpectInvalid(OpenTensors(Tensor("w", "F32", "-2", "0,8")), "tensor w", "shape");
  ExpectInvalid(OpenTensors(Tensor("w", "F32", "2.0", "0,8")), "tensor w", "shape");
  ExpectInvalid(OpenTensors(Tensor("w", "F32", "18446744073709551615", "0,8")), "w", "shape");
  ExpectInvalid(OpenTensors(Tensor("w", "F32", "4294967296,4294967296", "0,8")), "w", "overflows");
  ExpectInvalid(OpenTensors(Tensor("w", "F32", "9223372036854775807", "0,8")), "w", "overflows");
  ExpectInvalid(OpenTensors(Tensor("w", "F32", "1,1,1,1,1,1,1,1,2", "0,8")), "w", "at most 8");
  ExpectInvalid(OpenTensors(Tensor("w", "F32", "2", "0,8,9")), "tensor w", "data_offsets");
  ExpectInvalid(OpenTensors("\"w\":7"), "tensor w", "not an object");
  ExpectInvalid(OpenTensors("\"w\":{}"), "tensor w", "dtype is missing");
  ExpectInvalid(OpenTensors("\"w\":{\"dtype\":\"F32\"}"), "tensor w", "shape");
  ExpectInvalid(OpenTensors(Tensor("v", "F32", "1", "0,4") + "," + Tensor("w", "F32", "1", "2,6")),
                "overlap", "byte 2");
  ExpectInvalid(OpenTensors(Tensor("w", "F32", "1", "0,4") + "," + Tensor("w", "F32", "1", "4,8")),
                "'w'", "twice");
  EXPECT_TRUE(absl::IsDataLoss(OpenTensors(Tensor("w", "F32", "3", "0,12"))));
}

TEST_F(SafetensorsTest, RefusesBrokenHeaders) {
  EXPECT_TRUE(absl::IsDataLoss(OpenFile("")));
  EXPECT_TRUE(absl::IsDataLoss(OpenFile("1234567")));
  EXPECT_TRUE(absl::IsDataLoss(OpenFile(Length(3) + "{}")));
  ExpectInvalid(OpenFile(Length(UINT64_MAX) + "{}"), "header's length", "safetensors");
  ExpectInvalid(OpenFile(Length(100'000'001) + "{}"), "header's length", "100000000");
  ExpectInvalid(OpenFile(File("", "")), "header", "JSON");
  ExpectInvalid(OpenFile(File("[]", "")), "header", "JSON object");
  ExpectInvalid(OpenFile(File("{\"w\":", "")), "header", "JSON");
  ExpectInvalid(OpenFile(File("{\"w\":1e999}", "")), "header", "JSON");
  const std::string deep = std::string(100'000, '[') + std::string(100'000, ']');
  ExpectInvalid(OpenFile(File("{\"w\":" + deep + "}", "")), "header", "deeper");
}

TEST_F(SafetensorsTest, NeverCrashesOnDamagedFiles) {
  const unsigned seed = std::random_device()();
  SCOPED_TRACE(seed);
  std::mt19937 random(seed);
  const std::string good =
      File("{" + Tensor("a", "BF16", "2,2", "0,8") + "," + Tensor("b", "F32", "1", "8,12") + "}",
           "0123456789ab");
  ASSERT_TRUE(OpenFile(good).ok());
  for (int i = 0; i < 300; ++i) {
    std::string bad = good.substr(0, i % 3 == 0 ? random() % good.size() : good.size());
    for (int change = 0; change < 3 && !bad.empty(); ++change) {
      bad[random() % bad.size()] =
          static_cast<char>(i % 2 == 0 ? "0123456789{}[],:\""[random() % 17] : random());
    }
    folder_.Write("model.safetensors", bad);
    auto weights = Open();
    if (weights.ok()) {  // then everything it promises can be read
      std::vector<float> out;
      for (const char* name : {"a", "b"}) {
        const TensorView* tensor = (*weights)->Find(name);
        if (tensor == nullptr) continue;
        out.resize(tensor->elements);
        tensor->ToFloat(out.data());
      }
    }
  }
}

TEST_F(SafetensorsTest, ReadsShardsByIndex) {
  folder_.Write("x-1.safetensors", File("{" + Tensor("a", "F32", "1", "0,4") + "}", Bits(1.0f)));
  folder_.Write("x-2.safetensors", File("{" + Tensor("b", "F32", "1", "0,4") + "}", Bits(2.0f)));
  const auto index = [&](const std::string& map) {
    folder_.Write("model.safetensors.index.json", "{\"metadata\":{},\"weight_map\":" + map + "}");
    return Open().status();
  };
  ASSERT_TRUE(index(R"({"a":"x-1.safetensors","b":"x-2.safetensors"})").ok());
  auto weights = Open();
  float b = 0;
  (*weights)->Get("b", {1})->ToFloat(&b);
  EXPECT_EQ(b, 2.0f);

  ExpectInvalid(index(R"({"a":"../x-1.safetensors"})"), "weight_map of tensor a", "same folder");
  ExpectInvalid(index(R"({"a":"/etc/passwd"})"), "weight_map of tensor a", "same folder");
  ExpectInvalid(index(R"({"a":".."})"), "weight_map of tensor a", "same folder");
  ExpectInvalid(index(R"({"a":""})"), "weight_map of tensor a", "same folder");
  ExpectInvalid(index(R"({"a":7})"), "weight_map of tensor a", "same folder");
  ExpectInvalid(index(R"({"b":"x-1.safetensors"})"), "promises tensor b", "x-1.safetensors");
  ExpectInvalid(index("{}"), "index.json", "weight_map");
  EXPECT_TRUE(absl::IsNotFound(index(R"({"a":"x-3.safetensors"})")));
  folder_.Write("x-3.safetensors", File("{" + Tensor("a", "F32", "1", "0,4") + "}", Bits(1.0f)));
  ExpectInvalid(index(R"({"a":"x-1.safetensors","b":"x-3.safetensors"})"), "tensor a",
                "another file");
}

TEST_F(SafetensorsTest, RefusesWhatIsNotAFile) {
  EXPECT_TRUE(absl::IsNotFound(Open().status()));
  EXPECT_TRUE(absl::IsNotFound(SafetensorsFolder::Open(folder_.path() + "/none").status()));
  std::filesystem::create_directory(folder_.path() + "/model.safetensors");
  ExpectInvalid(Open().status(), "model.safetensors", "not a regular file");
}

TEST_F(SafetensorsTest, EveryBitChangesTheContentDigest) {
  const auto digest = [&](const std::string& name, const std::string& data) {
    EXPECT_TRUE(OpenFile(File("{" + Tensor(name, "F32", "2", "0,8") + "}", data)).ok());
    Sha256 hash;
    (*Open())->AddContent(hash);
    return hash.Finish();
  };
  const Digest first = digest("w", "01234567");
  EXPECT_EQ(first, digest("w", "01234567"));
  EXPECT_NE(first, digest("w", "01234566"));
  EXPECT_NE(first, digest("v", "01234567"));
}

}  // namespace
}  // namespace fourierkv
