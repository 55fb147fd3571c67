//! Tests of the GPU interface on the fake driver, with the project's kernels.
#![allow(unsafe_code)]

use std::sync::Arc;

use reel_device::cuda::driver::{CompiledCode, Driver, LaunchConfig};
use reel_device::cuda::fake::FakeDriver;
use reel_device::cuda::*;
use reel_device::launch::{Launch, Stage};
use reel_device::{Addr, Arch, DType, compile};
use reel_kernels::elementwise::{self, FillParams};
use reel_sim::tensor_map::{DataType as MapType, Swizzle, TensorMap};

const MIB: u64 = 1 << 20;

/// A kernel that writes and reads dynamic shared memory, and stores the result to global memory.
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

/// A launch configuration of one block with one thread.
const ONE: LaunchConfig =
    LaunchConfig { grid: [1; 3], block: [1; 3], cluster: [1; 3], shared: 0, cooperative: false, programmatic: false };

fn open(arch: Arch) -> (FakeDriver, Gpu) {
    let fake = FakeDriver::new(arch, 64 * MIB);
    let gpu = Gpu::from_driver(Arc::new(fake.clone())).unwrap();
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
fn launch_runs_and_frees_everything() {
    let Some(()) = compile::skip_without_nvrtc() else { return };
    let (fake, gpu) = open(Arch::A100);
    let buffer = gpu.alloc(16).unwrap();
    let Launch::Kernel(launch) = elementwise::fill(DType::F32, &fill(buffer.address(), 4)) else { return };
    // SAFETY: the buffer has four f32.
    let seconds = gpu.time_seconds(|| unsafe { gpu.launch(launch.kernel, &launch.params) }).unwrap();
    assert!(seconds > 0.0);
    let mut back = [0f32; 4];
    gpu.download(&buffer, 0, bytemuck::cast_slice_mut(&mut back)).unwrap();
    assert_eq!(back, [2.5; 4]);
    drop((buffer, gpu));
    assert_eq!((fake.open_handle_count(), fake.violations()), (0, Vec::new()));
}

/// Each mistake in a launch plan is reported before the driver is called.
#[test]
fn launch_beyond_a_limit_is_refused_before_the_driver() {
    let Some(()) = compile::skip_without_nvrtc() else { return };
    for (arch, wrong, words) in [
        (
            Arch::A100,
            Stage { block: [2048, 1, 1], ..Stage::one_dimensional("fill_f32", 1, 1) },
            "2048 threads per block in x",
        ),
        (Arch::A100, Stage { shared: 164 << 10, ..Stage::one_dimensional("fill_f32", 1, 256) }, "at most 166912"),
        (Arch::SM89, Stage { shared: 100 << 10, ..Stage::one_dimensional("fill_f32", 1, 256) }, "at most 101376"),
        (
            Arch::A100,
            Stage { cluster: [2, 1, 1], ..Stage::one_dimensional("fill_f32", 2, 256) },
            "compute capability 8.0 does not support",
        ),
        (
            Arch::H100,
            Stage { cluster: [32, 1, 1], ..Stage::one_dimensional("fill_f32", 32, 256) },
            "a cluster of 32 blocks",
        ),
        (
            Arch::H100,
            Stage { cluster: [2, 1, 1], ..Stage::one_dimensional("fill_f32", 3, 256) },
            "not a multiple of the cluster size 2",
        ),
        (
            Arch::H100,
            Stage { grid: [1, 1 << 17, 1], ..Stage::one_dimensional("fill_f32", 1, 256) },
            "131072 blocks in y",
        ),
    ] {
        let (fake, gpu) = open(arch);
        let buffer = gpu.alloc(16).unwrap();
        let params = fill(buffer.address(), 4);
        // SAFETY: the buffer has four f32.
        let result = unsafe { gpu.launch_stage(&elementwise::SOURCE, &wrong, bytemuck::bytes_of(&params)) };
        fails(result, words);
        gpu.synchronize().unwrap();
        assert_eq!((fake.launch_count(), fake.violations()), (0, Vec::new()), "{words}");
    }
}

/// A kernel of which a multiprocessor shall run two blocks prefers shared memory, with one call to the driver.
#[test]
fn two_blocks_of_a_multiprocessor_prefer_shared_memory() {
    let Some(()) = compile::skip_without_nvrtc() else { return };
    let (fake, gpu) = open(Arch::H100);
    for (resident_blocks, preferring) in [(0, 0), (132, 0), (264, 1), (264, 1)] {
        let stage = Stage { resident_blocks, shared: 64, ..Stage::one_dimensional("fill_f32", 264, 256) };
        assert!(gpu.resident_blocks(&elementwise::SOURCE, &stage, size_of::<FillParams>()).unwrap() >= 264);
        assert_eq!(fake.functions_that_prefer_shared(), preferring);
    }
}

#[test]
fn faulting_kernel_fails_every_later_call() {
    let Some(()) = compile::skip_without_nvrtc() else { return };
    let (_fake, gpu) = open(Arch::A100);
    let buffer = gpu.alloc(16).unwrap();
    let params = fill(buffer.address(), 4096);
    // SAFETY: the condition is violated on purpose: the kernel writes beyond the buffer. The simulator detects it.
    unsafe { gpu.launch(&elementwise::FILL_F32, bytemuck::bytes_of(&params)).unwrap() }
    fails(gpu.synchronize(), "out-of-bounds");
    fails(gpu.alloc(1).map(|_| ()), "out-of-bounds");
}

#[test]
fn fake_driver_enforces_documented_rules() {
    let fake = FakeDriver::new(Arch::H100, 4 * MIB);
    let config = LaunchConfig { shared: 64 << 10, ..ONE };
    // SAFETY: handles are live unless the test says otherwise; host memory outlives every copy.
    unsafe {
        let stream = fake.stream().unwrap();
        let module = fake.load("through", CompiledCode { cubin: &[], ptx: PTX }).unwrap();
        let function = fake.function(module, "through").unwrap();
        fails(fake.function(module, "other"), "CUDA_ERROR_NOT_FOUND");
        assert_eq!(fake.function_attributes(function).unwrap().threads, 64);
        let at = fake.alloc(4).unwrap();
        let (address, value) = (at.to_le_bytes(), 7u32.to_le_bytes());
        let arguments: [&[u8]; 2] = [&address, &value];

        // A launch with this much dynamic shared memory fails before `allow_shared` has raised the function's limit.
        fails(fake.launch(function, &config, &arguments, stream), "than was allowed");
        fails(fake.allow_shared(function, 228 << 10), "CUDA_ERROR_INVALID_VALUE");
        fake.allow_shared(function, 64 << 10).unwrap();
        let wide = LaunchConfig { cluster: [16, 1, 1], grid: [16, 1, 1], ..config };
        fails(fake.launch(function, &wide, &arguments, stream), "CUDA_ERROR_INVALID_CLUSTER_SIZE");
        fails(
            fake.launch(function, &LaunchConfig { block: [96, 1, 1], ..config }, &arguments, stream),
            "compiled for 64",
        );
        fails(fake.launch(function, &config, &arguments[..1], stream), "CUDA_ERROR_INVALID_VALUE");
        assert_eq!(fake.violations().len(), 1, "parameters that the function does not have");

        // The fake driver runs enqueued work only when the host waits for it. A captured graph runs only when it is
        // launched.
        fails(fake.end_capture(stream), "CUDA_ERROR_ILLEGAL_STATE");
        fake.begin_capture(stream).unwrap();
        fake.launch(function, &config, &arguments, stream).unwrap();
        fails(fake.begin_capture(stream), "CUDA_ERROR_ILLEGAL_STATE");
        let event = fake.event().unwrap();
        fake.record(event, stream).unwrap();
        fails(fake.wait(event), "CUDA_ERROR_CAPTURED_EVENT");
        let other = fake.stream().unwrap();
        fails(fake.stream_wait(other, event), "CUDA_ERROR_STREAM_CAPTURE_ISOLATION");
        let graph = fake.end_capture(stream).unwrap();
        assert_eq!(fake.launch_count(), 0);
        fake.launch_graph(graph, stream).unwrap();
        fake.launch_graph(graph, stream).unwrap();
        let mut back = 0u32;
        fake.copy_out((&raw mut back).cast(), at, 4, stream).unwrap();
        assert_eq!((fake.launch_count(), back), (0, 0));
        fake.synchronize(stream).unwrap();
        assert_eq!((fake.launch_count(), back), (2, 7));

        // Streams wait for each other only through events.
        fails(fake.copy_in(at, [0u8; 8].as_ptr(), 8, stream), "CUDA_ERROR_INVALID_VALUE");
        let three = 3u32.to_le_bytes();
        fake.copy_in(at, three.as_ptr(), 4, other).unwrap();
        fake.record(event, other).unwrap();
        fake.copy_out((&raw mut back).cast(), at, 4, stream).unwrap();
        fake.synchronize(stream).unwrap();
        assert_eq!(back, 7, "the host did not wait");
        fake.stream_wait(stream, event).unwrap();
        fake.copy_out((&raw mut back).cast(), at, 4, stream).unwrap();
        fake.synchronize(stream).unwrap();
        assert_eq!(back, 3);

        // Physical memory is mapped in multiples of the granularity, inside a reservation, at most once per address,
        // and at most as much as the GPU has.
        let unit = fake.granularity();
        let base = fake.reserve(4 * MIB as usize).unwrap();
        fails(fake.map_memory(base, unit - 1), "CUDA_ERROR_INVALID_VALUE");
        fails(fake.map_memory(base + 4 * MIB, unit), "CUDA_ERROR_INVALID_VALUE");
        assert!(matches!(fake.map_memory(base, 4 * MIB as usize), Err(CudaError::OutOfMemory { .. })));
        let backing = fake.map_memory(base, unit).unwrap();
        fails(fake.map_memory(base, unit), "CUDA_ERROR_INVALID_VALUE");
        fails(fake.fill(base + unit as u64 - 1, 0, 2, stream), "CUDA_ERROR_INVALID_VALUE");
        fake.fill(base, 0, unit, stream).unwrap();
        fake.unmap_memory(base, unit, backing);
        assert_eq!(fake.violations().len(), 2, "memory was unmapped before its fill ran");
        fake.release(base, 4 * MIB as usize);

        // Resources must be destroyed after their work is done.
        let host = fake.alloc_host(64).unwrap();
        fake.copy_out(host, at, 4, stream).unwrap();
        fake.free_host(host);
        assert_eq!(fake.violations().len(), 3, "host memory was freed before its copy ran");
    }
}

/// During a stream capture, each call that CUDA prohibits there fails and invalidates the capture. Other threads may
/// make these calls.
#[test]
fn fake_driver_enforces_capture_rules() {
    let fake = FakeDriver::new(Arch::H100, 4 * MIB);
    // SAFETY: handles are live; nothing is run.
    unsafe {
        let (stream, other) = (fake.stream().unwrap(), fake.stream().unwrap());
        let at = fake.alloc(16).unwrap();
        type Call<'a> = &'a dyn Fn() -> Result<(), CudaError>;
        let prohibited: [(&str, Call); 5] = [
            ("CAPTURE_UNSUPPORTED", &|| fake.synchronize(stream)),
            ("CAPTURE_UNSUPPORTED", &|| fake.synchronize(other)),
            ("CAPTURE_UNSUPPORTED", &|| fake.alloc(4).map(|_| ())),
            ("CAPTURE_UNSUPPORTED", &|| fake.alloc_host(4).map(|_| ())),
            ("CAPTURE_IMPLICIT", &|| fake.fill(at, 0, 16, reel_device::cuda::driver::StreamHandle(0))),
        ];
        for (words, call) in prohibited {
            fake.begin_capture(stream).unwrap();
            fake.fill(at, 1, 16, stream).unwrap();
            fails(call(), words);
            fails(fake.fill(at, 1, 16, stream), "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED");
            fails(fake.end_capture(stream), "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED");
            fails(fake.end_capture(stream), "CUDA_ERROR_ILLEGAL_STATE");
        }
        assert_eq!(fake.violations(), Vec::<String>::new());

        fake.begin_capture(stream).unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                fake.free(fake.alloc(4).unwrap());
                fake.synchronize(other).unwrap();
                fails(fake.end_capture(stream), "CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD");
            });
        });
        fake.fill(at, 2, 16, stream).unwrap();
        fake.fill(at, 3, 16, other).unwrap();
        assert_eq!(fake.violations().len(), 1, "work on another stream is not part of the capture");
        let graph = fake.end_capture(stream).unwrap();
        fake.launch_graph(graph, stream).unwrap();
        fake.destroy_graph(graph);
        assert_eq!(fake.violations().len(), 2, "the graph was still enqueued");
    }
}

