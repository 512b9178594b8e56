# The Metal kernels: one source of csrc/metal/*.metal, made by amalgamate.py; as data in the library, from where it is compiled
# at run time, and as a file beside it. The same text for every platform.
find_package(Python 3.10 REQUIRED COMPONENTS Interpreter)
set(LUTKERN_METAL_TEXT ${CMAKE_CURRENT_BINARY_DIR}/metal/kernels.metal)
file(MAKE_DIRECTORY ${CMAKE_CURRENT_BINARY_DIR}/metal)
file(GLOB sources CONFIGURE_DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/csrc/metal/*.metal ${CMAKE_CURRENT_SOURCE_DIR}/csrc/metal/*.h
  ${CMAKE_CURRENT_SOURCE_DIR}/csrc/formats/*.h)
add_custom_command(OUTPUT ${LUTKERN_METAL_TEXT} metal/text.cpp
  COMMAND ${Python_EXECUTABLE} ${CMAKE_CURRENT_SOURCE_DIR}/csrc/metal/amalgamate.py ${LUTKERN_METAL_TEXT}
    --embed ${CMAKE_CURRENT_BINARY_DIR}/metal/text.cpp
  DEPENDS ${sources} csrc/metal/amalgamate.py csrc/gpu/tile.h csrc/formats/codebooks.inc
  COMMENT "Metal kernels: the text"
  VERBATIM)
