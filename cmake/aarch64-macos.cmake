# Cross build for macOS on Apple silicon with the compiler of the Python package ziglang (pip install ziglang), which
# carries the headers of the system and the symbols of its libraries: no SDK. It shows that everything compiles and links;
# nothing runs.
set(CMAKE_SYSTEM_NAME Darwin)
set(CMAKE_SYSTEM_PROCESSOR arm64)
find_program(LUTKERN_ZIG python-zig REQUIRED)

# CMake wants one program for each tool. zig names the features of a processor in a grammar of its own, and its
# linker writes libraries, no bundles (which Python loads likewise).
set(tools ${CMAKE_BINARY_DIR}/zig)
foreach(tool IN ITEMS cc c++ ar ranlib)
  if(tool MATCHES "^c")
    set(arguments " -target aarch64-macos.13.0")
  else()
    set(arguments "")
  endif()
  file(WRITE ${tools}/${tool} "#!/bin/sh
for argument do
  shift
  case $argument in
    -bundle) argument=-dynamiclib ;;
    -march=armv8.2-a+*) argument=-mcpu=generic+v8_2a+\${argument#-march=armv8.2-a+} ;;
  esac
  set -- \"$@\" \"$argument\"
done
exec ${LUTKERN_ZIG} ${tool}${arguments} \"$@\"
")
  file(CHMOD ${tools}/${tool} PERMISSIONS OWNER_READ OWNER_WRITE OWNER_EXECUTE)
endforeach()
set(CMAKE_C_COMPILER ${tools}/cc)
set(CMAKE_CXX_COMPILER ${tools}/c++)
set(CMAKE_AR ${tools}/ar)
set(CMAKE_RANLIB ${tools}/ranlib)
# Nothing is installed or stripped.
set(CMAKE_INSTALL_NAME_TOOL true)
set(CMAKE_STRIP true)
set(CMAKE_OSX_SYSROOT "")
set(CMAKE_FIND_ROOT_PATH_MODE_PROGRAM NEVER)
