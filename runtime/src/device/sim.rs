//! Device `sim`: the CUDA kernels without a GPU. Each launch is compiled to PTX and run by the simulator, which checks
//! every access and knows which bytes were written. Matrix products that cuBLASLt computes on a GPU of this kind run on
//! the CPU over the same memory.
#![allow(unsafe_code)]

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use reel_device::simulate::{self, SimulatedStage};
use reel_device::{Arch, KernelLaunch, Launch, Team, compile};
use reel_sim::exec::{CompletionTiming, ExecOptions};
use reel_sim::memory::SimMemory;

use super::{Backend, Capabilities, Kernels, only_on_a_cpu};
use crate::error::{Result, RuntimeError};

/// The options of device `sim`: the simulated GPU, and how often and in which orders warps run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SimOptions {
    /// The simulated GPU: kernels are planned for its limits and compiled for its compute capability.
    pub arch: Arch,
    /// How often each launch runs (at least once), each time with another order of warps. All results must be equal
    /// to the bit.
    pub interleavings: u32,
    /// The seed for the random orders of warps.
    pub seed: u64,
    /// CPU threads for matrix products; 0 uses all hardware threads.
    pub threads: usize,
}

impl Default for SimOptions {
    /// An A100, one run of each launch, all hardware threads.
    fn default() -> SimOptions {
        SimOptions { arch: Arch::A100, interleavings: 1, seed: 0, threads: 0 }
    }
}

pub(super) struct Sim {
    options: SimOptions,
    team: Team,
    memory: Mutex<SimMemory>,
    launches: AtomicU64,
}

impl Sim {
    pub(super) fn new(options: SimOptions) -> Result<Sim> {
        compile::check_nvrtc().map_err(|e| RuntimeError::Device(e.to_string()))?;
        let all = std::thread::available_parallelism().map_or(1, |n| n.get());
        let team = Team::new(if options.threads == 0 { all } else { options.threads });
        Ok(Sim { options, team, memory: Mutex::new(SimMemory::new()), launches: AtomicU64::new(0) })
    }

    fn memory(&self) -> std::sync::MutexGuard<'_, SimMemory> {
        self.memory.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Runs a kernel with access to the buffers of its own arguments only, so an access to any other buffer is a
    /// finding.
    fn kernel(&self, launch: &KernelLaunch) -> Result<()> {
        let mut memory = self.memory();
        check_tables(launch, &memory)?;
        let mut part = memory.split_off(launch.operands().map(|address| address.0));
        let result = self.interleave(launch, &mut part);
        memory.merge(part);
        result
    }

    fn interleave(&self, launch: &KernelLaunch, memory: &mut SimMemory) -> Result<()> {
        // The random orders of warps also depend on the number of the launch, so one forward pass of a model tests
        // many orders.
        let first = self.launches.fetch_add(1, Ordering::Relaxed);
        let runs = u64::from(self.options.interleavings.max(1));
        let before = (runs > 1).then(|| memory.clone());
        self.run(launch, memory, first)?;
        for i in 1..runs {
            let Some(mut other) = before.clone() else { break };
            self.run(launch, &mut other, first.wrapping_add(i))?;
            if let Some(what) = difference(memory, &other) {
                let name = launch.kernel.name;
                return Err(RuntimeError::Device(format!(
                    "{name}: {what}; a barrier is missing, or the result depends on the order of atomics"
                )));
            }
        }
        Ok(())
    }

    fn run(&self, launch: &KernelLaunch, memory: &mut SimMemory, number: u64) -> Result<()> {
        const MOMENTS: [CompletionTiming; 3] =
            [CompletionTiming::Latest, CompletionTiming::Earliest, CompletionTiming::Random];
        let options = ExecOptions {
            gpu: simulate::gpu_spec(&self.options.arch),
            seed: self.options.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(number),
            completion: MOMENTS[(number % 3) as usize],
            ..ExecOptions::default()
        };
        let staged = simulate::run(launch, &self.options.arch, memory, &options);
        check_findings(launch, &staged.map_err(|e| RuntimeError::Device(e.to_string()))?)
    }
}

/// Checks that the tables of addresses in device memory are those that the launch lists, by which the device chooses
/// the buffers that the launch may access.
fn check_tables(launch: &KernelLaunch, memory: &SimMemory) -> Result<()> {
    for field in launch.kernel.fields.iter().filter(|f| f.address) {
        let Some(table) = launch.table_of(field).filter(|table| !table.bytes().is_empty()) else { continue };
        let at: u64 = bytemuck::pod_read_unaligned(&launch.params[field.offset..field.offset + 8]);
        if !memory.read(at, table.bytes().len()).is_ok_and(|bytes| bytes == table.bytes()) {
            let (name, param) = (launch.kernel.name, field.name);
            let what = "is not the table that the launch lists; write the table before the launch";
            return Err(RuntimeError::Device(format!("{name}: {param} {what}")));
        }
    }
    Ok(())
}

