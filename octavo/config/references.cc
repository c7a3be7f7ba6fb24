// `${...}` in recipes, as OmegaConf and NeMo-RL's resolvers read it.
#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdlib>

#include "octavo/base/error.h"
#include "octavo/config/config_node.h"

namespace octavo {
namespace {

constexpr std::size_t kMaxResolvedNodes = 100'000;

std::string_view trim(std::string_view text) {
  const std::size_t begin = std::min(text.find_first_not_of(" \t"), text.size());
  return text.substr(begin, text.find_last_not_of(" \t") - begin + 1);
}

std::vector<std::string> split_arguments(std::string_view text) {
  std::vector<std::string> parts(1);
  int depth = 0;
  for (const char c : text) {
    depth += c == '{' ? 1 : c == '}' ? -1 : 0;
    if (c == ',' && depth == 0)
      parts.emplace_back();
    else
      parts.back() += c;
  }
  return parts;
}

// The key that a reference written in the value of `path` means: each leading dot goes up one section.
std::string absolute_path(std::string_view reference, std::string_view path) {
  if (!reference.starts_with('.')) return std::string(reference);
  while (reference.starts_with('.')) {
    const std::size_t dot = path.rfind('.');
    path = dot == std::string_view::npos ? std::string_view() : path.substr(0, dot);
    reference.remove_prefix(1);
  }
  return path.empty() ? std::string(reference) : fmt::format("{}.{}", path, reference);
}

class Resolver {
 public:
  Resolver(const ConfigNode& root, const DefaultValue& default_value)
      : root_(root), default_value_(default_value) {}

  ConfigNode resolve(const std::string& path, const ConfigNode& node) {
    if (++nodes_ > kMaxResolvedNodes) fail("{}: '{}' refers to too many values", node.origin, path);
    ConfigNode resolved = node;
    if (node.is_scalar() && node.scalar.find("${") != std::string::npos) return resolve_text(path, node);
    for (std::size_t i = 0; i < node.list.size(); ++i)
      resolved.list[i] = resolve(fmt::format("{}.{}", path, i), node.list[i]);
    for (std::size_t i = 0; i < node.map.size(); ++i)
      resolved.map[i].value = resolve(fmt::format("{}.{}", path, node.map[i].key), node.map[i].value);
    return resolved;
  }

 private:
  ConfigNode resolve_text(const std::string& path, const ConfigNode& node) {
    const std::string& text = node.scalar;
    ConfigNode result = node;
    result.scalar.clear();
    for (std::size_t at = 0; at < text.size();) {
      if (text.compare(at, 3, "\\${") == 0) {
        result.scalar += "${";
        result.quoted = true;
        at += 3;
      } else if (text.compare(at, 2, "${") == 0) {
        const std::size_t end = closing_brace(text, at + 2, node.origin);
        ConfigNode value = evaluate(path, text.substr(at + 2, end - at - 2), node.origin);
        if (at == 0 && end + 1 == text.size()) return value;  // the whole value: whatever kind it is
        if (value.is_list() || value.is_map())
          fail("{}: '{}': {} cannot stand inside a text", node.origin, path, value.describe());
        result.scalar += value.is_null() ? "null" : value.scalar;
        at = end + 1;
      } else {
        result.scalar += text[at++];
      }
    }
    return result;
  }

  static std::size_t closing_brace(const std::string& text, std::size_t at, const std::string& origin) {
    for (int depth = 1; at < text.size(); ++at) {
      depth += text[at] == '{' ? 1 : text[at] == '}' ? -1 : 0;
      if (depth == 0) return at;
    }
    fail("{}: '{}': the brace of ${{ is never closed", origin, text);
  }

  // `expression` is what stands between the braces; the result says it was written at `origin`.
  ConfigNode evaluate(const std::string& path, const std::string& expression, const std::string& origin) {
    const std::size_t colon = expression.find(':');
    ConfigNode value = colon == std::string::npos
                           ? look_up(absolute_path(trim(expression), path), origin)
                           : call(path, std::string(trim(expression.substr(0, colon))),
                                  split_arguments(expression.substr(colon + 1)), origin);
    value.origin = origin;
    return value;
  }

  ConfigNode look_up(const std::string& path, const std::string& origin) {
    if (std::find(open_.begin(), open_.end(), path) != open_.end())
      fail("{}: ${{{}}} refers to itself", origin, path);
    open_.push_back(path);
    const ConfigNode* found = root_.find(path);
    ConfigNode value;
    if (found != nullptr) {
      value = resolve(path, *found);
    } else if (const std::optional<std::string> text = default_value_(path)) {
      value = resolve(path, parse_value(*text, origin));
    } else {
      fail("{}: ${{{}}} refers to a key that is not there", origin, path);
    }
    open_.pop_back();
    return value;
  }

  ConfigNode call(const std::string& path, const std::string& function,
                  const std::vector<std::string>& arguments, const std::string& origin) {
    ConfigNode result{.kind = ConfigNode::Kind::kScalar, .origin = origin};
    if (function == "oc.env") {
      const std::string name(trim(arguments[0]));
      const char* value = std::getenv(name.c_str());
      if (value == nullptr && arguments.size() < 2)
        fail("{}: the environment variable '{}' is not set", origin, name);
      result.scalar = value != nullptr ? value : std::string(trim(arguments[1]));
      return result;
    }
    if (function != "mul" && function != "add" && function != "div" && function != "max")
      fail("{}: ${{{}:...}} is not known; there are add, mul, div, max and oc.env", origin, function);
    if (arguments.size() != 2) fail("{}: ${{{}:a,b}} takes two numbers", origin, function);
    const double a = number(path, arguments[0], origin);
    const double b = number(path, arguments[1], origin);
    const double value = function == "mul"   ? a * b
                         : function == "add" ? a + b
                         : function == "div" ? a / b
                                             : std::max(a, b);
    if (!std::isfinite(value))
      fail("{}: ${{{}:{},{}}} is not finite", origin, function, arguments[0], arguments[1]);
    // 512.0 is written 512, so that div can give what a whole-number key wants.
    result.scalar = fmt::format("{}", value);
    return result;
  }

  double number(const std::string& path, const std::string& argument, const std::string& origin) {
    const ConfigNode value = resolve(
        path, {.kind = ConfigNode::Kind::kScalar, .scalar = std::string(trim(argument)), .origin = origin});
    double parsed = 0;
    const char* end = value.scalar.data() + value.scalar.size();
    const auto [stop, error] = std::from_chars(value.scalar.data(), end, parsed);
    if (!value.is_scalar() || error != std::errc() || stop != end)
      fail("{}: '{}': arithmetic needs numbers, but {} is {}", origin, path, trim(argument),
           value.describe());
    return parsed;
  }

  const ConfigNode& root_;
  const DefaultValue& default_value_;
  std::vector<std::string> open_;  // the references that are being followed
  std::size_t nodes_ = 0;
};

}  // namespace

ConfigNode resolve_references(const ConfigNode& root, const std::string& path, const ConfigNode& node,
                              const DefaultValue& default_value) {
  return Resolver(root, default_value).resolve(path, node);
}

}  // namespace octavo
