//! The door to a GPU and the driver that checks, held to each other.

use super::driver::{Config, Driver, Image};
use super::fake::Fake;
use super::*;
use crate::elementwise::{self, FillParams};
use crate::launch::{Launch, Stage};
use crate::{Addr, Arch, DType, compile};
use std::sync::Arc;

const MIB: u64 = 1 << 20;

/// Writes through dynamic shared memory, which is as large as the launch says.
const PTX: &str = "
.version 8.0
.target sm_80
.address_size 64
.extern .shared .align 16 .b8 room[];
.visible .entry through(.param .u64 to, .param .u32 value)
.maxntid 64, 1, 1
{
    .reg .b32 %r<4>;
    .reg .b64 %rd<4>;
    ld.param.u64 %rd1, [to];
    ld.param.u32 %r1, [value];
    st.shared.u32 [room], %r1;
    ld.shared.u32 %r2, [room];
    st.global.u32 [%rd1], %r2;
    ret;
}";

fn open(arch: Arch) -> (Fake, Gpu) {
    let fake = Fake::new(arch, 64 * MIB);
    let gpu = Gpu::with(Arc::new(fake.clone())).unwrap();
    (fake, gpu)
}

#[track_caller]
fn fails<T: std::fmt::Debug>(result: Result<T, CudaError>, words: &str) {
    let e = result.unwrap_err().to_string();
    assert!(e.contains(words) && !e.contains('\n'), "{words} in {e}");
}

fn fill(at: u64, count: u64) -> FillParams {
    FillParams { dst: Addr(at), count, value: 2.5, reserved: 0 }
}

#[test]
fn a_call_runs_and_leaves_nothing_behind() {
    let Some(()) = compile::for_test() else { return };
    let (fake, gpu) = open(Arch::A100);
    let buffer = gpu.alloc(16).unwrap();
    let Launch::Kernel(launch) = elementwise::fill(DType::F32, &fill(buffer.address(), 4)) else { return };
    // SAFETY: the buffer has four f32.
    let seconds = gpu.timed(|| unsafe { gpu.launch(launch.kernel, &launch.params) }).unwrap();
    assert!(seconds > 0.0);
    let mut back = [0f32; 4];
    gpu.download(&buffer, 0, bytemuck::cast_slice_mut(&mut back)).unwrap();
    assert_eq!(back, [2.5; 4]);
    drop((buffer, gpu));
    assert_eq!((fake.left_open(), fake.violations()), (0, Vec::new()));
}

/// Each mistake in a plan is told by the door; the driver never hears of it.
#[test]
fn a_launch_that_cannot_be_is_caught_before_the_driver() {
    let Some(()) = compile::for_test() else { return };
    for (arch, wrong, words) in [
        (Arch::A100, Stage { block: [2048, 1, 1], ..Stage::linear("fill_f32", 1, 1) }, "2048 threads of a block in x"),
        (Arch::A100, Stage { shared: 164 << 10, ..Stage::linear("fill_f32", 1, 256) }, "at most 166912"),
        (Arch::SM89, Stage { shared: 100 << 10, ..Stage::linear("fill_f32", 1, 256) }, "at most 101376"),
        (
            Arch::A100,
            Stage { cluster: [2, 1, 1], ..Stage::linear("fill_f32", 2, 256) },
            "compute capability 8.0 has not",
        ),
        (Arch::H100, Stage { cluster: [32, 1, 1], ..Stage::linear("fill_f32", 32, 256) }, "a cluster of 32 blocks"),
        (
            Arch::H100,
            Stage { cluster: [2, 1, 1], ..Stage::linear("fill_f32", 3, 256) },
            "no multiple of the cluster's 2",
        ),
        (Arch::H100, Stage { grid: [1, 1 << 17, 1], ..Stage::linear("fill_f32", 1, 256) }, "131072 blocks in y"),
    ] {
        let (fake, gpu) = open(arch);
        let buffer = gpu.alloc(16).unwrap();
        let params = fill(buffer.address(), 4);
        // SAFETY: the buffer has four f32.
        let result = unsafe { gpu.launch_stage(&elementwise::SOURCE, &wrong, bytemuck::bytes_of(&params)) };
        fails(result, words);
        gpu.synchronize().unwrap();
        assert_eq!((fake.launches(), fake.violations()), (0, Vec::new()), "{words}");
    }
}

#[test]
fn a_fault_fails_everything_after_it() {
    let Some(()) = compile::for_test() else { return };
    let (_fake, gpu) = open(Arch::A100);
    let buffer = gpu.alloc(16).unwrap();
    let params = fill(buffer.address(), 4096);
    // SAFETY: it is not: the kernel writes beyond the buffer, in memory that does not exist.
    unsafe { gpu.launch(&elementwise::FILL_F32, bytemuck::bytes_of(&params)).unwrap() }
    fails(gpu.synchronize(), "out-of-bounds");
    fails(gpu.alloc(1).map(|_| ()), "out-of-bounds");
}

