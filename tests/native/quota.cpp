// Quotas of control groups, read from folders that stand for / and hold what Linux shows in /proc and /sys.
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <string>
#include <utility>
#include <vector>

#include "cpu/processors.h"

namespace {

using Files = std::vector<std::pair<std::string, std::string>>;  // path, text

struct Case {
  const char* name;
  std::string groups;  // /proc/self/cgroup
  std::string mounts;  // /proc/self/mountinfo
  Files files;
  int expected;
};

constexpr const char* kV2 = "30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n";
constexpr const char* kV1 =
    "31 23 0:27 / /sys/fs/cgroup rw - tmpfs tmpfs ro,mode=755\n"
    "32 31 0:28 / /sys/fs/cgroup/memory rw shared:12 - cgroup cgroup rw,memory\n"
    "33 31 0:29 / /sys/fs/cgroup/cpuset rw shared:13 - cgroup cgroup rw,cpuset\n"
    "34 31 0:30 / /sys/fs/cgroup/cpu,cpuacct rw shared:14 - cgroup cgroup rw,cpu,cpuacct\n";
constexpr int kNone = lutkern::kNoQuota;

std::vector<Case> cases() {
  const std::string top = "/sys/fs/cgroup";
  const std::string v1_top = top + "/cpu,cpuacct";
  const auto v1 = [](const std::string& group, const char* quota, const char* period) {
    return Files{{group + "/cpu.cfs_quota_us", quota}, {group + "/cpu.cfs_period_us", period}};
  };
  return {
      {"nothing is there", "", "", {}, kNone},
      {"no quota", "0::/a\n", kV2, {{top + "/a/cpu.max", "max 100000\n"}}, kNone},
      {"version 2, own group", "0::/a/b\n", kV2, {{top + "/a/b/cpu.max", "300000 100000\n"}}, 3},
      {"a part of a processor counts as one", "0::/a\n", kV2, {{top + "/a/cpu.max", "150000 100000\n"}}, 2},
      {"less than one processor", "0::/a\n", kV2, {{top + "/a/cpu.max", "1000 100000\n"}}, 1},
      {"version 2, a group above",
       "0::/a/b/c\n",
       kV2,
       {{top + "/a/cpu.max", "200000 100000\n"}, {top + "/a/b/c/cpu.max", "max 100000\n"}},
       2},
      {"version 2, the smallest on the way",
       "0::/a/b\n",
       kV2,
       {{top + "/cpu.max", "900000 100000\n"},
        {top + "/a/cpu.max", "400000 100000\n"},
        {top + "/a/b/cpu.max", "700000 100000\n"}},
       4},
      {"another group's quota", "0::/a\n", kV2, {{top + "/ab/cpu.max", "100000 100000\n"}}, kNone},
      {"a namespace: the own group is the top", "0::/\n", kV2, {{top + "/cpu.max", "500000 100000\n"}}, 5},
      {"a group above the namespace", "0::/../../x\n", kV2, {{top + "/cpu.max", "500000 100000\n"}}, 5},
      {"a container that sees the host's path",
       "0::/docker/f00/task\n",
       "30 23 0:26 /docker/f00 /sys/fs/cgroup ro - cgroup2 cgroup rw\n",
       {{top + "/cpu.max", "600000 100000\n"}, {top + "/task/cpu.max", "250000 100000\n"}},
       3},
      {"a mount that shows another part",
       "0::/docker/f00bar\n",
       "30 23 0:26 /docker/f00 /sys/fs/cgroup ro - cgroup2 cgroup rw\n",
       {{top + "/cpu.max", "600000 100000\n"}, {top + "/bar/cpu.max", "100000 100000\n"}},
       6},
      {"white space in the mount point",
       "0::/a\n",
       "30 23 0:26 / /mnt/with\\040space\\134 rw - cgroup2 cgroup2 rw\n",
       {{"/mnt/with space\\/a/cpu.max", "200000 100000\n"}},
       2},
      {"version 1, own group", "4:memory:/m\n3:cpu,cpuacct:/a\n0::/b\n", kV1, v1(v1_top + "/a", "350000\n", "100000\n"),
       4},
      {"version 1, a group above", "3:cpuacct,cpu:/a/b\n", kV1, v1(v1_top + "/a", "200000\n", "50000\n"), 4},
      {"version 1, no quota", "3:cpu,cpuacct:/a\n", kV1, v1(v1_top + "/a", "-1\n", "100000\n"), kNone},
      {"version 1, cpuset is not cpu", "5:cpuset:/a\n3:cpu,cpuacct:/\n", kV1, v1(v1_top + "/a", "100000\n", "100000\n"),
       kNone},
      {"versions 1 and 2 at once",
       "3:cpu,cpuacct:/a\n0::/b\n",
       std::string(kV1) + "41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n",
       {{v1_top + "/a/cpu.cfs_quota_us", "400000\n"},
        {v1_top + "/a/cpu.cfs_period_us", "100000\n"},
        {top + "/unified/b/cpu.max", "300000 100000\n"}},
       3},
      {"numbers that are none", "0::/a\n", kV2, {{top + "/a/cpu.max", "many 100000\n"}}, kNone},
      {"a period of zero", "0::/a\n", kV2, {{top + "/a/cpu.max", "100000 0\n"}}, kNone},
      {"an empty file", "0::/a\n", kV2, {{top + "/a/cpu.max", ""}}, kNone},
      {"a quota as large as it gets", "0::/a\n", kV2, {{top + "/a/cpu.max", "9223372036854775807 3\n"}}, kNone},
      {"lines cut short",
       "0:\n0::a",
       "30\n\n30 23 0:26 / -\n30 23 0:26 / /x rw - cgroup2",
       {{"/x/cpu.max", "100000 50000\n"}},
       2},
  };
}

bool check(const Case& c, const std::filesystem::path& root) {
  Files files = c.files;
  files.emplace_back("/proc/self/cgroup", c.groups);
  files.emplace_back("/proc/self/mountinfo", c.mounts);
  for (const auto& [path, text] : files) {
    const std::filesystem::path whole = root.string() + path;
    std::filesystem::create_directories(whole.parent_path());
    std::ofstream(whole) << text;
  }
  const int got = lutkern::quota_processors(root.c_str());
  if (got != c.expected) fprintf(stderr, "%s: got %d, expected %d\n", c.name, got, c.expected);
  return got == c.expected;
}

}  // namespace

int main() {
  char folder[] = "/tmp/lutkern_quota_XXXXXX";
  if (!mkdtemp(folder)) return 1;
  int failed = 0;
  int number = 0;
  for (const Case& c : cases()) failed += !check(c, std::filesystem::path(folder) / std::to_string(number++));
  std::filesystem::remove_all(folder);
  if (lutkern::usable_processors() < 1) {
    fprintf(stderr, "no processor may be used\n");
    ++failed;
  }
  printf("quota: %d of %d cases failed\n", failed, number);
  return failed != 0;
}
