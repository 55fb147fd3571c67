//! A driver for machines without a GPU, for tests of everything above it.
//!
//! It enforces the driver's documented rules and runs what is launched on the simulator. Work that was asked of a stream is done as late as
//! the rules allow: when somebody waits for it. So a host buffer that is changed too early, memory that is given back while a launch
//! still needs it, or a missing wait between streams show here, where a GPU would mostly be quick enough to hide them.
//!
//! A broken rule that the driver reports is the same error here. One whose outcome is undefined is kept in [`Fake::violations`]. A finding
//! of the simulator fails every later call, as a faulting kernel does. Source of each rule: CUDA Driver API manual 13.0, the function
//! that is named beside it.
#![allow(unsafe_code)]

mod capture;

use super::blas::{self, Blas, Shape, WORKSPACE};
use super::driver::{
    Backing, Config, Driver, Event, Function, FunctionFacts, Graph, Image, Module, Properties, Stream,
};
use super::rules::{self, Limits};
use super::{Algorithms, CudaError};
use crate::launch::Arch;
use crate::matmul::Matmul;
use crate::{Team, simulate};
use capture::Capture;
use reel_sim::exec::{self, CompletionTiming, ExecOptions};
use reel_sim::memory::SimMemory;
use reel_sim::program::{Kernel, Program};
use reel_sim::tensor_map::TensorMap;
use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};

/// What addresses and sizes of backed memory are multiples of; NVIDIA's GPUs have 2 MiB.
const GRANULARITY: usize = 64 << 10;
/// What an operation takes by the fake's clock, in seconds.
const TICK: f64 = 1e-6;

/// A GPU that is none; clones share it.
#[derive(Clone)]
pub struct Fake(Arc<Inner>);

struct Inner {
    properties: Properties,
    team: Team,
    state: Mutex<State>,
}

/// Something asked of a stream.
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
    Launch(Asked),
    Product(Matmul),
    Record(u64),
    Wait(u64),
    /// The last of a graph's launch.
    Launched(usize),
}

/// A launch as it was asked for.
#[derive(Clone, Debug)]
struct Asked {
    function: usize,
    config: Config,
    params: Vec<u8>,
}

#[derive(Default)]
struct Queue {
    asked: VecDeque<Op>,
    recording: Option<Capture<Op>>,
}

/// The last record of an event.
#[derive(Clone, Copy)]
struct Recorded {
    ticket: u64,
    stream: usize,
    captured: bool,
}

struct Loaded {
    program: Arc<Program>,
}

struct Known {
    module: usize,
    kernel: Arc<Kernel>,
    shared: u32,
    large_clusters: bool,
}

#[derive(Default)]
struct State {
    memory: SimMemory,
    /// What `alloc` gave.
    allocated: BTreeMap<u64, usize>,
    /// Reserved ranges.
    reserved: BTreeMap<u64, usize>,
    /// Backed parts of them.
    backed: BTreeMap<u64, (usize, u64)>,
    host: BTreeMap<usize, Vec<u64>>,
    streams: BTreeMap<usize, Queue>,
    events: BTreeMap<usize, Option<Recorded>>,
    /// When records were reached.
    reached: HashMap<u64, f64>,
    modules: BTreeMap<usize, Loaded>,
    functions: BTreeMap<usize, Known>,
    graphs: BTreeMap<usize, Vec<Op>>,
    handles: usize,
    clock: f64,
    launches: u64,
    /// Why nothing works any more.
    faulted: Option<String>,
    violations: Vec<String>,
}

impl Fake {
    /// A GPU of this kind with `memory` bytes.
    pub fn new(arch: Arch, memory: u64) -> Fake {
        let limits = Limits::of(arch.sm, arch.shared_per_block);
        let properties = Properties { name: "fake GPU".into(), arch, limits, memory, version: 13_000 };
        let state = State { memory: SimMemory::new(), handles: 1, ..State::default() };
        Fake(Arc::new(Inner { properties, team: Team::new(1), state: Mutex::new(state) }))
    }

    /// Rules that were broken whose outcome the driver leaves open, oldest first.
    pub fn violations(&self) -> Vec<String> {
        self.0.state().violations.clone()
    }

    /// Launches and products that have run.
    pub fn launches(&self) -> u64 {
        self.0.state().launches
    }

    /// Bytes of GPU memory that are held.
    pub fn held(&self) -> u64 {
        self.0.state().held()
    }

    /// What was opened and not ended: streams, events, modules, graphs, allocations, page-locked host memory.
    pub fn left_open(&self) -> usize {
        let s = self.0.state();
        let handles = s.streams.len() + s.events.len() + s.modules.len() + s.graphs.len();
        handles + s.allocated.len() + s.reserved.len() + s.backed.len() + s.host.len()
    }
}

