// What torch's C++ asks of a GPU, answered as by one that needs no driver and has no streams: the
// autograd engine looks for both when a gradient flows through tensors on cuda:0.
#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>

namespace {

constexpr auto kind = c10::DeviceType::CUDA;
const c10::Device first_gpu(kind, 0);
const c10::Stream only_stream(c10::Stream::DEFAULT, first_gpu);

struct Guard final : c10::impl::NoOpDeviceGuardImpl<kind> {
  // The base answers with the index -1, which the engine does not take.
  c10::Device getDevice() const override { return first_gpu; }
  c10::Device exchangeDevice(c10::Device) const override { return first_gpu; }
  c10::Stream getStream(c10::Device) const noexcept override { return only_stream; }
  c10::Stream exchangeStream(c10::Stream) const noexcept override { return only_stream; }
  // The base has no events: here whatever was asked for is done already.
  void record(void**, const c10::Stream&, const c10::DeviceIndex, const c10::EventFlag)
      const override {}
  void block(void*, const c10::Stream&) const override {}
};

Guard guard;
const c10::impl::DeviceGuardImplRegistrar registered(kind, &guard);

}  // namespace

namespace at {

struct PretendedHooks final : CUDAHooksInterface {
  explicit PretendedHooks(CUDAHooksArgs) {}
  void init() const override {}
  bool hasCUDA() const override { return true; }
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(DeviceIndex) const override { return true; }
  DeviceIndex deviceCount() const override { return 1; }
  DeviceIndex getCurrentDevice() const override { return 0; }
  int getNumGPUs() const override { return 1; }
};

C10_REGISTER_TYPED_CLASS(CUDAHooksRegistry, "CUDAHooks", PretendedHooks);

}  // namespace at