#[test]
fn the_driver_keeps_its_rules() {
    let fake = Fake::new(Arch::H100, 4 * MIB);
    let config = Config { grid: [1; 3], block: [1; 3], cluster: [1; 3], shared: 64 << 10 };
    // SAFETY: handles are live but where a test says otherwise; host memory outlives every copy.
    unsafe {
        let stream = fake.stream().unwrap();
        let module = fake.load("through", Image { cubin: &[], ptx: PTX }).unwrap();
        let function = fake.function(module, "through").unwrap();
        fails(fake.function(module, "other"), "CUDA_ERROR_NOT_FOUND");
        assert_eq!(fake.facts(function).unwrap().threads, 64);
        let at = fake.alloc(4).unwrap();
        let (address, value) = (at.to_le_bytes(), 7u32.to_le_bytes());
        let arguments: [&[u8]; 2] = [&address, &value];

        // Attributes come first.
        fails(fake.launch(function, &config, &arguments, stream), "did not ask for");
        fails(fake.allow_shared(function, 228 << 10), "CUDA_ERROR_INVALID_VALUE");
        fake.allow_shared(function, 64 << 10).unwrap();
        let wide = Config { cluster: [16, 1, 1], grid: [16, 1, 1], ..config };
        fails(fake.launch(function, &wide, &arguments, stream), "CUDA_ERROR_INVALID_CLUSTER_SIZE");
        fails(fake.launch(function, &Config { block: [96, 1, 1], ..config }, &arguments, stream), "compiled for 64");
        fails(fake.launch(function, &config, &arguments[..1], stream), "CUDA_ERROR_INVALID_VALUE");
        assert_eq!(fake.violations().len(), 1, "parameters that the function does not have");

        // Nothing runs before somebody waits, and a graph runs when it is launched.
        fails(fake.end_capture(stream), "CUDA_ERROR_ILLEGAL_STATE");
        fake.begin_capture(stream).unwrap();
        fake.launch(function, &config, &arguments, stream).unwrap();
        fails(fake.begin_capture(stream), "CUDA_ERROR_ILLEGAL_STATE");
        fails(fake.synchronize(stream), "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED");
        fails(fake.alloc(4), "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED");
        let event = fake.event().unwrap();
        fake.record(event, stream).unwrap();
        fails(fake.wait(event), "CUDA_ERROR_CAPTURED_EVENT");
        let other = fake.stream().unwrap();
        fails(fake.stream_wait(other, event), "CUDA_ERROR_STREAM_CAPTURE_ISOLATION");
        let graph = fake.end_capture(stream).unwrap();
        assert_eq!(fake.launches(), 0);
        fake.launch_graph(graph, stream).unwrap();
        fake.launch_graph(graph, stream).unwrap();
        let mut back = 0u32;
        fake.copy_out((&raw mut back).cast(), at, 4, stream).unwrap();
        assert_eq!((fake.launches(), back), (0, 0));
        fake.synchronize(stream).unwrap();
        assert_eq!((fake.launches(), back), (2, 7));

        // Streams wait for each other through events only.
        fails(fake.copy_in(at, [0u8; 8].as_ptr(), 8, stream), "CUDA_ERROR_INVALID_VALUE");
        let three = 3u32.to_le_bytes();
        fake.copy_in(at, three.as_ptr(), 4, other).unwrap();
        fake.record(event, other).unwrap();
        fake.copy_out((&raw mut back).cast(), at, 4, stream).unwrap();
        fake.synchronize(stream).unwrap();
        assert_eq!(back, 7, "nobody waited");
        fake.stream_wait(stream, event).unwrap();
        fake.copy_out((&raw mut back).cast(), at, 4, stream).unwrap();
        fake.synchronize(stream).unwrap();
        assert_eq!(back, 3);

        // Backed memory: whole units, once, inside, and as much as there is.
        let unit = fake.granularity();
        let base = fake.reserve(4 * MIB as usize).unwrap();
        fails(fake.back(base, unit - 1), "CUDA_ERROR_INVALID_VALUE");
        fails(fake.back(base + 4 * MIB, unit), "CUDA_ERROR_INVALID_VALUE");
        assert!(matches!(fake.back(base, 4 * MIB as usize), Err(CudaError::OutOfMemory { .. })));
        let backing = fake.back(base, unit).unwrap();
        fails(fake.back(base, unit), "CUDA_ERROR_INVALID_VALUE");
        fails(fake.fill(base + unit as u64 - 1, 0, 2, stream), "CUDA_ERROR_INVALID_VALUE");
        fake.fill(base, 0, unit, stream).unwrap();
        fake.unback(base, unit, backing);
        assert_eq!(fake.violations().len(), 2, "unmapped under a fill");
        fake.release(base, 4 * MIB as usize);

        // Ends happen once, and after the work.
        let host = fake.alloc_host(64).unwrap();
        fake.copy_out(host, at, 4, stream).unwrap();
        fake.free_host(host);
        assert_eq!(fake.violations().len(), 3, "freed under a copy");
    }
}

#[test]
fn versions_and_counts_read_well() {
    let old = CudaError::OldDriver { has: 12_080, needs: 13_000 }.to_string();
    assert!(old.contains("of CUDA 12.8, and needs to be of 13.0 or newer"), "{old}");
    let none = CudaError::NoGpu(3, 1).to_string();
    assert!(none.contains("no GPU 3 (1 found); choose another"), "{none}");
}