impl Inner {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// The state, unless a kernel faulted.
    fn sound(&self, call: &str) -> Result<MutexGuard<'_, State>, CudaError> {
        let state = self.state();
        match &state.faulted {
            None => Ok(state),
            Some(why) => Err(failed(call, why)),
        }
    }

    /// The state, unless a kernel faulted or this thread captures a stream, when calls that may wait are refused
    /// (cuThreadExchangeStreamCaptureMode: "potentially unsafe API calls") and end the capture.
    fn uncaptured(&self, call: &str) -> Result<MutexGuard<'_, State>, CudaError> {
        let mut state = self.sound(call)?;
        let mut captures = state.streams.values_mut().filter_map(|q| q.recording.as_mut()).filter(|c| c.is_mine());
        let prohibited = captures.by_ref().map(Capture::invalidate).count() > 0;
        if prohibited { Err(failed(call, "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED")) } else { Ok(state) }
    }

    /// Does what was asked of a stream, up to a record.
    fn run(&self, state: &mut State, stream: usize, until: Option<u64>) {
        while state.faulted.is_none() && until.is_none_or(|t| !state.reached.contains_key(&t)) {
            let Some(op) = state.streams.get_mut(&stream).and_then(|q| q.asked.pop_front()) else { return };
            state.clock += TICK;
            if let Err(why) = self.execute(state, stream, &op) {
                state.faulted = Some(why);
            }
        }
    }

    /// Blocks that one multiprocessor holds. Registers are ptxas's, whom nobody asked.
    fn resident(&self, kernel: &Kernel, threads: u32, shared: u32) -> u32 {
        let gpu = simulate::gpu(&self.properties.arch);
        let all = gpu.multiprocessors.max(1);
        let launch = exec::LaunchConfig {
            grid: [1; 3],
            block: [threads, 1, 1],
            cluster: [1; 3],
            dynamic_shared: shared,
            params: Vec::new(),
        };
        exec::resident_blocks(kernel, &launch, &ExecOptions { gpu, ..ExecOptions::default() }) / all
    }

    fn run_all(&self, state: &mut State) {
        let streams: Vec<usize> = state.streams.keys().copied().collect();
        streams.into_iter().for_each(|s| self.run(state, s, None));
    }

    fn execute(&self, state: &mut State, stream: usize, op: &Op) -> Result<(), String> {
        let illegal = |what: String| format!("CUDA_ERROR_ILLEGAL_ADDRESS ({what})");
        match *op {
            Op::CopyIn { to, from, bytes } => {
                // SAFETY: the caller of `copy_in` promised that the host's bytes live until here.
                let bytes = unsafe { std::slice::from_raw_parts(from as *const u8, bytes) };
                if !state.memory.write(to, bytes) {
                    return Err(illegal(format!("a copy to {to:#x}")));
                }
            }
            Op::CopyOut { to, from, bytes } => {
                let read = state.memory.read(from, bytes).map_err(|e| illegal(format!("the host {e}")))?;
                // SAFETY: the caller of `copy_out` promised that the host's memory lives until here.
                unsafe { std::ptr::copy_nonoverlapping(read.as_ptr(), to as *mut u8, bytes) };
            }
            Op::Copy { to, from, bytes } => {
                let read = state.memory.read(from, bytes).map_err(|e| illegal(format!("a copy {e}")))?.to_vec();
                if !state.memory.write(to, &read) {
                    return Err(illegal(format!("a copy to {to:#x}")));
                }
            }
            Op::Fill { at, byte, bytes } => {
                if !state.memory.write(at, &vec![byte; bytes]) {
                    return Err(illegal(format!("a fill at {at:#x}")));
                }
            }
            Op::Launch(ref launch) => self.kernel(state, stream, launch)?,
            Op::Product(ref m) => {
                state.launches += 1;
                simulate::product(m, &mut state.memory, &self.team).map_err(illegal)?;
            }
            Op::Launched(_) => {}
            Op::Record(ticket) => {
                let now = state.clock;
                state.reached.insert(ticket, now);
            }
            Op::Wait(ticket) => {
                let asked = |q: &Queue| q.asked.iter().any(|op| matches!(op, Op::Record(t) if *t == ticket));
                if let Some(other) = state.streams.iter().find(|(_, q)| asked(q)).map(|(s, _)| *s) {
                    self.run(state, other, Some(ticket));
                }
            }
        }
        Ok(())
    }

    /// Runs a kernel, with the next launch of its stream beside it where that may begin before this one has ended. (Of a longer row of
    /// such launches the third begins when the second has ended: a pair is what the simulator runs.)
    fn kernel(&self, state: &mut State, stream: usize, launch: &Asked) -> Result<(), String> {
        const MOMENTS: [CompletionTiming; 3] =
            [CompletionTiming::Latest, CompletionTiming::Earliest, CompletionTiming::Random];
        let next = state.streams.get_mut(&stream).map(|q| &mut q.asked);
        let early = |op: &Op| matches!(op, Op::Launch(next) if next.config.programmatic);
        let dependent = match next {
            Some(asked) if asked.front().is_some_and(early) => asked.pop_front(),
            _ => None,
        };
        let options = ExecOptions {
            gpu: simulate::gpu(&self.properties.arch),
            seed: state.launches,
            completion: MOMENTS[(state.launches % 3) as usize],
            ..ExecOptions::default()
        };
        let first = state.ready(launch)?;
        let second = match &dependent {
            Some(Op::Launch(next)) => Some(state.ready(next)?),
            _ => None,
        };
        state.launches += 1 + u64::from(second.is_some());
        let refused = |e| format!("CUDA_ERROR_LAUNCH_FAILED ({}: {e})", first.kernel.name);
        let outcomes = match &second {
            None => {
                let outcome = exec::run(&first.program, &first.kernel, &first.launch, &mut state.memory, &options);
                vec![(&first, outcome.map_err(refused)?)]
            }
            Some(second) => {
                let outcomes = exec::run_pair(first.grid(), second.grid(), &mut state.memory, &options);
                let (a, b) = outcomes.map_err(refused)?;
                vec![(&first, a), (second, b)]
            }
        };
        for (ready, outcome) in outcomes {
            if let Some(f) = outcome.findings.into_list().first() {
                let (name, line, kind, message) = (&ready.kernel.name, f.line, f.kind.name(), &f.message);
                return Err(format!("CUDA_ERROR_ILLEGAL_ADDRESS ({name}:{line}: {kind}: {message})"));
            }
        }
        Ok(())
    }
}

