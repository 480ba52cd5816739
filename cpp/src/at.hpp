// An Index as the subscript of a standard container.
#pragma once

#include <cstddef>

#include "gradstack/config.hpp"

namespace gradstack {

inline std::size_t at(Index i) { return static_cast<std::size_t>(i); }

}  // namespace gradstack
