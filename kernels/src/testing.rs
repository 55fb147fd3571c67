//! What kernel tests share: seeded inputs, launches on a cpu team, and both dtypes through one body.
#![allow(unsafe_code)]

use crate::launch::{Arch, KernelLaunch};
use crate::{Addr, DType, Element, Launch, Team, simulate};
use half::bf16;
use reel_sim::counters::Count;
use reel_sim::exec::{Completion, Options};
use reel_sim::memory::Memory;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;

/// Seeded numbers with a normal-like spread, an outlier of 20 now and then, and a negative zero.
pub fn numbers(count: usize, seed: u64, scale: f32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 24) as f32
    };
    (0..count)
        .map(|i| {
            let x = (next() + next() + next() + next() - 2.0) * 1.732 * scale;
            match i % 997 {
                13 => x * 20.0,
                14 => -0.0,
                _ => x,
            }
        })
        .collect()
}

/// Values as stored in `dtype`, beside the exact values that the formula is given.
pub struct Data {
    f32: Vec<f32>,
    bf16: Vec<bf16>,
    dtype: DType,
    output: bool,
}

impl Data {
    /// `values` rounded to `dtype` (F32 or BF16).
    pub fn new(dtype: DType, values: &[f32]) -> Data {
        let bf: Vec<bf16> = values.iter().map(|&x| <bf16 as Element>::from_f32(x)).collect();
        let f32 = if dtype == DType::F32 { values.to_vec() } else { bf.iter().map(|x| x.to_f32()).collect() };
        Data { f32, bf16: bf, dtype, output: false }
    }

    /// An array of `count` elements to be written, full of NaN.
    pub fn output(dtype: DType, count: usize) -> Data {
        Data { output: true, ..Data::new(dtype, &vec![f32::NAN; count]) }
    }

    /// Where the stored values lie.
    pub fn addr(&self) -> Addr {
        match self.dtype {
            DType::F32 => register(&self.f32, self.is_written()),
            _ => register(&self.bf16, self.is_written()),
        }
    }

    /// Whether a kernel may read this: an input, or what an earlier launch has written.
    fn is_written(&self) -> bool {
        !self.output || self.values().iter().any(|x| !x.is_nan())
    }

    /// The stored values, widened.
    pub fn f64(&self) -> Vec<f64> {
        self.values().iter().map(|&x| x as f64).collect()
    }

    /// The stored bytes.
    pub fn bytes(&self) -> Vec<u8> {
        match self.dtype {
            DType::F32 => bytemuck::cast_slice(&self.f32).to_vec(),
            _ => self.bf16.iter().flat_map(|x| x.to_le_bytes()).collect(),
        }
    }

    /// The stored values, widened.
    pub fn values(&self) -> Vec<f32> {
        match self.dtype {
            DType::F32 => self.f32.clone(),
            _ => self.bf16.iter().map(|x| x.to_f32()).collect(),
        }
    }
}

thread_local! {
    /// What tests on this thread run launches on.
    static DEVICE: Cell<Device> = const { Cell::new(Device::Cpu) };
    /// Arrays whose addresses were asked for: address → bytes, and whether their contents count as written.
    static ARRAYS: RefCell<BTreeMap<u64, (usize, bool)>> = const { RefCell::new(BTreeMap::new()) };
}

/// What runs a launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Device {
    /// The kernel's cpu code.
    Cpu,
    /// Its CUDA on the simulator.
    Sim,
}

/// Runs a test's body on the simulator, where NVRTC is found.
pub fn on_sim(body: impl Fn()) {
    if crate::compile::for_test().is_some() {
        DEVICE.set(Device::Sim);
        body();
        DEVICE.set(Device::Cpu);
    }
}

/// What `f` gives on another device.
pub fn on<R>(device: Device, f: impl FnOnce() -> R) -> R {
    let before = DEVICE.replace(device);
    let result = f();
    DEVICE.set(before);
    result
}

/// What runs the launches of this test now.
pub fn device() -> Device {
    DEVICE.get()
}

