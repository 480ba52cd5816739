#include "features.hpp"

#include <string_view>

namespace gradstack {

// The levels are those of the x86-64 psABI. Features no compiler builtin can ask for (LZCNT, MOVBE,
// F16C at level 3) have come with AVX2, BMI2 and FMA on every processor made.
bool cpu_supports(const char* isa) {
  const std::string_view name = isa;
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool v2 = __builtin_cpu_supports("sse3") && __builtin_cpu_supports("ssse3") &&
                  __builtin_cpu_supports("sse4.1") && __builtin_cpu_supports("sse4.2") &&
                  __builtin_cpu_supports("popcnt");
  const bool v3 = v2 && __builtin_cpu_supports("avx") && __builtin_cpu_supports("avx2") &&
                  __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2") &&
                  __builtin_cpu_supports("fma");
  const bool v4 = v3 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                  __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
                  __builtin_cpu_supports("avx512vl");
  return (name == "v2" && v2) || (name == "v3" && v3) || (name == "v4" && v4);
#elif defined(__aarch64__)
  return name == "neon";  // part of the architecture
#else
  return false;
#endif
}

}  // namespace gradstack
