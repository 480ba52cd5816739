// What the op, cost and update tables share: named parameters and look-up by name.
#pragma once

namespace gradstack {

// A parameter of a table row and its default.
struct Param {
  const char* name;
  double value;
};

constexpr bool same_name(const char* a, const char* b) {
  while (*a != '\0' && *a == *b) ++a, ++b;
  return *a == *b;
}

// The position of the row called `name`, or -1.
template <class Info, int kSize>
constexpr int find_row(const Info (&rows)[kSize], const char* name) {
  for (int id = 0; id < kSize; ++id) {
    if (same_name(rows[id].name, name)) return id;
  }
  return -1;
}

}  // namespace gradstack
