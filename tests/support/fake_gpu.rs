//! Fake GPUs: device `cuda` on a fake driver that enforces the rules of the driver API.

use std::sync::Arc;

use reel_device::cuda::Gpu;
use reel_device::cuda::fake::FakeDriver;
use reel_device::{Arch, Device};

/// Returns a fake GPU with `memory` bytes, and a device `cuda` on it.
pub fn fake_cuda(memory: u64) -> (FakeDriver, Device) {
    open_cuda_device(FakeDriver::new(Arch::A100, memory))
}

/// Opens a device `cuda` on a fake GPU.
pub fn open_cuda_device(fake: FakeDriver) -> (FakeDriver, Device) {
    let gpu = Gpu::from_driver(Arc::new(fake.clone())).expect("a fake GPU");
    (fake, Device::on_gpu(gpu).expect("a device"))
}

/// Checks that no rule of the driver API and of NCCL was broken, and that everything was freed. Must be called after
/// the device was dropped.
#[track_caller]
pub fn assert_no_violations_or_leaks(fake: &FakeDriver, name: &str) {
    assert_eq!((fake.open_handle_count(), fake.violations()), (0, Vec::new()), "{name}");
}