#[test]
fn elapsed_needs_reached_events() {
    let fake = FakeDriver::new(Arch::H100, MIB);
    // SAFETY: handles are live.
    unsafe {
        let stream = fake.stream().unwrap();
        let [start, end] = [fake.event().unwrap(), fake.event().unwrap()];
        fails(fake.elapsed(start, end), "CUDA_ERROR_INVALID_HANDLE");
        fake.record(start, stream).unwrap();
        fake.wait(start).unwrap();
        fails(fake.elapsed(start, end), "CUDA_ERROR_INVALID_HANDLE");
        fake.record(end, stream).unwrap();
        fails(fake.elapsed(start, end), "CUDA_ERROR_NOT_READY");
        fake.wait(end).unwrap();
        let span = fake.elapsed(start, end).unwrap();
        assert!(span > 0.0);
        assert_eq!(fake.elapsed(end, start).unwrap(), -span);
        // A new recording of an event replaces the old one.
        fake.record(start, stream).unwrap();
        fails(fake.elapsed(start, end), "CUDA_ERROR_NOT_READY");
    }
}

#[test]
fn messages_format_versions_and_counts() {
    let old = CudaError::OldDriver { has: 11_080, needs: 12_000 }.to_string();
    assert!(old.contains("supports CUDA 11.8; update the driver to 12.0 or newer"), "{old}");
    let incomplete = CudaError::IncompleteDriver { version: 12_040, missing: vec!["cuInit", "cuMemMap"] }.to_string();
    assert!(incomplete.contains("reports CUDA 12.4 but lacks cuInit, cuMemMap; reinstall it"), "{incomplete}");
    for (driver, name) in [(12, "no libcublasLt.so.12;"), (13, "no libcublasLt.so.13 or .12;")] {
        let blas = CudaError::NoBlas { driver }.to_string();
        assert!(blas.contains(name), "{blas}");
    }
    let none = CudaError::NoGpu(3, 1).to_string();
    assert!(none.contains("no GPU 3 (1 found); choose another"), "{none}");
}

