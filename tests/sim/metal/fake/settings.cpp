#include "settings.h"

#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include <map>
#include <random>

namespace fake {

namespace {

void set(Settings* s, const std::string& item) {
  const std::map<std::string, int*> numbers = {{"devices", &s->devices}, {"family", &s->family}, {"metal3", &s->metal3},
                                               {"unified", &s->unified}, {"macos", &s->macos},   {"shared", &s->shared},
                                               {"threads", &s->threads}, {"wraps", &s->wraps},   {"fail", &s->fail}};
  const std::map<std::string, size_t*> sizes = {{"page", &s->page}, {"memory", &s->memory}, {"buffer", &s->buffer}};
  const std::map<std::string, std::string*> texts = {
      {"compile", &s->compile}, {"report", &s->report}, {"without", &s->without}};
  const size_t equals = item.find('=');
  const std::string name = item.substr(0, equals);
  const std::string value = equals == std::string::npos ? "" : item.substr(equals + 1);
  if (numbers.count(name)) {
    *numbers.at(name) = atoi(value.c_str());
  } else if (sizes.count(name)) {
    *sizes.at(name) = strtoull(value.c_str(), nullptr, 10);
  } else if (texts.count(name)) {
    *texts.at(name) = value;
  } else if (name == "seed") {
    s->seed = strtoull(value.c_str(), nullptr, 10);
  } else {
    fprintf(stderr, "fake metal: LUTKERN_FAKE_METAL has the unknown setting '%s'\n", item.c_str());
    abort();
  }
}

Settings read_settings() {
  Settings s;
  const char* text = getenv("LUTKERN_FAKE_METAL");
  std::string all = text ? text : "";
  while (!all.empty()) {
    const size_t comma = all.find(',');
    set(&s, all.substr(0, comma));
    all = comma == std::string::npos ? "" : all.substr(comma + 1);
  }
  if (s.page == 0) s.page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  return s;
}

}  // namespace

const Settings& settings() {
  static const auto* s = new Settings(read_settings());
  return *s;
}

uint64_t choice(uint64_t bound) {
  static auto* engine = new std::mt19937_64(settings().seed);
  return settings().seed ? (*engine)() % bound : 0;
}

}  // namespace fake
