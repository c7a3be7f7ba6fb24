// What a Tokenizer is made of. Immutable once read.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "octavo/text/added_tokens.h"
#include "octavo/text/bpe.h"
#include "octavo/text/decoder.h"
#include "octavo/text/normalizer.h"
#include "octavo/text/pretokenizer.h"

namespace octavo {

struct TokenizerParts {
  struct Token {
    bool exists = false;  // ids may have holes
    bool special = false;
    Decoder::Meaning meaning;
  };

  // Throws Error for what is broken or not supported; `where` names the file.
  TokenizerParts(std::string_view json, const std::string& where);

  Normalizer normalizer;
  PreTokenizer pre_tokenizer;
  Bpe model;
  AddedTokens added;
  Decoder decoder;
  std::vector<std::int32_t> prefix, suffix;  // what the post_processor puts around a text
  std::vector<Token> tokens;                 // by id

 private:
  struct Json;
  TokenizerParts(const Json& json, const std::string& where);
};

}  // namespace octavo