/// A kernel that reads a box of 32 x 8 f32 through a tensor map. It writes the box to the address that is its second
/// parameter, after the map.
const BOX: &str = "
.version 8.0
.target sm_90
.address_size 64
.visible .entry boxed(.param .align 64 .b8 p[192])
.maxntid 32, 1, 1
{
    .reg .pred %p<4>;
    .reg .b32 %r<20>;
    .reg .b64 %rd<10>;
    .shared .align 128 .b8 tile[1024];
    .shared .align 8 .b64 bar;
    mov.b64 %rd1, p;
    cvta.param.u64 %rd1, %rd1;
    ld.param.u64 %rd2, [p+128];
    mov.u32 %r1, tile;
    mov.u32 %r2, bar;
    mov.u32 %r3, %tid.x;
    setp.ne.u32 %p1, %r3, 0;
    @%p1 bra READY;
    mbarrier.init.shared::cta.b64 [%r2], 1;
    fence.mbarrier_init.release.cluster;
    fence.proxy.async.shared::cta;
    mbarrier.arrive.expect_tx.shared::cta.b64 %rd3, [%r2], 1024;
    mov.u32 %r4, 0;
    cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%r1], [%rd1, {%r4, %r4}], [%r2];
READY:
    bar.sync 0;
WAIT:
    mbarrier.try_wait.parity.shared::cta.b64 %p2, [%r2], 0;
    @!%p2 bra WAIT;
    mov.u32 %r5, %r3;
