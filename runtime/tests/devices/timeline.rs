//! Tests of the profiler of device `cuda` on the fake driver, which runs work as late as CUDA allows.

use reel_device::launch::Matmul;
use reel_device::{Addr, DType, Launch, compile};
use reel_kernels::elementwise::{self, AddParams, FillParams};
use reel_runtime::Tensor;

use crate::cuda::{f32_tensor, fake_gpu_device, matrix_product};

fn fill(x: &Tensor) -> Launch {
    let params = FillParams { dst: x.addr(), count: x.shape()[0] as u64, value: 7.0, reserved: 0 };
    elementwise::fill(DType::F32, &params)
}

fn add(x: &Tensor) -> Launch {
    let params = AddParams { a: x.addr(), b: x.addr(), y: x.addr(), count: x.shape()[0] as u64 };
    elementwise::add(DType::F32, &params)
}

#[test]
fn profiled_launches_do_not_make_the_host_wait() {
    let Some(()) = compile::skip_without_nvrtc() else { return };
    let (fake, d) = fake_gpu_device(1 << 20);
    let x = f32_tensor(&d, &[4], &[1.0; 4]);
    d.profiler().collect_totals(true);
    for _ in 0..3 {
        d.launch(&fill(&x)).unwrap();
    }
    assert_eq!(fake.launch_count(), 0, "the host waited for a launch");
    // The profiler's mode at the time of the launch decides, not its mode when the launch's time becomes known.
    d.profiler().collect_totals(false);
    d.launch(&add(&x)).unwrap();
    let totals = d.profiler().totals().unwrap();
    assert_eq!(fake.launch_count(), 3, "only profiled launches are waited for");
    assert_eq!(totals.keys().copied().collect::<Vec<_>>(), ["fill_f32"]);
    let cost = fill(&x).cost();
    assert_eq!((totals["fill_f32"].launches, totals["fill_f32"].cost.bytes), (3, 3.0 * cost.bytes));
    assert!(totals["fill_f32"].seconds > 0.0);
    assert_eq!(d.profiler().launch_events().unwrap(), []);
    d.profiler().clear();
    assert!(d.profiler().totals().unwrap().is_empty());
    drop((x, d));
    assert_eq!((fake.open_handle_count(), fake.violations()), (0, Vec::new()));
}

#[test]
fn a_tool_of_the_gpu_collects_the_launches_of_the_window() {
    let Some(()) = compile::skip_without_nvrtc() else { return };
    let (fake, d) = fake_gpu_device(1 << 20);
    let x = f32_tensor(&d, &[4], &[1.0; 4]);
    d.launch(&fill(&x)).unwrap();
    d.profiler().start_external_profiler().unwrap();
    assert_eq!(fake.launch_count(), 1, "the launches before the window have ended");
    d.launch(&fill(&x)).unwrap();
    d.launch(&add(&x)).unwrap();
    d.profiler().stop_external_profiler().unwrap();
    assert_eq!(fake.launch_count(), 3, "the launches of the window have ended");
    d.launch(&fill(&x)).unwrap();
    d.profiler().start_external_profiler().unwrap();
    assert_eq!(fake.profiled_launches(), [1..3, 4..u64::MAX]);
    drop((x, d));
    assert_eq!((fake.open_handle_count(), fake.violations()), (0, Vec::new()));
}

#[test]
fn reading_the_profile_reports_a_failed_launch() {
    let Some(()) = compile::skip_without_nvrtc() else { return };
    let (_fake, d) = fake_gpu_device(1 << 20);
    let x = f32_tensor(&d, &[4], &[1.0; 4]);
    d.profiler().record_timeline(true);
    let params = FillParams { dst: x.addr(), count: 1 << 20, value: 7.0, reserved: 0 };
    d.launch(&elementwise::fill(DType::F32, &params)).unwrap();
    for e in [d.profiler().launch_events().unwrap_err(), d.profiler().totals().unwrap_err()] {
        assert!(e.to_string().contains("CUDA_ERROR_ILLEGAL_ADDRESS"), "{e}");
    }
}

#[test]
fn refused_launch_leaves_times_of_the_others() {
    let (fake, d) = fake_gpu_device(64 << 20);
    let (a, b, c) =
        (f32_tensor(&d, &[2, 3], &[1.0; 6]), f32_tensor(&d, &[2, 3], &[1.0; 6]), f32_tensor(&d, &[2, 2], &[0.0; 4]));
    d.profiler().record_timeline(true);
    let good = Launch::Matmul(matrix_product(&a, &b, &c));
    // The product's result has an address without memory, which the matrix library refuses.
    let bad = Launch::Matmul(Matmul { c: Addr(8), ..matrix_product(&a, &b, &c) });
    d.launch(&good).unwrap();
    d.launch(&bad).unwrap_err();
    d.launch(&good).unwrap();
    assert_eq!(d.profiler().launch_events().unwrap().len(), 2);
    drop((a, b, c, d));
    assert_eq!((fake.open_handle_count(), fake.violations()), (0, Vec::new()));
}
