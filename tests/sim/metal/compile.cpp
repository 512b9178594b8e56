#include "compile.h"

#include <dirent.h>
#include <dlfcn.h>
#include <fcntl.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <mutex>
#include <vector>

#include "binder.h"

extern char** environ;

namespace lutkern {
namespace sim {
namespace metal {

namespace {

const char kHere[] = LK_METAL_SIM_FOLDER;  // tests/sim/metal

std::string read_file(const std::string& path) {
  std::string text;
  FILE* file = fopen(path.c_str(), "rb");
  if (file == nullptr) return text;
  char part[65536];
  for (size_t n; (n = fread(part, 1, sizeof(part), file)) > 0;) text.append(part, n);
  fclose(file);
  return text;
}

bool write_file(const std::string& path, const std::string& text) {
  FILE* file = fopen(path.c_str(), "wb");
  if (file == nullptr) return false;
  const bool is_written = fwrite(text.data(), 1, text.size(), file) == text.size();
  return fclose(file) == 0 && is_written;
}

bool exists(const std::string& path) { return access(path.c_str(), R_OK) == 0; }

// 128 bits of FNV-1a, as 32 digits
std::string hash_of(const std::string& text) {
  unsigned __int128 hash = (static_cast<unsigned __int128>(0x6c62272e07bb0142u) << 64) | 0x62b821756295c58du;
  const unsigned __int128 prime = (static_cast<unsigned __int128>(1) << 88) | 0x13bu;
  for (const char c : text) hash = (hash ^ static_cast<uint8_t>(c)) * prime;
  char digits[40];
  snprintf(digits, sizeof(digits), "%016llx%016llx", static_cast<unsigned long long>(hash >> 64),
           static_cast<unsigned long long>(hash));
  return digits;
}

// Runs a program without the preloaded libraries of this process; returns its exit status, and what it printed.
int run_program(const std::vector<std::string>& words, std::string& printed) {
  int ends[2];
  if (pipe2(ends, O_CLOEXEC) != 0) return -1;
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0);
  posix_spawn_file_actions_adddup2(&actions, ends[1], 1);
  posix_spawn_file_actions_adddup2(&actions, ends[1], 2);
  std::vector<char*> arguments;
  for (const std::string& word : words) arguments.push_back(const_cast<char*>(word.c_str()));
  arguments.push_back(nullptr);
  std::vector<char*> variables;
  for (char** v = environ; *v != nullptr; ++v) {
    if (strncmp(*v, "LD_PRELOAD=", 11) != 0) variables.push_back(*v);
  }
  variables.push_back(nullptr);
  pid_t child = -1;
  const int failed = posix_spawnp(&child, arguments[0], &actions, nullptr, arguments.data(), variables.data());
  posix_spawn_file_actions_destroy(&actions);
  close(ends[1]);
  char part[4096];
  for (ssize_t n; failed == 0 && (n = read(ends[0], part, sizeof(part))) > 0;)
    printed.append(part, static_cast<size_t>(n));
  close(ends[0]);
  int status = -1;
  if (failed != 0 || waitpid(child, &status, 0) != child) return -1;
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

struct Compiler {
  std::string path;     // empty: there is none
  std::string version;  // what it prints
  std::string problem;
};

const Compiler& compiler() {
  static const Compiler found = [] {
    Compiler c;
    std::vector<std::string> names;
    for (int version = 22; version >= 15; --version) names.push_back("clang++-" + std::to_string(version));
    std::rotate(names.begin(), std::find(names.begin(), names.end(), "clang++-16"), names.end());
    names.push_back("clang++");
    c.problem = "no clang++ of version 15 or newer (Debian: clang-16)";
    for (const std::string& name : names) {
      std::string text;
      if (run_program({name, "--version"}, text) != 0) continue;
      const size_t at = text.find("version ");
      if (at == std::string::npos || atoi(text.c_str() + at + 8) < 15) continue;
      c.path = name;
      c.version = text;
      break;
    }
    return c;
  }();
  return found;
}

std::string cache_folder() {
  const char* named = getenv("LUTKERN_SIM_CACHE");
  if (named != nullptr && named[0] != 0) {
    mkdir(named, 0777);
    return named;
  }
  const char* temporary = getenv("TMPDIR");
  const std::string folder = std::string(temporary != nullptr && temporary[0] != 0 ? temporary : "/tmp") +
                             "/lutkern_sim_" + std::to_string(getuid());
  mkdir(folder.c_str(), 0700);
  return folder;
}

// A name that no other thread or process has
std::string unique_name(const std::string& path) {
  static std::atomic<int> count;
  return path + "." + std::to_string(getpid()) + "_" + std::to_string(count++);
}

// Every file that a compiled text depends on
const std::string& shim_text() {
  static const std::string all = [] {
    std::string text = read_file(std::string(kHere) + "/builtins.h") + read_file(std::string(kHere) + "/../simt.h");
    const std::string folder = std::string(kHere) + "/include";
    std::vector<std::string> names;
    if (DIR* open = opendir(folder.c_str())) {
      while (const dirent* entry = readdir(open)) names.push_back(entry->d_name);
      closedir(open);
    }
    std::sort(names.begin(), names.end());
    for (const std::string& name : names) text += name + "\n" + read_file(folder + "/" + name);
    return text;
  }();
  return all;
}

std::string this_library() {
  Dl_info info = {};
  dladdr(reinterpret_cast<void*>(&this_library), &info);
  char* whole = realpath(info.dli_fname, nullptr);
  const std::string path = whole == nullptr ? info.dli_fname : whole;
  free(whole);
  return path;
}

bool has_f16c() {
#if defined(__x86_64__)
  return __builtin_cpu_supports("avx2");  // a processor with it has f16c and fma
#else
  return false;
#endif
}

std::vector<std::string> base_flags() {
  std::vector<std::string> flags = {"-x",
                                    "c++",
                                    "-std=c++14",
                                    "-fno-exceptions",
                                    "-fno-rtti",
                                    "-ffp-contract=off",
                                    "-Wno-everything",
                                    "-Werror=c++17-extensions",
                                    "-fno-caret-diagnostics",
                                    "-isystem",
                                    std::string(kHere) + "/include"};
  return flags;
}

// Functions that are not inlined and loops that stay loops make no slower kernels here, and texts that compile four times as
// fast.
std::vector<std::string> code_flags() {
  const char* sanitize = getenv("LUTKERN_SIM_SANITIZE");
  const bool is_sanitized = sanitize != nullptr && sanitize[0] != 0;
  std::vector<std::string> flags = base_flags();
  flags.insert(flags.end(), {is_sanitized ? "-O0" : "-O1", "-fno-inline-functions", "-fno-unroll-loops",
                             "-DLK_UNROLL=", "-fPIC", "-gline-tables-only", "-gdwarf-4", "-fvisibility=hidden"});
  if (has_f16c()) flags.insert(flags.end(), {"-mf16c", "-mfma"});
#if defined(__x86_64__)
  if (compiler().version.find("version 15.") == std::string::npos) {
    flags.insert(flags.end(), {"-Xclang", "-ffloat16-excess-precision=none"});
  }
#endif
  if (is_sanitized) {
    flags.insert(flags.end(), {std::string("-fsanitize=") + sanitize, "-fno-sanitize-recover=all"});
    if (strstr(sanitize, "address") != nullptr) flags.push_back("-fsanitize-address-outline-instrumentation");
  } else {
    flags.insert(flags.end(), {"-fsanitize=thread,alignment", "-fno-sanitize-recover=alignment", "-mllvm",
                               "-tsan-instrument-func-entry-exit=0"});
  }
  return flags;
}

std::string joined(const std::vector<std::string>& words) {
  std::string all;
  for (const std::string& word : words) all += word + " ";
  return all;
}

// Runs clang with flags that make `to` from `from`; what it makes appears at once and whole.
bool make(std::vector<std::string> words, const std::string& from, const std::string& to, std::string& error) {
  const std::string made = unique_name(to);
  words.insert(words.begin(), compiler().path);
  words.insert(words.end(), {"-o", made, from});
  std::string printed;
  const bool is_made = run_program(words, printed) == 0 && rename(made.c_str(), to.c_str()) == 0;
  if (!is_made) {
    unlink(made.c_str());
    error = printed.empty() ? "compile: " + joined(words) + "failed" : printed;
  }
  return is_made;
}

// The words of Metal, compiled once for all texts
std::string precompiled(const std::vector<std::string>& flags, const char* header, std::string& error) {
  const std::string path =
      cache_folder() + "/shim_" + hash_of(shim_text() + compiler().version + joined(flags) + header) + ".pch";
  if (exists(path)) return path;
  std::vector<std::string> words = flags;
  words[1] = "c++-header";
  words.insert(words.end(), {"-Xclang", "-fno-pch-timestamp"});
  return make(words, std::string(kHere) + "/include/" + header, path, error) ? path : "";
}

bool is_bound(const std::string& text, bool checks, std::string& bound, std::string& error) {
  Findings findings(text);
  bound = "#line 1 \"program_source\"\n" + bind(text, checks, findings) + "\n";
  error = findings.text;
  return findings.text.empty();
}

}  // namespace

std::string compiled(const std::string& text, std::string& error) {
  if (compiler().path.empty()) {
    error = "compile: " + compiler().problem;
    return "";
  }
  std::string bound;
  if (!is_bound(text, false, bound, error)) return "";
  const std::vector<std::string> flags = code_flags();
  const std::string stem =
      cache_folder() + "/text_" + hash_of(bound + shim_text() + compiler().version + joined(flags) + this_library());
  const std::string library = stem + ".so";
  if (exists(library)) return library;
  const std::string shim = precompiled(flags, "metal_glue", error);
  if (shim.empty()) return "";
  const std::string source = unique_name(stem) + ".cpp";
  if (!write_file(source, bound)) {
    error = "compile: cannot write " + source;
    return "";
  }
  std::vector<std::string> words = flags;
  // This library has what the text calls: the watch, the scheduler, and through its own dependencies the C library.
  words.insert(words.end(), {"-include-pch", shim, "-shared", "-nostdlib", "-Wl,--build-id=none"});
  const std::string made = unique_name(library);
  words.insert(words.begin(), compiler().path);
  words.insert(words.end(), {"-o", made, source, "-x", "none", this_library()});
  std::string printed;
  const bool is_made = run_program(words, printed) == 0 && rename(made.c_str(), library.c_str()) == 0;
  unlink(source.c_str());
  if (is_made) return library;
  unlink(made.c_str());
  error = printed.empty() ? "compile: " + joined(words) + "failed" : printed;
  return "";
}

bool preprocessed(const std::string& text, std::string& plain, std::string& error) {
  if (compiler().path.empty()) {
    error = "check: " + compiler().problem;
    return false;
  }
  std::string own = text;
  Findings findings(text);
  for (const Token& token : tokens_of(text)) {
    if (!token.is_directive || token.text != "include") continue;
    const size_t begin = text.rfind('#', token.begin);
    const size_t end = std::min(text.find('\n', begin), text.size());
    const std::string line = text.substr(begin, end - begin);
    if (line.find("<metal_") == std::string::npos) findings.add(token.line, "a header that is not of Metal: " + line);
    own.replace(begin, end - begin, end - begin, ' ');
  }
  error = findings.text;
  if (!error.empty()) return false;
  const std::string source = unique_name(cache_folder() + "/plain") + ".cpp";
  if (!write_file(source, "#line 1 \"program_source\"\n" + own)) {
    error = "check: cannot write " + source;
    return false;
  }
  const std::string made = source + ".out";
  const bool is_made = run_program({compiler().path, "-E", "-x", "c++", "-std=c++14", "-nostdinc", "-Wno-everything",
                                    "-D__METAL__=1", "-D__METAL_VERSION__=240", source, "-o", made},
                                   error) == 0;
  plain = read_file(made);
  unlink(source.c_str());
  unlink(made.c_str());
  return is_made;
}

bool is_accepted(const std::string& text, std::string& error) {
  if (compiler().path.empty()) {
    error = "compile: " + compiler().problem;
    return false;
  }
  std::string bound;
  if (!is_bound(text, true, bound, error)) return false;
  std::vector<std::string> words = base_flags();
  for (const char* flag :
       {"-DLK_METAL_CHECK", "-pedantic-errors", "-Werror=double-promotion", "-Werror=vla",
        "-Werror=implicit-fallthrough", "-Werror=c++11-narrowing", "-flax-vector-conversions=none"}) {
    words.push_back(flag);
  }
  const std::string shim = precompiled(words, "metal_stdlib", error);
  if (shim.empty()) return false;
  const std::string source = unique_name(cache_folder() + "/check") + ".cpp";
  if (!write_file(source, bound)) {
    error = "check: cannot write " + source;
    return false;
  }
  words.insert(words.begin(), compiler().path);
  words.insert(words.end(), {"-fsyntax-only", "-include-pch", shim, source});
  const int status = run_program(words, error);
  unlink(source.c_str());
  return status == 0;
}

// addr2line knows the frames of inlined functions, innermost first: the first one that is not of the words of Metal is meant.
std::string line_of(const std::string& library, size_t offset) {
  char place[32];
  snprintf(place, sizeof(place), "%#zx", offset);
  std::string printed;
  if (run_program({"addr2line", "-i", "-e", library, place}, printed) != 0) return "";
  for (size_t at = 0; at < printed.size();) {
    const size_t end = std::min(printed.find('\n', at), printed.size());
    std::string frame = printed.substr(at, end - at);
    at = end + 1;
    if (frame.find("/include/metal_") != std::string::npos || frame[0] == '?') continue;
    frame = frame.substr(frame.rfind('/') + 1);
    return frame.substr(0, frame.find(' '));
  }
  return "";
}

}  // namespace metal
}  // namespace sim
}  // namespace lutkern
