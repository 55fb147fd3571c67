//! What kernels are held to: the same checks run as tests, by `reel kernels check --device sim`, and on a GPU.
//!
//! A folder's `check.rs` has functions that make data, [`run`] launches and compare what they wrote with the formula; they
//! panic where it differs, as tests do. [`checks!`] lists them; [`Check::run`] runs one on a device of choice.
#![allow(unsafe_code)]

mod arrays;
mod data;
pub mod mutation;
mod on_gpu;
mod on_sim;
pub(crate) mod rounding;
pub mod suite;
#[cfg(test)]
pub(crate) mod traffic;

pub(crate) use arrays::{addr, addr_mut};
pub(crate) use data::{Data, Picks, numbers};
pub use on_gpu::Compared;
pub use on_sim::Recorded;
#[cfg(test)]
pub(crate) use on_sim::{counted, counted_on, staged};

use crate::launch::Launch;
use crate::{Team, cuda::Gpu};
use std::cell::RefCell;
use std::panic::{self, AssertUnwindSafe};
use std::rc::Rc;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// One thing that a folder's kernels are held to.
#[derive(Clone, Copy, Debug)]
pub struct Check {
    /// Says what holds.
    pub name: &'static str,
    /// It is about the CUDA code, not about the cpu's.
    pub cuda_only: bool,
    body: fn(),
}

impl Check {
    /// A check of this name; for [`checks!`].
    pub(crate) const fn new(name: &'static str, cuda_only: bool, body: fn()) -> Check {
        Check { name, cuda_only, body }
    }
}

/// What runs a launch.
#[derive(Clone)]
pub enum Device {
    /// The kernel's cpu code.
    Cpu,
    /// Its CUDA on the simulator.
    Sim,
    /// Its CUDA on a GPU.
    Gpu(Rc<Gpu>),
}

/// How a check is run.
#[derive(Clone)]
pub struct Setup {
    /// What runs its launches.
    pub device: Device,
    /// Which data and which orders of warps; 0 is what the tests take.
    pub seed: u64,
    /// Orders of warps and moments of asynchronous copies that the simulator tries; their results must agree.
    pub interleavings: u64,
    /// Only launches of this kernel go to the device, the others to the cpu.
    pub only: Option<String>,
    /// On a GPU: also simulate each launch, and compare.
    pub compare: bool,
    /// Keep the launches with what they were given.
    pub record: bool,
}

impl Setup {
    /// As the tests run: eight interleavings, seed 0.
    pub fn new(device: Device) -> Setup {
        Setup { device, seed: 0, interleavings: 8, only: None, compare: false, record: false }
    }
}

/// What a check that held has done.
#[derive(Clone, Debug, Default)]
pub struct Ran {
    /// Launches of what was asked for.
    pub launches: usize,
    /// From begin to end.
    pub time: Duration,
    /// Differences between GPU and simulator, where they were asked for.
    pub compared: Vec<Compared>,
    /// The launches, where they were asked for.
    pub recorded: Vec<Recorded>,
}

