//! Checks of kernels against their formulas. The same checks run as tests, by `reel kernels check --device sim`, and on
//! a GPU. A check is a function in a folder's `check.rs` that makes data, [`run`]s launches, compares the results with
//! the formula, and panics if a result is wrong. [`checks!`] lists them, and [`Check::run`] runs one on a device.
#![allow(unsafe_code)]

mod arrays;
mod data;
#[cfg(test)]
mod dependent;
#[cfg(test)]
pub(crate) mod model_inputs;
pub mod mutation;
mod on_gpu;
mod on_sim;
pub mod proof;
pub(crate) mod rounding;
pub mod suite;
#[cfg(test)]
pub(crate) mod traffic;

pub(crate) use arrays::{addr, addr_mut};
pub(crate) use data::{RandomChoices, TestArray, normal_numbers};
pub use on_gpu::GpuComparison;
pub use on_sim::RecordedLaunch;
#[cfg(test)]
pub(crate) use on_sim::{
    run_and_count_on, run_with_every_timing_on, simulated_counts, simulated_counts_on, simulated_stages,
    simulated_stages_on,
};

use std::cell::RefCell;
use std::panic::{self, AssertUnwindSafe};
use std::rc::Rc;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use reel_device::Team;
use reel_device::cuda::Gpu;
use reel_device::launch::{Arch, Launch};

/// A check of a folder's kernels.
#[derive(Clone, Copy, Debug)]
pub struct Check {
    /// The name, which states the property that holds.
    pub name: &'static str,
    /// Whether the check applies to the CUDA code only.
    pub cuda_only: bool,
    body: fn(),
}

impl Check {
    /// Makes a check; used by [`checks!`].
    pub(crate) const fn new(name: &'static str, cuda_only: bool, body: fn()) -> Check {
        Check { name, cuda_only, body }
    }
}

/// The device that runs the launches of a check.
#[derive(Clone)]
pub enum CheckDevice {
    /// The code of device `cpu`.
    Cpu,
    /// The CUDA code on the simulator.
    Sim,
    /// The CUDA code on a GPU.
    Gpu(Rc<Gpu>),
}

/// How to run a check.
#[derive(Clone)]
pub struct CheckSetup {
    /// The device that runs the launches of the check.
    pub device: CheckDevice,
    /// Seed of the data and of the interleavings; tests use 0.
    pub seed: u64,
    /// Number of interleavings (orders of warps and completion times of asynchronous copies) that the simulator
    /// tries; results must agree.
    pub interleavings: u64,
    /// Whether the check runs as a test. Tests simulate large launches with fewer interleavings than
    /// `reel kernels check`.
    pub in_test: bool,
    /// If given, only launches of the kernel with this name are checked and counted. Launches of other kernels run once
    /// on the same device, because a check may compare the bits of two kernels.
    pub only: Option<String>,
    /// On a GPU: whether each launch also runs on the simulator, and the results are compared.
    pub compare: bool,
    /// Whether to record the launches with their inputs.
    pub record: bool,
    /// The GPU that the simulator's first interleaving simulates. Launches are recorded on this GPU. It also runs the
    /// launches that use different kernels on an A100 and an H100. If this GPU is an A100 and the check has such
    /// launches, the whole check runs again on an H100, unless launches are recorded.
    pub first_gpu: Arch,
}

impl CheckSetup {
    /// A setup with eight interleavings, the first of them on an A100, and seed 0.
    pub fn new(device: CheckDevice) -> CheckSetup {
        CheckSetup {
            device,
            seed: 0,
            interleavings: 8,
            in_test: false,
            only: None,
            compare: false,
            record: false,
            first_gpu: Arch::A100,
        }
    }
}

/// Statistics of a check that passed.
#[derive(Clone, Debug, Default)]
pub struct CheckStatistics {
    /// Number of launches on the device.
    pub launches: usize,
    /// Duration of the check.
    pub time: Duration,
    /// Differences between the results on the GPU and on the simulator, if the setup asks for this comparison.
    pub compared: Vec<GpuComparison>,
    /// The recorded launches, if the setup records them.
    pub recorded: Vec<RecordedLaunch>,
    /// Whether the simulator ran a launch that uses different kernels on an H100 than on an A100.
    pub has_kernels_for_h100: bool,
}

