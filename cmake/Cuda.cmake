# The extension gradstack._cuda: kernels by nvcc, the rest by the host's compiler. It needs cuBLASLt,
# from NVIDIA's PyPI package (found in the building interpreter's environment, or at
# GRADSTACK_CUBLAS_ROOT) or from the toolkit.
# With GRADSTACK_CUDA_EMULATED the device is emulated on the host and nothing of CUDA is needed.
if(GRADSTACK_CUDA_EMULATED)
  set(cuda_sources cpp/cuda/emulated.cpp cpp/cuda/emulated_mlp.cpp)
else()
  include(cmake/CudaKernels.cmake)
  find_package(CUDAToolkit 12.8 REQUIRED)
  # -E: pip builds in an environment of its own, and hides the interpreter's by way of PYTHONPATH.
  foreach(flag -u -E)
    execute_process(
      COMMAND ${Python_EXECUTABLE} ${flag} -c "import nvidia; print(list(nvidia.__path__)[0])"
      OUTPUT_VARIABLE nvidia_packages OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
    if(nvidia_packages)
      break()
    endif()
  endforeach()
  set(cuda_major cu${CUDAToolkit_VERSION_MAJOR})
  set(GRADSTACK_CUBLAS_ROOT "" CACHE PATH "Folder with include/cublasLt.h and lib/libcublasLt.so")
  set(cublas_hints ${GRADSTACK_CUBLAS_ROOT} ${nvidia_packages}/${cuda_major}
    ${nvidia_packages}/cublas ${CUDAToolkit_ROOT} ${CUDAToolkit_TARGET_DIR})
  find_path(CUBLASLT_INCLUDE_DIR cublasLt.h HINTS ${cublas_hints}
    PATH_SUFFIXES include NO_CMAKE_FIND_ROOT_PATH)
  find_library(CUBLASLT_LIBRARY
    NAMES cublasLt libcublasLt.so.${CUDAToolkit_VERSION_MAJOR} HINTS ${cublas_hints}
    PATH_SUFFIXES lib lib64 NO_CMAKE_FIND_ROOT_PATH)
  if(NOT CUBLASLT_INCLUDE_DIR OR NOT CUBLASLT_LIBRARY)
    message(FATAL_ERROR "cuBLASLt was not found: pip install nvidia-cublas, or say where it is with "
      "-DGRADSTACK_CUBLAS_ROOT=... (pip: -C cmake.define.GRADSTACK_CUBLAS_ROOT=...), a folder with "
      "include/cublasLt.h and lib/libcublasLt.so")
  endif()
  set(cuda_sources cpp/cuda/cuda_queue.cpp cpp/cuda/cuda_lines.cpp)
endif()

pybind11_add_module(_cuda MODULE NO_EXTRAS
  cpp/cuda/module.cpp cpp/cuda/products.cpp ${cuda_sources})
target_compile_definitions(_cuda PRIVATE GRADSTACK_VERSION="${PROJECT_VERSION}"
  GRADSTACK_CUDA_EMULATED=$<BOOL:${GRADSTACK_CUDA_EMULATED}>)
target_include_directories(_cuda PRIVATE ${PROJECT_SOURCE_DIR}/cpp/include ${PROJECT_SOURCE_DIR}/cpp/cuda)
target_link_libraries(_cuda PRIVATE gradstack_options)
target_link_options(_cuda PRIVATE "LINKER:--version-script=${PROJECT_SOURCE_DIR}/cmake/exports_cuda.map")
if(NOT GRADSTACK_CUDA_EMULATED)
  target_sources(_cuda PRIVATE $<TARGET_OBJECTS:gradstack_cuda_kernels>)
  target_include_directories(_cuda SYSTEM PRIVATE ${CUBLASLT_INCLUDE_DIR})
  # The runtime is linked statically: at run time only the driver and cuBLASLt are looked for, the
  # latter, once installed, beside us in site-packages and then where the system has it; a module
  # in its build folder knows where it was linked from.
  target_link_libraries(_cuda PRIVATE CUDA::cudart_static ${CUBLASLT_LIBRARY})
  set_target_properties(_cuda PROPERTIES
    INSTALL_RPATH "$ORIGIN/../nvidia/${cuda_major}/lib;$ORIGIN/../nvidia/cublas/lib")
endif()
if(SKBUILD)  # which asks for _core
  add_dependencies(_core _cuda)
endif()
install(TARGETS _cuda LIBRARY DESTINATION gradstack COMPONENT python)
