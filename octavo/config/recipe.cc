#include "octavo/config/recipe.h"

#include <algorithm>
#include <set>

#include "octavo/base/error.h"
#include "octavo/base/nearest.h"
#include "octavo/config/config_node.h"
#include "octavo/config/recipe_rules.h"
#include "octavo/config/schema.h"
#include "octavo/config/values.h"

namespace octavo {
namespace {

bool matches(std::string_view pattern, std::string_view path) {
  const std::size_t star = pattern.find('*');
  if (star == std::string_view::npos) return pattern == path;
  if (path.substr(0, star) != pattern.substr(0, star)) return false;
  const std::size_t dot = path.find('.', star);
  return dot != std::string_view::npos && path.substr(dot) == pattern.substr(star + 1);
}

class Loader {
 public:
  Loader(const ConfigNode& root, std::vector<std::string>& warnings) : root_(root), warnings_(warnings) {
    add_optional_sections();
    keys_ = recipe_keys(recipe_);
  }

  Recipe load() {
    check_section("", root_);
    for (const RecipeKey& key : keys_) read(key);
    return std::move(recipe_);
  }

 private:
  // The sections that a recipe may have any number of must be there before the table of keys is made.
  void add_optional_sections() {
    if (const ConfigNode* env = root_.find("env"))
      for (const auto& [name, section] : env->map) recipe_.env[name] = {};
    const ConfigNode* validation = root_.find("data.validation");
    if (validation != nullptr && validation->is_map()) recipe_.data.validation.emplace();
    for (const char* path : {"data.train", "data.validation"})
      if (const ConfigNode* data = root_.find(path); data != nullptr && data->is_list())
        fail("{}: {} is a list; Octavo reads one data set, so put the files together", data->origin, path);
  }

  ConfigNode resolved(const std::string& path, const ConfigNode& node) {
    return resolve_references(
        root_, path, node, [this](const std::string& wanted) -> std::optional<std::string> {
          for (const RecipeKey& key : keys_) {
            if (key.path != wanted && key.rules.also != wanted) continue;
            if (!key.rules.otherwise.empty() && !key.rules.otherwise.starts_with("data.default"))
              return "${" + key.rules.otherwise + "}";
            Recipe defaults = recipe_with_every_section();
            for (const RecipeKey& plain : recipe_keys(defaults))
              if (plain.path == key.path) return value_text(plain.target);
          }
          return std::nullopt;
        });
  }

  // Whether `path` is a key, by either name, or (then as a prefix) a section with keys in it.
  bool is_key(const std::string& path) const {
    return std::any_of(keys_.begin(), keys_.end(),
                       [&](const RecipeKey& key) { return key.path == path || key.rules.also == path; }) ||
           (path.starts_with("data.default.") && is_key("data.train." + path.substr(13)));
  }
  bool is_section(const std::string& path) const {
    const std::string prefix = path + ".";
    const auto inside = [&](const std::string& name) { return name.starts_with(prefix); };
    return path.empty() || path == "data.default" || path == "data.validation" || path == "env" ||
           std::any_of(keys_.begin(), keys_.end(),
                       [&](const RecipeKey& key) { return inside(key.path) || inside(key.rules.also); });
  }

  void check_section(const std::string& path, const ConfigNode& section) {
    for (const auto& [name, node] : section.map) {
      const std::string inner = path.empty() ? name : fmt::format("{}.{}", path, name);
      if (is_key(inner)) continue;
      if (check_foreign(inner, node)) continue;
      if (!is_section(inner)) refuse_unknown(inner, node);
      if (node.is_scalar() || node.is_list())
        fail("{}: {} is a section of keys, but is given {}", node.origin, inner, node.describe());
      check_section(inner, node);
    }
  }

  // Deals with a key that Octavo has no use for; false if it is not one.
  bool check_foreign(const std::string& path, const ConfigNode& node) {
    const auto& all = foreign_keys();
    const auto found =
        std::find_if(all.begin(), all.end(), [&](const ForeignKey& k) { return matches(k.path, path); });
    if (found == all.end()) return false;
    // Inside a section without effect there may be keys that are not harmless.
    for (const ForeignKey& inner : all)
      if (inner.path.starts_with(found->path + "."))
        if (const ConfigNode* value = root_.find(inner.path)) judge(inner, inner.path, *value);
    judge(*found, path, node);
    return true;
  }

