//! A driver for machines without a GPU, used to test the code above the driver.
//!
//! The fake driver enforces the documented rules of the real one and runs launches on the simulator. Several fake
//! GPUs of one process exchange memory by a fake NCCL (`nccl.rs`). Enqueued work runs as late as the rules allow:
//! when the host waits for it. So three kinds of errors appear here that a fast GPU would mostly hide: a host buffer
//! that is changed too early, memory that is freed while a launch still needs it, and a missing wait between streams.
//!
//! If a call breaks a rule and NVIDIA's driver returns an error for it, this driver returns the same error. If the
//! manual leaves the outcome undefined, the broken rule is added to [`FakeDriver::violations`]. After a finding of
//! the simulator every later call fails, as after a faulting kernel. Source of each rule: CUDA Driver API manual
//! 13.0, the function that the comment of the call names. A driver of an earlier CUDA version
//! ([`FakeDriver::with_driver_version`]) loads only the code that this version supports. Before 12.3 it captures no
//! programmatic launches.
#![allow(unsafe_code)]

mod capture;
mod driver;
mod execute;
mod memory;
mod nccl;
#[cfg(test)]
mod nccl_tests;
mod overlap;
mod products;
mod transfers;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard};

use reel_sim::memory::SimMemory;
use reel_sim::program::{Kernel, Program};

use super::error::CudaError;
use super::types::{GpuProperties, LaunchConfig, LaunchLimits};
use crate::Team;
use crate::launch::{Arch, Matmul};
use capture::Capture;
use overlap::OverlapCounter;
use transfers::Transfer;

/// Granularity of mapped memory in bytes: addresses and sizes are multiples of it. On NVIDIA's GPUs it is 2 MiB.
const GRANULARITY: usize = 64 << 10;
/// Seconds that every operation takes on the fake driver's clock.
const TICK: f64 = 1e-6;

/// A simulated GPU with its driver. Clones refer to the same GPU.
#[derive(Clone)]
pub struct FakeDriver(Arc<Inner>);

struct Inner {
    properties: GpuProperties,
    team: Team,
    state: Mutex<State>,
}

/// One operation on a stream.
#[derive(Clone, Debug)]
enum Op {
    CopyIn {
        to: u64,
        from: usize,
        bytes: usize,
    },
    CopyOut {
        to: usize,
        from: u64,
        bytes: usize,
    },
    Copy {
        to: u64,
        from: u64,
        bytes: usize,
    },
    Fill {
        at: u64,
        byte: u8,
        bytes: usize,
    },
    Launch(EnqueuedLaunch),
    Product(Matmul),
    Record(u64),
    Wait(u64),
    /// Marks the end of a launched graph in the stream's queue.
    Launched(usize),
    /// Sends and receives of the fake NCCL.
    Transfer(Arc<Transfer>),
}

/// An enqueued launch.
#[derive(Clone, Debug)]
struct EnqueuedLaunch {
    function: usize,
    config: LaunchConfig,
    params: Vec<u8>,
}

#[derive(Default)]
struct Queue {
    work: VecDeque<Op>,
    /// The number of operations that were ever added to `work`.
    enqueued: u64,
    capture: Option<Capture<Op>>,
}

/// The latest recording of an event on a stream.
#[derive(Clone, Copy)]
struct EventRecord {
    /// The number of this recording, which is its key in [`State::reached`].
    ticket: u64,
    stream: usize,
    captured: bool,
}

struct LoadedFunction {
    module: usize,
    kernel: Arc<Kernel>,
    shared: u32,
    prefers_shared: bool,
    large_clusters: bool,
}

#[derive(Default)]
struct State {
    memory: SimMemory,
    /// The size in bytes of each allocation, by its address.
    allocated: BTreeMap<u64, usize>,
    /// The size in bytes of each reserved address range, by its start.
    reserved: BTreeMap<u64, usize>,
    /// The parts of reserved ranges that have mapped memory: by address, the size in bytes and the handle of the
    /// physical memory.
    backed: BTreeMap<u64, (usize, u64)>,
    host: BTreeMap<usize, Vec<u64>>,
    streams: BTreeMap<usize, Queue>,
    events: BTreeMap<usize, Option<EventRecord>>,
    /// The time at which each recording of an event completed, keyed by [`EventRecord::ticket`].
    reached: HashMap<u64, f64>,
    /// The event recording that the host queried last, and the number of operations that were enqueued at that time.
    last_query: Option<(u64, u64)>,
    modules: BTreeMap<usize, Arc<Program>>,
    functions: BTreeMap<usize, LoadedFunction>,
    graphs: BTreeMap<usize, Vec<Op>>,
    handles: usize,
    clock: f64,
    launches: u64,
    programmatic_launches: u64,
    /// The number of launches and matrix products that were enqueued.
    enqueued_launches: u64,
    /// For each window between cuProfilerStart and cuProfilerStop: the indices of the launches that were enqueued in
    /// it.
    profiled: Vec<Range<u64>>,
    /// The index of the launch at which the process is killed, counted from 1.
    killed_at_launch: Option<u64>,
    overlap: OverlapCounter,
    /// The error of a kernel that failed. Every later call returns this error.
    faulted: Option<String>,
    violations: Vec<String>,
}

