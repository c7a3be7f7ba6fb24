#define PCRE2_CODE_UNIT_WIDTH 8
#include "octavo/tasks/pattern.h"

#include <pcre2.h>

#include <array>

#include "octavo/base/error.h"

namespace octavo {
namespace {

std::string message_of(int error) {
  std::array<PCRE2_UCHAR, 256> buffer{};
  pcre2_get_error_message(error, buffer.data(), buffer.size());
  return reinterpret_cast<const char*>(buffer.data());
}

}  // namespace

Pattern::Pattern(const std::string& pattern, const std::string& where) : where_(where) {
  int error = 0;
  PCRE2_SIZE offset = 0;
  pcre2_code* code = pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern.data()), pattern.size(),
                                   PCRE2_UTF | PCRE2_UCP | PCRE2_MATCH_INVALID_UTF, &error, &offset, nullptr);
  if (code == nullptr)
    fail("{}: '{}' is no regular expression: {} at character {}", where, pattern, message_of(error), offset);
  code_ = std::shared_ptr<const void>(
      code, [](const void* c) { pcre2_code_free(static_cast<pcre2_code*>(const_cast<void*>(c))); });
}

std::optional<std::string_view> Pattern::last_catch(std::string_view text) const {
  const auto* code = static_cast<const pcre2_code*>(code_.get());
  const std::unique_ptr<pcre2_match_data, decltype(&pcre2_match_data_free)> data(
      pcre2_match_data_create_from_pattern(code, nullptr), pcre2_match_data_free);
  std::optional<std::string_view> last;
  const auto* subject = reinterpret_cast<PCRE2_SPTR>(text.data());
  for (PCRE2_SIZE at = 0; at <= text.size();) {
    const int groups = pcre2_match(code, subject, text.size(), at, 0, data.get(), nullptr);
    if (groups == PCRE2_ERROR_NOMATCH) break;
    if (groups < 0) fail("{}: matching failed: {}", where_, message_of(groups));
    const PCRE2_SIZE* ends = pcre2_get_ovector_pointer(data.get());
    const std::uint32_t group = pcre2_get_ovector_count(data.get()) > 1 ? 1 : 0;
    const PCRE2_SIZE begin = ends[2 * group];
    last =
        begin == PCRE2_UNSET ? std::nullopt : std::optional(text.substr(begin, ends[2 * group + 1] - begin));
    at = ends[1] > at ? ends[1] : at + 1;
    // An offset must not lie within a character.
    while (at < text.size() && (static_cast<unsigned char>(text[at]) & 0xC0U) == 0x80) ++at;
  }
  return last;
}

}  // namespace octavo
