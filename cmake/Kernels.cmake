# The kernels: one generic source, cpp/src/cpu/unit.cpp, compiled once per instruction set as an
# object library in a namespace of its own. Units that are not for this architecture are replaced
# by cpp/src/cpu/stub.cpp, so that the registry needs no #ifdef.
if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64|amd64")
  set(kernel_units v2 v3 v4)
elseif(CMAKE_SYSTEM_PROCESSOR MATCHES "aarch64|arm64")
  set(kernel_units neon)
else()
  set(kernel_units)
endif()
set(GRADSTACK_KERNEL_UNITS "${kernel_units}" CACHE STRING
  "Instruction sets to build kernels for, of: ${kernel_units}")
set(kernel_flags_v2 -march=x86-64-v2)
set(kernel_flags_v3 -march=x86-64-v3)
set(kernel_flags_v4 -march=x86-64-v4)
set(kernel_flags_neon)

set(GRADSTACK_KERNEL_OBJECTS)
if(NOT EXISTS ${PROJECT_SOURCE_DIR}/cpp/src/cpu/unit.cpp)
  return()
endif()
foreach(unit v2 v3 v4 neon)
  if(unit IN_LIST kernel_units AND unit IN_LIST GRADSTACK_KERNEL_UNITS)
    add_library(gradstack_${unit} OBJECT cpp/src/cpu/unit.cpp)
    target_compile_options(gradstack_${unit} PRIVATE ${kernel_flags_${unit}})
    if(NOT CMAKE_BUILD_TYPE STREQUAL "Debug" AND NOT GRADSTACK_SANITIZE)
      # Processors of v2 alone are rare and old: not worth the compile time. Nor is the search for
      # loops to vectorise: the kernels are written in vectors.
      target_compile_options(gradstack_${unit} PRIVATE
        $<IF:$<STREQUAL:${unit},v2>,-O2,-O3> -fno-tree-vectorize)
    endif()
  else()
    add_library(gradstack_${unit} OBJECT cpp/src/cpu/stub.cpp)
  endif()
  target_compile_definitions(gradstack_${unit} PRIVATE GRADSTACK_UNIT=${unit})
  target_include_directories(gradstack_${unit}
    PRIVATE ${PROJECT_SOURCE_DIR}/cpp/include ${PROJECT_SOURCE_DIR}/cpp/src)
  target_link_libraries(gradstack_${unit} PRIVATE gradstack_options)
  list(APPEND GRADSTACK_KERNEL_OBJECTS $<TARGET_OBJECTS:gradstack_${unit}>)
endforeach()
