#include "octavo/tasks/data_set.h"

#include <cassert>

#include "octavo/base/error.h"
#include "octavo/tasks/draws.h"

namespace octavo {
namespace {

class Chosen : public DataSet {
 public:
  Chosen(std::shared_ptr<const DataSet> data, std::vector<std::int64_t> indices)
      : data_(std::move(data)), indices_(std::move(indices)) {
    assert(!indices_.empty());
  }
  std::int64_t size() const override { return static_cast<std::int64_t>(indices_.size()); }
  TaskSample at(std::int64_t index) const override {
    return data_->at(indices_.at(static_cast<std::size_t>(index)));
  }

 private:
  std::shared_ptr<const DataSet> data_;
  std::vector<std::int64_t> indices_;
};

}  // namespace

std::unique_ptr<DataSet> choose(std::shared_ptr<const DataSet> data, std::vector<std::int64_t> indices) {
  return std::make_unique<Chosen>(std::move(data), std::move(indices));
}

DataLoader::DataLoader(std::shared_ptr<const DataSet> data, bool shuffle, std::uint64_t seed)
    : data_(std::move(data)), shuffle_(shuffle), seed_(seed) {
  order_epoch();
}

void DataLoader::order_epoch() {
  if (shuffle_) order_ = random_order(data_->size(), seed_, static_cast<std::uint64_t>(position_.epoch));
}

std::vector<TaskSample> DataLoader::next(std::int64_t count) {
  std::vector<TaskSample> samples;
  samples.reserve(static_cast<std::size_t>(count));
  while (static_cast<std::int64_t>(samples.size()) < count) {
    if (position_.next == data_->size()) {
      position_ = {position_.epoch + 1, 0};
      order_epoch();
    }
    const std::int64_t next = position_.next++;
    samples.push_back(data_->at(shuffle_ ? order_[static_cast<std::size_t>(next)] : next));
  }
  return samples;
}

void DataLoader::seek(const DataPosition& position) {
  if (position.epoch < 0 || position.next < 0 || position.next > data_->size())
    fail("data position: epoch {}, sample {} of {}: the data has changed since it was saved", position.epoch,
         position.next, data_->size());
  position_ = position;
  order_epoch();
}

}  // namespace octavo
