# Helpers that keep every folder's CMakeLists.txt to a few lines.

# One interface target carries the flags that all of our own code is compiled with.
add_library(octavo_flags INTERFACE)
target_include_directories(octavo_flags INTERFACE ${CMAKE_SOURCE_DIR})
# No contraction: `a * b + c` must round twice everywhere unless the code asks for fma, or results would differ
# between compilers and instruction sets.
target_compile_options(octavo_flags INTERFACE -Wall -Wextra -Wpedantic -Werror -Wshadow -Wno-unknown-pragmas
                                              -ffp-contract=off -fno-math-errno)
# Designated initializers leave the other members at their stated defaults, which is the point of them.
target_compile_options(octavo_flags INTERFACE -Wno-missing-field-initializers)
# Debian's fmt and spdlog trip these GCC 12 false positives when inlined.
target_compile_options(octavo_flags INTERFACE $<$<CXX_COMPILER_ID:GNU>:-Wno-dangling-pointer -Wno-restrict>)
if(OCTAVO_SANITIZE)
  target_compile_options(octavo_flags INTERFACE -fsanitize=${OCTAVO_SANITIZE} -fno-omit-frame-pointer
                                                -fno-sanitize-recover=all)
  # Instrumented code of std::optional and std::function looks uninitialized to GCC 12, which warns of it.
  target_compile_options(octavo_flags INTERFACE $<$<CXX_COMPILER_ID:GNU>:-Wno-maybe-uninitialized>)
  target_link_options(octavo_flags INTERFACE -fsanitize=${OCTAVO_SANITIZE})
endif()
if(OCTAVO_FUZZ)
  target_compile_options(octavo_flags INTERFACE -fsanitize=fuzzer-no-link,address,undefined)
  target_link_options(octavo_flags INTERFACE -fsanitize=address,undefined)
endif()

# octavo_library(name SOURCES a.cc … DEPS target …) makes the static library octavo_name.
function(octavo_library name)
  cmake_parse_arguments(ARG "" "" "SOURCES;DEPS" ${ARGN})
  add_library(octavo_${name} STATIC ${ARG_SOURCES})
  target_link_libraries(octavo_${name} PUBLIC octavo_flags ${ARG_DEPS})
endfunction()

# GoogleTest's headers, parsed once for all tests. Tests are compiled with -O1: half of a build from nothing is theirs.
set(OCTAVO_TEST_OPTIONS $<$<CONFIG:Release>:-O1>)
if(NOT OCTAVO_FUZZ)
  file(GENERATE OUTPUT ${CMAKE_BINARY_DIR}/test_headers.cc CONTENT "")
  add_library(octavo_test_headers OBJECT ${CMAKE_BINARY_DIR}/test_headers.cc)
  target_compile_options(octavo_test_headers PRIVATE ${OCTAVO_TEST_OPTIONS})
  target_link_libraries(octavo_test_headers PRIVATE octavo_flags GTest::gmock)
  target_precompile_headers(octavo_test_headers PRIVATE <gmock/gmock.h> <gtest/gtest.h>)
endif()

# octavo_test_executable(name SOURCES a_test.cc … DEPS target …) makes a GoogleTest binary.
function(octavo_test_executable name)
  cmake_parse_arguments(ARG "" "" "SOURCES;DEPS" ${ARGN})
  add_executable(${name} ${ARG_SOURCES})
  target_compile_options(${name} PRIVATE ${OCTAVO_TEST_OPTIONS})
  target_link_libraries(${name} PRIVATE octavo_flags ${ARG_DEPS} GTest::gmock GTest::gtest_main)
  target_precompile_headers(${name} REUSE_FROM octavo_test_headers)
  # Tests run in the repository's root. No absolute path is compiled in, so that ccache serves every clone.
  target_compile_definitions(${name} PRIVATE OCTAVO_SOURCE_DIR=".")
endfunction()

# octavo_test(name SOURCES a_test.cc … DEPS target … [TIMEOUT s]) makes a GoogleTest binary and registers its cases.
function(octavo_test name)
  cmake_parse_arguments(ARG "" "TIMEOUT" "SOURCES;DEPS" ${ARGN})
  if(OCTAVO_FUZZ)
    return()
  endif()
  if(NOT ARG_TIMEOUT)
    set(ARG_TIMEOUT 300)
  endif()
  if(OCTAVO_SANITIZE)
    math(EXPR ARG_TIMEOUT "${ARG_TIMEOUT} * 6")
  endif()
  octavo_test_executable(${name} SOURCES ${ARG_SOURCES} DEPS ${ARG_DEPS})
  gtest_discover_tests(${name} WORKING_DIRECTORY ${CMAKE_SOURCE_DIR} DISCOVERY_TIMEOUT 60
                       PROPERTIES TIMEOUT ${ARG_TIMEOUT})
endfunction()

# octavo_isa_sources(target file.cc isa …) compiles file.cc once for each instruction set, with OCTAVO_ISA_NS set to
# the namespace (portable, avx2, avx512, avx512bf16, amxbf16) that its code must live in.
set(OCTAVO_ISA_FLAGS_portable "")
set(OCTAVO_ISA_FLAGS_avx2 -mavx2 -mfma -mf16c)
set(OCTAVO_ISA_FLAGS_avx512 -mavx2 -mfma -mf16c -mavx512f -mavx512bw -mavx512vl -mavx512dq -mprefer-vector-width=512)
set(OCTAVO_ISA_FLAGS_avx512bf16 ${OCTAVO_ISA_FLAGS_avx512} -mavx512bf16 -mavx512vbmi)
set(OCTAVO_ISA_FLAGS_amxbf16 ${OCTAVO_ISA_FLAGS_avx512bf16} -mamx-tile -mamx-bf16)
function(octavo_isa_sources target file)
  get_filename_component(stem ${file} NAME_WE)
  foreach(isa ${ARGN})
    add_library(${target}_${stem}_${isa} OBJECT ${file})
    target_link_libraries(${target}_${stem}_${isa} PRIVATE octavo_flags)
    # GCC 12's own AVX-512 headers start from an undefined register, which it then warns about (GCC bug 105593).
    target_compile_options(${target}_${stem}_${isa} PRIVATE ${OCTAVO_ISA_FLAGS_${isa}} -O3
                                                            "$<$<CXX_COMPILER_ID:GNU>:-Wno-uninitialized;-Wno-maybe-uninitialized>")
    target_compile_definitions(${target}_${stem}_${isa} PRIVATE OCTAVO_ISA_NS=${isa} OCTAVO_ISA_${isa}=1)
    target_sources(${target} PRIVATE $<TARGET_OBJECTS:${target}_${stem}_${isa}>)
  endforeach()
endfunction()
