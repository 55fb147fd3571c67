//! The CUDA kernels without a GPU: each launch is compiled, interpreted and checked by the simulator, in buffers that know which of
//! their bytes were written. Matrix products, which no kernel of ours computes on cuda, run on the processor over the same bytes.
#![allow(unsafe_code)]

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use reel_kernels::launch::run_on_cpu;
use reel_kernels::matmul::Matmul;
use reel_kernels::simulate::{self, Staged};
use reel_kernels::{Addr, Arch, DType, KernelLaunch, Launch, Team, compile};
use reel_sim::exec::{Completion, Options};
use reel_sim::memory::Memory;

use super::Backend;
use crate::error::{Error, Result};

/// How device `sim` runs kernels.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SimOptions {
    /// The GPU whose limits kernels are planned for; they are compiled for its compute capability.
    pub arch: Arch,
    /// Runs of each launch, at least 1, in different orders of warps; their results must agree to the last bit.
    pub interleavings: u32,
    /// Of those orders.
    pub seed: u64,
    /// Threads for matrix products; 0 takes all that there are.
    pub threads: usize,
}

impl Default for SimOptions {
    /// An A100, one run of each launch, all threads.
    fn default() -> SimOptions {
        SimOptions { arch: Arch::A100, interleavings: 1, seed: 0, threads: 0 }
    }
}

pub(super) struct Sim {
    options: SimOptions,
    team: Team,
    memory: Mutex<Memory>,
    launches: AtomicU64,
}

impl Sim {
    pub(super) fn new(options: SimOptions) -> Result<Sim> {
        compile::available().map_err(|e| Error::Device(e.to_string()))?;
        let all = std::thread::available_parallelism().map_or(1, |n| n.get());
        let team = Team::new(if options.threads == 0 { all } else { options.threads });
        Ok(Sim { options, team, memory: Mutex::new(Memory::new()), launches: AtomicU64::new(0) })
    }

    fn memory(&self) -> std::sync::MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Runs a kernel on its own buffers only, so that one that strays into another op's is found.
    fn kernel(&self, launch: &KernelLaunch) -> Result<()> {
        let mut memory = self.memory();
        let mut part = memory.take(addresses(launch));
        let result = self.interleave(launch, &mut part);
        memory.give(part);
        result
    }

    fn interleave(&self, launch: &KernelLaunch, memory: &mut Memory) -> Result<()> {
        // Launches differ too, so that one pass of a model sees many orders.
        let first = self.launches.fetch_add(1, Ordering::Relaxed);
        let runs = u64::from(self.options.interleavings.max(1));
        let before = (runs > 1).then(|| memory.clone());
        self.run(launch, memory, first)?;
        for i in 1..runs {
            let Some(mut other) = before.clone() else { break };
            self.run(launch, &mut other, first.wrapping_add(i))?;
            if let Some(what) = difference(memory, &other) {
                let name = launch.kernel.name;
                return Err(Error::Device(format!("{name}: {what}; a barrier or an atomic's order is missing")));
            }
        }
        Ok(())
    }

    fn run(&self, launch: &KernelLaunch, memory: &mut Memory, number: u64) -> Result<()> {
        const MOMENTS: [Completion; 3] = [Completion::Latest, Completion::Earliest, Completion::Random];
        let options = Options {
            gpu: simulate::gpu(&self.options.arch),
            seed: self.options.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(number),
            completion: MOMENTS[(number % 3) as usize],
            ..Options::default()
        };
        let staged = simulate::run(launch, &self.options.arch, memory, &options);
        judge(launch, &staged.map_err(|e| Error::Device(e.to_string()))?)
    }

