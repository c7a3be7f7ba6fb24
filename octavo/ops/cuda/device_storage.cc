#include "octavo/ops/cuda/device_storage.h"

#include <cuda.h>

#include <cassert>
#include <type_traits>
#include <utility>

#include "octavo/base/error.h"

namespace octavo::cuda {
namespace {

// The driver's virtual-memory calls, found at run time, so that the binary starts where there is no driver.
struct Driver {
  decltype(&cuMemAddressReserve) address_reserve;
  decltype(&cuMemAddressFree) address_free;
  decltype(&cuMemCreate) create;
  decltype(&cuMemRelease) release;
  decltype(&cuMemMap) map;
  decltype(&cuMemUnmap) unmap;
  decltype(&cuMemSetAccess) set_access;
  decltype(&cuMemGetAllocationGranularity) granularity;
  decltype(&cuMemGetAddressRange) address_range;
  decltype(&cuGetErrorString) error_string;

  void check(CUresult result, const char* what) const {
    if (result == CUDA_SUCCESS) return;
    const char* text = nullptr;
    error_string(result, &text);
    fail_system("CUDA: {} failed: {}", what, text == nullptr ? "unknown error" : text);
  }
};

const Driver& driver() {
  static const Driver found = [] {
    const auto find = [](const char* name, auto& function) {
      void* address = nullptr;
      cudaDriverEntryPointQueryResult status{};
      check(cudaGetDriverEntryPointByVersion(name, &address, 12000, cudaEnableDefault, &status),
            "search for a driver function");
      if (status != cudaDriverEntryPointSuccess || address == nullptr)
        fail_system("CUDA: the driver has no {}; install a newer one", name);
      function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(address);
    };
    Driver d{};
    find("cuMemAddressReserve", d.address_reserve);
    find("cuMemAddressFree", d.address_free);
    find("cuMemCreate", d.create);
    find("cuMemRelease", d.release);
    find("cuMemMap", d.map);
    find("cuMemUnmap", d.unmap);
    find("cuMemSetAccess", d.set_access);
    find("cuMemGetAllocationGranularity", d.granularity);
    find("cuMemGetAddressRange", d.address_range);
    find("cuGetErrorString", d.error_string);
    return d;
  }();
  return found;
}

CUmemAllocationProp properties(int device) {
  CUmemAllocationProp prop{};
  prop.type = CU_MEM_ALLOCATION_TYPE_PINNED;
  prop.location = {.type = CU_MEM_LOCATION_TYPE_DEVICE, .id = device};
  return prop;
}

CUdeviceptr address_of(const void* data) { return reinterpret_cast<CUdeviceptr>(data); }

double gib(std::size_t bytes) { return static_cast<double>(bytes) / static_cast<double>(1 << 30); }

}  // namespace

DeviceMemory::DeviceMemory(std::size_t bytes) {
  bytes_ = bytes;
  if (bytes == 0) return;
  check(cudaGetDevice(&device_), "device query");
  const CUmemAllocationProp prop = properties(device_);
  std::size_t page = 0;
  driver().check(driver().granularity(&page, &prop, CU_MEM_ALLOC_GRANULARITY_RECOMMENDED), "page size query");
  mapped_bytes_ = (bytes + page - 1) / page * page;
  CUdeviceptr address = 0;
  driver().check(driver().address_reserve(&address, mapped_bytes_, 0, 0, 0), "reservation of addresses");
  data_ = reinterpret_cast<std::byte*>(address);
  try {
    create();
  } catch (...) {
    give_back();
    throw;
  }
}

DeviceMemory::~DeviceMemory() { give_back(); }

// Whatever there is of it: nothing that fails here could be mended.
void DeviceMemory::give_back() {
  if (data_ == nullptr) return;
  if (handle_ != 0) {
    driver().unmap(address_of(data_), mapped_bytes_);
    driver().release(handle_);
  }
  driver().address_free(address_of(data_), mapped_bytes_);
}

void DeviceMemory::create() {
  const CUmemAllocationProp prop = properties(device_);
  const CUresult created = driver().create(&handle_, mapped_bytes_, &prop, 0);
  if (created == CUDA_ERROR_OUT_OF_MEMORY) {
    handle_ = 0;
    std::size_t free = 0;
    std::size_t total = 0;
    check(cudaMemGetInfo(&free, &total), "memory query");
    fail_system(
        "the GPU has no room for {:.2f} GiB more: {:.2f} of {:.2f} GiB are free; use a smaller KV cache or "
        "model",
        gib(mapped_bytes_), gib(free), gib(total));
  }
  driver().check(created, "memory allocation");
  map();
  check_arrived(cudaMemset(data_, 0, mapped_bytes_), "clearing memory");
}

void DeviceMemory::map() {
  const CUmemAllocationProp prop = properties(device_);
  driver().check(driver().map(address_of(data_), mapped_bytes_, 0, handle_, 0), "memory mapping");
  const CUmemAccessDesc access{.location = prop.location, .flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE};
  driver().check(driver().set_access(address_of(data_), mapped_bytes_, &access, 1), "memory mapping");
}

void DeviceMemory::release() {
  if (handle_ == 0) return;
  check(cudaDeviceSynchronize(), "device");
  driver().check(driver().unmap(address_of(data_), mapped_bytes_), "memory unmapping");
  driver().check(driver().release(handle_), "memory release");
  handle_ = 0;
}

void DeviceMemory::restore() {
  if (data_ != nullptr && handle_ == 0) create();
}

void DeviceMemory::take_pages(DeviceMemory& other) {
  assert(mapped_bytes_ == other.mapped_bytes_);
  release();
  driver().check(driver().unmap(address_of(other.data_), mapped_bytes_), "memory unmapping");
  handle_ = std::exchange(other.handle_, 0);
  map();
}

std::size_t allocation_bytes(const void* base) {
  CUdeviceptr start = 0;
  std::size_t bytes = 0;
  driver().check(driver().address_range(&start, &bytes, address_of(base)), "query of an allocation's size");
  assert(start == address_of(base));
  return bytes;
}

std::optional<Storage::Room> DeviceStorage::room() const {
  Room room;
  check(cudaMemGetInfo(&room.free, &room.total), "memory query");
  return room;
}

std::unique_ptr<Memory> DeviceStorage::allocate(std::size_t bytes) {
  return std::make_unique<DeviceMemory>(bytes);
}

void DeviceStorage::upload(void* to, const void* from, std::size_t bytes) {
  check_arrived(cudaMemcpy(to, from, bytes, cudaMemcpyHostToDevice), "copy to the device");
}
void DeviceStorage::download(void* to, const void* from, std::size_t bytes) {
  check(cudaMemcpy(to, from, bytes, cudaMemcpyDeviceToHost), "copy from the device");
}

}  // namespace octavo::cuda
