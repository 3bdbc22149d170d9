#include "compute/model/byte_tokenizer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/compute/model/temp_folder.h"

namespace fourierkv {
namespace {

using testing::ElementsAre;

TEST(ByteTokenizer, ATokenIsAByteAndBeyondAsciiAQuestionMark) {
  EXPECT_THAT(EncodeBytes(absl::string_view("a\0\n\x7f\x80\xff", 6)),
              ElementsAre('a', 0, '\n', 127, '?', '?'));
}

TEST(ByteTokenizer, DecodeIgnoresTokensThatAreNoBytes) {
  const std::vector<int32_t> tokens = {'o', 256, 263, -1, 'k'};
  EXPECT_EQ(DecodeBytes(tokens), "ok");
}

TEST(ByteTokenizer, AFolderWithATokenizerIsNotByteLevel) {
  const TempFolder folder;
  ModelConfig config;
  for (const auto& [size, byte_level] :
       {std::pair{255, false}, {256, true}, {512, true}, {513, false}}) {
    config.vocab_size = size;
    EXPECT_EQ(IsByteLevel(folder.path(), config), byte_level) << size;
  }
  config.vocab_size = 264;
  folder.Write("tokenizer.json", "{}");
  EXPECT_FALSE(IsByteLevel(folder.path(), config));
}

}  // namespace
}  // namespace fourierkv
