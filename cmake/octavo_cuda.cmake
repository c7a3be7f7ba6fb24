# CUDA is optional: where there is no nvcc, everything but the GPU backend is built. OCTAVO_CUDA tells the folders.
include(CheckLanguage)
check_language(CUDA)
set(OCTAVO_CUDA OFF)
if(CMAKE_CUDA_COMPILER AND NOT OCTAVO_SANITIZE AND NOT OCTAVO_FUZZ)
  # sm_90a: Hopper with the instructions that are its own (wgmma).
  set(CMAKE_CUDA_ARCHITECTURES 90a)
  set(CMAKE_CUDA_RUNTIME_LIBRARY Static)
  enable_language(CUDA)
  # Fences of PTX 8.6 (hopper.cuh).
  if(CMAKE_CUDA_COMPILER_VERSION VERSION_LESS 12.8)
    message(STATUS "nvcc ${CMAKE_CUDA_COMPILER_VERSION} is older than 12.8: the GPU backend is left out")
  else()
    set(OCTAVO_CUDA ON)
  endif()
endif()
if(OCTAVO_CUDA)
  # CMake 3.25 does not know the dialects of CUDA 13.
  set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION "-std=c++20")
  set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION "-std=c++20")
  find_package(CUDAToolkit REQUIRED)
  if(CCACHE)
    set(CMAKE_CUDA_COMPILER_LAUNCHER ${CCACHE})
  endif()
endif()

# octavo_cuda_library(name KERNELS a.cu … [SOURCES b.cc …] DEPS target …) makes the static library octavo_name. Kernels
# see the repository's headers and CUDA's, no other library's: nvcc does not get along with all of them, nor with the
# host compiler's warning flags.
function(octavo_cuda_library name)
  cmake_parse_arguments(ARG "" "" "KERNELS;SOURCES;DEPS" ${ARGN})
  add_library(octavo_${name}_kernels OBJECT ${ARG_KERNELS})
  target_include_directories(octavo_${name}_kernels PRIVATE ${CMAKE_SOURCE_DIR})
  if(OCTAVO_RACECHECK)
    target_compile_definitions(octavo_${name}_kernels PRIVATE OCTAVO_RACECHECK)
  endif()
  target_compile_options(octavo_${name}_kernels PRIVATE -O3 --expt-relaxed-constexpr -lineinfo
                                                        -Xcompiler=-Wall,-Wextra,-Werror)
  add_library(octavo_${name} STATIC ${ARG_SOURCES} $<TARGET_OBJECTS:octavo_${name}_kernels>)
  set_target_properties(octavo_${name} PROPERTIES LINKER_LANGUAGE CXX)
  target_link_libraries(octavo_${name} PUBLIC octavo_flags CUDA::cudart_static ${ARG_DEPS})
endfunction()