LOOP:
    shl.b32 %r6, %r5, 2;
    add.u32 %r7, %r1, %r6;
    ld.shared.u32 %r8, [%r7];
    cvt.u64.u32 %rd4, %r6;
    add.u64 %rd5, %rd2, %rd4;
    st.global.u32 [%rd5], %r8;
    add.u32 %r5, %r5, 32;
    setp.lt.u32 %p3, %r5, 256;
    @%p3 bra LOOP;
    ret;
}";

/// The kernel reads through the tensor map that the launch plan describes.
#[test]
fn tensor_map_reaches_the_kernel() {
    let (fake, gpu) = open(Arch::H100);
    let (from, to) = (gpu.alloc(64 * 8 * 4).unwrap(), gpu.alloc(1024).unwrap());
    let numbers: Vec<f32> = (0..512).map(|i| i as f32).collect();
    gpu.upload(&from, 0, bytemuck::cast_slice(&numbers)).unwrap();
    let map = TensorMap::tiled(MapType::F32, from.address(), &[64, 8], &[256], &[32, 8], Swizzle::None).unwrap();
    let stage = Stage { tensor_maps: vec![(0, map)], ..Stage::one_dimensional("boxed", 1, 32) };
    let mut params = [0; 192];
    params[128..136].copy_from_slice(&to.address().to_le_bytes());
    let params = stage.with_tensor_maps(&params, |map| fake.encode(map)).unwrap();
    let boxed = gpu.load_ptx(BOX, "boxed").unwrap();
    // SAFETY: both buffers have the sizes that the map and the kernel access.
    unsafe { boxed.launch([1; 3], [32, 1, 1], 0, &[&*params]).unwrap() }
    let mut back = [0f32; 256];
    gpu.download(&to, 0, bytemuck::cast_slice_mut(&mut back)).unwrap();
    for (i, x) in back.iter().enumerate() {
        assert_eq!(*x, numbers[i / 32 * 64 + i % 32]);
    }
    assert_eq!(fake.violations(), Vec::<String>::new());
}