/// A launch with the code that it runs.
struct Ready {
    program: Arc<Program>,
    kernel: Arc<Kernel>,
    launch: exec::LaunchConfig,
}

impl Ready {
    fn grid(&self) -> exec::SimLaunch<'_> {
        exec::SimLaunch { program: &self.program, kernel: &self.kernel, launch: &self.launch }
    }
}

impl State {
    /// A launch with its code.
    fn ready(&self, asked: &Asked) -> Result<Ready, String> {
        let known =
            self.functions.get(&asked.function).ok_or("CUDA_ERROR_INVALID_HANDLE (a function that was unloaded)")?;
        let module = self.modules.get(&known.module).ok_or("CUDA_ERROR_INVALID_HANDLE (a module that was unloaded)")?;
        let launch = exec::LaunchConfig {
            grid: asked.config.grid,
            block: asked.config.block,
            cluster: asked.config.cluster,
            dynamic_shared: asked.config.shared,
            params: asked.params.clone(),
        };
        Ok(Ready { program: module.program.clone(), kernel: known.kernel.clone(), launch })
    }

    fn handle(&mut self) -> usize {
        self.handles += 1;
        self.handles
    }

    fn held(&self) -> u64 {
        self.allocated.values().map(|&b| b as u64).sum::<u64>() + self.backed.values().map(|b| b.0 as u64).sum::<u64>()
    }

    /// Whether memory lies behind the whole range.
    fn is_backed(&self, at: u64, bytes: usize) -> bool {
        let end = at.saturating_add(bytes as u64);
        if self.allocated.range(..=at).next_back().is_some_and(|(s, b)| end <= s + *b as u64) {
            return true;
        }
        let mut from = at;
        while from < end {
            match self.backed.range(..=from).next_back() {
                Some((s, (b, _))) if from < s + *b as u64 => from = s + *b as u64,
                _ => return false,
            }
        }
        true
    }

    fn ask(&mut self, call: &str, stream: Stream, op: Op) -> Result<(), CudaError> {
        // The legacy stream waits for all others, which a capture cannot do.
        if stream.0 == 0 {
            let captures = self.streams.values_mut().filter_map(|q| q.recording.as_mut());
            let prohibited = captures.map(Capture::invalidate).count() > 0;
            let code = if prohibited { "CUDA_ERROR_STREAM_CAPTURE_IMPLICIT" } else { "CUDA_ERROR_INVALID_HANDLE" };
            return Err(failed(call, code));
        }
        // It would run now and never again, whatever the graph needs of it.
        let outside = |(&s, q): (&usize, &Queue)| s != stream.0 && q.recording.as_ref().is_some_and(Capture::is_mine);
        let elsewhere = self.streams.iter().any(outside);
        let queue = self.streams.get_mut(&stream.0).ok_or_else(|| failed(call, "CUDA_ERROR_INVALID_HANDLE"))?;
        match &mut queue.recording {
            Some(capture) => return capture.take(op).map_err(|code| failed(call, code)),
            None => queue.asked.push_back(op),
        }
        if elsewhere {
            self.violation(format!("{call} on a stream that is no part of the capture under way"));
        }
        Ok(())
    }

