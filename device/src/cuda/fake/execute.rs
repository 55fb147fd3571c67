//! Runs the work enqueued on a stream of the fake driver: copies in the simulator's memory, launches on the
//! simulator, matrix products by the code of device `cpu`.

use std::sync::Arc;

use reel_sim::exec::{self, CompletionTiming, ExecOptions};
use reel_sim::program::{Kernel, Program};

use super::{EnqueuedLaunch, Inner, Op, Queue, State, TICK};
use crate::simulate;

impl Inner {
    /// Runs the work of a stream: all of it, or up to the recorded event `until`.
    pub(super) fn run_stream(&self, state: &mut State, stream: usize, until: Option<u64>) {
        while state.faulted.is_none() && until.is_none_or(|t| !state.reached.contains_key(&t)) {
            let Some(op) = state.streams.get_mut(&stream).and_then(|q| q.work.pop_front()) else { return };
            state.clock += TICK;
            if let Err(why) = self.run_operation(state, stream, &op) {
                state.faulted = Some(why);
            }
        }
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

    pub(super) fn run_all_streams(&self, state: &mut State) {
        let streams: Vec<usize> = state.streams.keys().copied().collect();
        streams.into_iter().for_each(|s| self.run_stream(state, s, None));
    }

    pub(super) fn run_operation(&self, state: &mut State, stream: usize, op: &Op) -> Result<(), String> {
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
                    self.run_stream(state, other, Some(ticket));
                }
            }
        }
        Ok(())
    }

    /// Runs a kernel, together with the next launch of its stream if that launch may begin before the kernel has ended
    /// (programmatic dependent launch). The simulator runs at most two launches together: the third launch of a chain
    /// begins when the second has ended.
    pub(super) fn run_kernel(&self, state: &mut State, stream: usize, launch: &EnqueuedLaunch) -> Result<(), String> {
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

/// A launch with its compiled code, as the simulator needs it.
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