/// Returns the PTX of a kernel that copies one 32-bit number from `from` to `to`. If `waits`, the kernel first waits
/// for the previous launch (griddepcontrol.wait).
fn copying(waits: bool) -> String {
    let wait = if waits { "griddepcontrol.wait;" } else { "" };
    format!(
        "
.version 8.0
.target sm_90
.address_size 64
.visible .entry copying(.param .u64 from, .param .u64 to)
{{
    .reg .b32 %r<4>;
    .reg .b64 %rd<4>;
    ld.param.u64 %rd1, [from];
    ld.param.u64 %rd2, [to];
    {wait}
    ld.global.u32 %r1, [%rd1];
    st.global.u32 [%rd2], %r1;
    ret;
}}"
    )
}

/// A programmatic dependent launch must wait before it reads what the previous launch writes.
#[test]
fn programmatic_launch_needs_its_wait() {
    for waits in [true, false] {
        let (fake, gpu) = open(Arch::H100);
        let buffers = [0; 3].map(|_| gpu.alloc(4).unwrap());
        gpu.upload(&buffers[0], 0, &7u32.to_le_bytes()).unwrap();
        gpu.fill(&buffers[1], 0).unwrap();
        let module = fake.load("copying", CompiledCode { cubin: &[], ptx: &copying(waits) }).unwrap();
        // SAFETY: the module is loaded.
        let function = unsafe { fake.function(module, "copying").unwrap() };
        for i in 0..2 {
            let config = LaunchConfig { programmatic: i == 1, ..ONE };
            let arguments = [buffers[i].address().to_le_bytes(), buffers[i + 1].address().to_le_bytes()];
            let arguments = arguments.each_ref().map(|a| a.as_slice());
            // SAFETY: the buffers have a number each.
            unsafe { fake.launch(function, &config, &arguments, gpu.stream()).unwrap() }
        }
        let mut back = [0; 4];
        match gpu.download(&buffers[2], 0, &mut back) {
            Ok(()) => assert!(waits && u32::from_le_bytes(back) == 7, "{back:?}"),
            e => {
                assert!(!waits);
                fails(e, "griddepcontrol.wait");
            }
        }
    }
}

/// A cooperative launch is an error if its blocks cannot all be resident at once.
#[test]
fn cooperative_grid_must_be_resident() {
    let Some(()) = compile::skip_without_nvrtc() else { return };
    let (fake, gpu) = open(Arch::A100);
    let buffer = gpu.alloc(1 << 20).unwrap();
    let params = fill(buffer.address(), 4);
    let stage = |blocks| Stage { cooperative: true, ..Stage::one_dimensional("fill_f32", blocks, 256) };
    let launch = |blocks| {
        // SAFETY: the buffer has four f32.
        unsafe { gpu.launch_stage(&elementwise::SOURCE, &stage(blocks), bytemuck::bytes_of(&params)) }
    };
    let most = 8 * Arch::A100.multiprocessors;
    fails(launch(most + 1), "blocks, where at most 864 can be resident");
    launch(most).unwrap();
    gpu.synchronize().unwrap();
    assert_eq!((fake.launch_count(), fake.violations()), (1, Vec::new()));
}
