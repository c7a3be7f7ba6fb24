// Test tool: quantizes the matrices of a file so that python/tools/quant_reference.py can compare them, bit
// for bit, with an implementation of its own. Usage: quantize_file CASES RESULTS
#include <cstdio>
#include <exception>
#include <fstream>
#include <iostream>

#include "octavo/base/error.h"
#include "octavo/quant/case_file.h"

int main(int argc, char** argv) {
  if (argc != 3) {
    std::cerr << "usage: quantize_file CASES RESULTS\n";
    return 2;
  }
  try {
    std::ifstream in(argv[1], std::ios::binary);
    std::ofstream out(argv[2], std::ios::binary);
    octavo::ThreadPool pool(2);
    while (const auto test_case = octavo::read_case(in))
      octavo::write_result(out, octavo::quantize_case(*test_case, pool));
    if (!out.flush()) octavo::fail_system("cannot write {}", argv[2]);
  } catch (const std::exception& error) {
    std::cerr << "quantize_file: " << error.what() << "\n";
    return 1;
  }
}
