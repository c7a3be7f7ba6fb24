#include "octavo/config/config_node.h"

#include <yaml-cpp/yaml.h>

#include <algorithm>
#include <charconv>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <sstream>
#include <utility>

#include "octavo/base/error.h"

namespace octavo {
namespace {

// Aliases can make a short file stand for an endless document.
constexpr std::size_t kMaxNodes = 100'000;
constexpr std::size_t kMaxDepth = 64;

using Origin = std::function<std::string(const YAML::Mark&)>;

class Converter {
 public:
  explicit Converter(Origin origin) : origin_(std::move(origin)) {}

  ConfigNode convert(const YAML::Node& from, std::size_t depth = 0) {
    ConfigNode to;
    to.origin = origin_(from.Mark());
    if (++nodes_ > kMaxNodes || depth > kMaxDepth)
      fail("{}: more than {} values or {} levels; a recipe is never that large", to.origin, kMaxNodes,
           kMaxDepth);
    switch (from.Type()) {
      case YAML::NodeType::Undefined:
      case YAML::NodeType::Null:
        break;
      case YAML::NodeType::Scalar:
        to.scalar = from.Scalar();
        to.quoted = from.Tag() == "!";  // what yaml-cpp says of a scalar in quotes, and of nothing else
        to.kind = ConfigNode::Kind::kScalar;
        break;
      case YAML::NodeType::Sequence:
        to.kind = ConfigNode::Kind::kList;
        for (const YAML::Node& item : from) to.list.push_back(convert(item, depth + 1));
        break;
      case YAML::NodeType::Map:
        to.kind = ConfigNode::Kind::kMap;
        for (const auto& entry : from) {
          const YAML::Node& key = entry.first;
          const std::string where = origin_(key.Mark());
          if (!key.IsScalar()) fail("{}: a key must be a plain word", where);
          if (to.child(key.Scalar()) != nullptr)
            fail("{}: the key '{}' stands twice in its section", where, key.Scalar());
          ConfigNode& value = to.add(key.Scalar());
          value = convert(entry.second, depth + 1);
          value.origin = where;  // where the key stands; a nested section begins a line later
        }
        break;
    }
    return to;
  }

