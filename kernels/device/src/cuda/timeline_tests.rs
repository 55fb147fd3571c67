//! Tests of the timeline on the fake driver. The fake driver runs work as late as CUDA allows, and returns an error
//! for the time of an event that was not reached.
#![allow(unsafe_code)]

use std::sync::Arc;

use proptest::prelude::*;

use super::Gpu;
use super::fake::FakeDriver;
use super::timeline::LaunchTimeline;
use crate::launch::Params;
use crate::profile::ProfileData;
use crate::{Addr, Arch, Buffer, Cost, Device, Kernel, Launch, MemoryCategory, Source, Stage, Team, compile};

crate::params! {
    /// Parameters of the test kernels in this file.
    struct FourParams {
        /// f32 `[4]`, written.
        x: Addr,
    }
}

static SOURCE: Source = Source {
    name: "four",
    sm80: r#"
extern "C" __global__ void __launch_bounds__(4) fill_four(const __grid_constant__ FourParams p) {
    ((float*)p.x)[threadIdx.x] = 7.f;
}
extern "C" __global__ void __launch_bounds__(4) double_four(const __grid_constant__ FourParams p) {
    ((float*)p.x)[threadIdx.x] *= 2.f;
}
"#,
    params: &[<FourParams as Params>::c_declaration],
    shared_headers: &[],
    headers: &[],
    header_owners: &[],
};

crate::kernel!(FILL, "fill_four", FourParams, no_cpu, &SOURCE, |_, _| vec![Stage::one_dimensional("fill_four", 1, 4)]);
crate::kernel!(DOUBLE, "double_four", FourParams, no_cpu, &SOURCE, |_, _| vec![Stage::one_dimensional(
    "double_four",
    1,
    4
)]);

unsafe fn no_cpu(_: &FourParams, _: &Team) {
    unreachable!("the launches are for a GPU");
}

fn call(kernel: &'static Kernel, x: &Buffer) -> Launch {
    Launch::kernel(kernel, &FourParams { x: Addr(x.addr()) }, Cost::default())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    /// Each launch gets one time span. For any limit of launches in flight, and whenever the times are read, the
    /// spans are in stream order and do not overlap.
    #[test]
    fn spans_follow_the_stream(pairs in 2usize..9, asked in prop::collection::vec((any::<bool>(), 0u8..6), 1..40)) {
        let Some(()) = compile::skip_without_nvrtc() else { return Ok(()) };
        let fake = FakeDriver::new(Arch::A100, 16 << 20);
        let gpu = Gpu::from_driver(Arc::new(fake.clone())).unwrap();
        let (driver, stream) = (gpu.driver().clone(), gpu.stream());
        let device: Device = Device::on_gpu(gpu).unwrap();
        let x = device.alloc(16, MemoryCategory::Inputs).unwrap();
        x.upload(0, bytemuck::cast_slice(&[1.0f32; 4])).unwrap();
        let mut timeline = LaunchTimeline::new(driver, stream, pairs).unwrap();
        let collected = ProfileData::default();
        let (mut known, mut names) = (Vec::new(), Vec::new());
        for (which, read) in asked {
            let launch = call(if which { &FILL } else { &DOUBLE }, &x);
            names.push(launch.name());
            known.extend(timeline.launch(collected.record(&launch), || device.launch(&launch)).unwrap());
            if read == 0 {
                known.extend(timeline.wait_for_all().unwrap());
            }
        }
        known.extend(timeline.wait_for_all().unwrap());
        prop_assert!(timeline.wait_for_all().unwrap().is_empty());
        prop_assert_eq!(known.iter().map(|t| t.event.name).collect::<Vec<_>>(), names);
        for two in known.windows(2) {
            let [first, second] = [&two[0].event, &two[1].event];
            prop_assert!(first.seconds > 0.0);
            // Allows an overlap of 3 ns, because host times are rounded to whole nanoseconds.
            let gap = (second.start - first.start).as_secs_f64() - first.seconds;
            prop_assert!(gap > -3e-9, "begins {} s before the earlier launch ended", -gap);
        }
        drop((timeline, x, device));
        prop_assert_eq!((fake.open_handle_count(), fake.violations()), (0, Vec::new()));
    }
}
