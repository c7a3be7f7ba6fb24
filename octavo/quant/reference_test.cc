// Golden results of python/tools/quant_reference.py, an independent implementation on numpy and ml_dtypes.
#include <gtest/gtest.h>

#include <bit>
#include <cstdlib>
#include <fstream>

#include "octavo/base/cpu_features.h"
#include "octavo/quant/case_file.h"

namespace octavo {
namespace {

TEST(Reference, EqualBitsOnEveryInstructionSet) {
  const std::string folder = OCTAVO_SOURCE_DIR "/octavo/quant/testdata/";
  ThreadPool pool(2);
  for (const Isa isa : supported_isas()) {
    setenv("OCTAVO_ISA", std::string(name_of(isa)).c_str(), 1);
    std::ifstream cases(folder + "cases.bin", std::ios::binary);
    std::ifstream results(folder + "results.bin", std::ios::binary);
    int count = 0;
    while (const auto c = read_case(cases)) {
      const QuantResult expected = read_result(results, *c);
      ASSERT_TRUE(results);
      const QuantResult actual = quantize_case(*c, pool);
      const auto where = testing::Message()
                         << name_of(isa) << ", case " << count << ", kind " << c->kind << ", "
                         << name_of(c->dtype) << " [" << c->rows << ", " << c->cols << "]";
      ASSERT_EQ(actual.bad, expected.bad) << where;
      ASSERT_EQ(actual.codes, expected.codes) << where;
      ASSERT_EQ(actual.scales.size(), expected.scales.size()) << where;
      for (std::size_t i = 0; i < actual.scales.size(); ++i)  // as bits, because a scale may be NaN
        ASSERT_EQ(std::bit_cast<std::uint32_t>(actual.scales[i]),
                  std::bit_cast<std::uint32_t>(expected.scales[i]))
            << where;
      ++count;
    }
    EXPECT_GT(count, 20);
  }
  unsetenv("OCTAVO_ISA");
}

}  // namespace
}  // namespace octavo