    /// A matrix product on copies of its operands: host pointers to simulated memory would not be aligned, nor checked.
    fn matmul(&self, m: &Matmul) -> Result<()> {
        let mut memory = self.memory();
        let read = |what: &str, at: Addr, dtype: DType, count: usize| {
            let bytes = memory.read(at.0, count * dtype.size());
            bytes.map(aligned).map_err(|e| Error::Device(format!("{}: {what}: {e}; it is this op's input", m.name())))
        };
        if m.m == 0 || m.n == 0 {
            return Ok(());
        }
        let count = m.m * m.n;
        let a = if m.k == 0 { Vec::new() } else { read("a", m.a.addr, m.a.dtype, m.m * m.k)? };
        let b = if m.k == 0 { Vec::new() } else { read("b", m.b.addr, m.b.dtype, m.n * m.k)? };
        let bias = if m.bias.is_null() { Vec::new() } else { read("bias", m.bias, m.c_dtype, m.n)? };
        let bytes = count * m.c_dtype.size();
        let mut c = if m.accumulate { read("c", m.c, m.c_dtype, count)? } else { vec![0; bytes.div_ceil(8)] };
        let here = |words: &[u64]| if words.is_empty() { Addr::NULL } else { Addr(words.as_ptr() as u64) };
        let mut copy = *m;
        (copy.a.addr, copy.b.addr, copy.bias) = (here(&a), here(&b), here(&bias));
        copy.c = Addr(c.as_mut_ptr() as u64);
        // SAFETY: the operands are live copies of the sizes that the product has, and nobody else uses `c`.
        unsafe { run_on_cpu(&Launch::Matmul(copy), &self.team) };
        let writable = memory.find(m.c.0).is_some_and(|i| memory.get(i).writable);
        if writable && memory.write(m.c.0, &bytemuck::cast_slice(&c)[..bytes]) {
            return Ok(());
        }
        let what = if writable { "is larger than its buffer" } else { "is in no buffer that may be written" };
        Err(Error::Device(format!("{}: c: {what}; [{}, {}] of {} at {:#x}", m.name(), m.m, m.n, m.c_dtype, m.c.0)))
    }
}

/// Bytes where every element type is aligned.
fn aligned(bytes: &[u8]) -> Vec<u64> {
    let mut words = vec![0; bytes.len().div_ceil(8)];
    bytemuck::cast_slice_mut(&mut words)[..bytes.len()].copy_from_slice(bytes);
    words
}

/// The addresses among a launch's parameters.
fn addresses(launch: &KernelLaunch) -> impl Iterator<Item = u64> + '_ {
    let fields = launch.kernel.fields.iter().filter(|f| f.address);
    fields.filter_map(|f| Some(bytemuck::pod_read_unaligned(launch.params.get(f.offset..f.offset + 8)?)))
}

/// The first finding as an error: kernel, place in its source, kind and message.
fn judge(launch: &KernelLaunch, staged: &[Staged]) -> Result<()> {
    let mut findings = staged.iter().flat_map(|s| s.findings.iter().map(move |f| (s.stage.symbol, f)));
    let Some((symbol, f)) = findings.next() else { return Ok(()) };
    let name = launch.kernel.name;
    let stage = if symbol == name { String::new() } else { format!(" ({symbol})") };
    let source = launch.kernel.cuda.map_or("?", |c| c.source.name);
    let more = match findings.count() {
        0 => String::new(),
        1 => "; and another finding".to_string(),
        n => format!("; and {n} other findings"),
    };
    Err(Error::Device(format!("{name}{stage}: {source}/sm80.cu:{}: {}: {}{more}", f.line, f.kind.name(), f.message)))
}

/// Where two runs of a launch left different bytes.
fn difference(a: &Memory, b: &Memory) -> Option<String> {
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

    fn alloc(&self, bytes: usize) -> Option<u64> {
        self.memory().try_alloc_uninitialized(bytes)
    }

    fn free(&self, addr: u64, _bytes: usize) {
        self.memory().free(addr);
    }

    /// A copy that kernels may not write: simulated buffers own their bytes.
    fn map(&self, part: &[u8]) -> Option<u64> {
        let mut memory = self.memory();
        let addr = memory.try_alloc_uninitialized(part.len())?;
        memory.write(addr, part);
        memory.protect(addr);
        Some(addr)
    }

    fn unmap(&self, addr: u64, bytes: usize) {
        self.free(addr, bytes);
    }

    fn launch(&self, launch: &Launch) -> Result<()> {
        match launch {
            Launch::Kernel(kernel) => self.kernel(kernel),
            Launch::Matmul(product) => self.matmul(product),
        }
    }

    fn upload(&self, to: u64, from: &[u8]) {
        let inside = self.memory().write(to, from);
        debug_assert!(inside, "`Buffer::upload` checked the range");
    }

    fn download(&self, from: u64, to: &mut [u8]) -> Result<()> {
        let memory = self.memory();
        let bytes = memory.read(from, to.len()).map_err(|e| {
            Error::Device(format!("device sim: the host {e}; the op that should have written it did not"))
        })?;
        to.copy_from_slice(bytes);
        Ok(())
    }
}
