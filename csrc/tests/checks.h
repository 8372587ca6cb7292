// What the kernels' tests count, and what they draw from: always the same numbers.

#pragma once

#include <cstdio>
#include <random>
#include <string>

namespace {

int checks = 0, failures = 0;

void check(bool good, const std::string& what) {
  ++checks;
  if (!good && ++failures <= 20) std::printf("FAILED %s\n", what.c_str());
}

std::mt19937 generator(1);

}  // namespace