/// Returns the first finding as an error, with kernel, location in its source, kind and message.
fn check_findings(launch: &KernelLaunch, staged: &[SimulatedStage]) -> Result<()> {
    let mut findings = staged.iter().flat_map(|s| s.findings.iter().map(move |f| (s.stage.symbol, f)));
    let Some((symbol, f)) = findings.next() else { return Ok(()) };
    let name = launch.kernel.name;
    let stage = if symbol == name { String::new() } else { format!(" ({symbol})") };
    let source = launch.kernel.source.name;
    let more = match findings.count() {
        0 => String::new(),
        1 => "; and another finding".to_string(),
        n => format!("; and {n} other findings"),
    };
    Err(RuntimeError::Device(format!(
        "{name}{stage}: {source}/sm80.cu:{}: {}: {}{more}",
        f.line,
        f.kind.name(),
        f.message
    )))
}

/// Describes the first byte that differs between the memories after two runs of a launch.
fn difference(a: &SimMemory, b: &SimMemory) -> Option<String> {
    a.iter().zip(b.iter()).find_map(|(a, b)| {
        let at = a.data.iter().zip(&b.data).position(|(a, b)| a != b)?;
        let (base, bytes) = (a.base, a.data.len());
        Some(format!("byte {at} of the buffer of {bytes} bytes at {base:#x} depends on the order of warps"))
    })
}

