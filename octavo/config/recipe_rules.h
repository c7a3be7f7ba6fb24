// What keys of a recipe demand of one another.
#pragma once

#include <functional>
#include <string>

#include "octavo/config/recipe.h"

namespace octavo {

// Throws Error for the first demand that is not met; `where` tells where a key was written.
void check_loss(const LossConfig& loss, const std::function<std::string(const std::string& key)>& where);
void check_recipe(const Recipe& recipe, const std::function<std::string(const std::string& key)>& where);

}  // namespace octavo
