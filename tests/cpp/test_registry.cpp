// The choice of backend and instruction set.
#include <doctest/doctest.h>

#include <algorithm>
#include <stdexcept>
#include <string>

#include "cpu/features.hpp"
#include "cpu/unit_name.hpp"
#include "gradstack/registry.hpp"

using namespace gradstack;

namespace {

bool offers(const BackendChoice& choice, const std::string& name) {
  return std::find(choice.available.begin(), choice.available.end(), name) !=
         choice.available.end();
}

}  // namespace

TEST_CASE("the reference is always there and can be forced") {
  const BackendChoice choice = choose_backend("reference", "");
  CHECK(choice.backend == "reference");
  CHECK(choice.isa.empty());
  CHECK(choice.reason == "GRADSTACK_BACKEND=reference");
  CHECK(choice.available.front() == "reference");
  CHECK(available_kernels<float>().front() == &reference_kernels(float()));
  CHECK(available_kernels<double>().front() == &reference_kernels(double()));
}

TEST_CASE("what is available runs here and both dtypes have it") {
  const BackendChoice choice = choose_backend("", "");
  const auto f32 = available_kernels<float>();
  const auto f64 = available_kernels<double>();
  REQUIRE(f32.size() == choice.available.size());
  REQUIRE(f64.size() == choice.available.size());
  for (std::size_t i = 0; i < f32.size(); ++i) {
    CHECK(choice.available[i] == f32[i]->name);
    CHECK(choice.available[i] == f64[i]->name);
    if (i > 0) CHECK(cpu_supports(f32[i]->name));
  }
#if defined(__x86_64__) && defined(__SSE4_2__)
  if (v2_kernels_f32() != nullptr) CHECK(offers(choice, "v2"));
#endif
#if defined(__aarch64__)
  CHECK(offers(choice, "neon"));
#endif
}

TEST_CASE("the best instruction set is the default, any other can be forced") {
  const BackendChoice best = choose_backend("", "");
  if (best.available.size() > 1) {
    CHECK(best.backend == "cpu");
    CHECK(best.isa == best.available.back());
  }
  for (std::size_t i = 1; i < best.available.size(); ++i) {
    const BackendChoice forced = choose_backend("cpu", best.available[i]);
    CHECK(forced.isa == best.available[i]);
    CHECK(forced.reason == "GRADSTACK_ISA=" + best.available[i]);
  }
}

TEST_CASE("unknown and unsupported names are errors that list what there is") {
  CHECK_THROWS_WITH_AS(choose_backend("gpu", ""),
                       "GRADSTACK_BACKEND=gpu is not a backend; available: reference, cpu",
                       std::invalid_argument);
  try {
    choose_backend("", "v9");
    FAIL("accepted");
  } catch (const std::invalid_argument& error) {
    const std::string message = error.what();
    CHECK(message.find("GRADSTACK_ISA=v9 is not an instruction set") == 0);
    for (const Kernels<float>* kernels : available_kernels<float>()) {
      const std::string name = kernels->name;
      if (name != "reference") CHECK(message.find(name, 15) != std::string::npos);
    }
  }
  const BackendChoice choice = choose_backend("", "");
  for (const char* isa : {"v2", "v3", "v4", "neon"}) {
    if (!offers(choice, isa)) CHECK_THROWS_AS(choose_backend("", isa), std::invalid_argument);
  }
}

TEST_CASE("the active kernels are those of the choice") {
  const BackendChoice& choice = backend_choice();
  const std::string expected = choice.isa.empty() ? "reference" : choice.isa;
  CHECK(expected == active_kernels<float>().name);
  CHECK(expected == active_kernels<double>().name);
}
