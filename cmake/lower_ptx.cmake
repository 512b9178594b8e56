# Writes PTX again in the oldest version of the language that ptxas accepts for it, so that older drivers compile it.
#
#   cmake -DPTX=FROM -DLOWERED=TO -DPTXAS=PTXAS -P lower_ptx.cmake
#
# The first version with sm_75 is 6.3. ptxas refuses an instruction that is newer than the version a file names.
file(READ ${PTX} text)
string(REGEX MATCH "\n\\.version ([0-9.]+)\n" line "${text}")
if(NOT line)
  message(FATAL_ERROR "${PTX}: no .version")
endif()
set(given ${CMAKE_MATCH_1})
string(REGEX REPLACE "\n[ \t]*\\.pragma \"used_bytes_mask[^\n]*" "" text "${text}")  # advice that came with 8.3
foreach(version IN ITEMS 6.3 6.5 7.0 7.8 8.0)
  string(REPLACE "${line}" "\n.version ${version}\n" lowered "${text}")
  file(WRITE ${LOWERED} "${lowered}")
  execute_process(COMMAND ${PTXAS} -arch=sm_75 -m64 -O0 ${LOWERED} -o ${LOWERED}.cubin
    RESULT_VARIABLE failed ERROR_VARIABLE problem OUTPUT_QUIET)
  file(REMOVE ${LOWERED}.cubin)
  if(NOT failed)
    message(STATUS "CUDA kernels: PTX ${given} lowered to ${version}")
    return()
  endif()
endforeach()
file(REMOVE ${LOWERED})
message(FATAL_ERROR "${PTX}: needs PTX newer than 8.0: ${problem}")