 private:
  Origin origin_;
  std::size_t nodes_ = 0;
};

ConfigNode parse(const std::string& text, const Origin& origin) {
  try {
    return Converter(origin).convert(YAML::Load(text));
  } catch (const YAML::Exception& error) {
    fail("{}: not valid YAML: {}", origin(error.mark), error.msg);
  }
}

std::string read_text(const std::string& path, const std::string& blame) {
  std::ifstream file(path, std::ios::binary);
  if (!file || std::filesystem::is_directory(path))
    fail("{}cannot read the recipe '{}'; check the path", blame.empty() ? blame : blame + ": ", path);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

// A section that says `_override_: true` takes the place of what it would otherwise be merged into.
bool take_override_mark(ConfigNode& node) {
  const auto mark = std::find_if(node.map.begin(), node.map.end(),
                                 [](const auto& entry) { return entry.key == "_override_"; });
  if (mark == node.map.end()) return false;
  const bool replaces = mark->value.scalar == "true" || mark->value.scalar == "True";
  node.map.erase(mark);
  return replaces;
}

void merge_into(ConfigNode& base, ConfigNode&& over) {
  const bool replaces = take_override_mark(over);
  if (!base.is_map() || !over.is_map() || replaces) {
    base = ConfigNode{.kind = over.kind,
                      .scalar = std::move(over.scalar),
                      .quoted = over.quoted,
                      .list = std::move(over.list),
                      .origin = std::move(over.origin)};
    for (auto& [key, value] : over.map) merge_into(base.add(key), std::move(value));
    return;
  }
  base.origin = over.origin;
  for (auto& [key, value] : over.map) {
    ConfigNode* existing = base.child(key);
    if (existing == nullptr) existing = &base.add(key);
    merge_into(*existing, std::move(value));
  }
}

ConfigNode read_inheriting(const std::string& path, const std::string& blame,
                           std::vector<std::string>& open) {
  std::error_code ignored;
  const std::string canonical = std::filesystem::weakly_canonical(path, ignored).string();
  if (std::find(open.begin(), open.end(), canonical) != open.end())
    fail("{}: the recipe '{}' inherits from itself", blame, path);
  open.push_back(canonical);

  ConfigNode own = parse(read_text(path, blame),
                         [&](const YAML::Mark& mark) { return fmt::format("{}:{}", path, mark.line + 1); });
  if (own.is_null()) own.kind = ConfigNode::Kind::kMap;
  if (!own.is_map()) fail("{}: a recipe must be sections of keys, but is {}", path, own.describe());

  ConfigNode merged{.kind = ConfigNode::Kind::kMap, .origin = own.origin};
  const auto defaults =
      std::find_if(own.map.begin(), own.map.end(), [](const auto& entry) { return entry.key == "defaults"; });
  if (defaults != own.map.end()) {
    const ConfigNode names = std::move(defaults->value);
    own.map.erase(defaults);
    const std::vector<ConfigNode> one = {names};
    for (const ConfigNode& name : names.is_list() ? names.list : one) {
      if (!name.is_scalar()) fail("{}: 'defaults' must be a file or a list of files", names.origin);
      const std::filesystem::path parent = std::filesystem::path(path).parent_path() / name.scalar;
      merge_into(merged, read_inheriting(parent.lexically_normal().string(), name.origin, open));
    }
  }
  merge_into(merged, std::move(own));
  open.pop_back();
  return merged;
}

}  // namespace

const ConfigNode* ConfigNode::child(std::string_view key) const {
  for (const auto& [name, value] : map)
    if (name == key) return &value;
  return nullptr;
}

ConfigNode* ConfigNode::child(std::string_view key) {
  return const_cast<ConfigNode*>(std::as_const(*this).child(key));
}

const ConfigNode* ConfigNode::find(std::string_view path) const {
  if (path.empty()) return this;
  const std::size_t dot = path.find('.');
  const std::string_view key = path.substr(0, dot);
  const ConfigNode* next = child(key);
  if (is_list()) {
    std::size_t index = 0;
    const auto [end, error] = std::from_chars(key.begin(), key.end(), index);
    if (error == std::errc() && end == key.end() && index < list.size()) next = &list[index];
  }
  if (next == nullptr || dot == std::string_view::npos) return next;
  return next->find(path.substr(dot + 1));
}

std::string ConfigNode::describe() const {
  switch (kind) {
    case Kind::kNull:
      return "null";
    case Kind::kScalar:
      return quoted ? "'" + scalar + "'" : scalar;
    case Kind::kList:
      return list.empty() ? "[]" : "a list";
    case Kind::kMap:
      return map.empty() ? "{}" : "a section";
  }
  return {};
}

ConfigNode& ConfigNode::add(std::string key) {
  return map.emplace_back(Entry{.key = std::move(key), .value = {}}).value;
}

ConfigNode read_config(const std::string& path) {
  std::vector<std::string> open;
  return read_inheriting(path, "", open);
}

ConfigNode parse_value(const std::string& yaml, const std::string& origin) {
  return parse(yaml, [&](const YAML::Mark&) { return origin; });
}

void apply_override(ConfigNode& root, const std::string& text) {
  std::string origin = fmt::format("override '{}'", text);
  const bool removes = text.starts_with('~');
  const std::size_t equals = text.find('=');
  const std::size_t begin = std::min(text.find_first_not_of("+~"), text.size());
  std::string path = text.substr(begin, equals == std::string::npos ? equals : equals - begin);
  if (path.empty() || path.starts_with('.') || path.ends_with('.') || path.find("..") != std::string::npos ||
      removes == (equals != std::string::npos))
    fail("{}: an override is written key.path=value, or ~key.path to remove a key", origin);

  ConfigNode* node = &root;
  std::size_t start = 0;
  for (std::size_t dot = path.find('.'); dot != std::string::npos;
       start = dot + 1, dot = path.find('.', start)) {
    const std::string key = path.substr(start, dot - start);
    ConfigNode* next = const_cast<ConfigNode*>(std::as_const(*node).find(key));
    if (next == nullptr && node->is_list())
      fail("{}: the list '{}' has no item {}", origin, path.substr(0, start - 1), key);
    if (next == nullptr) {
      next = &node->add(key);
      next->origin = origin;
    }
    if (next->is_null()) next->kind = ConfigNode::Kind::kMap;
    if (next->is_scalar())
      fail("{}: '{}' is {} ({}), not a section", origin, path.substr(0, dot), next->describe(), next->origin);
    node = next;
  }
  const std::string key = path.substr(start);
  if (removes) {
    if (std::erase_if(node->map, [&](const auto& entry) { return entry.key == key; }) == 0)
      fail("{}: there is no '{}' to remove", origin, path);
    return;
  }
  ConfigNode value = parse_value(text.substr(equals + 1), origin);
  ConfigNode* place = const_cast<ConfigNode*>(std::as_const(*node).find(key));
  if (place == nullptr && node->is_list())
    fail("{}: the list '{}' has no item {}", origin, path.substr(0, start - 1), key);
  if (place == nullptr) place = &node->add(key);
  // As in Hydra, `section={...}` merges; a plain value replaces.
  merge_into(*place, std::move(value));
}

}  // namespace octavo
