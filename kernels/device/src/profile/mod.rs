//! The data that a device's profiler collects: operations, bytes and time of each launch.
//!
//! `cpu`, `sim` and `dry` finish a launch before the call returns, so its time is measured on the host. `cuda`
//! records an event before and after each launch (see `cuda/timeline.rs`), so the profiler does not make the host
//! wait.

mod operand_reads;
mod planned_launches;
mod planned_products;

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Instant;

use crate::launch::{Arch, Cost, Launch};
use operand_reads::OperandHistory;
use planned_launches::planned_stages;
use reel_support::ranges::{
    LaunchOrigin, RangeId, current_origin, current_range, host_thread_number, is_tool_attached,
};

pub use operand_reads::{OperandRead, OperandReads};
pub use planned_launches::{PlannedLaunches, PlannedStage};
pub use planned_products::{PlannedProduct, PlannedProducts};

/// The bit of [`ProfileData::set_mode_bits`] for totals.
pub(crate) const TOTALS_BIT: u8 = 1;
/// The bit of [`ProfileData::set_mode_bits`] for the timeline.
pub(crate) const TIMELINE_BIT: u8 = 2;

/// Totals of all launches of one kernel.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct OpTotals {
    /// The number of launches of the kernel.
    pub launches: u64,
    /// Operations and bytes, from the kernel's cost function.
    pub cost: Cost,
    /// The right operands of matrix products. Their bytes are included in `cost`.
    pub operands: OperandReads,
    /// Seconds that the launches took.
    pub seconds: f64,
    /// On device `dry`: the CUDA launches that a GPU would execute.
    pub planned: PlannedLaunches,
    /// On device `dry`: the matrix products that kernels of the planned GPU can compute.
    pub products: PlannedProducts,
}

/// The call on the host that enqueued or ran a launch.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct HostCall {
    /// The number of the thread; see [`host_thread_number`].
    pub thread: usize,
    /// The time at which the call began.
    pub start: Instant,
    /// Seconds until the call returned; the launch may run later.
    pub seconds: f64,
}

/// One launch on the timeline.
#[derive(Clone, Debug, PartialEq)]
pub struct LaunchEvent {
    /// The kernel's name.
    pub name: &'static str,
    /// The part of the work to which the launch belongs; see
    /// [`Profiler::set_work_part`](crate::Profiler::set_work_part).
    pub part: &'static str,
    /// The op and the layer that the launch belongs to.
    pub origin: LaunchOrigin,
    /// The innermost range of host time in which the launch was made, if ranges were recorded.
    pub range: Option<RangeId>,
    /// The launch's parameters that are sizes, by name.
    pub sizes: Vec<(&'static str, u64)>,
    /// Operations and bytes, from the kernel's cost function.
    pub cost: Cost,
    /// The right operand of a matrix product. Its bytes are included in `cost`.
    pub operand: Option<OperandRead>,
    /// The call on the host that made the launch.
    pub host: HostCall,
    /// The start of the launch by the host's clock.
    pub start: Instant,
    /// The duration of the launch in seconds.
    pub seconds: f64,
    /// On device `dry`: the CUDA launches that a GPU would execute.
    pub stages: Vec<PlannedStage>,
    /// On device `dry`: the matrix product, if a kernel of the planned GPU can compute it.
    pub product: Option<PlannedProduct>,
}

/// A profiled launch whose time is not known yet.
pub(crate) struct LaunchRecord {
    /// The data that the profiler collects about the launch: totals, timeline or both. The record keeps its own mode,
    /// because the profiler's mode may change before the time of the launch is known.
    mode: u8,
    event: LaunchEvent,
}

impl LaunchRecord {
    /// Records the time at which the call on the host returned.
    pub(crate) fn record_host_return(&mut self) {
        self.event.host.seconds = self.event.host.start.elapsed().as_secs_f64();
    }

    /// Completes the record: the launch began at `start` and took `seconds`.
    pub(crate) fn with_time(self, start: Instant, seconds: f64) -> TimedLaunch {
        TimedLaunch { mode: self.mode, event: LaunchEvent { start, seconds, ..self.event } }
    }
}

/// A profiled launch whose time is known.
pub(crate) struct TimedLaunch {
    mode: u8,
    pub event: LaunchEvent,
}

#[derive(Default)]
struct State {
    totals: BTreeMap<&'static str, OpTotals>,
    events: Vec<LaunchEvent>,
}

/// Everything that the profiler of a device has collected.
#[derive(Default)]
pub(crate) struct ProfileData {
    mode: AtomicU8,
    part: Mutex<&'static str>,
    /// The GPU architecture for which launches are planned.
    arch: Mutex<Option<Arch>>,
    operands: Mutex<OperandHistory>,
    state: Mutex<State>,
}

impl ProfileData {
    pub(crate) fn is_collecting(&self) -> bool {
        self.mode.load(Ordering::Relaxed) != 0
    }