    fn busy(&self) -> bool {
        self.streams.values().any(|q| !q.asked.is_empty())
    }

    fn violation(&mut self, what: String) {
        self.violations.push(what);
    }
}

fn failed(call: &str, what: &str) -> CudaError {
    CudaError::Call { call: call.into(), what: what.into() }
}

fn invalid(call: &str) -> CudaError {
    failed(call, "CUDA_ERROR_INVALID_VALUE")
}

// SAFETY (of each call below): `Driver` asks of its callers what is relied on here.
#[allow(clippy::undocumented_unsafe_blocks)]
impl Driver for Fake {
    fn properties(&self) -> &Properties {
        &self.0.properties
    }

    fn memory_free(&self) -> Result<u64, CudaError> {
        Ok(self.0.properties.memory - self.0.sound("asking for free memory")?.held())
    }

    // cuMemAlloc: zero bytes are CUDA_ERROR_INVALID_VALUE.
    fn alloc(&self, bytes: usize) -> Result<u64, CudaError> {
        let mut s = self.0.uncaptured("allocating")?;
        if bytes == 0 {
            return Err(invalid("allocating 0 bytes"));
        }
        if s.held() + bytes as u64 > self.0.properties.memory {
            return Err(CudaError::OutOfMemory { bytes });
        }
        let at = s.memory.try_alloc_uninitialized(bytes).ok_or(CudaError::OutOfMemory { bytes })?;
        s.allocated.insert(at, bytes);
        Ok(at)
    }

    // cuMemFree: waits for all work; an address that alloc did not give is CUDA_ERROR_INVALID_VALUE.
    unsafe fn free(&self, at: u64) {
        let mut s = self.0.state();
        self.0.run_all(&mut s);
        if s.allocated.remove(&at).is_none() {
            s.violation(format!("freeing {at:#x}, which was not allocated"));
        }
        s.memory.free(at);
    }

    fn granularity(&self) -> usize {
        GRANULARITY
    }

    // cuMemAddressReserve: the size is a multiple of the granularity.
    fn reserve(&self, bytes: usize) -> Result<u64, CudaError> {
        let mut s = self.0.uncaptured("reserving")?;
        if bytes == 0 || !bytes.is_multiple_of(GRANULARITY) {
            return Err(invalid("reserving"));
        }
        let at = s.memory.try_alloc_uninitialized(bytes).ok_or(CudaError::OutOfMemory { bytes })?;
        s.reserved.insert(at, bytes);
        Ok(at)
    }

    // cuMemCreate, cuMemMap: multiples of the granularity, within one reservation, where nothing is mapped.
    unsafe fn back(&self, at: u64, bytes: usize) -> Result<Backing, CudaError> {
        let mut s = self.0.uncaptured("mapping")?;
        let end = at + bytes as u64;
        let within = s.reserved.range(..=at).next_back().filter(|(r, b)| end <= *r + **b as u64);
        // Reservations begin on whole units of a GPU's addresses; here, where the simulator has room.
        let inside = within.is_some_and(|(r, _)| (at - r).is_multiple_of(GRANULARITY as u64));
        let taken = s.backed.range(..end).next_back().is_some_and(|(b, (len, _))| b + *len as u64 > at);
        let even = bytes.is_multiple_of(GRANULARITY) && bytes > 0;
        if !inside || taken || !even {
            return Err(invalid("mapping"));
        }
        if s.held() + bytes as u64 > self.0.properties.memory {
            return Err(CudaError::OutOfMemory { bytes });
        }
        let handle = s.handle() as u64;
        s.backed.insert(at, (bytes, handle));
        Ok(Backing(handle))
    }

    // cuMemUnmap: the whole of a mapping, and no work that uses it may be under way.
    unsafe fn unback(&self, at: u64, bytes: usize, backing: Backing) {
        let mut s = self.0.state();
        if s.busy() && s.faulted.is_none() {
            s.violation(format!("unmapping {at:#x} while work is under way"));
        }
        if s.backed.get(&at) == Some(&(bytes, backing.0)) {
            s.backed.remove(&at);
        } else {
            s.violation(format!("unmapping {bytes} bytes at {at:#x}, which are not one mapping"));
        }
    }

    // cuMemAddressFree: a whole reservation with nothing mapped.
    unsafe fn release(&self, at: u64, bytes: usize) {
        let mut s = self.0.state();
        let mapped = s.backed.range(at..at + bytes as u64).next().is_some();
        if mapped || s.reserved.get(&at) != Some(&bytes) {
            s.violation(format!("giving {bytes} addresses at {at:#x} back, which are mapped or no reservation"));
        }
        s.reserved.remove(&at);
        s.memory.free(at);
    }

