// Between a value of a recipe and YAML.
#pragma once

#include "octavo/config/config_node.h"
#include "octavo/config/schema.h"

namespace octavo {

// Stores `value`, whose references are resolved, where the key's target points. Throws Error with the value's
// place where it has another type, is out of range or not among the choices.
void store_value(const RecipeKey& key, const ConfigNode& value);

}  // namespace octavo
