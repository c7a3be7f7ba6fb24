#include "octavo/config/values.h"

#include <algorithm>
#include <charconv>
#include <cmath>

#include "octavo/base/error.h"

namespace octavo {
namespace {

template <typename>
inline constexpr bool kIsOptional = false;
template <typename T>
inline constexpr bool kIsOptional<std::optional<T>> = true;
template <typename>
inline constexpr bool kIsVector = false;
template <typename T>
inline constexpr bool kIsVector<std::vector<T>> = true;

bool is_plain_null(const ConfigNode& node) {
  return node.is_null() ||
         (node.is_scalar() && !node.quoted && (node.scalar == "null" || node.scalar == "~"));
}

[[noreturn]] void refuse(const RecipeKey& key, const ConfigNode& value) {
  fail("{}: {} must be {}, but is {}", value.origin, key.path, type_text(key), value.describe());
}

void convert(const RecipeKey& key, const ConfigNode& value, bool& out) {
  const auto is = [&](auto... words) { return ((value.scalar == words) || ...); };
  const bool yes = is("true", "True", "TRUE", "yes", "on");
  if (!value.is_scalar() || value.quoted || !(yes || is("false", "False", "FALSE", "no", "off")))
    refuse(key, value);
  out = yes;
}

void convert(const RecipeKey& key, const ConfigNode& value, double& out) {
  // from_chars refuses a leading plus, which YAML allows.
  const char* begin = value.scalar.data() + (value.scalar.starts_with('+') ? 1 : 0);
  const char* end = value.scalar.data() + value.scalar.size();
  const auto [stop, error] = std::from_chars(begin, end, out);
  if (!value.is_scalar() || value.quoted || error != std::errc() || stop != end || !std::isfinite(out) ||
      out < key.rules.low || out > key.rules.high)
    refuse(key, value);
}

void convert(const RecipeKey& key, const ConfigNode& value, std::int64_t& out) {
  double number = 0;  // 1e6 and the 512.0 that ${div:...} gives are whole numbers too
  convert(key, value, number);
  constexpr double kExact = 9007199254740992.0;  // 2^53
  if (number != std::floor(number) || std::abs(number) > kExact) refuse(key, value);
  out = static_cast<std::int64_t>(number);
}

void convert(const RecipeKey& key, const ConfigNode& value, std::string& out) {
  const std::vector<std::string>& choices = key.rules.choices;
  if (!value.is_scalar() || is_plain_null(value) ||
      (!choices.empty() && std::find(choices.begin(), choices.end(), value.scalar) == choices.end()))
    refuse(key, value);
  out = value.scalar;
}

template <typename T>
void convert(const RecipeKey& key, const ConfigNode& value, std::optional<T>& out) {
  if (is_plain_null(value))
    out.reset();
  else
    convert(key, value, out.emplace());
}

template <typename T>
void convert(const RecipeKey& key, const ConfigNode& value, std::vector<T>& out) {
  out.clear();
  if (is_plain_null(value)) return;
  if (!value.is_list()) refuse(key, value);
  for (const ConfigNode& item : value.list) convert(key, item, out.emplace_back());
}

void convert(const RecipeKey& key, const ConfigNode& value, std::map<std::string, std::string>& out) {
  out.clear();
  if (is_plain_null(value)) return;
  if (!value.is_map()) refuse(key, value);
  for (const auto& [name, item] : value.map) {
    if (!item.is_scalar()) refuse(key, item);
    out[name] = item.scalar;
  }
}

constexpr std::string_view kTorch = "torch.optim.lr_scheduler.";

LrPhase read_phase(const RecipeKey& key, const ConfigNode& node) {
  const ConfigNode* name = node.child("name");
  if (name == nullptr || !name->scalar.starts_with(kTorch)) refuse(key, node);
  const std::string kind = name->scalar.substr(kTorch.size());
  LrPhase phase;
  std::map<std::string, KeyTarget> known;
  if (kind == "LinearLR") {
    phase = {.kind = LrPhase::Kind::kLinear, .start_factor = 1.0 / 3, .total_iters = 5};
    known = {{"start_factor", &phase.start_factor},
             {"end_factor", &phase.end_factor},
             {"total_iters", &phase.total_iters}};
  } else if (kind == "ConstantLR") {
    phase = {.kind = LrPhase::Kind::kConstant, .factor = 1.0 / 3, .total_iters = 5};
    known = {{"factor", &phase.factor}, {"total_iters", &phase.total_iters}};
  } else if (kind == "CosineAnnealingLR") {
    phase = {.kind = LrPhase::Kind::kCosine};
    known = {{"T_max", &phase.total_iters}, {"eta_min", &phase.eta_min}};
  } else {
    fail("{}: Octavo has the schedulers LinearLR, ConstantLR and CosineAnnealingLR, not '{}'", name->origin,
         kind);
  }
  for (const auto& [entry, value] : node.map)
    if (entry != "name" && entry != "kwargs")
      fail("{}: a scheduler has name and kwargs, not '{}'", value.origin, entry);
  if (const ConfigNode* kwargs = node.child("kwargs"))
    for (const auto& [argument, value] : kwargs->map) {
      const auto target = known.find(argument);
      if (target == known.end()) fail("{}: {} has no argument '{}'", value.origin, kind, argument);
      store_value({key.path + "." + argument, target->second, "", {.low = 0}}, value);
    }
  if (phase.kind == LrPhase::Kind::kCosine && phase.total_iters < 1)
    fail("{}: CosineAnnealingLR needs T_max, 1 or more", node.origin);
  return phase;
}

void convert(const RecipeKey& key, const ConfigNode& value, LrSchedule& out) {
  out = {};
  if (is_plain_null(value)) return;
  if (!value.is_list() && !value.is_map()) refuse(key, value);
  const std::vector<ConfigNode> one = {value};
  for (const ConfigNode& node : value.is_list() ? value.list : one) {
    if (const ConfigNode* milestones = node.child("milestones"))
      store_value({key.path + ".milestones", &out.milestones, "", {.low = 1}}, *milestones);
    else
      out.phases.push_back(read_phase(key, node));
  }
  if (out.milestones.size() + 1 != std::max<std::size_t>(out.phases.size(), 1))
    fail("{}: {} has {} schedulers and {} milestones; one milestone stands between two", value.origin,
         key.path, out.phases.size(), out.milestones.size());
  if (std::adjacent_find(out.milestones.begin(), out.milestones.end(), std::greater_equal<>()) !=
      out.milestones.end())
    fail("{}: the milestones of {} must rise", value.origin, key.path);
}

std::string text(bool value) { return value ? "true" : "false"; }
std::string text(std::int64_t value) { return fmt::format("{}", value); }
std::string text(double value) { return fmt::format("{}", value); }
std::string text(const std::string& value) {
  // In double quotes, in which YAML's escapes are those of JSON for what a text can hold here; a `${` must
  // not become a reference when it is read again.
  std::string out = "\"";
  for (std::size_t i = 0; i < value.size(); ++i) {
    const auto byte = static_cast<unsigned char>(value[i]);
    if (value.compare(i, 2, "${") == 0)
      out += "\\\\$";
    else if (byte == '"' || byte == '\\')
      out += fmt::format("\\{}", value[i]);
    else if (byte < 0x20 || byte == 0x7f)
      out += fmt::format("\\x{:02x}", byte);
    else
      out += value[i];
  }
  return out + '"';
}
template <typename T>
std::string text(const std::optional<T>& value) {
  return value ? text(*value) : "null";
}
template <typename T>
std::string text(const std::vector<T>& values) {
  std::string out;
  for (const T& value : values) out += (out.empty() ? "" : ", ") + text(value);
  return "[" + out + "]";
}
std::string text(const std::map<std::string, std::string>& values) {
  std::string out;
  for (const auto& [name, value] : values)
    out += fmt::format("{}{}: {}", out.empty() ? "" : ", ", text(name), text(value));
  return "{" + out + "}";
}
std::string text(const LrSchedule& schedule) {
  std::string out;
  for (const LrPhase& phase : schedule.phases) {
    if (!out.empty()) out += ", ";
    switch (phase.kind) {
      case LrPhase::Kind::kLinear:
        out +=
            fmt::format("{{name: {}LinearLR, kwargs: {{start_factor: {}, end_factor: {}, total_iters: {}}}}}",
                        kTorch, phase.start_factor, phase.end_factor, phase.total_iters);
        break;
      case LrPhase::Kind::kConstant:
        out += fmt::format("{{name: {}ConstantLR, kwargs: {{factor: {}, total_iters: {}}}}}", kTorch,
                           phase.factor, phase.total_iters);
        break;
      case LrPhase::Kind::kCosine:
        out += fmt::format("{{name: {}CosineAnnealingLR, kwargs: {{T_max: {}, eta_min: {}}}}}", kTorch,
                           phase.total_iters, phase.eta_min);
        break;
    }
  }
  if (!schedule.milestones.empty()) out += fmt::format(", {{milestones: {}}}", text(schedule.milestones));
  return "[" + out + "]";
}

template <typename T>
std::string base_type(const KeyRules& rules) {
  if constexpr (kIsOptional<T>) {
    return base_type<typename T::value_type>(rules) + " or null";
  } else if constexpr (kIsVector<T>) {
    return "list of: " + base_type<typename T::value_type>(rules);
  } else if constexpr (std::is_same_v<T, bool>) {
    return "true or false";
  } else if constexpr (std::is_same_v<T, std::string>) {
    if (rules.choices.empty()) return "text";
    return fmt::format("one of {}", fmt::join(rules.choices, ", "));
  } else if constexpr (std::is_arithmetic_v<T>) {
    std::string out = std::is_same_v<T, double> ? "number" : "whole number";
    if (rules.low == kPositive)
      out += " above 0";
    else if (rules.low > KeyRules().low)
      out += fmt::format(" from {}", rules.low);
    if (rules.high < KeyRules().high) out += fmt::format(" to {}", rules.high);
    return out;
  } else if constexpr (std::is_same_v<T, LrSchedule>) {
    return "list of schedulers";
  } else {
    return "names with values";
  }
}

}  // namespace

void store_value(const RecipeKey& key, const ConfigNode& value) {
  std::visit([&](auto* target) { convert(key, value, *target); }, key.target);
}

std::string type_text(const RecipeKey& key) {
  return std::visit([&](auto* target) { return base_type<std::decay_t<decltype(*target)>>(key.rules); },
                    key.target);
}

std::string value_text(const KeyTarget& target) {
  return std::visit([](const auto* value) { return text(*value); }, target);
}

}  // namespace octavo