/// Makes of functions without arguments tests on each device: `for_each_device!(equals_the_formula, …)` gives `cpu::…` and
/// `sim::…`.
macro_rules! for_each_device {
    ($($test:ident),* $(,)?) => {
        mod cpu {
            $(#[test] fn $test() { super::$test(); })*
        }
        mod sim {
            $(#[test] fn $test() { crate::testing::on_sim(super::$test); })*
        }
    };
}
pub(crate) use for_each_device;

fn register<T>(x: &[T], written: bool) -> Addr {
    let (start, bytes) = (x.as_ptr() as u64, size_of_val(x));
    ARRAYS.with_borrow_mut(|arrays| {
        // What used to lie here is gone.
        let end = start + bytes.max(1) as u64;
        let stale: Vec<u64> =
            arrays.range(..end).filter(|(at, (n, _))| **at + *n as u64 > start).map(|a| *a.0).collect();
        stale.iter().for_each(|at| drop(arrays.remove(at)));
        arrays.insert(start, (bytes, written));
    });
    Addr(start)
}

/// The address of a slice; kernels may write to it, so the owner must be looked at only through [`Data`]'s methods.
pub fn addr<T>(x: &[T]) -> Addr {
    register(x, true)
}

/// The address of a slice that a kernel writes.
pub fn addr_mut<T>(x: &mut [T]) -> Addr {
    let at = register(x, true);
    debug_assert_eq!(at.0, x.as_mut_ptr() as u64);
    at
}

/// Runs a launch on the device of the thread: on `threads` cpu threads, or on the simulator under eight interleavings,
/// which must agree to the last bit and find nothing wrong.
pub fn run(launch: &Launch, threads: usize) {
    match (DEVICE.get(), launch) {
        (Device::Sim, Launch::Kernel(kernel)) => run_on_sim(kernel, 8),
        _ => {
            let team = Team::new(threads);
            // SAFETY: tests pass addresses of live arrays of the documented sizes.
            unsafe { crate::launch::run_on_cpu(launch, &team) }
        }
    }
}

/// The arrays that a launch's parameters name.
fn arrays_of(launch: &KernelLaunch) -> Vec<(u64, usize, bool)> {
    let fields = launch.kernel.fields.iter().filter(|f| f.address);
    let mut found = Vec::new();
    ARRAYS.with_borrow(|arrays| {
        for field in fields {
            let bytes: [u8; 8] = launch.params[field.offset..field.offset + 8].try_into().expect("eight bytes");
            let address = u64::from_le_bytes(bytes);
            if address == 0 {
                continue;
            }
            if let Some((&at, &(n, written))) = arrays.range(..=address).next_back()
                && (address < at + n as u64 || n == 0)
                && !found.contains(&(at, n, written))
            {
                found.push((at, n, written));
            }
        }
    });
    found
}

/// What the stages of a launch count on the simulator, added up; nothing is written back.
pub fn counted(launch: &Launch) -> Count {
    let Launch::Kernel(launch) = launch else { return Count::default() };
    let mut memory = Memory::new();
    for (at, bytes, written) in arrays_of(launch) {
        // SAFETY: the test holds the arrays whose addresses it put into the parameters.
        let data = unsafe { std::slice::from_raw_parts(at as *const u8, bytes) };
        memory.map(at, data.to_vec(), written);
    }
    let options = Options { gpu: simulate::gpu(&Arch::A100), ..Options::default() };
    let staged = simulate::run(launch, &Arch::A100, &mut memory, &options).expect("it runs");
    let mut sum = Count::default();
    staged.iter().for_each(|s| sum.add(&s.counters.total()));
    sum
}

/// Runs a launch on the simulator under `interleavings` orders of warps and moments of asynchronous copies.
pub fn run_on_sim(launch: &KernelLaunch, interleavings: u64) {
    let arrays = arrays_of(launch);
    let mut first: Option<Vec<Vec<u8>>> = None;
    for seed in 0..interleavings {
        let mut memory = Memory::new();
        for &(at, bytes, written) in &arrays {
            // SAFETY: the test holds the arrays whose addresses it put into the parameters.
            let data = unsafe { std::slice::from_raw_parts(at as *const u8, bytes) };
            memory.map(at, data.to_vec(), written);
        }
        let completion = [Completion::Latest, Completion::Earliest, Completion::Random][seed as usize % 3];
        let arch = if seed == 1 { Arch::H100 } else { Arch::A100 };
        let options = Options { gpu: simulate::gpu(&arch), seed, completion, ..Options::default() };
        let staged = match simulate::run(launch, &Arch { sm: 80, ..arch }, &mut memory, &options) {
            Ok(staged) => staged,
            Err(e) => panic!("{}: {e}", launch.kernel.name),
        };
        for s in &staged {
            let list: Vec<String> =
                s.findings.iter().map(|f| format!("line {}: {}: {}", f.line, f.kind.name(), f.message)).collect();
            assert!(list.is_empty(), "{} (seed {seed}) {:?}:\n{}", s.stage.symbol, launch.kernel, list.join("\n"));
        }
        let results: Vec<Vec<u8>> =
            arrays.iter().map(|a| memory.bytes(a.0).map(<[u8]>::to_vec).unwrap_or_default()).collect();
        match &first {
            None => first = Some(results),
            Some(first) => assert!(*first == results, "{}: seed {seed} gives other results", launch.kernel.name),
        }
    }
    for (&(at, bytes, _), result) in arrays.iter().zip(first.iter().flatten()) {
        // SAFETY: as above.
        let data = unsafe { std::slice::from_raw_parts(at as *const u8, bytes) };
        // Inputs may be constants, which cannot be written even with what they hold.
        if data != result {
            // SAFETY: as above; kernels may write the arrays that they are given.
            let data = unsafe { std::slice::from_raw_parts_mut(at as *mut u8, bytes) };
            data.copy_from_slice(result);
        }
    }
}