    fn alloc_host(&self, bytes: usize) -> Result<*mut u8, CudaError> {
        let mut s = self.0.uncaptured("page-locking host memory")?;
        let mut words = vec![0u64; bytes.div_ceil(8)];
        let at = words.as_mut_ptr().cast::<u8>();
        s.host.insert(at as usize, words);
        Ok(at)
    }

    // cuMemFreeHost: memory of cuMemHostAlloc; copies that use it must be over.
    unsafe fn free_host(&self, at: *mut u8) {
        let mut s = self.0.state();
        let uses = |op: &Op, words: &Vec<u64>| match op {
            Op::CopyIn { from: host, .. } | Op::CopyOut { to: host, .. } => {
                (at as usize..at as usize + 8 * words.len()).contains(host)
            }
            _ => false,
        };
        let used = s.host.get(&(at as usize)).map(|w| s.streams.values().any(|q| q.asked.iter().any(|op| uses(op, w))));
        match used {
            None => s.violation("freeing host memory that was not page-locked".into()),
            Some(true) if s.faulted.is_none() => s.violation("freeing host memory that a copy still uses".into()),
            Some(_) => {}
        }
        s.host.remove(&(at as usize));
    }

    fn stream(&self) -> Result<Stream, CudaError> {
        let mut s = self.0.sound("opening a stream")?;
        let handle = s.handle();
        s.streams.insert(handle, Queue::default());
        Ok(Stream(handle))
    }

    // cuStreamDestroy: the stream's work still runs.
    unsafe fn end_stream(&self, stream: Stream) {
        let mut s = self.0.state();
        self.0.run(&mut s, stream.0, None);
        if s.streams.remove(&stream.0).is_none() {
            s.violation("ending a stream that is none".into());
        }
    }

    // cuStreamSynchronize: not of a stream that is being captured, by whatever thread.
    unsafe fn synchronize(&self, stream: Stream) -> Result<(), CudaError> {
        let mut s = self.0.uncaptured("running what was launched")?;
        if let Some(capture) = s.streams.get_mut(&stream.0).and_then(|q| q.recording.as_mut()) {
            capture.invalidate();
            return Err(failed("running what was launched", "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED"));
        }
        if !s.streams.contains_key(&stream.0) {
            return Err(failed("running what was launched", "CUDA_ERROR_INVALID_HANDLE"));
        }
        self.0.run(&mut s, stream.0, None);
        drop(s);
        self.0.sound("running what was launched").map(|_| ())
    }

    unsafe fn copy_in(&self, to: u64, from: *const u8, bytes: usize, stream: Stream) -> Result<(), CudaError> {
        let mut s = self.0.sound("copying to the GPU")?;
        if !s.is_backed(to, bytes) {
            return Err(invalid("copying to the GPU"));
        }
        s.ask("copying to the GPU", stream, Op::CopyIn { to, from: from as usize, bytes })
    }

    unsafe fn copy_out(&self, to: *mut u8, from: u64, bytes: usize, stream: Stream) -> Result<(), CudaError> {
        let mut s = self.0.sound("copying from the GPU")?;
        if !s.is_backed(from, bytes) {
            return Err(invalid("copying from the GPU"));
        }
        s.ask("copying from the GPU", stream, Op::CopyOut { to: to as usize, from, bytes })
    }

    unsafe fn copy(&self, to: u64, from: u64, bytes: usize, stream: Stream) -> Result<(), CudaError> {
        let mut s = self.0.sound("copying on the GPU")?;
        if !s.is_backed(from, bytes) || !s.is_backed(to, bytes) {
            return Err(invalid("copying on the GPU"));
        }
        if from < to + bytes as u64 && to < from + bytes as u64 {
            s.violation(format!("copying {bytes} bytes from {from:#x} to {to:#x}, which overlap"));
        }
        s.ask("copying on the GPU", stream, Op::Copy { to, from, bytes })
    }

    unsafe fn fill(&self, at: u64, byte: u8, bytes: usize, stream: Stream) -> Result<(), CudaError> {
        let mut s = self.0.sound("filling memory")?;
        if !s.is_backed(at, bytes) {
            return Err(invalid("filling memory"));
        }
        s.ask("filling memory", stream, Op::Fill { at, byte, bytes })
    }

    fn event(&self) -> Result<Event, CudaError> {
        let mut s = self.0.sound("making an event")?;
        let handle = s.handle();
        s.events.insert(handle, None);
        Ok(Event(handle))
    }

