// A YAML document that remembers where each value was written, and what recipes add to YAML: inheritance,
// overrides and references. It knows nothing of the keys' meaning (schema.h does).
#pragma once

#include <cstddef>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace octavo {

struct ConfigNode {
  enum class Kind { kNull, kScalar, kList, kMap };
  struct Entry;

  Kind kind = Kind::kNull;
  std::string scalar;   // of a scalar, as written, without quotes
  bool quoted = false;  // a scalar in quotes is text whatever it looks like
  std::vector<ConfigNode> list;
  std::vector<Entry> map;  // in the order of the file
  std::string origin;      // "recipe.yaml:12", or "override 'key=value'"

  bool is_null() const { return kind == Kind::kNull; }
  bool is_scalar() const { return kind == Kind::kScalar; }
  bool is_list() const { return kind == Kind::kList; }
  bool is_map() const { return kind == Kind::kMap; }

  const ConfigNode* child(std::string_view key) const;  // of a map; null if there is none
  ConfigNode* child(std::string_view key);
  // Follows "a.b.c" through maps and, by index, lists; null if there is nothing. The empty path is the node
  // itself.
  const ConfigNode* find(std::string_view path) const;

  // For messages and comparisons: 'text', 3, null, [] or {} if empty, "a list", "a section".
  std::string describe() const;

  // The entry of a map, added at its end.
  ConfigNode& add(std::string key);
};

struct ConfigNode::Entry {
  std::string key;
  ConfigNode value;
};

// Reads a YAML file and what it inherits: `defaults: parent.yaml`, or a list of which later ones win,
// relative to the file. Sections merge key by key, anything else replaces; `_override_: true` in a section
// replaces it whole. Throws Error with file and line.
ConfigNode read_config(const std::string& path);

// A value as YAML writes it, all of it from `origin`.
ConfigNode parse_value(const std::string& yaml, const std::string& origin);

// Applies "a.b=value" (value in YAML; Hydra's "+a.b=value" and "++a.b=value" are the same) or "~a.b"
// (removes).
void apply_override(ConfigNode& root, const std::string& text);

// What a reference to a key that is not written gives: its default as YAML, which may be a reference; or
// nothing.
using DefaultValue = std::function<std::optional<std::string>(const std::string& path)>;

// Resolves the references in a value: `${a.b}`, `${.sibling}`, `${..parents_sibling}`, arithmetic
// `${mul:x,y}` (add, div, max too) and `${oc.env:NAME,default}`; `\${` is a plain `${`. `path` is the key
// that `node` belongs to. Throws Error for a reference to nothing, or to itself.
ConfigNode resolve_references(const ConfigNode& root, const std::string& path, const ConfigNode& node,
                              const DefaultValue& default_value);

}  // namespace octavo
