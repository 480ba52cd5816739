#include "gradstack/registry.hpp"

#include <cstdlib>
#include <stdexcept>
#include <type_traits>

#include "cpu/features.hpp"
#include "cpu/unit_name.hpp"

namespace gradstack {
namespace {

struct Unit {
  const char* isa;
  const Kernels<float>* (*f32)();
  const Kernels<double>* (*f64)();

  bool built() const { return f32() != nullptr; }
  bool usable() const { return built() && cpu_supports(isa); }
  template <class T> const Kernels<T>* kernels() const {
    if constexpr (std::is_same_v<T, float>) {
      return f32();
    } else {
      return f64();
    }
  }
};

// From the oldest to the newest: the last usable one is the best.
constexpr Unit kUnits[] = {
    {"v2", v2_kernels_f32, v2_kernels_f64},
    {"v3", v3_kernels_f32, v3_kernels_f64},
    {"v4", v4_kernels_f32, v4_kernels_f64},
    {"neon", neon_kernels_f32, neon_kernels_f64},
};

std::string setting(const char* variable) {
  const char* value = std::getenv(variable);
  return value != nullptr ? value : "";
}

std::string available_isas() {
  std::string list;
  for (const Unit& unit : kUnits) {
    if (unit.usable()) list += (list.empty() ? "" : ", ") + std::string(unit.isa);
  }
  return list.empty() ? "none" : list;
}

const Unit& unit_named(const std::string& isa) {
  for (const Unit& unit : kUnits) {
    if (isa != unit.isa) continue;
    if (unit.usable()) return unit;
    throw std::invalid_argument(
        "GRADSTACK_ISA=" + isa +
        (unit.built() ? " is not supported by this CPU" : " was left out of this build") +
        "; available: " + available_isas());
  }
  throw std::invalid_argument(
      "GRADSTACK_ISA=" + isa +
      " is not an instruction set of gradstack; available: " + available_isas());
}

}  // namespace

BackendChoice choose_backend(const std::string& backend, const std::string& isa) {
  BackendChoice choice;
  choice.available.push_back("reference");
  for (const Unit& unit : kUnits) {
    if (!unit.usable()) continue;
    choice.available.push_back(unit.isa);
    choice.isa = unit.isa;
  }
  choice.reason = choice.isa.empty() ? "this build has no instruction set of this CPU"
                                     : "the newest instruction set of this CPU in this build";
  if (!backend.empty() && backend != "cpu" && backend != "reference") {
    throw std::invalid_argument("GRADSTACK_BACKEND=" + backend +
                                " is not a backend; available: reference, cpu");
  }
  if (backend == "cpu" && choice.isa.empty()) {
    throw std::invalid_argument("GRADSTACK_BACKEND=cpu: " + choice.reason);
  }
  if (!isa.empty()) {
    choice.isa = unit_named(isa).isa;
    choice.reason = "GRADSTACK_ISA=" + isa;
  }
  if (backend == "reference") {
    choice.isa.clear();
    choice.reason = "GRADSTACK_BACKEND=reference";
  }
  choice.backend = choice.isa.empty() ? "reference" : "cpu";
  return choice;
}

const BackendChoice& backend_choice() {
  static const BackendChoice choice =
      choose_backend(setting("GRADSTACK_BACKEND"), setting("GRADSTACK_ISA"));
  return choice;
}

template <class T> const Kernels<T>& active_kernels() {
  static const Kernels<T>& chosen = []() -> const Kernels<T>& {
    const BackendChoice& choice = backend_choice();
    return choice.isa.empty() ? reference_kernels(T()) : *unit_named(choice.isa).kernels<T>();
  }();
  return chosen;
}

template <class T> std::vector<const Kernels<T>*> available_kernels() {
  std::vector<const Kernels<T>*> all{&reference_kernels(T())};
  for (const Unit& unit : kUnits) {
    if (unit.usable()) all.push_back(unit.kernels<T>());
  }
  return all;
}

template const Kernels<float>& active_kernels<float>();
template const Kernels<double>& active_kernels<double>();
template std::vector<const Kernels<float>*> available_kernels<float>();
template std::vector<const Kernels<double>*> available_kernels<double>();

}  // namespace gradstack