    unsafe fn end_event(&self, event: Event) {
        let mut s = self.0.state();
        if s.events.remove(&event.0).is_none() {
            s.violation("ending an event that is none".into());
        }
    }

    unsafe fn record(&self, event: Event, stream: Stream) -> Result<(), CudaError> {
        let call = "recording an event";
        let mut s = self.0.sound(call)?;
        let ticket = s.handle() as u64;
        let captured = s.streams.get(&stream.0).is_some_and(|q| q.recording.is_some());
        let slot = s.events.get_mut(&event.0).ok_or_else(|| failed(call, "CUDA_ERROR_INVALID_HANDLE"))?;
        *slot = Some(Recorded { ticket, stream: stream.0, captured });
        s.ask(call, stream, Op::Record(ticket))
    }

    // cuEventSynchronize: an event that was never recorded is reached.
    unsafe fn wait(&self, event: Event) -> Result<(), CudaError> {
        let call = "running what was launched";
        let mut s = self.0.sound(call)?;
        let recorded = *s.events.get(&event.0).ok_or_else(|| failed(call, "CUDA_ERROR_INVALID_HANDLE"))?;
        let Some(Recorded { ticket, stream, captured }) = recorded else { return Ok(()) };
        if captured {
            return Err(failed(call, "CUDA_ERROR_CAPTURED_EVENT"));
        }
        self.0.run(&mut s, stream, Some(ticket));
        drop(s);
        self.0.sound(call).map(|_| ())
    }

    // cuStreamWaitEvent: a captured stream may not wait for what is outside of the capture, nor the other way round.
    unsafe fn stream_wait(&self, stream: Stream, event: Event) -> Result<(), CudaError> {
        let call = "waiting for an event";
        let mut s = self.0.sound(call)?;
        let recorded = *s.events.get(&event.0).ok_or_else(|| failed(call, "CUDA_ERROR_INVALID_HANDLE"))?;
        let Some(Recorded { ticket, captured, .. }) = recorded else { return Ok(()) };
        if captured != s.streams.get(&stream.0).is_some_and(|q| q.recording.is_some()) {
            return Err(failed(call, "CUDA_ERROR_STREAM_CAPTURE_ISOLATION"));
        }
        s.ask(call, stream, Op::Wait(ticket))
    }

    // cuEventElapsedTime: CUDA_ERROR_INVALID_HANDLE for one that was not recorded, CUDA_ERROR_NOT_READY for one not reached.
    unsafe fn elapsed(&self, start: Event, end: Event) -> Result<f64, CudaError> {
        let call = "reading an event";
        let s = self.0.sound(call)?;
        let time = |event: Event| {
            let recorded = s.events.get(&event.0).copied().flatten();
            let recorded = recorded.ok_or_else(|| failed(call, "CUDA_ERROR_INVALID_HANDLE"))?;
            s.reached.get(&recorded.ticket).copied().ok_or_else(|| failed(call, "CUDA_ERROR_NOT_READY"))
        };
        Ok(time(end)? - time(start)?)
    }

    // The simulator runs PTX, and says where in the source it found something.
    fn wants_ptx(&self) -> bool {
        true
    }

    fn load(&self, name: &str, image: Image<'_>) -> Result<Module, CudaError> {
        let call = format!("loading {name}");
        let mut s = self.0.sound(&call)?;
        let program = Program::parse(image.ptx).map_err(|e| failed(&call, &format!("CUDA_ERROR_INVALID_PTX ({e})")))?;
        let handle = s.handle();
        s.modules.insert(handle, Loaded { program: Arc::new(program) });
        Ok(Module(handle))
    }

    // cuModuleUnload: nothing of it may run.
    unsafe fn unload(&self, module: Module) {
        let mut s = self.0.state();
        let mine =
            |op: &Op| matches!(op, Op::Launch(l) if s.functions.get(&l.function).is_some_and(|f| f.module == module.0));
        let used = s.streams.values().any(|q| q.asked.iter().any(mine));
        if used && s.faulted.is_none() {
            s.violation("unloading a module while its functions run".into());
        }
        if s.modules.remove(&module.0).is_none() {
            s.violation("unloading a module that is none".into());
        }
        s.functions.retain(|_, f| f.module != module.0);
    }

    unsafe fn function(&self, module: Module, symbol: &str) -> Result<Function, CudaError> {
        let mut s = self.0.sound(symbol)?;
        let program =
            s.modules.get(&module.0).ok_or_else(|| failed(symbol, "CUDA_ERROR_INVALID_HANDLE"))?.program.clone();
        let kernel = program.kernel(symbol).map_err(|e| failed(symbol, &format!("CUDA_ERROR_NOT_FOUND ({e})")))?;
        let handle = s.handle();
        let known = Known { module: module.0, kernel: Arc::new(kernel), shared: 0, large_clusters: false };
        s.functions.insert(handle, known);
        Ok(Function(handle))
    }