  void judge(const ForeignKey& key, const std::string& path, const ConfigNode& node) {
    const ConfigNode value = resolved(path, node);
    std::string text = value.describe();
    std::transform(text.begin(), text.end(), text.begin(),
                   [](char c) { return c >= 'A' && c <= 'Z' ? c + 32 : c; });
    if (value.is_scalar() && value.quoted) text = value.scalar;
    if (std::find(key.harmless.begin(), key.harmless.end(), text) != key.harmless.end()) return;
    if (key.kind == ForeignKey::Kind::kUnsupported)
      fail("{}: Octavo does not support {} = {}: {}", node.origin, path, value.describe(), key.reason);
    const ConfigNode* enabled = value.child("enabled");
    if (enabled != nullptr && (enabled->scalar == "false" || enabled->scalar == "False"))
      return;  // off anyway
    warnings_.push_back(fmt::format("{}: {} has no effect: {}", node.origin, path, key.reason));
  }

  [[noreturn]] void refuse_unknown(const std::string& path, const ConfigNode& node) const {
    std::vector<std::string> known;
    const std::string word = path.substr(path.rfind('.') + 1);
    for (const RecipeKey& key : keys_) {
      known.push_back(key.path);
      if (!key.rules.also.empty()) known.push_back(key.rules.also);
    }
    for (const ForeignKey& key : foreign_keys()) known.push_back(key.path);
    // The right word in the wrong section is nearer than any other word.
    std::string nearest = nearest_name(path, known);
    for (const std::string& name : known)
      if (name.ends_with("." + word)) nearest = name;
    fail("{}: Octavo does not know the key '{}'; the nearest known one is '{}'", node.origin, path, nearest);
  }

  void read(const RecipeKey& key) {
    const ConfigNode* written = root_.find(key.path);
    const std::string& also = key.rules.also;
    std::string path = key.path;
    if (const ConfigNode* other = also.empty() ? nullptr : root_.find(also)) {
      store_value(key, resolved(also, *other));
      const std::string value = value_text(key.target);
      if (written != nullptr) store_value(key, resolved(key.path, *written));
      if (written != nullptr && value_text(key.target) != value)
        fail("{}: {} is {}, but {}, which means the same, is {} ({})", written->origin, key.path,
             value_text(key.target), also, value, other->origin);
      return;
    }
    if (written == nullptr && !key.rules.otherwise.empty()) {
      path = key.rules.otherwise;
      written = root_.find(path);
      if (written == nullptr && !path.starts_with("data.default.")) {
        const ConfigNode reference{
            .kind = ConfigNode::Kind::kScalar, .scalar = "${" + path + "}", .origin = key.path};
        store_value(key, resolved(key.path, reference));
        return;
      }
    }
    if (written != nullptr) store_value(key, resolved(path, *written));
  }

  const ConfigNode& root_;
  std::vector<std::string>& warnings_;
  Recipe recipe_;
  std::vector<RecipeKey> keys_;
};

}  // namespace

Recipe load_recipe(const std::string& path, const std::vector<std::string>& overrides,
                   std::vector<std::string>& warnings) {
  ConfigNode root = read_config(path);
  for (const std::string& text : overrides) apply_override(root, text);
  const ConfigNode* model = root.find("policy.model_name");
  if (model == nullptr || model->is_null())
    fail("{}: policy.model_name is missing; it names the folder of the model to train", path);
  Recipe recipe = Loader(root, warnings).load();
  check_recipe(recipe, [&](const std::string& key) {
    const ConfigNode* node = root.find(key);
    return node != nullptr ? node->origin : path;
  });
  return recipe;
}

std::string dump_recipe(const Recipe& recipe) {
  Recipe copy = recipe;  // the table points into a recipe that may be written
  std::string out;
  std::string section;
  for (const RecipeKey& key : recipe_keys(copy)) {
    const std::size_t last = key.path.rfind('.');
    const std::string own = key.path.substr(0, last);
    if (own != section) {
      // The headings that the section before did not have.
      std::size_t begin = 0;
      for (std::size_t depth = 0; begin < own.size(); ++depth) {
        const std::size_t end = std::min(own.find('.', begin), own.size());
        const bool shared = (section + ".").starts_with(own.substr(0, end) + ".");
        if (!shared) out += fmt::format("{:{}}{}:\n", "", 2 * depth, own.substr(begin, end - begin));
        begin = end + 1;
      }
      section = own;
    }
    const auto depth = static_cast<std::size_t>(std::count(key.path.begin(), key.path.end(), '.'));
    out += fmt::format("{:{}}{}: {}\n", "", 2 * depth, key.path.substr(last + 1), value_text(key.target));
  }
  return out;
}

}  // namespace octavo
