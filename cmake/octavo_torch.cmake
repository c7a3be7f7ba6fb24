# libtorch is optional: the trainer (octavo/train, `octavo train`) is built where the torch wheel is. scripts/setup.sh
# puts it into .venv; -DOCTAVO_TORCH_DIR=…/site-packages/torch names another. OCTAVO_TORCH tells the folders.
file(GLOB octavo_torch_found ${CMAKE_SOURCE_DIR}/.venv/lib/python3*/site-packages/torch)
set(OCTAVO_TORCH_DIR "${octavo_torch_found}" CACHE PATH "The torch wheel's folder; empty: no trainer")
set(OCTAVO_TORCH OFF)
if(EXISTS "${OCTAVO_TORCH_DIR}/lib/libtorch_cpu.so" AND NOT OCTAVO_SANITIZE AND NOT OCTAVO_FUZZ)
  set(OCTAVO_TORCH ON)
  add_library(octavo_libtorch INTERFACE)
  # The wheel carries headers of other libraries (another fmt) beside its own, which must not be seen.
  foreach(folder ATen c10 torch)
    file(MAKE_DIRECTORY ${CMAKE_BINARY_DIR}/libtorch_headers)
    file(CREATE_LINK ${OCTAVO_TORCH_DIR}/include/${folder} ${CMAKE_BINARY_DIR}/libtorch_headers/${folder} SYMBOLIC)
  endforeach()
  # SYSTEM: its headers do not live up to our warning flags.
  target_include_directories(octavo_libtorch SYSTEM INTERFACE ${CMAKE_BINARY_DIR}/libtorch_headers)
  # Only what runs on a CPU. The wheel's libtorch_cpu also names CUDA's runtime, which it finds by its own path when
  # it is loaded; the linker need not. libtorch_cuda is opened at run time, where there is a GPU.
  target_link_libraries(octavo_libtorch INTERFACE ${OCTAVO_TORCH_DIR}/lib/libtorch_cpu.so
                                                  ${OCTAVO_TORCH_DIR}/lib/libc10.so)
  target_link_options(octavo_libtorch INTERFACE -Wl,--allow-shlib-undefined)
else()
  message(STATUS "No libtorch (${OCTAVO_TORCH_DIR}): the trainer is left out; scripts/setup.sh brings it")
endif()