    unsafe fn facts(&self, function: Function) -> Result<FunctionFacts, CudaError> {
        let call = "asking for a function's attribute";
        let s = self.0.sound(call)?;
        let known = s.functions.get(&function.0).ok_or_else(|| failed(call, "CUDA_ERROR_INVALID_HANDLE"))?;
        let threads = known.kernel.max_threads.or(known.kernel.required_threads).map_or(1024, |t| t.iter().product());
        // Registers are ptxas's, whom nobody asked.
        Ok(FunctionFacts { threads, static_shared: known.kernel.static_shared, registers: 0 })
    }

    // cuFuncSetAttribute: static and dynamic shared memory together at most what a block may have.
    unsafe fn allow_shared(&self, function: Function, bytes: u32) -> Result<(), CudaError> {
        let call = "asking for shared memory";
        let most = self.0.properties.limits.shared;
        let mut s = self.0.sound(call)?;
        let known = s.functions.get_mut(&function.0).ok_or_else(|| failed(call, "CUDA_ERROR_INVALID_HANDLE"))?;
        if known.kernel.static_shared + bytes > most {
            return Err(invalid(call));
        }
        known.shared = bytes;
        Ok(())
    }

    unsafe fn allow_large_clusters(&self, function: Function) -> Result<(), CudaError> {
        let call = "asking for large clusters";
        let mut s = self.0.sound(call)?;
        let known = s.functions.get_mut(&function.0).ok_or_else(|| failed(call, "CUDA_ERROR_INVALID_HANDLE"))?;
        known.large_clusters = true;
        Ok(())
    }

    unsafe fn resident(&self, function: Function, threads: u32, shared: u32) -> Result<u32, CudaError> {
        let call = "asking how many blocks are resident";
        let s = self.0.sound(call)?;
        let known = s.functions.get(&function.0).ok_or_else(|| failed(call, "CUDA_ERROR_INVALID_HANDLE"))?;
        Ok(self.0.resident(&known.kernel, threads, shared))
    }

    // cuTensorMapEncodeTiled, by its rules; the bytes are those that the simulator reads.
    fn encode(&self, map: &TensorMap) -> Result<[u8; 128], CudaError> {
        map.encode().map_err(|e| failed("encoding a tensor map", &format!("CUDA_ERROR_INVALID_VALUE ({e})")))
    }

    // cuLaunchKernelEx, and the attributes that must have been set before.
    unsafe fn launch(
        &self,
        function: Function,
        config: &Config,
        arguments: &[&[u8]],
        stream: Stream,
    ) -> Result<(), CudaError> {
        let call = "launching";
        let facts = unsafe { self.facts(function)? };
        let mut s = self.0.sound(call)?;
        let known = s.functions.get(&function.0).ok_or_else(|| failed(call, "CUDA_ERROR_INVALID_HANDLE"))?;
        let sizes: Vec<usize> = arguments.iter().map(|a| a.len()).collect();
        let declared: Vec<usize> = known.kernel.params.iter().map(|p| p.1 as usize).collect();
        if sizes != declared {
            s.violation(format!("launching with parameters of {sizes:?} bytes, where the function has {declared:?}"));
            return Err(invalid(call));
        }
        let total = sizes.iter().sum();
        if let Some(why) = rules::broken(config, &facts, &self.0.properties.limits, total) {
            return Err(failed(call, &format!("CUDA_ERROR_INVALID_VALUE ({why})")));
        }
        let all = config.shared + facts.static_shared;
        if all > rules::SHARED_WITHOUT_ASKING && config.shared > known.shared {
            return Err(failed(call, "CUDA_ERROR_INVALID_VALUE (shared memory that the function did not ask for)"));
        }
        if config.cluster.iter().product::<u32>() > rules::PORTABLE_CLUSTER && !known.large_clusters {
            return Err(failed(call, "CUDA_ERROR_INVALID_CLUSTER_SIZE"));
        }
        if config.cooperative {
            let (threads, shared) = (config.block.iter().product(), config.shared);
            let resident = self.0.resident(&known.kernel, threads, shared) * self.0.properties.arch.multiprocessors;
            if rules::too_many_to_be_resident(config.grid, resident).is_some() {
                return Err(failed(call, "CUDA_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE"));
            }
        }
        let mut params = vec![0; known.kernel.param_bytes as usize];
        for (argument, (offset, _)) in arguments.iter().zip(&known.kernel.params) {
            params[*offset as usize..*offset as usize + argument.len()].copy_from_slice(argument);
        }
        s.ask(call, stream, Op::Launch(Asked { function: function.0, config: *config, params }))
    }

