// The table of all keys: what each is called, where its value goes, what it may be and what it means.
// Reading, writing, checking and documenting recipes all walk this one table.
#pragma once

#include <cstdint>
#include <limits>
#include <map>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "octavo/config/recipe.h"

namespace octavo {

using KeyTarget = std::variant<bool*, std::int64_t*, double*, std::string*, std::optional<std::int64_t>*,
                               std::optional<bool>*, std::optional<double>*, std::optional<std::string>*,
                               std::vector<std::int64_t>*, std::vector<double>*, std::vector<std::string>*,
                               std::map<std::string, std::string>*, LrSchedule*>;

struct KeyRules {
  double low = std::numeric_limits<double>::lowest();  // of numbers, also in lists; both ends are allowed
  double high = std::numeric_limits<double>::max();
  std::vector<std::string> choices = {};  // of texts
  std::string otherwise = {};             // the key whose value counts where this one is not written
  std::string also = {};                  // another spelling of the key
};

// The least number that is more than nothing: `low` of numbers that must be positive.
inline constexpr double kPositive = std::numeric_limits<double>::min();

struct RecipeKey {
  std::string path;
  KeyTarget target;  // into the recipe that the table was made for
  std::string meaning;
  KeyRules rules = {};
};

// The keys of `recipe`: the sections env.NAME that it has, and data.validation if it has that. The order is
// that of the dump; keys of one section stand together.
std::vector<RecipeKey> recipe_keys(Recipe& recipe);

// A recipe that has every optional section (env.NAME, data.validation), for lists of all keys.
Recipe recipe_with_every_section();

// A key, or a whole section, that NeMo-RL knows and Octavo has no use for.
struct ForeignKey {
  enum class Kind {
    kNoEffect,     // leaving it out changes no result: a warning
    kUnsupported,  // it would change the result: an error
  };

  std::string path;  // `*` stands for any one word
  Kind kind;
  std::string reason;
  std::vector<std::string> harmless = {};  // values that Octavo obeys by doing nothing
};

const std::vector<ForeignKey>& foreign_keys();

// "integer", "number or null", "one of 'k1', 'k2', 'k3'", with the range.
std::string type_text(const RecipeKey& key);

// A value as YAML in one line; also its default where the recipe is a default one.
std::string value_text(const KeyTarget& target);

}  // namespace octavo