type Hook = Box<dyn Fn(&panic::PanicHookInfo<'_>) + Sync + Send>;

/// How many checks run, and the panic hook that was there before the first of them.
static HOOK: Mutex<(usize, Option<Hook>)> = Mutex::new((0, None));

/// As long as there is one, panics are not printed.
struct Quiet;

impl Quiet {
    fn new() -> Quiet {
        let mut hook = HOOK.lock().unwrap_or_else(PoisonError::into_inner);
        if hook.0 == 0 {
            hook.1 = Some(panic::take_hook());
            panic::set_hook(Box::new(|_| {}));
        }
        hook.0 += 1;
        Quiet
    }
}

impl Drop for Quiet {
    fn drop(&mut self) {
        let mut hook = HOOK.lock().unwrap_or_else(PoisonError::into_inner);
        hook.0 -= 1;
        if hook.0 == 0
            && let Some(before) = hook.1.take()
        {
            panic::set_hook(before);
        }
    }
}

/// The state of the check on this thread.
struct Running {
    setup: Setup,
    ran: Ran,
}

thread_local! {
    static RUNNING: RefCell<Running> = RefCell::new(Running { setup: Setup::new(Device::Cpu), ran: Ran::default() });
}

impl Check {
    /// Runs the check. An error is one line: what did not hold.
    ///
    /// Panics are caught and not printed: while checks run, on any thread, the panic hook of the process says nothing.
    pub fn run(&self, setup: &Setup) -> Result<Ran, String> {
        let quiet = Quiet::new();
        let start = Instant::now();
        let before = RUNNING.replace(Running { setup: setup.clone(), ran: Ran::default() });
        let result = panic::catch_unwind(AssertUnwindSafe(self.body));
        let running = RUNNING.replace(before);
        drop(quiet);
        match result {
            Ok(()) => Ok(Ran { time: start.elapsed(), ..running.ran }),
            Err(panic) => {
                let text = panic.downcast_ref::<String>().map(String::as_str);
                let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("it panicked");
                Err(text.split('\n').map(str::trim).filter(|l| !l.is_empty()).collect::<Vec<_>>().join("; "))
            }
        }
    }
}

/// The seed of the check on this thread.
pub(crate) fn seed() -> u64 {
    RUNNING.with_borrow(|r| r.setup.seed)
}

/// Whether launches of this check go to CUDA code, so that bodies take sizes that the simulator can bear.
pub(crate) fn is_cuda() -> bool {
    RUNNING.with_borrow(|r| !matches!(r.setup.device, Device::Cpu))
}

/// Runs a launch on the device of the check: on `threads` cpu threads; on the simulator under the check's interleavings,
/// which must agree to the last bit and find nothing wrong; or on the GPU.
pub(crate) fn run(launch: &Launch, threads: usize) {
    let (device, here) = RUNNING.with_borrow(|r| {
        let here = r.setup.only.as_deref().is_none_or(|only| launch.name() == only);
        (r.setup.device.clone(), here)
    });
    match (device, launch) {
        (Device::Sim, Launch::Kernel(kernel)) if here => on_sim::run(kernel),
        (Device::Gpu(gpu), Launch::Kernel(kernel)) if here => on_gpu::run(&gpu, kernel),
        _ => {
            let team = Team::new(threads);
            // SAFETY: checks pass addresses of live arrays of the documented sizes.
            unsafe { crate::launch::run_on_cpu(launch, &team) }
        }
    }
    if here {
        RUNNING.with_borrow_mut(|r| r.ran.launches += 1);
    }
}

/// [`run`] with one interleaving, for checks that compare the results of many launches with each other.
pub(crate) fn run_once(launch: &Launch) {
    let set = |n| RUNNING.with_borrow_mut(|r| std::mem::replace(&mut r.setup.interleavings, n));
    let before = set(1);
    run(launch, 1);
    set(before);
}

/// Runs a test's body on the simulator, where NVRTC is found.
#[cfg(test)]
pub(crate) fn on_sim(body: impl Fn()) {
    if crate::compile::for_test().is_some() {
        let before = RUNNING.replace(Running { setup: Setup::new(Device::Sim), ran: Ran::default() });
        body();
        RUNNING.replace(before);
    }
}

/// Lists a folder's checks, functions without arguments: `checks!(equals_the_formula, …)`. What follows `cuda:` is about the
/// CUDA code alone. In tests each becomes `cpu::…` and `sim::…`.
macro_rules! checks {
    ($($check:ident),* $(,)? $(; cuda: $($cuda:ident),* $(,)?)?) => {
        /// What the kernels of this folder are held to.
        pub(crate) const CHECKS: &[$crate::checks::Check] = &[
            $($crate::checks::Check::new(stringify!($check), false, $check),)*
            $($($crate::checks::Check::new(stringify!($cuda), true, $cuda),)*)?
        ];
        #[cfg(test)]
        mod cpu {
            $(#[test] fn $check() { super::$check(); })*
        }
        #[cfg(test)]
        mod sim {
            $(#[test] fn $check() { $crate::checks::on_sim(super::$check); })*
            $($(#[test] fn $cuda() { $crate::checks::on_sim(super::$cuda); })*)?
        }
    };
}
pub(crate) use checks;