impl Backend for Sim {
    fn name(&self) -> &'static str {
        "sim"
    }

    fn threads(&self) -> usize {
        self.team.threads()
    }

    fn kernels(&self) -> Kernels {
        Kernels::Cuda
    }

    fn compute_capability(&self) -> u32 {
        self.options.arch.sm
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities::SIMULATED_GPU
    }

    fn alloc(&self, bytes: usize) -> Option<u64> {
        self.memory().try_alloc_uninitialized(bytes)
    }

    fn free(&self, addr: u64, _bytes: usize) {
        self.memory().free(addr);
    }

    /// Copies the part of the file, because simulated buffers own their bytes.
    fn map(&self, part: &[u8]) -> Result<Option<u64>> {
        let mut memory = self.memory();
        let Some(addr) = memory.try_alloc_uninitialized(part.len()) else { return Ok(None) };
        memory.write(addr, part);
        memory.make_read_only(addr);
        Ok(Some(addr))
    }

    fn unmap(&self, addr: u64, bytes: usize) {
        self.free(addr, bytes);
    }

    fn launch(&self, launch: &Launch) -> Result<()> {
        match launch {
            Launch::Kernel(kernel) => self.kernel(kernel),
            Launch::Matmul(product) => match (product.code.gpu_kernel)(product, &self.options.arch) {
                Some(kernel) => self.kernel(&kernel),
                None => simulate::run_matmul(product, &mut self.memory(), &self.team).map_err(RuntimeError::Device),
            },
            Launch::WeightGroups(_) => Err(only_on_a_cpu(launch)),
        }
    }

    fn upload(&self, to: u64, from: &[u8]) -> Result<()> {
        let inside = self.memory().write(to, from);
        debug_assert!(inside, "`Buffer::upload` checked the range");
        Ok(())
    }

    fn download(&self, from: u64, to: &mut [u8]) -> Result<()> {
        let memory = self.memory();
        let bytes = memory.read(from, to.len()).map_err(|e| {
            RuntimeError::Device(format!(
                "device sim: the host {e}; the op that should have written these bytes did not"
            ))
        })?;
        to.copy_from_slice(bytes);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use reel_device::DType;
    use reel_device::launch::{Matmul, WeightGroups};
    use reel_kernels::elementwise::{self, AccumulateParams, AddParams, FillParams};

    use super::*;
    use crate::device::cuda::{self, tests::f32_tensor};
    use crate::device::{Device, MappedFile, MemoryCategory};
    use crate::tensor::Tensor;
    use reel_kernels::matmul::PRODUCT_CODE;

    fn device(interleavings: u32) -> Option<Device> {
        compile::skip_without_nvrtc()?;
        Some(Device::sim(SimOptions { interleavings, threads: 1, ..SimOptions::default() }).unwrap())
    }

    fn product(a: &Tensor, b: &Tensor, c: &Tensor, accumulate: bool) -> Launch {
        Launch::Matmul(Matmul { accumulate, ..cuda::tests::matrix_product(a, b, c) })
    }

    #[track_caller]
    fn fails<T: std::fmt::Debug>(result: Result<T>, words: &[&str]) {
        let e = result.unwrap_err().to_string();
        assert!(words.iter().all(|w| e.contains(w)), "{words:?} in {e}");
        assert!(e.contains("; "), "no advice: {e}");
    }

    #[test]
    fn kernels_and_products_compute() {
        for interleavings in [1, 3] {
            let Some(d) = device(interleavings) else { return };
            let x = f32_tensor(&d, &[2, 3], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
            let y = Tensor::empty(&d, &[2, 3], DType::F32, MemoryCategory::Activations).unwrap();
            let params = AddParams { a: x.addr(), b: x.addr(), y: y.addr(), count: 6 };
            d.launch(&elementwise::add(DType::F32, &params)).unwrap();
            assert_eq!(y.to_f32().unwrap(), [2.0, 4.0, 6.0, 8.0, 10.0, 12.0]);
            let c = Tensor::empty(&d, &[2, 2], DType::F32, MemoryCategory::Activations).unwrap();
            d.launch(&product(&x, &y, &c, false)).unwrap();
            d.launch(&product(&x.rows(1, 1).unwrap(), &y, &c.rows(1, 1).unwrap(), true)).unwrap();
            assert_eq!(c.to_f32().unwrap(), [28.0, 64.0, 128.0, 308.0]);
        }
    }

    #[test]
    fn refuses_reads_of_unwritten_bytes() {
        let Some(d) = device(1) else { return };
        let fresh = |shape: &[usize]| Tensor::empty(&d, shape, DType::F32, MemoryCategory::Activations).unwrap();
        fails(fresh(&[3]).to_f32(), &["host reads 12 bytes, of which byte 0 was never written"]);
        let (x, y) = (f32_tensor(&d, &[1, 2], &[1.0, 2.0]), fresh(&[1, 2]));
        fails(
            d.launch(&product(&x, &y, &fresh(&[1, 1]), false)),
            &["matmul_fwd: b: reads 8 bytes, of which byte 0 was never written"],
        );
        fails(
            d.launch(&product(&x, &x, &fresh(&[1, 1]), true)),
            &["matmul_fwd: c: reads 4 bytes, of which byte 0 was never written"],
        );
        let params = AccumulateParams { src: x.addr(), dst: y.addr(), count: 2 };
        let result = d.launch(&elementwise::accumulate(DType::F32, DType::F32, &params));
        fails(result, &["accumulate_f32", "elementwise/sm80.cu:", "uninitialized"]);
    }

    #[test]
    fn refuses_writes_outside_the_operands_of_a_launch() {
        let Some(d) = device(1) else { return };
        let (x, other) = (f32_tensor(&d, &[2], &[1.0, 2.0]), f32_tensor(&d, &[2], &[3.0, 4.0]));
        let params = FillParams { dst: x.addr(), count: 3, value: 7.0, reserved: 0 };
        fails(d.launch(&elementwise::fill(DType::F32, &params)), &["fill_f32", "sm80.cu:", "out-of-bounds"]);
        // A matrix product whose result has more rows than the tensor it is written to.
        let (a, b, c) =
            (f32_tensor(&d, &[3, 1], &[1.0; 3]), f32_tensor(&d, &[1, 1], &[1.0]), x.reshape(&[2, 1]).unwrap());
        let Launch::Matmul(m) = product(&a, &b, &c, false) else { return };
        fails(d.launch(&Launch::Matmul(Matmul { m: 3, ..m })), &["matmul_fwd: c: is larger than its buffer"]);
        assert_eq!(other.to_f32().unwrap(), [3.0, 4.0]);
    }

    #[test]
    fn weights_are_not_arranged_in_groups() {
        let Some(d) = device(1) else { return };
        let weight = f32_tensor(&d, &[1, 2], &[1.0, 2.0]);
        let launch =
            WeightGroups { n: 1, k: 2, dtype: DType::F32, from: weight.addr(), to: weight.addr(), code: &PRODUCT_CODE };
        fails(d.launch(&Launch::WeightGroups(launch)), &["weight_groups: runs on device cpu only"]);
    }

    #[test]
    fn mapped_files_are_read_only() {
        let Some(d) = device(1) else { return };
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), bytemuck::cast_slice::<f32, u8>(&[0.0, 1.0, 2.0])).unwrap();
        let mapped: Arc<MappedFile> = MappedFile::open(file.path()).unwrap();
        let x = Tensor::from_buffer(d.map_file_range(&mapped, 4, 8).unwrap(), &[2], DType::F32).unwrap();
        assert_eq!(x.to_f32().unwrap(), [1.0, 2.0]);
        let params = FillParams { dst: x.addr(), count: 2, value: 7.0, reserved: 0 };
        fails(d.launch(&elementwise::fill(DType::F32, &params)), &["fill_f32", "sm80.cu:"]);
        let one = f32_tensor(&d, &[1, 1], &[1.0]);
        let row = x.reshape(&[1, 2]).unwrap();
        fails(d.launch(&product(&one, &f32_tensor(&d, &[2, 1], &[1.0, 1.0]), &row, false)), &["matmul_fwd: c:"]);
        assert_eq!(x.to_f32().unwrap(), [1.0, 2.0]);
        drop((x, row));
        assert_eq!(d.memory().current, one.bytes());
    }
}
