# The device image: csrc/cuda/kernels.cu by nvcc, as data in the library. No CUDA header or library is needed or linked.
#
#   LUTKERN_CUDA                 AUTO: if an nvcc is found, and not in a build of the native tests, which run the kernels on
#                                the CPU; ON: an error without nvcc; OFF: a placeholder image
#   LUTKERN_CUDA_ARCHITECTURES   what native code is made for; everything newer runs the PTX
#   LUTKERN_NVCC                 the nvcc to take
#
# The front end makes PTX of two virtual architectures, ptxas makes a cubin of it for each device, fatbinary joins them; not
# compressed, because older drivers cannot undo what newer toolkits do, and a wheel is compressed anyway. The oldest PTX is
# embedded beside it, in the oldest version of the language that can hold it, for drivers that refuse code of this nvcc.

set(LUTKERN_CUDA AUTO CACHE STRING "CUDA kernels: AUTO, ON or OFF")
set_property(CACHE LUTKERN_CUDA PROPERTY STRINGS AUTO ON OFF)
set(LUTKERN_CUDA_ARCHITECTURES 75 80 86 89 90a 100 120 CACHE STRING "Compute capabilities to make native code for")
set(LUTKERN_NVCC "" CACHE FILEPATH "nvcc; empty: searched")
set(nvcc_minimum 12.8)  # knows of 100 and 120

# Folders that may hold an nvcc, best first: what the caller named, the pip packages, the system's.
function(lutkern_nvcc_folders out)
  set(folders "$ENV{CUDA_HOME}/bin" "$ENV{CUDA_PATH}/bin")
  set(sites ${CMAKE_PREFIX_PATH})  # scikit-build-core names its site-packages here
  find_program(LUTKERN_PYTHON_PROGRAM NAMES ${Python_EXECUTABLE} python3 python)
  mark_as_advanced(LUTKERN_PYTHON_PROGRAM)
  if(LUTKERN_PYTHON_PROGRAM)
    execute_process(COMMAND ${LUTKERN_PYTHON_PROGRAM} -c "import sys; print(';'.join(p for p in sys.path if p), end='')"
      OUTPUT_VARIABLE paths ERROR_QUIET)
    list(APPEND sites ${paths})
  endif()
  foreach(site IN LISTS sites)
    file(GLOB found "${site}/nvidia/cu1*/bin")  # one folder for all packages of a release, from 13.0 on
    list(APPEND folders ${found})
  endforeach()
  string(REPLACE ":" ";" path "$ENV{PATH}")
  list(APPEND folders ${path} /usr/local/cuda/bin /opt/cuda/bin)
  set(${out} ${folders} PARENT_SCOPE)
endfunction()

# Asks one nvcc for its version and has it compile nothing much. Sets problem (empty: it works), version and folder, which
# holds ptxas and fatbinary also where nvcc is a link or a script.
function(lutkern_try_nvcc nvcc problem version folder)
  set(${version} "" PARENT_SCOPE)
  execute_process(COMMAND ${nvcc} --version OUTPUT_VARIABLE text ERROR_QUIET)
  if(NOT text MATCHES "release [0-9.]+, V([0-9.]+)")
    set(${problem} "does not run" PARENT_SCOPE)
    return()
  endif()
  set(found ${CMAKE_MATCH_1})
  set(${version} ${found} PARENT_SCOPE)
  if(found VERSION_LESS nvcc_minimum)
    set(${problem} "is ${found}, needed is ${nvcc_minimum}" PARENT_SCOPE)
    return()
  endif()
  set(probe ${CMAKE_CURRENT_BINARY_DIR}/cuda/probe)
  file(WRITE ${probe}.cu "extern \"C\" __global__ void probe(int* p) { *p = __dp4a(*p, *p, 1); }\n")
  execute_process(COMMAND ${nvcc} -cubin -arch=sm_75 -ccbin ${CMAKE_CXX_COMPILER} ${probe}.cu -o ${probe}.cubin
    RESULT_VARIABLE failed OUTPUT_VARIABLE text ERROR_VARIABLE text)
  if(failed)
    string(STRIP "${text}" text)
    string(REGEX REPLACE "\n.*" "" text "${text}")
    set(${problem} "compiles nothing: ${text}" PARENT_SCOPE)
    return()
  endif()
  execute_process(COMMAND ${nvcc} --dryrun -cubin -arch=sm_75 ${probe}.cu OUTPUT_VARIABLE text ERROR_VARIABLE text)
  string(REGEX MATCH "_HERE_=([^\r\n]+)" text "${text}")
  set(${folder} "${CMAKE_MATCH_1}" PARENT_SCOPE)
  set(${problem} "" PARENT_SCOPE)
endfunction()

# Sets LUTKERN_NVCC_USED, LUTKERN_NVCC_VERSION and LUTKERN_NVCC_FOLDER, or LUTKERN_NVCC_MISSING with the reason.
function(lutkern_find_nvcc)
  set(candidates ${LUTKERN_NVCC})
  if(NOT candidates)
    lutkern_nvcc_folders(folders)
    foreach(folder IN LISTS folders)
      if(EXISTS ${folder}/nvcc)
        list(APPEND candidates ${folder}/nvcc)
      endif()
    endforeach()
    list(REMOVE_DUPLICATES candidates)
  endif()
  set(reasons "no nvcc was found")
  foreach(candidate IN LISTS candidates)
    lutkern_try_nvcc(${candidate} problem version folder)
    if(NOT problem)
      set(LUTKERN_NVCC_USED ${candidate} PARENT_SCOPE)
      set(LUTKERN_NVCC_VERSION ${version} PARENT_SCOPE)
      set(LUTKERN_NVCC_FOLDER ${folder} PARENT_SCOPE)
      return()
    endif()
    set(reasons "${reasons}, ${candidate} ${problem}")
  endforeach()
  string(REPLACE "no nvcc was found, " "" reasons "${reasons}")
  set(LUTKERN_NVCC_MISSING "${reasons}" PARENT_SCOPE)