    /// Tells whether the launches of a captured graph must run one by one. They must if the profiler needs the time of
    /// each launch, which a native graph does not give. An attached profiling tool sees the launches inside native
    /// graphs. So if a tool is attached, native graphs are replayed as usual, and the trace leaves their launches to
    /// the tool.
    pub(crate) fn needs_single_launches(&self) -> bool {
        let mode = self.mode.load(Ordering::Relaxed);
        mode & TOTALS_BIT != 0 || mode & TIMELINE_BIT != 0 && !is_tool_attached()
    }

    /// Creates the record of a launch that the host is about to make.
    pub(crate) fn record(&self, launch: &Launch) -> LaunchRecord {
        let mode = self.mode.load(Ordering::Relaxed);
        let sizes = if mode & TIMELINE_BIT != 0 { launch.sizes() } else { Vec::new() };
        let operand = match launch {
            Launch::Matmul(product) => Some(self.operands().read(product.right_operand())),
            Launch::Kernel(_) | Launch::WeightGroups(_) => None,
        };
        let arch = *self.arch();
        let stages = arch.map(|arch| planned_stages(launch, &arch)).unwrap_or_default();
        let product = arch.and_then(|arch| PlannedProduct::of_launch(launch, &arch));
        let start = Instant::now();
        let event = LaunchEvent {
            name: launch.name(),
            part: *self.part(),
            origin: current_origin(),
            range: current_range(),
            sizes,
            cost: launch.cost(),
            operand,
            host: HostCall { thread: host_thread_number(), start, seconds: 0.0 },
            start,
            seconds: 0.0,
            stages,
            product,
        };
        LaunchRecord { mode, event }
    }

    /// Adds launches whose times have become known.
    pub(crate) fn add_timed_launches(&self, known: Vec<TimedLaunch>) {
        let mut s = self.lock();
        for TimedLaunch { mode, event } in known {
            if mode & TOTALS_BIT != 0 {
                let t = s.totals.entry(event.name).or_default();
                t.launches += 1;
                t.cost += event.cost;
                event.operand.iter().for_each(|operand| t.operands.add(operand));
                t.seconds += event.seconds;
                t.planned.add(&event.stages, event.cost, 1);
                event.product.iter().for_each(|product| t.products.add(*product, 1));
            }
            if mode & TIMELINE_BIT != 0 {
                s.events.push(event);
            }
        }
    }

    /// Makes the profiler plan each launch for a GPU of this compute capability, such as 90, and collect the plans.
    /// With 0 the profiler plans no launch.
    pub(crate) fn plan_launches(&self, compute_capability: u32) {
        *self.arch() = Arch::of_capability(compute_capability);
    }

    /// Sets the name of the part of the work, such as `forward`, to which later launches belong. Returns the previous
    /// name.
    pub(crate) fn set_part(&self, name: &'static str) -> &'static str {
        std::mem::replace(&mut *self.part(), name)
    }

    /// Deletes all collected data.
    pub(crate) fn clear(&self) {
        let mut s = self.lock();
        s.totals.clear();
        s.events.clear();
        *self.operands() = OperandHistory::default();
    }

    /// Returns the totals of all launches, by kernel name.
    pub(crate) fn totals(&self) -> BTreeMap<&'static str, OpTotals> {
        let (mut totals, cycle) = (self.lock().totals.clone(), self.operands().bytes());
        totals.values_mut().for_each(|t| t.operands.set_unknown_cycle(cycle));
        totals
    }

    /// The launches of the timeline, ordered by start time.
    pub(crate) fn events(&self) -> Vec<LaunchEvent> {
        let (mut events, cycle) = (self.lock().events.clone(), self.operands().bytes());
        events.iter_mut().filter_map(|e| e.operand.as_mut()).for_each(|operand| operand.set_unknown_cycle(cycle));
        events.sort_by_key(|e| e.start);
        events
    }

    pub(crate) fn set_mode_bits(&self, bits: u8, on: bool) {
        if on {
            self.mode.fetch_or(bits, Ordering::Relaxed);
        } else {
            self.mode.fetch_and(!bits, Ordering::Relaxed);
        }
    }

    fn part(&self) -> std::sync::MutexGuard<'_, &'static str> {
        self.part.lock().unwrap_or_else(|e| e.into_inner())
    }

    fn arch(&self) -> std::sync::MutexGuard<'_, Option<Arch>> {
        self.arch.lock().unwrap_or_else(|e| e.into_inner())
    }

    fn operands(&self) -> std::sync::MutexGuard<'_, OperandHistory> {
        self.operands.lock().unwrap_or_else(|e| e.into_inner())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|e| e.into_inner())
    }
}
