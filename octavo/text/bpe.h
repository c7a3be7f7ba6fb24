// The "model" part of tokenizer.json: byte-pair encoding.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace octavo {

// GPT-2's reversible map from bytes to printable characters, in which a byte-level vocabulary is written.
const std::array<std::string, 256>& byte_characters();  // UTF-8
std::optional<unsigned char> byte_of_character(char32_t character);

struct StringHash {
  using is_transparent = void;
  std::size_t operator()(std::string_view s) const { return std::hash<std::string_view>()(s); }
};
using Vocabulary = std::unordered_map<std::string, std::int32_t, StringHash, std::equal_to<>>;

// Open addressing from a pair of ids to the merge that joins them.
class MergeTable {
 public:
  struct Merge {
    std::int32_t rank;  // lower is earlier
    std::int32_t id;    // of the joined token
  };
  explicit MergeTable(std::size_t capacity = 0);
  void set(std::int32_t left, std::int32_t right, Merge merge);  // the last one set for a pair counts
  const Merge* find(std::int32_t left, std::int32_t right) const;

 private:
  struct Slot {
    std::uint64_t pair;
    Merge merge;
  };
  std::size_t slot_of(std::uint64_t pair) const;

  std::vector<Slot> slots_;
};

class Bpe {
 public:
  // Throws Error naming the part when the model is not plain BPE or its tables contradict each other.
  // With `byte_level`, words are bytes and the vocabulary is written in byte_characters().
  Bpe(const nlohmann::json& part, bool byte_level, const std::string& where);

  const Vocabulary& vocabulary() const { return vocabulary_; }

  // Memory that encode() works in; reusing one saves allocations.
  struct Scratch {
    struct Symbol {
      std::int32_t id;  // -1: joined into its left neighbour
      std::int32_t previous, next;
    };
    struct Candidate {
      std::int32_t rank, position, id;
    };
    std::vector<Symbol> symbols;
    std::vector<Candidate> heap;
  };

  // Appends the ids of one word, in O(n log n) of its bytes. Throws Error when a character is unknown and the
  // unknown token is not in the vocabulary.
  void encode(std::string_view word, Scratch& scratch, std::vector<std::int32_t>& ids) const;

 private:
  // What one character (or byte) starts as.
  struct Atom {
    enum Kind { kToken, kBytes, kUnknown } kind = kUnknown;
    std::vector<std::int32_t> ids;  // one for kToken, those of its UTF-8 bytes for kBytes
  };

  void read_vocabulary(const nlohmann::json& part);
  void read_merges(const nlohmann::json& part);
  Atom atom_of(std::string_view character) const;
  std::optional<std::int32_t> id_of(std::string_view token) const;
  std::optional<std::int32_t> id_of_word(std::string_view word) const;
  void add_atoms(std::string_view word, Scratch& scratch) const;
  void merge(Scratch& scratch) const;

  std::string where_;
  Vocabulary vocabulary_;
  MergeTable merges_;
  bool byte_level_ = false;
  bool byte_fallback_ = false;
  bool fuse_unknown_ = false;
  bool ignore_merges_ = false;
  std::optional<std::string> unknown_token_;
  std::vector<Atom> byte_atoms_;  // of the 256 bytes, with byte_level_
};

}  // namespace octavo
