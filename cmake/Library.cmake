# The C++ core: static library gradstack::gradstack, with no Python header in it.
find_package(OpenMP REQUIRED COMPONENTS CXX)
find_package(Threads REQUIRED)

include(cmake/Kernels.cmake)

file(GLOB core_sources CONFIGURE_DEPENDS
  cpp/src/*.cpp cpp/src/blocks/*.cpp cpp/src/calculus/*.cpp cpp/src/reference/*.cpp cpp/src/cpu/*.cpp
  cpp/src/device/*.cpp)
list(FILTER core_sources EXCLUDE REGEX "/cpu/(unit|stub)\\.cpp$")

add_library(gradstack STATIC ${core_sources} ${GRADSTACK_KERNEL_OBJECTS})
add_library(gradstack::gradstack ALIAS gradstack)
target_include_directories(gradstack
  PUBLIC $<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}/cpp/include> $<INSTALL_INTERFACE:include>
  PRIVATE ${PROJECT_SOURCE_DIR}/cpp/src)
target_compile_features(gradstack PUBLIC cxx_std_20)
if(GRADSTACK_UNITY)
  # Much of a file's compile time is headers. Batches, so that two cores have work to the end.
  set_target_properties(gradstack PROPERTIES UNITY_BUILD ON UNITY_BUILD_BATCH_SIZE 7)
  # Files beside each other that give the same names to things of their own.
  file(GLOB single_sources cpp/src/search*.cpp cpp/src/device/*.cpp)
  set_source_files_properties(${single_sources} PROPERTIES SKIP_UNITY_BUILD_INCLUSION ON)
endif()
target_compile_definitions(gradstack PRIVATE GRADSTACK_VERSION="${PROJECT_VERSION}")
target_link_libraries(gradstack
  PRIVATE $<BUILD_INTERFACE:gradstack_options> OpenMP::OpenMP_CXX Threads::Threads)

include(CMakePackageConfigHelpers)
set(config_dir ${CMAKE_INSTALL_LIBDIR}/cmake/gradstack)
configure_package_config_file(cmake/gradstackConfig.cmake.in gradstackConfig.cmake
  INSTALL_DESTINATION ${config_dir})
write_basic_package_version_file(gradstackConfigVersion.cmake COMPATIBILITY SameMinorVersion)

# The wheel installs the component "python" only.
install(TARGETS gradstack EXPORT gradstackTargets COMPONENT cpp
  ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR} COMPONENT cpp)
install(DIRECTORY cpp/include/gradstack DESTINATION ${CMAKE_INSTALL_INCLUDEDIR} COMPONENT cpp
  FILES_MATCHING PATTERN "*.hpp")
install(EXPORT gradstackTargets NAMESPACE gradstack:: DESTINATION ${config_dir} COMPONENT cpp)
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/gradstackConfig.cmake
              ${CMAKE_CURRENT_BINARY_DIR}/gradstackConfigVersion.cmake
  DESTINATION ${config_dir} COMPONENT cpp)
