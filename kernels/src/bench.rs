//! Times kernels: example calls run on GPU memory, timed by GPU events, or on the processor.
//!
//! On a GPU, a run is a chain of launches in a captured graph, as in a decode or training step: a launch that may begin
//! before the launch before it has ended does so. The launches use up to 8 sets of operands in turns, of 256 MiB
//! together if 8 sets are as large, more than any cache holds. So each launch reads large weights from memory, and
//! small operands may stay in the cache, as in a step. On a processor, 256 MiB of other memory are written before each
//! run.
#![allow(unsafe_code)]

use std::time::{Duration, Instant};

use reel_device::cpu::large_pages::LargeArray;
use reel_device::cuda::blas::{Blas, WORKSPACE_BYTES};
use reel_device::cuda::{Buffer, CudaError, Gpu, GpuGraph};
use reel_device::launch::{Kernel, KernelLaunch, Matmul, ParamField};
use reel_device::{Addr, DType, Team};

use crate::catalogue::ExampleCall;
use crate::{adamw, matmul, paged_attention};

/// One timed run of a call.
#[derive(Clone, Copy, Debug)]
pub struct TimedRun {
    /// When the timed run began, on the host's clock.
    pub start: Instant,
    /// Duration in seconds.
    pub seconds: f64,
}

impl TimedRun {
    /// Makes the record of a run of this duration that has ended now. On a GPU the run ended before the host noticed
    /// it, so the recorded start is late by about 10 microseconds.
    pub fn ending_now(seconds: f64) -> TimedRun {
        let now = Instant::now();
        TimedRun { start: now.checked_sub(Duration::from_secs_f64(seconds)).unwrap_or(now), seconds }
    }
}

/// The measured times of one call.
#[derive(Clone, Debug)]
pub struct RunTimes {
    /// The seconds that each run, or each launch of a run, took, shortest first.
    pub seconds: Vec<f64>,
    /// The timed runs, in chronological order.
    pub runs: Vec<TimedRun>,
}

impl RunTimes {
    /// Makes the times from runs in chronological order.
    pub fn new(runs: Vec<TimedRun>) -> RunTimes {
        let mut seconds: Vec<f64> = runs.iter().map(|run| run.seconds).collect();
        seconds.sort_by(f64::total_cmp);
        RunTimes { seconds, runs }
    }

    /// The shortest time in seconds.
    pub fn least_seconds(&self) -> f64 {
        self.seconds.first().copied().unwrap_or(f64::NAN)
    }

    /// The median time in seconds.
    pub fn median_seconds(&self) -> f64 {
        self.seconds.get(self.seconds.len() / 2).copied().unwrap_or(f64::NAN)
    }
}

/// Bytes that are written before a run on a processor to evict caches, and of all sets of operands of a chain if
/// [`MAX_SETS`] sets have as many; more than any cache holds.
const FLUSH: usize = 256 << 20;

/// The most sets of operands of a chain.
const MAX_SETS: usize = 8;

/// Returns how many sets of operands the launches of a chain use; a launch moves `bytes` bytes.
fn set_count(bytes: f64) -> usize {
    (FLUSH as f64 / bytes.max(1.0)).ceil().clamp(1.0, MAX_SETS as f64) as usize
}

/// Captures a chain of launches that uses each of `sets` sets of operands twice. `enqueue(i)` enqueues a launch with
/// set `i`. It is called once before the capture, because the first call may load code or choose an algorithm.
fn capture_chain(
    gpu: &Gpu,
    sets: usize,
    mut enqueue: impl FnMut(usize) -> Result<(), CudaError>,
) -> Result<GpuGraph, CudaError> {
    enqueue(0)?;
    gpu.synchronize()?;
    gpu.begin_capture()?;
    let enqueued = (0..2 * sets).try_for_each(|i| enqueue(i % sets));
    let graph = gpu.end_capture();
    enqueued.and(graph)
}