    // cuStreamBeginCapture: not of a stream that is being captured, nor of the legacy stream.
    unsafe fn begin_capture(&self, stream: Stream) -> Result<(), CudaError> {
        let call = "beginning a graph";
        let mut s = self.0.sound(call)?;
        let queue = s.streams.get_mut(&stream.0).ok_or_else(|| failed(call, "CUDA_ERROR_INVALID_HANDLE"))?;
        if queue.recording.is_some() {
            return Err(failed(call, "CUDA_ERROR_ILLEGAL_STATE"));
        }
        queue.recording = Some(Capture::begin());
        Ok(())
    }

    // cuStreamEndCapture: by the thread that began it, which is the last of the capture whatever comes of it.
    unsafe fn end_capture(&self, stream: Stream) -> Result<Graph, CudaError> {
        let call = "ending a graph";
        let mut s = self.0.sound(call)?;
        let queue = s.streams.get_mut(&stream.0).ok_or_else(|| failed(call, "CUDA_ERROR_INVALID_HANDLE"))?;
        let capture = queue.recording.take().ok_or_else(|| failed(call, "CUDA_ERROR_ILLEGAL_STATE"))?;
        if !capture.is_mine() {
            queue.recording = Some(capture);
            return Err(failed(call, "CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD"));
        }
        let ops = capture.end().map_err(|code| failed(call, code))?;
        let handle = s.handle();
        s.graphs.insert(handle, ops);
        Ok(Graph(handle))
    }

    // cuGraphLaunch: behind what was asked of the stream; with the parameters, and the addresses of copies, as they were.
    unsafe fn launch_graph(&self, graph: Graph, stream: Stream) -> Result<(), CudaError> {
        let call = "launching a graph";
        let mut s = self.0.uncaptured(call)?;
        let ops = s.graphs.get(&graph.0).ok_or_else(|| failed(call, "CUDA_ERROR_INVALID_HANDLE"))?.clone();
        ops.into_iter().chain([Op::Launched(graph.0)]).try_for_each(|op| s.ask(call, stream, op))
    }

    // cuGraphExecDestroy: none of its launches may be under way.
    unsafe fn end_graph(&self, graph: Graph) {
        let mut s = self.0.state();
        let runs = |q: &Queue| q.asked.iter().any(|op| matches!(op, Op::Launched(g) if *g == graph.0));
        if s.streams.values().any(runs) && s.faulted.is_none() {
            s.violation("ending a graph that runs".into());
        }
        if s.graphs.remove(&graph.0).is_none() {
            s.violation("ending a graph that is none".into());
        }
    }

    fn blas(&self) -> Result<Box<dyn Blas>, CudaError> {
        Ok(Box::new(FakeBlas { fake: self.clone(), known: Mutex::default() }))
    }
}

/// Products by the cpu's code.
struct FakeBlas {
    fake: Fake,
    known: Mutex<HashSet<Shape>>,
}

impl Blas for FakeBlas {
    fn version(&self) -> String {
        "fake products 1.0.0".into()
    }

    /// One algorithm for all.
    fn algorithms(&self) -> Algorithms {
        let known = self.known.lock().unwrap_or_else(|e| e.into_inner());
        Algorithms::of(known.iter().map(|shape| (*shape, [0; 8])))
    }

    // cublasLtMatmul: operands in device memory, aligned to their elements; a workspace of 16-byte alignment.
    unsafe fn product(&self, p: &Matmul, workspace: u64, stream: Stream) -> Result<(), CudaError> {
        if let Some(why) = blas::refused(p) {
            return Err(CudaError::Product { product: blas::describe(p), why });
        }
        let mut s = self.fake.0.sound("launching a product")?;
        let mut operands = vec![
            (p.a.addr.0, p.m * p.k * p.a.dtype.size(), p.a.dtype.size()),
            (p.b.addr.0, p.n * p.k * p.b.dtype.size(), p.b.dtype.size()),
            (p.c.0, p.m * p.n * p.c_dtype.size(), p.c_dtype.size()),
            (workspace, WORKSPACE, 16),
        ];
        if !p.bias.is_null() {
            operands.push((p.bias.0, p.n * p.c_dtype.size(), p.c_dtype.size()));
        }
        if !operands.iter().all(|&(at, bytes, align)| at.is_multiple_of(align as u64) && s.is_backed(at, bytes)) {
            let why = "cuBLASLt: CUBLAS_STATUS_INVALID_VALUE".into();
            return Err(CudaError::Product { product: blas::describe(p), why });
        }
        self.known.lock().unwrap_or_else(|e| e.into_inner()).insert(Shape::of(p));
        s.ask("launching a product", stream, Op::Product(*p))
    }
}
