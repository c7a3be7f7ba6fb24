// Finding an answer in what a model wrote, and comparing it with the right one.
#pragma once

#include <optional>
#include <string>
#include <string_view>

namespace octavo {

std::string_view trimmed(std::string_view text);  // without white space at the ends

// The last decimal number in `text`, in one spelling for each value: "-12.5", no "+", no leading or trailing
// zeros, "0" for nothing. Read are digits with an optional fraction, and commas between groups of three
// ("1,234,567"). A minus (also −) counts where neither a digit, a letter nor a closing bracket stands before
// it: "10-3" holds 10 and 3. Powers of ten and fractions ("1e5", "3/4") are not one number.
std::optional<std::string> last_number(std::string_view text);

// The content of the last \boxed{...} whose braces match.
std::optional<std::string_view> last_boxed(std::string_view text);

// The letter that a multiple-choice answer chose, from 'A' to 'J': the last one that follows the word
// "answer"
// ("The answer is (C)", "Answer: c"); or the last one in parentheses; or the one that the text begins with,
// alone
// ("B", "B.", "B) because").
std::optional<char> chosen_letter(std::string_view text);

// Whether two answers say the same: the same number where both are nothing but one ("$1,000" is "1000.0"),
// else the same text but for white space and the signs around mathematics ($ and a period at the end).
bool same_answer(std::string_view a, std::string_view b);

}  // namespace octavo
