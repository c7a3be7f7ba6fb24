// tokenize_lines TOKENIZER_JSON [--add-special-tokens | --decode [--skip-special-tokens]]
// The test-only twin of `octavo tokenize`: each input line, a JSON string, becomes a JSON array of ids;
// --decode goes back. python/tools/tokenizer_reference.py compares it with Hugging Face.
#include <fmt/format.h>

#include <algorithm>
#include <iostream>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <vector>

#include "octavo/base/error.h"
#include "octavo/text/tokenizer.h"

int main(int argc, char** argv) try {
  const std::vector<std::string> arguments(argv + 1, argv + argc);
  const auto has = [&](const char* flag) {
    return std::find(arguments.begin(), arguments.end(), flag) != arguments.end();
  };
  if (arguments.empty())
    octavo::fail(
        "usage: tokenize_lines TOKENIZER_JSON [--add-special-tokens | --decode [--skip-special-tokens]]");
  const auto tokenizer = octavo::Tokenizer::from_file(arguments[0]);
  std::ios::sync_with_stdio(false);
  for (std::string line; std::getline(std::cin, line);) {
    const auto input = nlohmann::json::parse(line);
    const nlohmann::json output =
        has("--decode")
            ? nlohmann::json(
                  tokenizer.decode(input.get<std::vector<std::int32_t>>(), has("--skip-special-tokens")))
            : nlohmann::json(tokenizer.encode(input.get<std::string>(), has("--add-special-tokens")));
    std::cout << output.dump() << '\n';
  }
  return 0;
} catch (const std::exception& error) {
  fmt::print(stderr, "tokenize_lines: {}\n", error.what());
  return 2;
}
