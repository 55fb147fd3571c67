//! Runs the work enqueued on a stream of the fake driver: copies in the simulator's memory, launches on the
//! simulator, matrix products by the code of device `cpu`.

use std::sync::Arc;

use reel_sim::exec::{self, CompletionTiming, ExecOptions};
use reel_sim::program::{Kernel, Program};

use super::transfers::{BlockedTransfer, RankGroup};
use super::{EnqueuedLaunch, Inner, Op, Queue, State, TICK, failed};
use crate::cuda::error::CudaError;
use crate::simulate;

/// The point up to which the work of a stream runs.
#[derive(Clone, Copy)]
pub(super) enum RunUntil {
    /// Run all work of the stream.
    End,
    /// Run the work up to this recording of an event.
    Event(u64),
    /// Run the work up to the next sends and receives between ranks.
    Transfer,
}

impl RunUntil {
    fn is_reached(self, state: &State) -> bool {
        matches!(self, RunUntil::Event(ticket) if state.reached.contains_key(&ticket))
    }
}

impl Op {
    /// Whether the operation itself writes memory of the GPU.
    fn writes(&self) -> bool {
        matches!(self, Op::CopyIn { .. } | Op::Copy { .. } | Op::Fill { .. } | Op::Launch(_) | Op::Product(_))
    }
}

/// A range of memory that unfinished sends or receives on another stream use: address, bytes, and contents (`None` if
/// it was never written).
type UsedRange = (u64, usize, Option<Vec<u8>>);

impl Inner {
    /// Runs the work of a stream up to `until`. Returns the sends and receives at which the stream must wait for
    /// other ranks, if there are any.
    pub(super) fn run_stream(&self, state: &mut State, stream: usize, until: RunUntil) -> Option<BlockedTransfer> {
        while state.faulted.is_none() && !until.is_reached(state) {
            let op = state.streams.get(&stream).and_then(|queue| queue.work.front().cloned())?;
            // An operation that may have to wait stays in the queue until it is done. While the operation waits,
            // another stream may run. `used_by_transfers` then finds the operation in this queue, and so knows that the
            // later operations of the queue run after that stream.
            let may_wait = matches!(op, Op::Wait(_) | Op::Transfer(_));
            if !may_wait {
                state.remove_first(stream);
            }
            let used_by_transfers = if op.writes() { state.used_by_transfers(stream) } else { Vec::new() };
            state.clock += TICK;
            match self.run_operation(state, stream, &op) {
                Ok(None) => state.report_changes(&used_by_transfers),
                Ok(Some(blocked)) => {
                    state.clock -= TICK;
                    return Some(blocked);
                }
                Err(why) => state.faulted = Some(why),
            }
            if may_wait {
                state.remove_first(stream);
            }
            if matches!((until, op), (RunUntil::Transfer, Op::Transfer(_))) {
                return None;
            }
        }
        None
    }

    /// Waits until the work of a stream is done up to `until`. During the wait, the other ranks of the stream's
    /// communicators may run.
    pub(super) fn wait_for_stream(&self, call: &str, stream: usize, until: RunUntil) -> Result<(), CudaError> {
        loop {
            let blocked = self.run_stream(&mut self.state(), stream, until);
            let Some(blocked) = blocked else { return self.state_unless_faulted(call).map(|_| ()) };
            blocked.wait().map_err(|hang| failed(call, &hang))?;
        }
    }

    /// Runs each stream that has sends or receives of this communicator, up to the point at which its next group of
    /// them is posted or done. Returns whether there was such a stream.
    pub(super) fn run_to_next_transfers(&self, group: &RankGroup) -> bool {
        let mut state = self.state();
        let mine = |op: &Op| matches!(op, Op::Transfer(t) if std::ptr::eq(&*t.group, group));
        let streams = state.streams.iter().filter(|(_, queue)| queue.work.iter().any(mine)).map(|(s, _)| *s);
        let streams: Vec<usize> = streams.collect();
        for &stream in &streams {
            self.run_stream(&mut state, stream, RunUntil::Transfer);
        }
        !streams.is_empty()
    }