impl FakeDriver {
    /// Makes a simulated GPU of this architecture with `memory` bytes of GPU memory and a driver of CUDA 13.0.
    pub fn new(arch: Arch, memory: u64) -> FakeDriver {
        FakeDriver::with_driver_version(arch, memory, 13_000)
    }

    /// Makes a simulated GPU of this architecture with `memory` bytes of GPU memory and a driver of a CUDA version,
    /// times 1000: 12040 for 12.4.
    pub fn with_driver_version(arch: Arch, memory: u64, version: u32) -> FakeDriver {
        let limits = LaunchLimits::new(arch.sm, arch.shared_per_block);
        let properties = GpuProperties { name: "fake GPU".into(), arch, limits, memory, version };
        let state = State { memory: SimMemory::new(), handles: 1, ..State::default() };
        FakeDriver(Arc::new(Inner { properties, team: Team::new(1), state: Mutex::new(state) }))
    }

    /// Returns descriptions of the violations so far, oldest first. A violation is a broken rule for which the manual
    /// defines no outcome.
    pub fn violations(&self) -> Vec<String> {
        self.0.state().violations.clone()
    }

    /// Returns the number of kernel launches and matrix products that have run.
    pub fn launch_count(&self) -> u64 {
        self.0.state().launches
    }

    /// Returns the number of loaded functions that prefer shared memory to L1 cache.
    pub fn functions_that_prefer_shared(&self) -> usize {
        self.0.state().functions.values().filter(|function| function.prefers_shared).count()
    }

    /// Returns one range of launch indices (counted from 0) for each window in which a profiler was told to collect.
    /// Kernel launches and matrix products that were enqueued in the window count. A window that was not ended ends
    /// at `u64::MAX`.
    pub fn profiled_launches(&self) -> Vec<Range<u64>> {
        self.0.state().profiled.clone()
    }

    /// Returns the number of programmatic dependent launches that have run.
    pub fn programmatic_launch_count(&self) -> u64 {
        self.0.state().programmatic_launches
    }

    /// Returns the number of launches and matrix products that may run at the same time as earlier sends or receives
    /// on another stream, because neither the launch's stream nor the host has waited for those sends or receives.
    pub fn launches_beside_transfers(&self) -> u64 {
        self.0.state().overlap.launches
    }

    /// Returns the bytes of allocated GPU memory.
    pub fn bytes_in_use(&self) -> u64 {
        self.0.state().allocated_bytes()
    }

    /// Simulates that a signal kills the process that uses this GPU: nothing runs on the GPU any more, every call
    /// fails, and the other ranks of its communicators lose the connection.
    pub fn kill_process(&self) {
        self.0.state().faulted = Some("the process was killed".into());
        nccl::kill_ranks(&self.0);
    }

    /// Simulates a kill as [`FakeDriver::kill_process`] does, when the process enqueues its n-th launch or matrix
    /// product, counted from 1.
    pub fn kill_process_at_launch(&self, n: u64) {
        self.0.state().killed_at_launch = Some(n);
    }

    /// Counts a launch that is about to be enqueued.
    fn count_launch(&self) {
        let mut state = self.0.state();
        state.enqueued_launches += 1;
        let is_killed = state.killed_at_launch == Some(state.enqueued_launches);
        drop(state);
        if is_killed {
            self.kill_process();
        }
    }

    /// Returns the number of resources that were created and not destroyed: streams, events, modules, graphs,
    /// allocations, page-locked host memory, communicators.
    pub fn open_handle_count(&self) -> usize {
        let communicators = nccl::open_communicators(&self.0);
        let s = self.0.state();
        let handles = communicators + s.streams.len() + s.events.len() + s.modules.len() + s.graphs.len();
        handles + s.allocated.len() + s.reserved.len() + s.backed.len() + s.host.len()
    }
}

impl Inner {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Returns the state, or an error if a kernel has failed before.
    fn state_unless_faulted(&self, call: &str) -> Result<MutexGuard<'_, State>, CudaError> {
        let state = self.state();
        match &state.faulted {
            None => Ok(state),
            Some(why) => Err(failed(call, why)),
        }
    }

    /// Returns the state, or an error if a kernel has failed before or this thread is capturing a stream. During a
    /// capture, calls that may wait are prohibited and invalidate the capture (cuThreadExchangeStreamCaptureMode:
    /// "potentially unsafe API calls").
    fn state_unless_capturing(&self, call: &str) -> Result<MutexGuard<'_, State>, CudaError> {
        let mut state = self.state_unless_faulted(call)?;
        let mut captures =
            state.streams.values_mut().filter_map(|q| q.capture.as_mut()).filter(|c| c.was_begun_by_this_thread());
        let prohibited = captures.by_ref().map(Capture::invalidate).count() > 0;
        if prohibited { Err(failed(call, "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED")) } else { Ok(state) }
    }
}

fn failed(call: &str, what: &str) -> CudaError {
    CudaError::Call { call: call.into(), what: what.into() }
}

fn invalid(call: &str) -> CudaError {
    failed(call, "CUDA_ERROR_INVALID_VALUE")
}
