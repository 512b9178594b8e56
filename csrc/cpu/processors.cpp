// Control groups are read from three places:
//
//   /proc/self/cgroup      one line for each hierarchy: ID:CONTROLLERS:PATH; version 2 is the line 0::PATH
//   /proc/self/mountinfo   where hierarchies are mounted: ID PARENT DEVICE ROOT MOUNT OPTIONS ... - TYPE SOURCE OPTIONS
//   MOUNT/PATH             version 2: cpu.max, "QUOTA PERIOD" or "max PERIOD"
//                          version 1: cpu.cfs_quota_us, -1 if there is none, and cpu.cfs_period_us
//
// A quota binds everything below it, so every group from the own one up to the mount counts. ROOT is the group that
// a mount shows at its top: in a container it may be the own group, and PATH may still count from the host's root.
#include "processors.h"

#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <string>

namespace lutkern {
namespace {

constexpr const char* kV2 = "cgroup2";
constexpr const char* kV1 = "cgroup";

// Calls found for each line of a file, without its end, as long as it returns true.
template <typename Found>
void for_lines(const std::string& path, Found found) {
  FILE* file = fopen(path.c_str(), "re");
  if (!file) return;
  char* line = nullptr;
  size_t capacity = 0;
  ssize_t length;
  while ((length = getline(&line, &capacity, file)) >= 0) {
    if (length > 0 && line[length - 1] == '\n') --length;
    if (!found(std::string(line, static_cast<size_t>(length)))) break;
  }
  free(line);
  fclose(file);
}

// The text up to the separator; the rest stays in text.
std::string take_field(std::string& text, char separator) {
  const size_t end = text.find(separator);
  std::string field = text.substr(0, end);
  text.erase(0, end == std::string::npos ? end : end + 1);
  return field;
}

bool lists(std::string names, const char* name) {
  while (!names.empty()) {
    if (take_field(names, ',') == name) return true;
  }
  return false;
}

// The kernel writes white space and backslashes of a path as three octal digits.
std::string unescape(const std::string& text) {
  std::string out;
  for (size_t i = 0; i < text.size(); ++i) {
    const std::string digits = text.substr(i + 1, 3);
    if (text[i] == '\\' && digits.size() == 3 && digits.find_first_not_of("01234567") == std::string::npos) {
      out += static_cast<char>(strtol(digits.c_str(), nullptr, 8));
      i += 3;
    } else {
      out += text[i];
    }
  }
  return out;
}

struct Mount {
  std::string root;
  std::string point;
  std::string type;
  std::string options;  // of the file system: the controllers of version 1
};

Mount parse_mount(std::string line) {
  Mount mount;
  for (int i = 0; i < 3; ++i) take_field(line, ' ');
  mount.root = unescape(take_field(line, ' '));
  mount.point = unescape(take_field(line, ' '));
  while (!line.empty() && take_field(line, ' ') != "-") {
  }
  mount.type = take_field(line, ' ');
  take_field(line, ' ');
  mount.options = line;
  return mount;
}

// The group of this process in the hierarchy of a mount, counted from the mount's top, without a slash at the end.
std::string group_below(const std::string& root, const Mount& mount) {
  std::string group;
  for_lines(root + "/proc/self/cgroup", [&](std::string line) {
    const std::string id = take_field(line, ':');
    const std::string controllers = take_field(line, ':');
    const bool same = mount.type == kV2 ? id == "0" && controllers.empty() : lists(controllers, "cpu");
    if (same) group = line;
    return !same;
  });
  // Above the top of a namespace; its top is what can be seen.
  if (group.find("/..") != std::string::npos) return "";
  if (mount.root != "/") {
    const bool below = group.compare(0, mount.root.size(), mount.root) == 0 &&
                       (group.size() == mount.root.size() || group[mount.root.size()] == '/');
    group = below ? group.substr(mount.root.size()) : "";
  }
  return group == "/" || group[0] != '/' ? "" : group;
}

// Up to two numbers of a file; how many there are.
int read_numbers(const std::string& path, long long* a, long long* b) {
  FILE* file = fopen(path.c_str(), "re");
  if (!file) return 0;
  const int n = fscanf(file, "%lld %lld", a, b);
  fclose(file);
  return n;
}

int quota_of_group(const std::string& folder, bool v2) {
  long long quota = 0;
  long long period = 0;
  long long unused = 0;
  if (v2) {
    if (read_numbers(folder + "/cpu.max", &quota, &period) != 2) return kNoQuota;
  } else if (read_numbers(folder + "/cpu.cfs_quota_us", &quota, &unused) < 1 ||
             read_numbers(folder + "/cpu.cfs_period_us", &period, &unused) < 1) {
    return kNoQuota;
  }
  if (quota <= 0 || period <= 0) return kNoQuota;
  const long long processors = quota / period + (quota % period != 0);
  return processors < kNoQuota ? static_cast<int>(processors) : kNoQuota;
}

#if defined(__linux__)
// The main thread has the number of the process.
bool process_mask(cpu_set_t* mask) { return sched_getaffinity(getpid(), sizeof(*mask), mask) == 0; }
#endif

}  // namespace

int quota_processors(const char* root) {
  int smallest = kNoQuota;
  for_lines(std::string(root) + "/proc/self/mountinfo", [&](const std::string& line) {
    const Mount mount = parse_mount(line);
    const bool v2 = mount.type == kV2;
    if (!v2 && !(mount.type == kV1 && lists(mount.options, "cpu"))) return true;
    std::string group = group_below(root, mount);
    for (;;) {
      const int quota = quota_of_group(root + mount.point + group, v2);
      if (quota < smallest) smallest = quota;
      if (group.empty()) return true;
      group.erase(group.rfind('/'));
    }
  });
  return smallest;
}

void Affinity::follow() {
#if defined(__linux__)
  cpu_set_t now;
  static_assert(sizeof(now) == sizeof(mask_), "a mask of the system");
  if (!process_mask(&now)) return;
  unsigned char bytes[sizeof(mask_)];
  memcpy(bytes, &now, sizeof(bytes));
  for (size_t i = 0; i < sizeof(bytes); ++i) {
    if ((mask_[i] & ~bytes[i]) != 0) return;
  }
  if (memcmp(mask_, bytes, sizeof(bytes)) == 0) return;
  memcpy(mask_, bytes, sizeof(bytes));
  sched_setaffinity(0, sizeof(now), &now);
#endif
}

int usable_processors() {
  int count = 0;
#if defined(__linux__)
  cpu_set_t mask;
  if (process_mask(&mask)) count = CPU_COUNT(&mask);
#endif
  if (count < 1) count = static_cast<int>(sysconf(_SC_NPROCESSORS_ONLN));
  if (count < 1) count = 1;
  const int quota = quota_processors("");
  return count < quota ? count : quota;
}

}  // namespace lutkern
