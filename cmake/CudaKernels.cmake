# The kernels of the CUDA backend, an object library. CMAKE_CUDA_ARCHITECTURES: machine code for
# sm_80 and sm_90, and PTX, which newer devices compile when they load it.
include_guard(GLOBAL)
if(NOT CMAKE_CUDA_ARCHITECTURES)
  set(CMAKE_CUDA_ARCHITECTURES 80-real 90)
endif()
enable_language(CUDA)
add_library(gradstack_cuda_kernels OBJECT
  ${PROJECT_SOURCE_DIR}/cpp/cuda/kernels.cu ${PROJECT_SOURCE_DIR}/cpp/cuda/fused_mlp.cu)
set_target_properties(gradstack_cuda_kernels PROPERTIES
  CUDA_STANDARD 20 CUDA_STANDARD_REQUIRED ON CUDA_VISIBILITY_PRESET hidden)
target_include_directories(gradstack_cuda_kernels
  PRIVATE ${PROJECT_SOURCE_DIR}/cpp/include ${PROJECT_SOURCE_DIR}/cpp/cuda)
