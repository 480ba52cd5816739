#define DOCTEST_CONFIG_IMPLEMENT
#include <doctest/doctest.h>

#include <cstdio>

#include "gradstack/registry.hpp"

int main(int argc, char** argv) {
  // Cases go through the kernels that there are. With GRADSTACK_ISA the ones it names must be: an
  // error here if this machine or this build lacks them.
  std::printf("kernels: %s\n", gradstack::active_kernels<float>().name);
  return doctest::Context(argc, argv).run();
}
