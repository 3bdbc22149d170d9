# What every target of the project has in common, and how the distribution's packages are found.

find_package(Threads REQUIRED)
find_package(absl REQUIRED)
find_package(OpenSSL REQUIRED COMPONENTS Crypto)
find_package(Protobuf REQUIRED)
find_package(gRPC REQUIRED CONFIG)
find_package(GTest REQUIRED)
find_package(hwy REQUIRED CONFIG)
find_package(spdlog REQUIRED CONFIG)
find_package(prometheus-cpp REQUIRED CONFIG)
find_package(PkgConfig REQUIRED)
pkg_check_modules(openblas REQUIRED IMPORTED_TARGET openblas)
pkg_check_modules(hiredis REQUIRED IMPORTED_TARGET hiredis)
pkg_check_modules(httplib REQUIRED IMPORTED_TARGET cpp-httplib)
pkg_check_modules(jemalloc REQUIRED IMPORTED_TARGET jemalloc)
pkg_check_modules(jwt REQUIRED IMPORTED_TARGET libjwt)
pkg_check_modules(xxhash REQUIRED IMPORTED_TARGET libxxhash)
pkg_check_modules(zstd REQUIRED IMPORTED_TARGET libzstd)
find_path(CLI11_INCLUDE_DIR CLI/CLI.hpp REQUIRED)
find_path(NLOHMANN_JSON_INCLUDE_DIR nlohmann/json.hpp REQUIRED)
find_path(ROCKSDB_INCLUDE_DIR rocksdb/db.h REQUIRED)
find_library(ROCKSDB_LIBRARY rocksdb REQUIRED)

add_library(fourierkv_options INTERFACE)
target_include_directories(fourierkv_options INTERFACE ${PROJECT_SOURCE_DIR})
target_compile_definitions(fourierkv_options INTERFACE
  FOURIERKV_VERSION="${PROJECT_VERSION}")
target_compile_options(fourierkv_options INTERFACE
  $<$<COMPILE_LANGUAGE:CXX>:-Wall -Wextra -Wno-sign-compare>)
if(FOURIERKV_WERROR)
  target_compile_options(fourierkv_options INTERFACE $<$<COMPILE_LANGUAGE:CXX>:-Werror>)
endif()
if(FOURIERKV_FUZZ)
  if(NOT CMAKE_CXX_COMPILER_ID MATCHES Clang)
    message(FATAL_ERROR "FOURIERKV_FUZZ needs clang: add -DCMAKE_CXX_COMPILER=clang++")
  endif()
  target_compile_options(fourierkv_options INTERFACE -fsanitize=fuzzer-no-link,address,undefined
    -fno-sanitize-recover=undefined -fno-omit-frame-pointer)
  target_link_options(fourierkv_options INTERFACE -fsanitize=address,undefined)
endif()
if(FOURIERKV_SANITIZER STREQUAL "address")
  target_compile_options(fourierkv_options INTERFACE -fsanitize=address,undefined
    -fno-sanitize-recover=undefined -fno-omit-frame-pointer)
  target_link_options(fourierkv_options INTERFACE -fsanitize=address,undefined)
elseif(FOURIERKV_SANITIZER STREQUAL "thread")
  target_compile_options(fourierkv_options INTERFACE -fsanitize=thread -fno-omit-frame-pointer)
  target_link_options(fourierkv_options INTERFACE -fsanitize=thread)
elseif(NOT FOURIERKV_SANITIZER STREQUAL "")
  message(FATAL_ERROR "FOURIERKV_SANITIZER must be address, thread or empty, not "
    "'${FOURIERKV_SANITIZER}'")
endif()

# fourierkv_library(NAME SOURCES ... DEPS ...): a static library `fourierkv_NAME`.
function(fourierkv_library name)
  cmake_parse_arguments(ARG "" "" "SOURCES;DEPS" ${ARGN})
  add_library(fourierkv_${name} STATIC ${ARG_SOURCES})
  target_link_libraries(fourierkv_${name} PUBLIC fourierkv_options ${ARG_DEPS})
endfunction()

# fourierkv_program(NAME SOURCES ... DEPS ...): an executable in build/.../bin.
function(fourierkv_program name)
  cmake_parse_arguments(ARG "" "" "SOURCES;DEPS" ${ARGN})
  add_executable(${name} ${ARG_SOURCES})
  target_link_libraries(${name} PRIVATE fourierkv_options ${ARG_DEPS})
  set_target_properties(${name} PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${PROJECT_BINARY_DIR}/bin)
endfunction()

# fourierkv_test(NAME SOURCES ... DEPS ... [LABELS ...]): a GoogleTest program; every case is a CTest.
include(GoogleTest)
function(fourierkv_test name)
  cmake_parse_arguments(ARG "" "" "SOURCES;DEPS;LABELS" ${ARGN})
  add_executable(${name} ${ARG_SOURCES})
  target_link_libraries(${name} PRIVATE fourierkv_options ${ARG_DEPS} GTest::gmock_main)
  target_compile_definitions(${name} PRIVATE
    FOURIERKV_TEST_DATA="${PROJECT_SOURCE_DIR}/tests/data"
    FOURIERKV_BIN_DIR="${PROJECT_BINARY_DIR}/bin")
  set(environment)
  if(FOURIERKV_SANITIZER STREQUAL "thread")
    set(environment ENVIRONMENT TSAN_OPTIONS=suppressions=${PROJECT_SOURCE_DIR}/tests/tsan.supp)
  endif()
  gtest_discover_tests(${name} TEST_PREFIX ${name}. DISCOVERY_TIMEOUT 60
    PROPERTIES TIMEOUT 120 LABELS "${ARG_LABELS}" ${environment})
endfunction()
