#include "octavo/report/event_file.h"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <bit>
#include <chrono>
#include <cmath>
#include <cstring>

#include "octavo/base/error.h"
#include "octavo/report/files.h"

namespace octavo {
namespace {

constexpr std::array<std::uint32_t, 256> make_crc_table() {
  std::array<std::uint32_t, 256> table{};
  for (std::uint32_t i = 0; i < 256; ++i) {
    std::uint32_t crc = i;
    for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ ((crc & 1) != 0 ? 0x82f63b78U : 0U);
    table[i] = crc;
  }
  return table;
}

// Little endian whatever the machine.
template <typename Integer>
void append_fixed(std::string& out, Integer value) {
  for (std::size_t i = 0; i < sizeof(Integer); ++i)
    out.push_back(static_cast<char>((value >> (8 * i)) & 0xff));
}

// Protobuf's wire format: a tag of field number and type, then the value.
class Message {
 public:
  void add_double(int field, double value) {
    tag(field, 1);
    append_fixed(bytes_, std::bit_cast<std::uint64_t>(value));
  }
  void add_float(int field, float value) {
    tag(field, 5);
    append_fixed(bytes_, std::bit_cast<std::uint32_t>(value));
  }
  void add_int(int field, std::int64_t value) {
    tag(field, 0);
    varint(static_cast<std::uint64_t>(value));
  }
  void add_bytes(int field, std::string_view value) {
    tag(field, 2);
    varint(value.size());
    bytes_ += value;
  }
  void add_packed(int field, const std::vector<double>& values) {
    std::string packed;
    for (const double value : values) append_fixed(packed, std::bit_cast<std::uint64_t>(value));
    add_bytes(field, packed);
  }
  const std::string& bytes() const { return bytes_; }

 private:
  void tag(int field, int type) {
    varint(static_cast<std::uint64_t>(field) << 3 | static_cast<unsigned>(type));
  }
  void varint(std::uint64_t value) {
    for (; value >= 0x80; value >>= 7) bytes_.push_back(static_cast<char>(value | 0x80));
    bytes_.push_back(static_cast<char>(value));
  }

  std::string bytes_;
};

Message event(double wall_time, std::int64_t step) {
  Message message;
  message.add_double(1, wall_time);  // Event.wall_time
  message.add_int(2, step);          // Event.step
  return message;
}

// HistogramProto. The sums are those of the bins' middles: the values themselves are not kept.
std::string histogram_proto(const Histogram& histogram) {
  double count = 0;
  double sum = 0;
  double squares = 0;
  std::vector<double> limits;
  std::vector<double> buckets;
  for (std::size_t i = 0; i < histogram.counts.size(); ++i) {
    const double in_bin = static_cast<double>(histogram.counts[i]);
    const double middle = (histogram.edges[i] + histogram.edges[i + 1]) / 2;
    count += in_bin;
    sum += in_bin * middle;
    squares += in_bin * middle * middle;
    limits.push_back(histogram.edges[i + 1]);
    buckets.push_back(in_bin);
  }
  Message message;
  message.add_double(1, histogram.edges.front());  // min
  message.add_double(2, histogram.edges.back());   // max
  message.add_double(3, count);                    // num
  message.add_double(4, sum);
  message.add_double(5, squares);
  message.add_packed(6, limits);   // bucket_limit
  message.add_packed(7, buckets);  // bucket
  return message.bytes();
}

double seconds_now() {
  return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
}

}  // namespace

std::uint32_t crc32c(std::string_view bytes) {
  static constexpr auto kTable = make_crc_table();
  std::uint32_t crc = 0xffffffffU;
  for (const char byte : bytes) crc = kTable[(crc ^ static_cast<unsigned char>(byte)) & 0xff] ^ (crc >> 8);
  return crc ^ 0xffffffffU;
}

std::string tf_record(std::string_view bytes) {
  // Masked, as TensorFlow's lib/hash/crc32c.h does, since a CRC of data that holds CRCs is weak.
  const auto masked = [](std::string_view of) { return std::rotr(crc32c(of), 15) + 0xa282ead8U; };
  std::string record;
  append_fixed(record, static_cast<std::uint64_t>(bytes.size()));
  append_fixed(record, masked(record));
  record += bytes;
  append_fixed(record, masked(bytes));
  return record;
}

std::string file_version_event(double wall_time) {
  Message message;
  message.add_double(1, wall_time);
  message.add_bytes(3, "brain.Event:2");  // Event.file_version
  return message.bytes();
}

std::string session_start_event(double wall_time, std::int64_t step) {
  Message session_log;
  session_log.add_int(1, 1);  // SessionLog.status = START
  Message message = event(wall_time, step);
  message.add_bytes(7, session_log.bytes());  // Event.session_log
  return message.bytes();
}

std::string metrics_event(double wall_time, const StepMetrics& metrics) {
  Message summary;
  for (const auto& [key, number] : metrics.values) {
    if (!std::isfinite(number)) continue;
    Message value;
    value.add_bytes(1, key);                         // Summary.Value.tag
    value.add_float(2, static_cast<float>(number));  // Summary.Value.simple_value
    summary.add_bytes(1, value.bytes());             // Summary.value
  }
  if (metrics.importance_weights) {
    Message value;
    value.add_bytes(1, "importance_weight/histogram");
    value.add_bytes(5, histogram_proto(*metrics.importance_weights));  // Summary.Value.histo
    summary.add_bytes(1, value.bytes());
  }
  Message message = event(wall_time, metrics.step);
  message.add_bytes(5, summary.bytes());  // Event.summary
  return message.bytes();
}

EventFile::EventFile(const std::string& folder, std::int64_t first_step) {
  const double now = seconds_now();
  // TensorBoard reads a folder's files in the order of their names, hence the time first. The process id
  // keeps a resume within the same second apart.
  path_ = fmt::format("{}/events.out.tfevents.{:010d}.{}", folder, static_cast<std::int64_t>(now), getpid());
  fd_ = open_to_append(path_);
  write_all(fd_, tf_record(file_version_event(now)) + tf_record(session_start_event(now, first_step)), path_);
}

EventFile::~EventFile() { close(fd_); }

void EventFile::write(const StepMetrics& metrics) {
  write_all(fd_, tf_record(metrics_event(seconds_now(), metrics)), path_);
}

}  // namespace octavo