    /// Returns how many blocks can be resident on one multiprocessor, as limited by threads and shared memory.
    /// Registers are ignored, because only ptxas knows their number.
    pub(super) fn resident_blocks(&self, kernel: &Kernel, threads: u32, shared: u32) -> u32 {
        let gpu = simulate::gpu_spec(&self.properties.arch);
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

    /// Waits until the work of all streams is done.
    pub(super) fn wait_for_all_streams(&self, call: &str) -> Result<(), CudaError> {
        let streams: Vec<usize> = self.state().streams.keys().copied().collect();
        streams.into_iter().try_for_each(|stream| self.wait_for_stream(call, stream, RunUntil::End))
    }

    fn run_operation(&self, state: &mut State, stream: usize, op: &Op) -> Result<Option<BlockedTransfer>, String> {
        let illegal = |what: String| format!("CUDA_ERROR_ILLEGAL_ADDRESS ({what})");
        match *op {
            Op::CopyIn { to, from, bytes } => {
                // SAFETY: the caller of `copy_in` guarantees that the host's bytes live until the copy is done.
                let bytes = unsafe { std::slice::from_raw_parts(from as *const u8, bytes) };
                if !state.memory.write(to, bytes) {
                    return Err(illegal(format!("a copy to {to:#x}")));
                }
            }
            Op::CopyOut { to, from, bytes } => {
                let read = state.memory.read(from, bytes).map_err(|e| illegal(format!("the host {e}")))?;
                // SAFETY: the caller of `copy_out` guarantees that the host's memory lives until the copy is done.
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
            Op::Launch(ref launch) => self.run_kernel(state, stream, launch)?,
            Op::Product(ref m) => {
                state.launches += 1;
                simulate::run_matmul(m, &mut state.memory, &self.team).map_err(illegal)?;
            }
            Op::Launched(_) => {}
            Op::Record(ticket) => {
                let now = state.clock;
                state.reached.insert(ticket, now);
            }
            Op::Wait(ticket) => {
                let work = |q: &Queue| q.work.iter().any(|op| matches!(op, Op::Record(t) if *t == ticket));
                if let Some(other) = state.streams.iter().find(|(_, q)| work(q)).map(|(s, _)| *s) {
                    return Ok(self.run_stream(state, other, RunUntil::Event(ticket)));
                }
            }
            Op::Transfer(ref transfer) => return transfer.run_or_post(&mut state.memory).map_err(illegal),
        }
        Ok(None)
    }

    /// Runs a kernel, together with the next launch of its stream if that launch may begin before the kernel has ended
    /// (programmatic dependent launch). The simulator runs at most two launches together: the third launch of a chain
    /// begins when the second has ended.
    fn run_kernel(&self, state: &mut State, stream: usize, launch: &EnqueuedLaunch) -> Result<(), String> {
        const MOMENTS: [CompletionTiming; 3] =
            [CompletionTiming::Latest, CompletionTiming::Earliest, CompletionTiming::Random];
        let next = state.streams.get_mut(&stream).map(|q| &mut q.work);
        let early = |op: &Op| matches!(op, Op::Launch(next) if next.config.programmatic);
        let dependent = match next {
            Some(work) if work.front().is_some_and(early) => work.pop_front(),
            _ => None,
        };
        let options = ExecOptions {
            gpu: simulate::gpu_spec(&self.properties.arch),
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
        state.programmatic_launches += u64::from(launch.config.programmatic) + u64::from(second.is_some());
        let refused = |e| format!("CUDA_ERROR_LAUNCH_FAILED ({}: {e})", first.kernel.name);
        let outcomes = match &second {
            None => {
                let outcome = exec::run(&first.program, &first.kernel, &first.launch, &mut state.memory, &options);
                vec![(&first, outcome.map_err(refused)?)]
            }
            Some(second) => {
                let outcomes =
                    exec::run_with_dependent_launch(first.grid(), second.grid(), &mut state.memory, &options);
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

/// A launch together with its compiled code, as the simulator needs it.
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
    /// Removes the first operation of a stream.
    fn remove_first(&mut self, stream: usize) {
        self.streams.get_mut(&stream).and_then(|queue| queue.work.pop_front());
    }

    /// Returns the memory ranges of sends and receives on other streams, if no event orders them after the work of
    /// `stream`.
    fn used_by_transfers(&self, stream: usize) -> Vec<UsedRange> {
        let mut ranges = Vec::new();
        for queue in self.streams.iter().filter(|(s, _)| **s != stream).map(|(_, queue)| queue) {
            let is_unordered = |op: &&Op| !matches!(op, Op::Wait(ticket) if !self.reached.contains_key(ticket));
            for op in queue.work.iter().take_while(is_unordered) {
                if let Op::Transfer(transfer) = op {
                    ranges.extend(transfer.memory_ranges());
                }
            }
        }
        ranges.into_iter().map(|(at, bytes)| (at, bytes, self.contents(at, bytes))).collect()
    }

    /// Adds a violation for each range whose contents have changed since the range was listed.
    fn report_changes(&mut self, ranges: &[UsedRange]) {
        for (at, bytes, before) in ranges {
            if self.contents(*at, *bytes) != *before {
                self.add_violation(format!(
                    "writing to {bytes} bytes at {at:#x}, which sends or receives on another stream still use"
                ));
            }
        }
    }

    fn contents(&self, at: u64, bytes: usize) -> Option<Vec<u8>> {
        self.memory.read(at, bytes).ok().map(<[u8]>::to_vec)
    }

    /// Returns a launch with its compiled code, or an error if the function or module was unloaded.
    fn ready(&self, work: &EnqueuedLaunch) -> Result<Ready, String> {
        let known =
            self.functions.get(&work.function).ok_or("CUDA_ERROR_INVALID_HANDLE (a function that was unloaded)")?;
        let program =
            self.modules.get(&known.module).ok_or("CUDA_ERROR_INVALID_HANDLE (a module that was unloaded)")?;
        let launch = exec::LaunchConfig {
            grid: work.config.grid,
            block: work.config.block,
            cluster: work.config.cluster,
            dynamic_shared: work.config.shared,
            params: work.params.clone(),
        };
        Ok(Ready { program: program.clone(), kernel: known.kernel.clone(), launch })
    }
}