/// Times an example call on a GPU with each of `kernels`, which take the call's parameters: `runs` chains of each after
/// two warm-up chains. The chains of the kernels are interleaved (A B C A B C), because a GPU lowers its clock while
/// it works. The times are those of one launch.
pub fn time_call_on_gpu(
    gpu: &Gpu,
    example: &ExampleCall,
    kernels: &[&'static Kernel],
    runs: usize,
) -> Result<Vec<RunTimes>, CudaError> {
    let sets = set_count(example.launch.cost.bytes);
    let mut buffers = Vec::new();
    let operands_of_a_set = |_| {
        with_operands(&example.launch, |operand| {
            let buffer = buffer_of(gpu, &example.launch, operand)?;
            let at = buffer.address();
            buffers.push(buffer);
            Ok::<u64, CudaError>(at)
        })
    };
    let params = (0..sets).map(operands_of_a_set).collect::<Result<Vec<_>, _>>()?;
    // SAFETY: every operand has a buffer of the GPU that covers it, see `sized`.
    let chain = |kernel| capture_chain(gpu, sets, |set| unsafe { gpu.launch(kernel, &params[set]) });
    let chains = kernels.iter().map(|kernel| chain(kernel)).collect::<Result<Vec<_>, _>>()?;
    // SAFETY: the buffers live until the function returns.
    unsafe { time_chains(gpu, &chains, 2 * sets, runs) }
}

/// Times chains of `launches` launches in turns: `runs` chains of each after two warm-up chains.
///
/// # Safety
/// The captured addresses are valid.
unsafe fn time_chains(
    gpu: &Gpu,
    chains: &[GpuGraph],
    launches: usize,
    runs: usize,
) -> Result<Vec<RunTimes>, CudaError> {
    let mut timed = vec![Vec::new(); chains.len()];
    for run in 0..runs + 2 {
        for (chain, timed) in chains.iter().zip(&mut timed) {
            // SAFETY: the caller guarantees the addresses.
            let seconds = gpu.time_seconds(|| unsafe { gpu.launch_graph(chain) })?;
            if run >= 2 {
                timed.push(TimedRun::ending_now(seconds / launches as f64));
            }
        }
    }
    Ok(timed.into_iter().map(RunTimes::new).collect())
}

/// Returns the bytes of the matrices a, b and c of a product.
fn of_product(p: &Matmul) -> [usize; 3] {
    [p.m * p.k * p.a.dtype.size(), p.n * p.k * p.b.dtype.size(), p.m * p.n * p.c_dtype.size()]
}

/// Returns the product with its matrices at the given addresses.
fn at(p: &Matmul, [a, b, c]: [u64; 3]) -> Matmul {
    let mut p = *p;
    (p.a.addr, p.b.addr, p.c) = (Addr(a), Addr(b), Addr(c));
    p
}

/// Times an example product on a GPU, by cuBLASLt and by each of `kernels`, in turns: kernels of this project that take
/// the parameters of [`ProductCode::gpu_kernel`](reel_device::launch::ProductCode::gpu_kernel). The times of cuBLASLt
/// come first.
///
/// # Errors
/// cuBLASLt or the GPU reports an error.
///
/// # Panics
/// If there are `kernels`, but none computes the product on this GPU.
pub fn time_product_on_gpu(
    gpu: &Gpu,
    blas: &dyn Blas,
    product: &Matmul,
    kernels: &[&'static Kernel],
    runs: usize,
) -> Result<Vec<RunTimes>, CudaError> {
    let (sets, workspace) = (set_count(product.cost().bytes), gpu.alloc(WORKSPACE_BYTES)?);
    let operands_of_a_set = |_| {
        let [a, b, c] = of_product(product).map(|bytes| normal_buffer(gpu, bytes.next_multiple_of(TILE)));
        Ok([a?, b?, c?])
    };
    let buffers = (0..sets).map(operands_of_a_set).collect::<Result<Vec<[Buffer; 3]>, CudaError>>()?;
    let products: Vec<Matmul> = buffers.iter().map(|set| at(product, set.each_ref().map(Buffer::address))).collect();
    // SAFETY: operands and workspace are buffers of the GPU with the product's sizes.
    let by_library = |set: usize| unsafe { blas.product(&products[set], workspace.address(), gpu.stream()) };
    let mut chains = vec![capture_chain(gpu, sets, by_library)?];
    for kernel in kernels {
        let launch = |set: usize| (product.code.gpu_kernel)(&products[set], &gpu.arch()).expect("a kernel");
        // SAFETY: the same.
        chains.push(capture_chain(gpu, sets, |set| unsafe { gpu.launch(kernel, &launch(set).params) })?);
    }
    // SAFETY: the buffers live until the function returns.
    unsafe { time_chains(gpu, &chains, 2 * sets, runs) }
}

/// Returns an upper bound on the bytes that [`time_product_on_gpu`] and [`time_product_on_cpu`] allocate.
pub fn max_allocated_bytes_of_product(product: &Matmul) -> f64 {
    let operands = product.cost().bytes + (3 * TILE) as f64;
    set_count(product.cost().bytes) as f64 * operands + (FLUSH + WORKSPACE_BYTES) as f64
}

/// Times an example product on the processor.
pub fn time_product_on_cpu(team: &Team, product: &Matmul, runs: usize) -> RunTimes {
    let tile = normal_tile();
    let mut buffers = of_product(product).map(|bytes| numbers_on_cpu(&tile, bytes));
    let product = at(product, buffers.each_mut().map(|b| b.as_mut_ptr() as u64));
    // SAFETY: the buffers have the product's sizes, and nothing else uses them.
    each_run_on_cpu(runs, || unsafe { matmul::cpu::run(&product, team) })
}

/// Returns an upper bound on the bytes that [`time_call_on_gpu`] and [`time_call_on_cpu`] allocate for a call.
pub fn max_allocated_bytes_of_call(example: &ExampleCall) -> f64 {
    let (each, sets) = (numbers(&example.launch), set_count(example.launch.cost.bytes));
    (sets * example.launch.operands().count()) as f64 * each + FLUSH as f64
}

/// Times an example call on the processor: calls it `runs` times after one warm-up call.
pub fn time_call_on_cpu(team: &Team, example: &ExampleCall, runs: usize) -> RunTimes {
    let tile = normal_tile();
    let mut buffers: Vec<Vec<Line>> = Vec::new();
    let placed: Result<Vec<u8>, std::convert::Infallible> = with_operands(&example.launch, |operand| {
        let (bytes, contents) = sized(&example.launch, operand);
        let mut buffer = match contents {
            Contents::Numbers => numbers_on_cpu(&tile, bytes),
            Contents::Words(words) => {
                let mut buffer = vec![Line([0; 64]); bytes.div_ceil(64)];
                let all: &mut [u8] = bytemuck::cast_slice_mut(&mut buffer);
                all[..4 * words.len()].copy_from_slice(bytemuck::cast_slice(&words));
                buffer
            }
        };
        let at = buffer.as_mut_ptr() as u64;
        buffers.push(buffer);
        Ok(at)
    });
    let Ok(params) = placed;
    // SAFETY: every operand has a buffer that covers it, see `sized`, and nothing else uses them.
    each_run_on_cpu(runs, || unsafe { (example.launch.kernel.cpu)(&params, team) })
}

/// Times `runs` calls of `work` after one warm-up call. Caches are overwritten before each call.
fn each_run_on_cpu(runs: usize, mut work: impl FnMut()) -> RunTimes {
    let mut flush = LargeArray::zeroed(FLUSH).expect("the system has 256 MiB for a measurement");
    let mut timed = Vec::new();
    for run in 0..runs + 1 {
        flush.fill(std::hint::black_box(run as u8));
        std::hint::black_box(&*flush);
        let start = Instant::now();
        work();
        let seconds = start.elapsed().as_secs_f64();
        if run > 0 {
            timed.push(TimedRun { start, seconds });
        }
    }
    RunTimes::new(timed)
}

/// Returns `bytes` bytes of host memory, filled with normally distributed numbers.
fn numbers_on_cpu(tile: &[u8], bytes: usize) -> Vec<Line> {
    let mut buffer = vec![Line([0; 64]); bytes.div_ceil(64)];
    let all: &mut [u8] = bytemuck::cast_slice_mut(&mut buffer);
    all.chunks_mut(TILE).for_each(|part| part.copy_from_slice(&tile[..part.len()]));
    buffer
}

/// 64 bytes of host memory with the alignment that tensors have.
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C, align(64))]
struct Line([u8; 64]);

