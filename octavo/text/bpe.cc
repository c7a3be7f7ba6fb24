#include "octavo/text/bpe.h"

#include <algorithm>
#include <limits>
#include <nlohmann/json.hpp>

#include "octavo/text/json_parts.h"
#include "octavo/text/unicode.h"

namespace octavo {
namespace {

constexpr std::uint64_t kNoPair = ~std::uint64_t{0};

std::uint64_t pair_of(std::int32_t left, std::int32_t right) {
  return static_cast<std::uint64_t>(static_cast<std::uint32_t>(left)) << 32 |
         static_cast<std::uint32_t>(right);
}

// The two tokens of a merge, which is written "a b" or ["a", "b"].
std::pair<std::string, std::string> merge_parts(const nlohmann::json& merge, std::size_t index,
                                                const std::string& where) {
  if (merge.is_array() && merge.size() == 2) return {merge[0], merge[1]};
  if (merge.is_string()) {
    const std::string text = merge;
    const auto space = text.find(' ');
    if (space != std::string::npos && text.find(' ', space + 1) == std::string::npos)
      return {text.substr(0, space), text.substr(space + 1)};
  }
  fail("{}: model.merges[{}] is neither \"a b\" nor [\"a\", \"b\"]; export the tokenizer again", where,
       index);
}

}  // namespace

const std::array<std::string, 256>& byte_characters() {
  // Printable Latin-1 stands for itself; the rest is counted up from U+0100.
  static const auto characters = [] {
    std::array<std::string, 256> out;
    char32_t next = 0x100;
    for (char32_t byte = 0; byte < 256; ++byte) {
      const bool printable = (byte >= '!' && byte <= '~') || (byte >= 0xA1 && byte != 0xAD);
      append_utf8(out[byte], printable ? byte : next++);
    }
    return out;
  }();
  return characters;
}

std::optional<unsigned char> byte_of_character(char32_t character) {
  static const auto bytes = [] {
    std::unordered_map<char32_t, unsigned char> out;
    for (unsigned byte = 0; byte < 256; ++byte)
      out[character_at(byte_characters()[byte], 0)] = static_cast<unsigned char>(byte);
    return out;
  }();
  const auto found = bytes.find(character);
  if (found == bytes.end()) return std::nullopt;
  return found->second;
}

MergeTable::MergeTable(std::size_t capacity) {
  std::size_t size = 16;
  while (size < 2 * capacity) size *= 2;  // at most half full, so that probing ends soon
  slots_.assign(size, {kNoPair, {}});
}

std::size_t MergeTable::slot_of(std::uint64_t pair) const {
  const std::size_t mask = slots_.size() - 1;
  std::size_t slot = (pair * 0x9E3779B97F4A7C15ULL) >> 32 & mask;  // Fibonacci hashing
  while (slots_[slot].pair != pair && slots_[slot].pair != kNoPair) slot = (slot + 1) & mask;
  return slot;
}

void MergeTable::set(std::int32_t left, std::int32_t right, Merge merge) {
  slots_[slot_of(pair_of(left, right))] = {pair_of(left, right), merge};
}

const MergeTable::Merge* MergeTable::find(std::int32_t left, std::int32_t right) const {
  const Slot& slot = slots_[slot_of(pair_of(left, right))];
  return slot.pair == kNoPair ? nullptr : &slot.merge;
}

Bpe::Bpe(const nlohmann::json& part, bool byte_level, const std::string& where)
    : where_(where), byte_level_(byte_level) {
  // Files older than the "type" key are BPE where they have merges.
  const std::string type = part.value("type", part.contains("merges") ? "BPE" : "?");
  if (type != "BPE") refuse_part("model", type, "BPE", where);
  const auto is_set = [&](const char* key) { return part.contains(key) && !part.at(key).is_null(); };
  if (is_set("dropout") && part.at("dropout").get<double>() != 0)
    refuse_part("model", "BPE with dropout", "BPE without dropout", where);
  for (const char* key : {"continuing_subword_prefix", "end_of_word_suffix"})
    if (is_set(key) && part.at(key) != nlohmann::json(std::string()))
      refuse_part("model", fmt::format("BPE with {}", key), "BPE without it", where);

  byte_fallback_ = is_set("byte_fallback") && part.at("byte_fallback").get<bool>();
  fuse_unknown_ = is_set("fuse_unk") && part.at("fuse_unk").get<bool>();
  ignore_merges_ = is_set("ignore_merges") && part.at("ignore_merges").get<bool>();
  if (is_set("unk_token")) unknown_token_ = part.at("unk_token").get<std::string>();
  read_vocabulary(part.at("vocab"));
  read_merges(part.at("merges"));
  if (byte_level_)
    for (const auto& character : byte_characters()) byte_atoms_.push_back(atom_of(character));
}

void Bpe::read_vocabulary(const nlohmann::json& part) {
  std::unordered_map<std::int32_t, std::string_view> owners;
  for (const auto& [token, value] : part.get_ref<const nlohmann::json::object_t&>()) {
    const std::int32_t id = token_id(value, "model.vocab", token, where_);
    const auto [owner, is_new] = owners.emplace(id, token);
    if (!is_new)
      fail("{}: model.vocab gives the id {} to both {} and {}; give each its own", where_, id,
           printable_json(owner->second), printable_json(token));
    vocabulary_.emplace(token, id);
  }
}

void Bpe::read_merges(const nlohmann::json& part) {
  const auto& merges = part.get_ref<const nlohmann::json::array_t&>();
  merges_ = MergeTable(merges.size());
  std::int32_t rank = 0;
  for (std::size_t i = 0; i < merges.size(); ++i) {
    if (merges[i].is_string() && merges[i].get_ref<const std::string&>().starts_with("#version")) continue;
    const auto [left, right] = merge_parts(merges[i], i, where_);
    const auto known = [&](const std::string& token) {
      const auto id = id_of(token);
      if (!id)
        fail("{}: model.merges[{}] needs the token {}, which model.vocab lacks; export the tokenizer again",
             where_, i, printable_json(token));
      return *id;
    };
    const std::int32_t left_id = known(left), right_id = known(right), joined_id = known(left + right);
    merges_.set(left_id, right_id, {rank++, joined_id});
  }
}

std::optional<std::int32_t> Bpe::id_of(std::string_view token) const {
  const auto found = vocabulary_.find(token);
  if (found == vocabulary_.end()) return std::nullopt;
  return found->second;
}

std::optional<std::int32_t> Bpe::id_of_word(std::string_view word) const {
  if (!byte_level_) return id_of(word);
  std::string written;
  for (const char c : word) written += byte_characters()[static_cast<unsigned char>(c)];
  return id_of(written);
}

Bpe::Atom Bpe::atom_of(std::string_view character) const {
  if (const auto id = id_of(character)) return {Atom::kToken, {*id}};
  if (!byte_fallback_) return {};
  Atom atom{Atom::kBytes, {}};
  for (const char byte : character) {
    const auto id = id_of(fmt::format("<0x{:02X}>", static_cast<unsigned char>(byte)));
    if (!id) return {};
    atom.ids.push_back(*id);
  }
  return atom;
}

void Bpe::add_atoms(std::string_view word, Scratch& scratch) const {
  auto& symbols = scratch.symbols;
  symbols.clear();
  const auto add = [&](std::int32_t id) {
    const auto index = static_cast<std::int32_t>(symbols.size());
    symbols.push_back({id, index - 1, index + 1});
  };
  // As in HF, an unknown token waits for the next known one, and bytes of the fallback overtake it.
  std::int32_t waiting = -1;
  const auto add_waiting = [&] {
    if (waiting >= 0) add(waiting);
    waiting = -1;
  };
  for (std::size_t i = 0; i < word.size();) {
    const std::size_t length = byte_level_ ? 1 : utf8_step(word, i).length;
    Atom looked_up;
    if (!byte_level_) looked_up = atom_of(word.substr(i, length));
    const Atom& atom = byte_level_ ? byte_atoms_[static_cast<unsigned char>(word[i])] : looked_up;
    i += length;
    if (atom.kind == Atom::kUnknown) {
      if (!unknown_token_) continue;  // HF drops the character
      if (!fuse_unknown_) add_waiting();
      const auto id = id_of(*unknown_token_);
      if (!id)
        fail(
            "{}: the text has a character that model.vocab lacks, and its unk_token {} is not there either; "
            "add it to model.vocab",
            where_, printable_json(*unknown_token_));
      waiting = *id;
      continue;
    }
    if (atom.kind == Atom::kToken) add_waiting();
    for (const std::int32_t id : atom.ids) add(id);
  }
  add_waiting();
  if (!symbols.empty()) symbols.back().next = -1;
}

void Bpe::merge(Scratch& scratch) const {
  auto& symbols = scratch.symbols;
  auto& heap = scratch.heap;
  using Candidate = Scratch::Candidate;
  const auto later = [](const Candidate& a, const Candidate& b) {
    return a.rank != b.rank ? a.rank > b.rank : a.position > b.position;
  };
  // Appends what would join `left` and its right neighbour, if anything does.
  const auto consider = [&](std::int32_t left) {
    if (left < 0 || symbols[left].next < 0) return false;
    const auto* merge = merges_.find(symbols[left].id, symbols[symbols[left].next].id);
    if (merge != nullptr) heap.push_back({merge->rank, left, merge->id});
    return merge != nullptr;
  };
  heap.clear();
  for (std::size_t i = 0; i < symbols.size(); ++i) consider(static_cast<std::int32_t>(i));
  std::make_heap(heap.begin(), heap.end(), later);

  while (!heap.empty()) {
    std::pop_heap(heap.begin(), heap.end(), later);
    const Candidate best = heap.back();
    heap.pop_back();
    auto& left = symbols[best.position];
    if (left.id < 0 || left.next < 0) continue;
    auto& right = symbols[left.next];
    // The pair may have changed since it was pushed.
    const auto* current = merges_.find(left.id, right.id);
    if (current == nullptr || current->id != best.id) continue;
    left.id = best.id;
    left.next = right.next;
    right.id = -1;
    if (left.next >= 0) symbols[left.next].previous = best.position;
    for (const std::int32_t changed : {left.previous, best.position})
      if (consider(changed)) std::push_heap(heap.begin(), heap.end(), later);
  }
}

void Bpe::encode(std::string_view word, Scratch& scratch, std::vector<std::int32_t>& ids) const {
  if (word.size() > std::numeric_limits<std::int32_t>::max() / 4)
    fail("a text of {} bytes is too long to tokenize at once; cut it into parts below 512 MiB", word.size());
  if (ignore_merges_) {
    if (const auto id = id_of_word(word)) {
      ids.push_back(*id);
      return;
    }
  }
  add_atoms(word, scratch);
  merge(scratch);
  for (const auto& symbol : scratch.symbols)
    if (symbol.id >= 0) ids.push_back(symbol.id);
}

}  // namespace octavo
