// The C++ part of the fake GPU: cuda:0 exists, its tensors are in host memory or have none, and every
// byte is counted. Kernels are in fake_gpu.py. Built with g++ and the headers of the installed torch,
// without CUDA.
//
//     tensor on cuda:0                memory
//     real                            host memory, so that CPU kernels can compute on it
//     dry (`dry_from` bytes or more)  none: its bytes are counted, and operations return shapes
#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/EmptyTensor.h>
#include <ATen/InferSize.h>
#include <ATen/TensorUtils.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <ATen/native/DispatchStub.h>
#include <ATen/native/transformers/attention.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/library.h>

#include <atomic>
#include <cstdlib>
#include <new>

using namespace at;

namespace {

const Device gpu(kCUDA, 0);

// ---- Memory: allocated bytes, peak bytes, and the size from which tensors are dry.

struct Meter {
  std::atomic<int64_t> held{0}, peak{0};
  int64_t dry_from = 0;  // 0: no tensor is dry

  void change(int64_t bytes) {
    const int64_t total = held.fetch_add(bytes) + bytes;
    int64_t most = peak.load();
    while (most < total && !peak.compare_exchange_weak(most, total)) {
    }
  }
};
Meter meter;

// CUDA's caching allocator allocates blocks of 512 bytes.
int64_t in_blocks(int64_t bytes) { return (bytes + 511) / 512 * 512; }

struct Memory {
  int64_t bytes;
  void* own;     // allocated here
  Tensor other;  // or a host tensor that owns the memory
};

void give_back(void* context) {
  auto* memory = static_cast<Memory*>(context);
  meter.change(-in_blocks(memory->bytes));
  std::free(memory->own);
  delete memory;
}

DataPtr count(Memory* memory, void* data) {
  meter.change(in_blocks(memory->bytes));
  return DataPtr(data, memory, &give_back, gpu);
}

DataPtr allocate(int64_t bytes, bool dry) {
  void* data = nullptr;
  if (bytes > 0 && !dry && posix_memalign(&data, 64, bytes) != 0) throw std::bad_alloc();
  return count(new Memory{bytes, data, {}}, data);
}

struct GpuAllocator final : Allocator {
  DataPtr allocate(size_t bytes) override {
    const bool dry = meter.dry_from > 0 && static_cast<int64_t>(bytes) >= meter.dry_from;
    return ::allocate(static_cast<int64_t>(bytes), dry);
  }
  DeleterFnPtr raw_deleter() const override { return nullptr; }
  void copy_data(void* to, const void* from, size_t bytes) const override {
    if (to && from) default_copy_data(to, from, bytes);
  }
};
GpuAllocator allocator;

// ---- The device interface of torch: one GPU, whose streams and events are always done.

struct Guard final : c10::impl::DeviceGuardImplInterface {
  DeviceType type() const override { return kCUDA; }
  Device exchangeDevice(Device) const override { return gpu; }
  Device getDevice() const override { return gpu; }
  void setDevice(Device) const override {}
  void uncheckedSetDevice(Device) const noexcept override {}
  DeviceIndex deviceCount() const noexcept override { return 1; }
  Stream getStream(Device) const noexcept override { return only(); }
  Stream getDefaultStream(Device) const override { return only(); }
  Stream getNewStream(Device, int) const override { return only(); }
  Stream exchangeStream(Stream) const noexcept override { return only(); }
  void record(void** event, const Stream&, const DeviceIndex, const EventFlag) const override {
    *event = this_is_done();
  }
  void block(void*, const Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  void destroyEvent(void*, const DeviceIndex) const noexcept override {}
  bool queryStream(const Stream&) const override { return true; }
  void synchronizeStream(const Stream&) const override {}
  void synchronizeEvent(void*) const override {}
  void synchronizeDevice(const DeviceIndex) const override {}
  void recordDataPtrOnStream(const DataPtr&, const Stream&) const override {}

 private:
  static Stream only() { return Stream(Stream::DEFAULT, gpu); }
  static void* this_is_done() {
    static char event;
    return &event;
  }
};
C10_REGISTER_GUARD_IMPL(CUDA, Guard)

}  // namespace

namespace at {
// torch looks up this class by name.
struct CUDAHooks final : CUDAHooksInterface {
  explicit CUDAHooks(CUDAHooksArgs) {}
  void init() const override {}
  bool hasCUDA() const override { return true; }
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(DeviceIndex) const override { return true; }
  int getNumGPUs() const override { return 1; }
  DeviceIndex deviceCount() const override { return 1; }
  DeviceIndex current_device() const override { return 0; }
  DeviceIndex getCurrentDevice() const override { return 0; }
  void setCurrentDevice(DeviceIndex) const override {}
  DeviceIndex exchangeDevice(DeviceIndex) const override { return 0; }
  DeviceIndex maybeExchangeDevice(DeviceIndex) const override { return 0; }
  void deviceSynchronize(DeviceIndex) const override {}
  Allocator* getCUDADeviceAllocator() const override { return &allocator; }
  Allocator* getPinnedMemoryAllocator() const override { return getCPUAllocator(); }
  const Generator& getDefaultGenerator(DeviceIndex) const override {
    static const Generator generator = at::detail::createCPUGenerator(42);
    return generator;
  }
  Generator getNewGenerator(DeviceIndex) const override { return at::detail::createCPUGenerator(42); }
};
REGISTER_CUDA_HOOKS(CUDAHooks);
}  // namespace at

namespace {

// ---- Operations that create tensors and views; all others are in Python.

const DispatchKeySet on_gpu(DispatchKey::CUDA);

Tensor make_empty(IntArrayRef size, std::optional<ScalarType> dtype, std::optional<Layout>, std::optional<Device>,
             std::optional<bool>, std::optional<MemoryFormat> format) {
  return at::detail::empty_generic(size, &allocator, on_gpu, dtype_or_default(dtype), format);
}

Tensor make_strided(IntArrayRef size, IntArrayRef stride, std::optional<ScalarType> dtype, std::optional<Layout>,
                     std::optional<Device>, std::optional<bool>) {
  return at::detail::empty_strided_generic(size, stride, &allocator, on_gpu, dtype_or_default(dtype));
}

Tensor view_of(const Tensor& self, IntArrayRef size, IntArrayRef stride, int64_t offset) {
  auto view = at::detail::make_tensor<TensorImpl>(TensorImpl::VIEW, Storage(self.storage()), self.key_set(), self.dtype());
  view.unsafeGetTensorImpl()->set_sizes_and_strides(size, stride, offset);
  return view;
}

Tensor view_strided(const Tensor& self, IntArrayRef size, IntArrayRef stride, std::optional<int64_t> offset) {
  return view_of(self, size, stride, offset.value_or(self.storage_offset()));
}

Tensor view_alias(const Tensor& self, IntArrayRef size, IntArrayRef stride) {
  return view_of(self, size, stride, self.storage_offset());
}

Tensor view_as(const Tensor& self, IntArrayRef size) {
  const auto whole = infer_size_dv(size, self.numel());
  const auto stride = at::detail::computeStride(self.sizes(), self.strides(), whole);
  TORCH_CHECK(stride.has_value(), "view: ", size, " does not fit the strides of ", self.sizes());
  return view_of(self, whole, *stride, self.storage_offset());
}

Tensor view_unfolded(const Tensor& self, int64_t dimension, int64_t size, int64_t step) {
  const int64_t at = maybe_wrap_dim(dimension, self.dim(), true);
  auto sizes = self.sizes().vec(), strides = self.strides().vec();
  sizes.push_back(size);
  strides.push_back(self.dim() == 0 ? 1 : strides[at]);
  if (self.dim() > 0) {
    sizes[at] = (sizes[at] - size) / step + 1;
    strides[at] *= step;
  }
  return view_of(self, sizes, strides, self.storage_offset());
}

Tensor& set_all(Tensor& self, Storage source, int64_t offset, IntArrayRef size, IntArrayRef stride) {
  self.unsafeGetTensorImpl()->set_storage_keep_dtype(std::move(source));
  self.unsafeGetTensorImpl()->set_sizes_and_strides(size, stride, offset);
  return self;
}

Tensor& set_storage(Tensor& self, Storage source) {
  const int64_t elements = source.nbytes() / self.element_size();
  return set_all(self, std::move(source), 0, {elements}, {1});
}

Tensor& set_tensor(Tensor& self, const Tensor& source) {
  return set_all(self, source.storage(), source.storage_offset(), source.sizes(), source.strides());
}

const Tensor& grow_to(const Tensor& self, IntArrayRef size, std::optional<MemoryFormat>) {
  const int64_t elements = c10::multiply_integers(size);
  const int64_t bytes = (elements + self.storage_offset()) * self.element_size();
  if (elements > 0 && static_cast<int64_t>(self.storage().nbytes()) < bytes) {
    DataPtr data = allocator.allocate(bytes);
    allocator.copy_data(data.get(), self.storage().data(), self.storage().nbytes());
    Storage storage(Storage::use_byte_size_t(), bytes, std::move(data), &allocator, true);
    self.unsafeGetTensorImpl()->set_storage_keep_dtype(std::move(storage));
  }
  self.unsafeGetTensorImpl()->set_sizes_contiguous(size);
  return self;
}

// ---- Conversion between the fake GPU and the host.

bool is_dry(const Tensor& self) { return self.numel() > 0 && self.storage().data_ptr().get() == nullptr; }

Tensor as_host(const Tensor& self) {
  TORCH_CHECK(!is_dry(self), "the numbers of a dry tensor were asked for");
  auto keep = [self](void*) {};
  return from_blob(self.data_ptr(), self.sizes(), self.strides(), keep, self.options().device(kCPU));
}

Tensor wrap(Storage storage, caffe2::TypeMeta type, IntArrayRef size, IntArrayRef stride, int64_t offset) {
  auto made = at::detail::make_tensor<TensorImpl>(std::move(storage), on_gpu, type);
  made.unsafeGetTensorImpl()->set_sizes_and_strides(size, stride, offset);
  return made;
}

Tensor as_gpu(const Tensor& self) {
  const int64_t bytes = self.storage().nbytes();
  void* data = self.storage().mutable_data();
  Storage storage(Storage::use_byte_size_t(), bytes, count(new Memory{bytes, nullptr, self}, data), nullptr, false);
  return wrap(std::move(storage), self.dtype(), self.sizes(), self.strides(), self.storage_offset());
}

Tensor dry(IntArrayRef size, IntArrayRef stride, ScalarType type) {
  int64_t last = 0;  // the index of the last element
  for (size_t i = 0; i < size.size(); ++i) last += (size[i] - 1) * stride[i];
  const int64_t bytes = c10::multiply_integers(size) == 0 ? 0 : (last + 1) * c10::elementSize(type);
  Storage storage(Storage::use_byte_size_t(), bytes, allocate(bytes, true), &allocator, true);
  return wrap(std::move(storage), c10::scalarTypeToTypeMeta(type), size, stride, 0);
}

// ---- The kernel selection of scaled_dot_product_attention, as in torch's sdp_utils.cpp for CUDA.

int64_t capability = 80;

int64_t choose_attention(const Tensor& query, const Tensor& key, const Tensor& value, const std::optional<Tensor>& mask,
                         double, bool, std::optional<double>, bool grouped) {
  const auto dtype = query.scalar_type();
  const bool narrow = dtype == kHalf || dtype == kBFloat16;
  const int64_t size = query.size(-1), multiple = narrow ? 8 : 4;
  if (narrow && capability >= 80 && !mask.has_value() && size <= 256 && size == value.size(-1)) return 1;  // flash
  const bool known = narrow ? dtype == kHalf || capability >= 80 : dtype == kFloat;
  const bool repeats = grouped && query.size(-3) != key.size(-3);
  if (known && !repeats && size % multiple == 0 && value.size(-1) % multiple == 0) return 2;  // memory-efficient
  return 0;  // the formula
}

struct Choose {
  Choose() { native::_fused_sdp_choice_stub.set_cuda_dispatch_ptr(&choose_attention); }
} choose;

std::vector<int64_t> memory() { return {meter.held.load(), meter.peak.load()}; }
void forget_peak() { meter.peak = meter.held.load(); }
void set_up(int64_t dry_from, int64_t of_capability) {
  meter.dry_from = dry_from;
  capability = of_capability;
}

}  // namespace

TORCH_LIBRARY_IMPL(aten, CUDA, m) {
  m.impl("empty.memory_format", make_empty);
  m.impl("empty_strided", make_strided);
  m.impl("as_strided", view_strided);
  m.impl("view", view_as);
  m.impl("_reshape_alias", view_alias);
  m.impl("unfold", view_unfolded);
  m.impl("resize_", grow_to);
  m.impl("set_.source_Storage", set_storage);
  m.impl("set_.source_Storage_storage_offset", set_all);
  m.impl("set_.source_Tensor", set_tensor);
}

TORCH_LIBRARY(fake_gpu, m) {
  m.def("set_up(int dry_from, int capability) -> ()", set_up);
  m.def("memory() -> int[]", memory);
  m.def("forget_peak() -> ()", forget_peak);
  m.def("is_dry(Tensor self) -> bool", is_dry);
  m.def("as_host(Tensor self) -> Tensor", as_host);
  m.def("as_gpu(Tensor self) -> Tensor", as_gpu);
  m.def("dry(int[] size, int[] stride, ScalarType type) -> Tensor", dry);
}