type Hook = Box<dyn Fn(&panic::PanicHookInfo<'_>) + Sync + Send>;

/// The number of checks that are running, and the panic hook that was installed before the first of these checks
/// started.
static HOOK: Mutex<(usize, Option<Hook>)> = Mutex::new((0, None));

/// Panics are not printed while a value of this type exists.
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

/// State of the check that runs on this thread.
struct Running {
    setup: CheckSetup,
    ran: CheckStatistics,
    /// The only GPU that the simulator simulates while [`with_only_gpu`] runs.
    only_gpu: Option<Arch>,
    /// How often a GPU repeats each launch.
    repeats: usize,
}

impl Running {
    fn new(setup: CheckSetup) -> Running {
        Running { setup, ran: CheckStatistics::default(), only_gpu: None, repeats: 1 }
    }
}

thread_local! {
    static RUNNING: RefCell<Running> = RefCell::new(Running::new(CheckSetup::new(CheckDevice::Cpu)));
}

impl Check {
    /// Runs the check. The error is one line that says what is wrong.
    ///
    /// Panics are caught and not printed: while a check runs on any thread, the panic hook of the process is disabled.
    pub fn run(&self, setup: &CheckSetup) -> Result<CheckStatistics, String> {
        let quiet = Quiet::new();
        let start = Instant::now();
        let before = RUNNING.replace(Running::new(setup.clone()));
        let result = panic::catch_unwind(AssertUnwindSafe(|| on_each_gpu(self.body)));
        let running = RUNNING.replace(before);
        drop(quiet);
        match result {
            Ok(()) => Ok(CheckStatistics { time: start.elapsed(), ..running.ran }),
            Err(panic) => {
                let text = panic.downcast_ref::<String>().map(String::as_str);
                let text =
                    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("panicked without a message");
                Err(text.split('\n').map(str::trim).filter(|l| !l.is_empty()).collect::<Vec<_>>().join("; "))
            }
        }
    }
}

/// Runs the body of a check. On the simulator, runs it again on an H100 if an H100 has other kernels
/// ([`CheckSetup::first_gpu`]).
fn on_each_gpu(body: impl Fn()) {
    body();
    let again = RUNNING.with_borrow_mut(|r| {
        let again = r.ran.has_kernels_for_h100 && r.setup.first_gpu == Arch::A100 && !r.setup.record;
        if again {
            r.setup.first_gpu = Arch::H100;
        }
        again
    });
    if again {
        body();
    }
}

/// Returns the GPU whose kernels the running check launches. On device `cpu` the returned GPU does not matter.
pub(crate) fn gpu_of_check() -> Arch {
    RUNNING.with_borrow(|r| match &r.setup.device {
        CheckDevice::Gpu(gpu) => gpu.arch(),
        CheckDevice::Cpu | CheckDevice::Sim => r.only_gpu.unwrap_or(r.setup.first_gpu),
    })
}

/// Returns the seed of the check that runs on this thread.
pub(crate) fn check_seed() -> u64 {
    RUNNING.with_borrow(|r| r.setup.seed)
}

/// Whether launches of the running check execute CUDA code. If so, checks choose sizes that the simulator finishes in
/// time.
pub(crate) fn runs_cuda_code() -> bool {
    RUNNING.with_borrow(|r| !matches!(r.setup.device, CheckDevice::Cpu))
}

/// Returns the size of a check: `on_gpu` gives each multiprocessor of a GPU many tiles, and the simulator finishes
/// `elsewhere` in time.
pub(crate) fn size_for<T>(on_gpu: T, elsewhere: T) -> T {
    match RUNNING.with_borrow(|r| matches!(r.setup.device, CheckDevice::Gpu(_)) && !r.setup.compare) {
        true => on_gpu,
        false => elsewhere,
    }
}

/// Runs a launch on the device of the check: on `threads` CPU threads; on the simulator under the check's
/// interleavings, whose results must agree bit for bit without findings; or on the GPU.
pub(crate) fn run(launch: &Launch, threads: usize) {
    let (device, here) = RUNNING.with_borrow(|r| {
        let here = r.setup.only.as_deref().is_none_or(|only| launch.name() == only);
        (r.setup.device.clone(), here)
    });
    match (device, launch) {
        (CheckDevice::Sim, Launch::Kernel(kernel)) if here => on_sim::run_interleavings(kernel),
        (CheckDevice::Sim, Launch::Kernel(kernel)) => with_one_interleaving(|| on_sim::run_interleavings(kernel)),
        (CheckDevice::Gpu(gpu), Launch::Kernel(kernel)) => on_gpu::run(&gpu, kernel),
        _ => {
            let team = Team::new(threads);
            // SAFETY: checks pass addresses of live arrays of the documented sizes.
            unsafe { reel_device::launch::run_on_cpu(launch, &team) }
        }
    }
    if here {
        RUNNING.with_borrow_mut(|r| r.ran.launches += 1);
    }
}

/// Runs a launch on one CPU thread or under one interleaving, for checks that compare many launches with each other.
pub(crate) fn run_once(launch: &Launch) {
    with_one_interleaving(|| run(launch, 1));
}

/// Calls `body` and runs its launches under one interleaving each. For checks that compare launches with each other:
/// other checks of the same kernel compare interleavings.
pub(crate) fn with_one_interleaving(body: impl FnOnce()) {
    let set = |n| RUNNING.with_borrow_mut(|r| std::mem::replace(&mut r.setup.interleavings, n));
    let before = set(1);
    body();
    set(before);
}

/// Calls `body`, and on a GPU repeats each of its launches `times` times: waits between blocks of threads that are missing
/// may show in few launches. The launches of `body` must write only outputs.
pub(crate) fn with_repeated_launches(times: usize, body: impl FnOnce()) {
    let set = |n| RUNNING.with_borrow_mut(|r| std::mem::replace(&mut r.repeats, n));
    let before = set(times);
    body();
    set(before);
}

/// Calls `body` and simulates its launches only on GPU `gpu` (or on the setup's first GPU, if that GPU has the same
/// compute capability). For kernels whose order of summation depends on the GPU.
pub(crate) fn with_only_gpu(gpu: Arch, body: impl FnOnce()) {
    let set = |gpu| RUNNING.with_borrow_mut(|r| std::mem::replace(&mut r.only_gpu, gpu));
    let first = RUNNING.with_borrow(|r| r.setup.first_gpu);
    let before = set(Some(if first.sm == gpu.sm { first } else { gpu }));
    body();
    set(before);
}

/// Runs the body of a test on the simulator; skips it if there is no NVRTC.
#[cfg(test)]
pub(crate) fn run_test_on_sim(body: impl Fn()) {
    on_sim_with(CheckSetup::new(CheckDevice::Sim), body);
}

/// Runs a check as a test on the simulator. `module` is the path of the test's module; its first part below the crate
/// is the kernel folder. If the folder is unchanged since its checks passed under all interleavings ([`proof`]), the
/// check runs under one interleaving only.
#[cfg(test)]
pub(crate) fn check_on_sim(module: &str, check: fn()) {
    let folder = module.split("::").nth(1).and_then(crate::catalogue::find_kernel_folder);
    let folder = folder.unwrap_or_else(|| panic!("{module} is in no kernel folder"));
    let setup = CheckSetup::new(CheckDevice::Sim);
    let interleavings = if proof::is_proved(folder) { 1 } else { setup.interleavings };
    on_sim_with(CheckSetup { interleavings, ..setup }, check);
}

#[cfg(test)]
fn on_sim_with(setup: CheckSetup, body: impl Fn()) {
    if reel_device::compile::skip_without_nvrtc().is_some() {
        let before = RUNNING.replace(Running::new(CheckSetup { in_test: true, ..setup }));
        on_each_gpu(body);
        RUNNING.replace(before);
    }
}

/// Declares a folder's checks, functions without arguments: `checks!(equals_the_formula, …)`. Checks after `cuda:`
/// apply to the CUDA code only. In test builds each check becomes the tests `cpu::…` and `sim::…`.
macro_rules! checks {
    ($($check:ident),* $(,)? $(; cuda: $($cuda:ident),* $(,)?)?) => {
        /// The checks of the kernels of this folder.
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
            $(#[test] fn $check() { $crate::checks::check_on_sim(module_path!(), super::$check); })*
            $($(#[test] fn $cuda() { $crate::checks::check_on_sim(module_path!(), super::$cuda); })*)?
        }
    };
}
pub(crate) use checks;