endfunction()

# PTX of kernels.cu for one virtual architecture. Branches of the text may ask for __CUDA_ARCH__.
function(lutkern_ptx virtual)
  set(source ${CMAKE_CURRENT_SOURCE_DIR}/csrc/cuda/kernels.cu)
  file(GLOB families CONFIGURE_DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/csrc/cuda/*.cuh)  # kernels.cu asks which there are
  add_custom_command(OUTPUT cuda/compute_${virtual}.ptx
    COMMAND ${LUTKERN_NVCC_USED} -ptx -arch=compute_${virtual} -std=c++17 -O3 -fmad=false -ccbin ${CMAKE_CXX_COMPILER}
      -MD -MT cuda/compute_${virtual}.ptx -MF cuda/compute_${virtual}.d ${source} -o cuda/compute_${virtual}.ptx
    DEPENDS ${source} ${families}
    DEPFILE cuda/compute_${virtual}.d
    COMMENT "CUDA kernels: PTX for compute_${virtual}"
    VERBATIM)
endfunction()

# The text knows two machines, with the matrix units and copies of 80 and without: the front end, which costs most, runs twice.
function(lutkern_virtual architecture out)
  string(REGEX REPLACE "[a-z]$" "" number ${architecture})
  if(number LESS 80)
    set(${out} 75 PARENT_SCOPE)
  else()
    set(${out} 80 PARENT_SCOPE)
  endif()
endfunction()

# Adds the commands that make cuda/kernels.fatbin and cuda/lowered.ptx.
function(lutkern_device_image)
  file(MAKE_DIRECTORY ${CMAKE_CURRENT_BINARY_DIR}/cuda)
  set(virtuals 75)
  set(images)
  set(cubins)
  foreach(architecture IN LISTS LUTKERN_CUDA_ARCHITECTURES)
    lutkern_virtual(${architecture} virtual)
    list(APPEND virtuals ${virtual})
    set(cubin cuda/sm_${architecture}.cubin)
    add_custom_command(OUTPUT ${cubin}
      COMMAND ${LUTKERN_NVCC_FOLDER}/ptxas -arch=sm_${architecture} -m64 cuda/compute_${virtual}.ptx -o ${cubin}
      DEPENDS cuda/compute_${virtual}.ptx
      COMMENT "CUDA kernels: code for sm_${architecture}"
      VERBATIM)
    list(APPEND cubins ${cubin})
    list(APPEND images "--image3=kind=elf,sm=${architecture},file=${cubin}")
  endforeach()
  list(REMOVE_DUPLICATES virtuals)
  foreach(virtual IN LISTS virtuals)
    lutkern_ptx(${virtual})
  endforeach()
  add_custom_command(OUTPUT cuda/lowered.ptx
    COMMAND ${CMAKE_COMMAND} -DPTX=cuda/compute_75.ptx -DLOWERED=cuda/lowered.ptx -DPTXAS=${LUTKERN_NVCC_FOLDER}/ptxas
      -P ${CMAKE_CURRENT_SOURCE_DIR}/cmake/lower_ptx.cmake
    DEPENDS cuda/compute_75.ptx ${CMAKE_CURRENT_SOURCE_DIR}/cmake/lower_ptx.cmake
    COMMENT "CUDA kernels: PTX for older drivers"
    VERBATIM)
  add_custom_command(OUTPUT cuda/kernels.fatbin
    COMMAND ${LUTKERN_NVCC_FOLDER}/fatbinary --create=cuda/kernels.fatbin -64 --compress=false ${images}
    DEPENDS ${cubins}
    COMMENT "CUDA kernels: the image"
    VERBATIM)
endfunction()

# What became of LUTKERN_CUDA: LUTKERN_CUDA_IMAGE is the folder of the files to embed, or empty.
set(LUTKERN_CUDA_IMAGE "")
if(LUTKERN_CUDA STREQUAL "AUTO" AND LUTKERN_TESTS)
  message(STATUS "CUDA kernels: placeholder (a build of the native tests, whose kernels run on the CPU; LUTKERN_CUDA=ON)")
elseif(LUTKERN_CUDA STREQUAL "AUTO" OR LUTKERN_CUDA)
  lutkern_find_nvcc()
  if(LUTKERN_NVCC_USED)
    list(JOIN LUTKERN_CUDA_ARCHITECTURES " " architectures)
    message(STATUS "CUDA kernels: nvcc ${LUTKERN_NVCC_VERSION} at ${LUTKERN_NVCC_USED}, for ${architectures} and PTX for 75")
    lutkern_device_image()
    set(LUTKERN_CUDA_IMAGE ${CMAKE_CURRENT_BINARY_DIR}/cuda)
  elseif(LUTKERN_CUDA STREQUAL "AUTO")
    message(STATUS "CUDA kernels: placeholder (${LUTKERN_NVCC_MISSING})")
  else()
    message(FATAL_ERROR "LUTKERN_CUDA is ${LUTKERN_CUDA}, but ${LUTKERN_NVCC_MISSING}. A toolkit of ${nvcc_minimum} or newer is"
      " needed: on PATH, in CUDA_HOME, as LUTKERN_NVCC, or from pip (see CONTRIBUTING.md).")
  endif()
else()
  message(STATUS "CUDA kernels: placeholder (LUTKERN_CUDA is ${LUTKERN_CUDA})")
endif()
