// Which kernels this process uses. The registry is the only place that names the backends.
//
// Backends: `reference` (naive loops, always there) and `cpu`, which has one set of kernels per
// instruction set: v2, v3, v4 (the x86-64 levels) and neon (AArch64). The best one this CPU runs is
// chosen on first use; GRADSTACK_BACKEND (reference, cpu) and GRADSTACK_ISA (v2, v3, v4, neon)
// force another.
#pragma once

#include <string>
#include <vector>

#include "gradstack/backend.hpp"

namespace gradstack {

// The kernels in use, the same in every call. T is float or double.
// Throws std::invalid_argument when an environment variable names a backend or an instruction set
// that is unknown, left out of this build or not supported by this CPU; the message lists those
// that are available.
template <class T> const Kernels<T>& active_kernels();

// Everything this process could use, reference first, then instruction sets from oldest to newest.
template <class T> std::vector<const Kernels<T>*> available_kernels();

// For gs.show_config().
struct BackendChoice {
  std::string backend;                 // "reference" or "cpu"
  std::string isa;                     // "v3"; empty for the reference
  std::string reason;                  // why these kernels are in use
  std::vector<std::string> available;  // "reference", "v2", ...
};

// What active_kernels has chosen; throws as it does.
const BackendChoice& backend_choice();

// The choice for given values of GRADSTACK_BACKEND and GRADSTACK_ISA; "" is unset.
BackendChoice choose_backend(const std::string& backend, const std::string& isa);

extern template const Kernels<float>& active_kernels<float>();
extern template const Kernels<double>& active_kernels<double>();
extern template std::vector<const Kernels<float>*> available_kernels<float>();
extern template std::vector<const Kernels<double>*> available_kernels<double>();

}  // namespace gradstack
