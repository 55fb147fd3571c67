//! Measures the host's time for one launch: `cargo bench -p reel-runtime --bench launch`.
//!
//! On `dry`, this is the time from the call of the op to the device, which does nothing. On `cuda` with the fake
//! driver, it also includes planning the launch and checking it against the GPU's limits; the fake driver runs the
//! launches later, outside the measured time. On a real GPU, the time of NVIDIA's driver is added.

use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion};
use reel_device::cuda::Gpu;
use reel_device::cuda::fake::FakeDriver;
use reel_device::{Arch, DType, Device, Kernels, MemoryCategory, compile};
use reel_runtime::{Cx, Tensor, ops};

/// Number of launches between two calls of `synchronize`.
const LAUNCHES_PER_SYNC: u64 = 64;

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    let mut devices = vec![("dry", Device::dry(Kernels::Cuda))];
    if compile::skip_without_nvrtc().is_some() {
        let gpu = Gpu::from_driver(Arc::new(FakeDriver::new(Arch::H100, 256 << 20))).expect("a fake GPU");
        devices.push(("cuda, fake driver", Device::on_gpu(gpu).expect("a device")));
    }
    // The profiler is off, as in normal runs.
    devices.iter().for_each(|(_, device)| device.profiler().collect_totals(false));
    let mut group = criterion.benchmark_group("host time of a launch");
    for (name, device) in &devices {
        let cx = Cx::inference(device, DType::F32);
        let one = |values: &[f32]| {
            Tensor::from_f32(device, &[1, values.len()], DType::F32, values, MemoryCategory::Inputs).expect("memory")
        };
        let (x, w) = (one(&[1.0, 2.0, 3.0, 4.0]), one(&[1.0; 4]).reshape(&[4]).expect("a row"));
        group.bench_function(BenchmarkId::new("add: memory, parameters, launch", name), |b| {
            b.iter_custom(|n| host_time(device, n, || drop(ops::add(&cx, &x, &x).expect("a sum"))));
        });
        group.bench_function(BenchmarkId::new("rms_norm", name), |b| {
            b.iter_custom(|n| host_time(device, n, || drop(ops::rms_norm(&cx, &x, &w, 1e-6).expect("a norm"))));
        });
    }
    group.finish();
    criterion.final_summary();
}

/// The host time of `n` calls, without waiting for the device.
fn host_time(device: &Device, n: u64, mut call: impl FnMut()) -> Duration {
    let mut total = Duration::ZERO;
    for first in (0..n).step_by(LAUNCHES_PER_SYNC as usize) {
        let start = Instant::now();
        (first..n.min(first + LAUNCHES_PER_SYNC)).for_each(|_| call());
        total += start.elapsed();
        device.synchronize().expect("a device that works");
    }
    total
}
