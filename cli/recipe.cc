#include "octavo/config/recipe.h"

#include <fmt/format.h>

#include <memory>

#include "cli/commands.h"
#include "octavo/base/error.h"
#include "octavo/config/schema.h"

namespace octavo {
namespace {

struct Options {
  std::string file;
  std::vector<std::string> overrides;
  bool keys = false;
};

std::string table_cell(const std::string& text) {
  std::string out;
  for (const char c : text) out += c == '|' ? std::string("\\|") : std::string(1, c);
  return out;
}

// docs/recipes.md holds this output.
void print_keys() {
  Recipe every = recipe_with_every_section();
  fmt::print("| key | type | default | meaning |\n|---|---|---|---|\n");
  for (const RecipeKey& key : recipe_keys(every)) {
    const std::string also = key.rules.also.empty() ? "" : fmt::format(" (also `{}`)", key.rules.also);
    const std::string value =
        key.rules.otherwise.empty() ? value_text(key.target) : "${" + key.rules.otherwise + "}";
    fmt::print("| `{}`{} | {} | `{}` | {} |\n", key.path, also, type_text(key), value,
               table_cell(key.meaning));
  }
  fmt::print(
      "\nKeys of NeMo-RL that Octavo has no use for:\n\n| key | what happens | why |\n|---|---|---|\n");
  for (const ForeignKey& key : foreign_keys())
    fmt::print("| `{}` | {}{} | {} |\n", key.path,
               key.kind == ForeignKey::Kind::kUnsupported ? "error" : "warning",
               key.harmless.empty() ? "" : fmt::format(", unless {}", fmt::join(key.harmless, " or ")),
               table_cell(key.reason));
}

void run(const Options& options) {
  if (options.keys) {
    print_keys();
    return;
  }
  if (options.file.empty()) fail("name the recipe to check, or give --keys");
  std::vector<std::string> warnings;
  const Recipe recipe = load_recipe(options.file, options.overrides, warnings);
  for (const std::string& warning : warnings) fmt::print(stderr, "octavo: {}\n", warning);
  fmt::print("{}", dump_recipe(recipe));
}

}  // namespace

void add_recipe(CLI::App& app) {
  auto options = std::make_shared<Options>();
  CLI::App* command =
      app.add_subcommand("recipe", "Check a training recipe and print it with every key resolved");
  CLI::Option* keys =
      command->add_flag("--keys", options->keys, "List all keys instead, as a Markdown table");
  command->add_option("file", options->file, "Recipe (YAML)")->type_name("FILE")->excludes(keys);
  command->add_option("overrides", options->overrides, "key.path=value; ~key.path removes a key")
      ->type_name("KEY=VALUE");
  command->callback([options] { run(*options); });
}

}  // namespace octavo