/// An operand of a call.
enum Operand {
    /// The array that the parameter with this name points to.
    Named(&'static str),
    /// An array of numbers. Its address is not a parameter, but is stored in a table of addresses.
    Listed,
    /// A table with these bytes. The addresses in it are replaced by the addresses of the operands that the table
    /// lists.
    Table(Vec<u8>),
}

/// Returns the call's parameters with each non-null address replaced by `address(operand)`. The operands that a table
/// lists come before the table.
fn with_operands<E>(launch: &KernelLaunch, mut address: impl FnMut(Operand) -> Result<u64, E>) -> Result<Vec<u8>, E> {
    let mut params = launch.params.to_vec();
    let is_present = |f: &&ParamField| f.address && launch.params[f.offset..f.offset + 8] != [0; 8];
    for field in launch.kernel.fields.iter().filter(is_present) {
        let operand = match launch.table_of(field) {
            None => Operand::Named(field.name),
            Some(table) => {
                let mut bytes = table.bytes().to_vec();
                for (at, _) in table.addresses() {
                    bytes[at..at + 8].copy_from_slice(&address(Operand::Listed)?.to_le_bytes());
                }
                Operand::Table(bytes)
            }
        };
        params[field.offset..field.offset + 8].copy_from_slice(&address(operand)?.to_le_bytes());
    }
    Ok(params)
}

/// Returns the shortest time in seconds of `runs` copies of `bytes` bytes within GPU memory.
pub fn shortest_copy_seconds(gpu: &Gpu, bytes: usize, runs: usize) -> Result<f64, CudaError> {
    let (from, to) = (gpu.alloc(bytes)?, gpu.alloc(bytes)?);
    gpu.fill(&from, 1)?;
    let mut least = f64::INFINITY;
    for _ in 0..runs + 1 {
        least = least.min(gpu.time_seconds(|| gpu.copy(&from, &to))?);
    }
    Ok(least)
}

/// Returns an operand's contents and the number of bytes to allocate for the operand, at least its size. Floating-point
/// operands get the size that [`numbers`] returns.
fn sized(launch: &KernelLaunch, operand: Operand) -> (usize, Contents) {
    let contents = match operand {
        Operand::Named(name) => contents(launch, name),
        Operand::Listed => Contents::Numbers,
        Operand::Table(bytes) => Contents::Words(bytes.as_chunks().0.iter().map(|w| u32::from_le_bytes(*w)).collect()),
    };
    match contents {
        Contents::Words(words) => ((4 * words.len()).max(1 << 20), Contents::Words(words)),
        Contents::Numbers => ((numbers(launch) as usize).next_multiple_of(TILE), Contents::Numbers),
    }
}

/// Returns an upper bound on the bytes of each floating-point operand of a call. It is the largest of four sizes: the
/// call's memory traffic, an f32 embedding table from which ids select rows, the workspace, and 64 MiB.
fn numbers(launch: &KernelLaunch) -> f64 {
    let field = |name| scalar(launch, name).unwrap_or(0) as f64;
    let rows_of_ids = field("vocab") * field("hidden") * 4.0;
    launch.cost.bytes.max(rows_of_ids).max(workspace(launch) as f64).max((64 << 20) as f64)
}

/// Returns the bytes of the call's workspace, 0 without one. It does not count as traffic, so it may exceed
/// `cost.bytes`.
fn workspace(launch: &KernelLaunch) -> usize {
    let name = launch.kernel.name;
    if name.starts_with("paged_attention") {
        let dtype = if name.ends_with("f32") { DType::F32 } else { DType::BF16 };
        paged_attention::workspace_bytes(dtype, &bytemuck::pod_read_unaligned(&launch.params))
    } else {
        0
    }
}

/// Allocates a GPU buffer for an operand and fills it with suitable contents.
fn buffer_of(gpu: &Gpu, launch: &KernelLaunch, operand: Operand) -> Result<Buffer, CudaError> {
    match sized(launch, operand) {
        (bytes, Contents::Words(words)) => {
            let buffer = gpu.alloc(bytes)?;
            gpu.fill(&buffer, 0)?;
            gpu.upload(&buffer, 0, bytemuck::cast_slice(&words))?;
            Ok(buffer)
        }
        (bytes, Contents::Numbers) => normal_buffer(gpu, bytes),
    }
}

/// Allocates a GPU buffer of normally distributed numbers. `bytes` is a multiple of [`TILE`].
fn normal_buffer(gpu: &Gpu, bytes: usize) -> Result<Buffer, CudaError> {
    let buffer = gpu.alloc(bytes.max(TILE))?;
    gpu.upload(&buffer, 0, &normal_tile())?;
    gpu.fill_with_repeated_prefix(&buffer, TILE)?;
    Ok(buffer)
}

/// The contents with which an operand of a timed call is filled.
enum Contents {
    /// Normally distributed numbers, both when read as bf16 and as f32.
    Numbers,
    /// 32-bit words: indices, lengths, settings.
    Words(Vec<u32>),
}

/// Chooses an operand's contents by its name. Lengths and ranges come from the numeric parameters of the call.
fn contents(launch: &KernelLaunch, name: &str) -> Contents {
    let field = |name: &str| scalar(launch, name).unwrap_or(0) as u32;
    let list = |count: u32, f: &dyn Fn(u32) -> u32| Contents::Words((0..count).map(f).collect());
    let product = |a: u32, b: u32| a.saturating_mul(b);
    let rows = field("rows").max(field("tokens")).max(field("m"));
    match name {
        "cu_seqlens" => {
            let (seqs, tokens) = match field("completions") {
                0 => (field("seqs"), field("tokens")),
                n => (n, n * 1024),
            };
            list(seqs + 1, &|i| (u64::from(i) * u64::from(tokens) / u64::from(seqs.max(1))) as u32)
        }
        // The first sequence is the prefix of every other sequence. An entry is a pair of first token and length.
        "prefix" => {
            let (seqs, tokens) = (field("seqs"), field("tokens"));
            list(2 * seqs, &|i| if i >= 2 && i % 2 == 1 { tokens / seqs.max(1) } else { 0 })
        }
        "kv_lens" => list(field("seqs"), &|_| field("max_kv_len")),
        "counters" => {
            let per_token = paged_attention::counters_per_token(field("heads"), field("kv_heads"));
            list(product(field("tokens"), per_token), &|_| 0)
        }
        "tile_counter" => list(1, &|_| 0),
        "block_tables" => list(product(field("seqs"), field("max_blocks")), &|i| i),
        "ids" | "targets" | "history" => {
            let count = product(rows, field("history_cols").max(1));
            list(count, &|i| i.wrapping_mul(7919) % field("vocab").max(1))
        }
        "index" => list(rows, &|i| (i * 257 + 3) % field("n").max(1)),
        "slots" => list(rows, &|i| i),
        "pairs" => list(2 * field("count"), &|i| i),
        "positions" => list(3 * rows, &|i| i % rows.max(1)),
        "axis" => list(field("half"), &|i| i % 3),
        "temperature" | "advantage" | "weight" if field("completions") + field("history_cols") > 0 => {
            list(rows.max(field("completions")), &|_| 1f32.to_bits())
        }
        "top_p" => list(rows, &|_| 0.95f32.to_bits()),
        "top_k" => list(rows, &|_| 50),
        "penalty" => list(rows, &|_| 1.05f32.to_bits()),
        "seed" => list(2 * rows, &|i| i),
        "position" => list(rows, &|i| i),
        "history_len" => list(rows, &|_| field("history_cols")),
        "suppressed" => list(field("suppressed_count"), &|i| i),
        "counted" => list(field("completions"), &|_| 1024),
        // About ln 8192, so that the attention weights of a row that the backward pass computes sum to about one.
        "lse" => list(product(rows, field("heads").max(1)), &|_| 9.5f32.to_bits()),
        // Gradient norm and clipping factor, both 1.
        "clip" => list(2, &|_| 1f32.to_bits()),
        // The chunks of array 0: pairs of array number and chunk index.
        "chunks" => list(product(2, field("chunk_count")), &|i| i % 2 * (i / 2)),
        // A small Adam step of one parameter.
        "steps" => Contents::Words(adamw::example_step_words()),
        _ => Contents::Numbers,
    }
}

/// Returns the value of a numeric field of a call's parameters.
fn scalar(launch: &KernelLaunch, name: &str) -> Option<u64> {
    let field = launch.kernel.fields.iter().find(|f| f.name == name && !f.address)?;
    let at = &launch.params[field.offset..];
    Some(match field.c_type {
        "unsigned long long" => u64::from_le_bytes(at[..8].try_into().ok()?),
        _ => u64::from(u32::from_le_bytes(at[..4].try_into().ok()?)),
    })
}

/// Bytes of the block of normally distributed numbers that is repeated throughout an operand.
const TILE: usize = 8 << 20;

/// Returns bf16 numbers with about a standard normal distribution. Two neighbours, read as one f32, have the sign and
/// exponent of the second number, so the f32 numbers have about the same distribution.
fn normal_tile() -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 24) as f32
    };
    let mut number = || (next() + next() + next() + next() - 2.0) * 1.732;
    (0..TILE / 2).flat_map(|_| half::bf16::from_f32(number()).to_le_bytes()).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use reel_device::Arch;
    use reel_device::cuda::fake::FakeDriver;

    use super::*;
    use crate::catalogue::FOLDERS;
    use crate::folder::Sizes;

    #[test]
    fn numbers_are_numbers_in_both_types() {
        let tile = normal_tile();
        let spread = |values: Vec<f64>| {
            let n = values.len() as f64;
            (values.iter().sum::<f64>() / n, (values.iter().map(|x| x * x).sum::<f64>() / n).sqrt())
        };
        let bf16 = tile.chunks_exact(2).map(|b| half::bf16::from_le_bytes([b[0], b[1]]).to_f64()).collect();
        let f32 = tile.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap()) as f64).collect();
        for (mean, deviation) in [spread(bf16), spread(f32)] {
            assert!(mean.abs() < 0.01 && (deviation - 1.0).abs() < 0.02, "{mean} {deviation}");
        }
    }

    /// Chains of own products and of cuBLASLt's, on a fake driver, which breaks at a wrong use of the driver API.
    #[test]
    fn chains_of_launches_are_timed() {
        let fake = FakeDriver::new(Arch::H100, 8 << 30);
        let gpu = Gpu::from_driver(Arc::new(fake.clone())).unwrap();
        let sizes = [("m", 64), ("n", 64), ("k", 64)].map(|(name, size)| (name.to_string(), size));
        let [in_f32, .., in_bf16, _, _] = &crate::catalogue::example_products(&Sizes::new(sizes).unwrap()).unwrap()[..]
        else {
            panic!("three products in two dtypes")
        };
        let blas = gpu.driver().blas().unwrap();
        let timed = time_product_on_gpu(&gpu, &*blas, &in_f32.product, &[], 3).unwrap();
        assert_eq!((timed.len(), timed[0].runs.len(), fake.violations()), (1, 3, Vec::new()));
        let Some(()) = reel_device::compile::skip_without_nvrtc() else { return };
        let (before, own) = (fake.launch_count(), &matmul::gemm::FWD_BF16);
        let timed = time_product_on_gpu(&gpu, &*blas, &in_bf16.product, &[own, own], 1).unwrap();
        assert_eq!(timed.iter().map(|of| of.runs.len()).collect::<Vec<_>>(), [1, 1, 1]);
        // One launch before each capture, and three chains of each.
        assert_eq!(fake.launch_count() - before, 3 * (1 + 3 * 2 * MAX_SETS as u64));
        let sizes = [("tokens", 8), ("intermediate", 64)].map(|(name, size)| (name.to_string(), size));
        let folder = crate::catalogue::find_kernel_folder("swiglu").unwrap();
        let example = folder.examples_with_sizes(&Sizes::new(sizes).unwrap()).unwrap().remove(0);
        let kernel = example.launch.kernel;
        let before = fake.launch_count();
        let timed = time_call_on_gpu(&gpu, &example, &[kernel, kernel], 1).unwrap();
        assert_eq!(timed.iter().map(|of| of.runs.len()).collect::<Vec<_>>(), [1, 1]);
        assert_eq!(fake.launch_count() - before, 2 * (1 + 3 * 2 * MAX_SETS as u64));
        assert_eq!(fake.violations(), Vec::<String>::new());
    }

    /// Device `cpu` runs and times the example calls on generated operands.
    #[test]
    fn the_processor_is_timed_too() {
        let folder = crate::catalogue::find_kernel_folder("grpo_loss").unwrap();
        let team = Team::new(2);
        for example in folder.examples() {
            let timed = time_call_on_cpu(&team, &example, 3);
            assert_eq!((timed.seconds.len(), timed.runs.len()), (3, 3));
            let is_disjoint = |two: &[TimedRun]| {
                two[0].start + Duration::from_secs_f64(two[0].seconds) <= two[1].start + Duration::from_nanos(1)
            };
            assert!(timed.runs.windows(2).all(is_disjoint));
            assert!(timed.least_seconds() > 0.0 && timed.least_seconds() <= timed.median_seconds());
            assert!(max_allocated_bytes_of_call(&example) > FLUSH as f64);
        }
    }

    /// Indices select addresses, so generated indices must be in range.
    #[test]
    fn indices_stay_in_their_range() {
        for example in FOLDERS.iter().flat_map(|f| f.examples()) {
            let launch = &example.launch;
            for field in launch.kernel.fields.iter().filter(|f| f.address) {
                if let Contents::Words(words) = contents(launch, field.name) {
                    let limit = match field.name {
                        "ids" | "targets" | "history" => scalar(launch, "vocab"),
                        "index" => scalar(launch, "n"),
                        "cu_seqlens" => scalar(launch, "tokens").or(Some(8 * 1024)).map(|n| n + 1),
                        _ => None,
                    };
                    let Some(limit) = limit else { continue };
                    assert!(words.iter().all(|&w| u64::from(w) < limit), "{} {}", launch.kernel.name, field.name);
                }
            }
        }
    }
}
