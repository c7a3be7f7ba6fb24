// TensorBoard's event files, written by hand: records framed as TFRecords, each an Event message in protobuf.
//
// Record: length (8 bytes, little endian), masked CRC-32C of these 8 bytes, the bytes, masked CRC-32C of
// them. The messages are those of tensorboard/compat/proto/{event,summary}.proto; the field numbers stand in
// the code.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "octavo/report/run_log.h"

namespace octavo {

// CRC-32C (Castagnoli, RFC 3720 appendix B.4).
std::uint32_t crc32c(std::string_view bytes);

// One TFRecord around `bytes`.
std::string tf_record(std::string_view bytes);

// Event messages, unframed. `wall_time`: seconds since 1970.
std::string file_version_event(double wall_time);
// Tells TensorBoard that what other files of the folder hold from `step` on has been overtaken by a resume.
std::string session_start_event(double wall_time, std::int64_t step);
// Every finite value as a scalar, the histogram under "importance_weight/histogram".
std::string metrics_event(double wall_time, const StepMetrics& metrics);

// A new events.out.tfevents file in a run's folder.
class EventFile {
 public:
  // `first_step`: the first that will be written. SystemError if the file cannot be made.
  EventFile(const std::string& folder, std::int64_t first_step);
  ~EventFile();
  EventFile(const EventFile&) = delete;
  EventFile& operator=(const EventFile&) = delete;

  void write(const StepMetrics& metrics);

 private:
  std::string path_;
  int fd_ = -1;
};

}  // namespace octavo
