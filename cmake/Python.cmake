# The Python extension gradstack._core. It exports its init function and nothing else: the static
# libstdc++ instantiations in it must never be picked up by another extension in the process.
find_package(Python 3.11 REQUIRED COMPONENTS Interpreter Development.Module)
find_package(pybind11 3.0 CONFIG REQUIRED)

file(GLOB binding_sources CONFIGURE_DEPENDS cpp/bindings/*.cpp)
pybind11_add_module(_core MODULE NO_EXTRAS ${binding_sources})
# Two translation units: much of a binding file's compile time is pybind11's headers, and a single
# unit would be the last thing that one core alone compiles.
set_target_properties(_core PROPERTIES UNITY_BUILD ON UNITY_BUILD_BATCH_SIZE 6)
target_compile_definitions(_core PRIVATE GRADSTACK_VERSION="${PROJECT_VERSION}")
target_include_directories(_core PRIVATE ${PROJECT_SOURCE_DIR}/cpp/src)
target_link_libraries(_core PRIVATE gradstack gradstack_options)
target_link_options(_core PRIVATE
  "LINKER:--version-script=${PROJECT_SOURCE_DIR}/cmake/exports.map" LINKER:--gc-sections)
set_property(TARGET _core APPEND PROPERTY LINK_DEPENDS ${PROJECT_SOURCE_DIR}/cmake/exports.map)
install(TARGETS _core LIBRARY DESTINATION gradstack COMPONENT python)

# gradstack._cuda, a separate extension, built only when asked for: the base wheel neither contains
# nor needs it.
if(GRADSTACK_CUDA OR GRADSTACK_CUDA_EMULATED)
  include(cmake/Cuda.cmake)
endif()
