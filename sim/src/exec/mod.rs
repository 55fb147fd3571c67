//! Running a grid: blocks become resident in order, their warps are interleaved in a seeded order, and everything that
//! waits is watched, so that a run ends with results or with a deadlock that says who waits where.

mod access;
mod atomics;
mod barriers;
mod bulk;
mod copies;
mod gpu;
mod host;
mod matrix;
mod mbarrier;
mod pair;
mod run;
mod schedule;
pub mod warp;
mod warp_ops;
mod wgmma;
mod wmma;

pub use gpu::{GpuSpec, resident_blocks};
pub use pair::{SimLaunch, run_pair};

use crate::counters::Counters;
use crate::finding::{FindingKind, Findings, Site};
use crate::memory::SimMemory;
use crate::order::{
    AccessStrength, AsyncOps, ClusterLayout, Conflict, MemorySpace, ShadowMemory, SyncLocations, VectorClock,
    WarpClocks,
};
use crate::program::{FixedRegister, Kernel, Program, Relocation};
use barriers::{BlockBarrier, ClusterBarrier};
use copies::InFlight;
use mbarrier::Object;
use std::collections::{BTreeMap, HashMap, VecDeque};
use warp::{Fragment, Frame, NONE, State, Warp};

/// When asynchronous operations take effect, within what their rules allow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CompletionTiming {
    /// When somebody waits for them and cannot go on otherwise.
    #[default]
    Latest,
    /// At once.
    Earliest,
    /// At seeded random moments in between.
    Random,
}

/// A launch.
#[derive(Clone, Debug)]
pub struct LaunchConfig {
    /// Blocks.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub block: [u32; 3],
    /// Blocks of a cluster; all 1 without.
    pub cluster: [u32; 3],
    /// Bytes of dynamic shared memory.
    pub dynamic_shared: u32,
    /// The parameters, laid out as the kernel declares them.
    pub params: Vec<u8>,
}

/// How to run.
#[derive(Clone, Debug)]
pub struct ExecOptions {
    /// Limits and counts of the machine.
    pub gpu: GpuSpec,
    /// Of the interleaving.
    pub seed: u64,
    /// Of asynchronous operations.
    pub completion: CompletionTiming,
    /// Counts without checking order or data.
    pub count_only: bool,
    /// Generic reads later overwritten by an ordered asynchronous copy are findings.
    pub strict_proxy: bool,
    /// Registers of a thread, for residency, where known (ptxas says).
    pub registers: Option<u32>,
    /// Warp instructions without any change in memory after which a run counts as stuck.
    pub patience: u64,
    /// A run ends soon after its first finding: enough where only the verdict counts.
    pub until_finding: bool,
}

impl Default for ExecOptions {
    fn default() -> ExecOptions {
        ExecOptions {
            gpu: GpuSpec::H100,
            seed: 0,
            completion: CompletionTiming::Latest,
            count_only: false,
            strict_proxy: false,
            registers: None,
            patience: 50_000_000,
            until_finding: false,
        }
    }
}

/// What came of a run; the buffers are in [`SimMemory`].
#[derive(Clone, Debug, Default)]
pub struct SimOutcome {
    /// Mistakes.
    pub findings: Findings,
    /// What is worth knowing and no mistake.
    pub notes: Vec<String>,
    /// Counts.
    pub counters: Counters,
    /// What the kernel printed.
    pub printed: String,
}

/// Why a launch is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LaunchError {
    /// A dimension or size is wrong.
    #[error("{what}: {problem}")]
    Invalid {
        /// Which.
        what: &'static str,
        /// Why, and what to do.
        problem: String,
    },
}

/// Runs a kernel on `memory`.
pub fn run(
    program: &Program,
    kernel: &Kernel,
    launch: &LaunchConfig,
    memory: &mut SimMemory,
    options: &ExecOptions,
) -> Result<SimOutcome, LaunchError> {
    check_launch(kernel, launch, options)?;
    map_variables(program, memory);
    let mut machine = Machine::new(program, kernel, launch, std::mem::take(memory), options);
    machine.run();
    let (outcome, back) = machine.finish();
    *memory = back;
    memory.end_launch();
    Ok(outcome)
}

/// Gives the module's variables their memory.
fn map_variables(program: &Program, memory: &mut SimMemory) {
    for v in &program.variables {
        if memory.find(v.address).is_none() && !v.bytes.is_empty() {
            memory.map_variable(v.address, v.bytes.clone(), v.constant);
        }
    }
}

fn check_launch(kernel: &Kernel, launch: &LaunchConfig, options: &ExecOptions) -> Result<(), LaunchError> {
    let invalid = |what, problem: String| Err(LaunchError::Invalid { what, problem });
    let threads = launch.block.iter().map(|&n| n as u64).product::<u64>();
    let blocks = launch.grid.iter().map(|&n| n as u64).product::<u64>();
    if threads == 0 || threads > 1024 || launch.block[2] > 64 {
        return invalid("block", format!("{:?} is not 1 to 1024 threads with z at most 64", launch.block));
    }
    if blocks == 0 || launch.grid[0] > i32::MAX as u32 || launch.grid[1] > 65535 || launch.grid[2] > 65535 {
        return invalid("grid", format!("{:?} is not within 1 to 2147483647 × 65535 × 65535", launch.grid));
    }
    if blocks > crate::order::MAX_BLOCKS as u64 {
        return invalid(
            "grid",
            format!("{blocks} blocks are more than the {} that can be simulated", crate::order::MAX_BLOCKS),
        );
    }
    if let Some(required) = kernel.required_threads
        && required.map(|n| n.max(1)) != launch.block
    {
        return invalid("block", format!("{:?}, but the kernel requires {required:?}", launch.block));
    }
    if let Some(max) = kernel.max_threads
        && max.iter().map(|&n| n.max(1) as u64).product::<u64>() < threads
    {
        return invalid("block", format!("{threads} threads, but the kernel allows {max:?}"));
    }
    if let Some(cluster) = kernel.cluster
        && cluster.map(|n| n.max(1)) != launch.cluster
        && launch.cluster != [1, 1, 1]
    {
        return invalid("cluster", format!("{:?}, but the kernel requires {cluster:?}", launch.cluster));
    }
    let cluster = cluster_of(kernel, launch);
    if (0..3).any(|i| cluster[i] == 0 || !launch.grid[i].is_multiple_of(cluster[i])) {
        return invalid("cluster", format!("{cluster:?} does not divide the grid {:?}", launch.grid));
    }
    if cluster.iter().product::<u32>() > 16 || cluster != [1, 1, 1] && options.gpu.sm < 90 {
        return invalid("cluster", format!("{cluster:?}: at most 16 blocks, and from sm_90 on"));
    }
    let shared = kernel.static_shared.next_multiple_of(16) + launch.dynamic_shared;
    if shared > options.gpu.shared_per_block {
        let limit = options.gpu.shared_per_block;
        return invalid(
            "smem",
            format!("{shared} bytes with the static ones; {} has {limit} a block", options.gpu.name),
        );
    }
    if launch.params.len() != kernel.param_bytes as usize {
        let (n, want) = (launch.params.len(), kernel.param_bytes);
        return invalid("arguments", format!("{n} bytes, but the kernel's parameters take {want}"));
    }
    Ok(())
}

/// Where a block's shared variables start and end, in ascending order, the dynamic shared memory last.
fn shared_variables(kernel: &Kernel, launch: &LaunchConfig) -> Vec<(u64, u64)> {
    let dynamic = (kernel.dynamic_shared, kernel.dynamic_shared + launch.dynamic_shared);
    let all = kernel.shared_variables.iter().copied().chain([dynamic]);
    let start = crate::layout::SHARED_START;
    all.filter(|v| v.0 < v.1).map(|v| ((v.0 - start) as u64, (v.1 - start) as u64)).collect()
}

fn cluster_of(kernel: &Kernel, launch: &LaunchConfig) -> [u32; 3] {
    if launch.cluster == [1, 1, 1] { kernel.cluster.unwrap_or([1, 1, 1]).map(|n| n.max(1)) } else { launch.cluster }
}

/// A resident block.
#[derive(Debug)]
pub struct Block {
    /// Linear index in the grid.
    pub index: u32,
    /// `%ctaid`
    pub at: [u32; 3],
    /// Rank in its cluster.
    pub rank: u32,
    /// Slots of the cluster's blocks, by rank.
    pub cluster: Vec<u32>,
    /// Shared memory from [`crate::layout::SHARED_START`] on.
    pub shared: Vec<u8>,
    /// Who touched it.
    pub shadow: ShadowMemory,
    /// Its warps; `None` while one runs.
    pub warps: Vec<Option<Box<Warp>>>,
    /// The 16 barriers.
    pub barriers: Vec<BlockBarrier>,
    /// mbarrier objects by shared address.
    pub mbarriers: BTreeMap<u32, Object>,
    /// Virtual agents given out.
    pub agents: u32,
    /// Threads that have not exited.
    pub live: u32,
    /// The wgmmas of its warpgroups.
    pub warpgroups: Vec<wgmma::Warpgroup>,
    /// Registers left in the pool of `setmaxnreg`.
    pub register_pool: u32,
    /// The cluster has not all started or ended: where the cluster's barrier is (slot of rank 0).
    pub cluster_slot: u32,
    /// Barrier of the cluster (kept by rank 0).
    pub cluster_barrier: ClusterBarrier,
    /// Exited, but kept while the cluster's other blocks live.
    pub ended: bool,
}

/// A running grid.
pub struct Machine<'a> {
    program: &'a Program,
    kernel: &'a Kernel,
    launch: &'a LaunchConfig,
    options: &'a ExecOptions,
    memory: SimMemory,
    clusters: ClusterLayout,
    cluster: [u32; 3],
    blocks: Vec<Option<Box<Block>>>,
    /// The next cluster to start, in issue order.
    next_cluster: u32,
    /// Blocks that may be resident, and that are kept going at a time.
    resident: u32,
    window: u32,
    runnable: Vec<(u32, u32)>,
    queued: Vec<Vec<bool>>,
    ops: AsyncOps,
    sync: SyncLocations,
    counters: Counters,
    findings: Findings,
    notes: BTreeMap<String, u64>,
    printed: String,
    /// Effects of asynchronous operations to come.
    in_flight: VecDeque<InFlight>,
    rng: SeededRng,
    /// Changes of memory and of barriers so far.
    progress: u64,
    /// Instructions at the last change.
    executed: u64,
    executed_at_progress: u64,
    last_progress: u64,
    stuck: bool,
    last_allocation: usize,
    heap: Vec<u64>,
    conflicts: Vec<Conflict>,
    groups: Vec<access::Group>,
    /// Of a `cp.async`: where it writes and where it reads.
    copy_groups: (Vec<access::Group>, Vec<access::Group>),
    runs: Vec<(u64, u64)>,
    box_rows: Vec<(u64, u32)>,
    /// mbarriers (slot, address) whose phase is over, with waiters to wake.
    wakes: Vec<(u32, u32)>,
    tiles: Option<Box<crate::matrix::wgmma::WgmmaTiles>>,
    /// The bytes that operands of wgmma are, in shared memory of any of the blocks: offset and how many.
    operand_runs: HashMap<crate::matrix::wgmma::SharedOperand, Vec<(u64, u64)>>,
    sums: Vec<crate::matrix::Lanes>,
    fragments: crate::matrix::mma::FragmentCache,
    pool_grew: bool,
    /// Start and end of each shared variable and of dynamic shared memory, in a block's shared memory.
    shared_variables: Vec<(u64, u64)>,
    /// The warp asked to let others go first.
    yielded: bool,
    /// Instructions so far that waiting loops are made of: strong reads, atomics, `nanosleep`.
    waits: u64,
    /// Blocks that have started and not ended.
    live_blocks: u32,
    /// The last warp of a warpgroup has issued a wgmma that others may wait for.
    wgmma_complete: bool,
    /// Threads that executed fence.mbarrier_init.
    init_fences: std::collections::HashSet<u32>,
    /// Where this grid stands in a pair of dependent ones.
    pair: pair::Role<'a>,
    /// Shared memories of ended blocks, to be used again.
    spare_blocks: Vec<(Vec<u8>, ShadowMemory)>,
}

/// A small generator; the order of everything comes from it.
#[derive(Clone, Debug)]
pub struct SeededRng(u64);

impl SeededRng {
    /// Of a seed.
    pub fn new(seed: u64) -> SeededRng {
        SeededRng((seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x2545_f491_4f6c_dd1d) | 1)
    }

    /// The next number.
    #[inline]
    pub fn draw(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `n`.
    #[inline]
    pub fn below(&mut self, n: u32) -> u32 {
        (((self.draw() >> 32) * n as u64) >> 32) as u32
    }
}

impl<'a> Machine<'a> {
    fn new(
        program: &'a Program,
        kernel: &'a Kernel,
        launch: &'a LaunchConfig,
        memory: SimMemory,
        options: &'a ExecOptions,
    ) -> Machine<'a> {
        let cluster = cluster_of(kernel, launch);
        let mut rng = SeededRng::new(options.seed);
        let resident = gpu::resident_blocks(kernel, launch, options);
        let cluster_size = cluster.iter().product::<u32>();
        let window = if options.count_only { 1 } else { 1 + rng.below(6) }.max(cluster_size);
        Machine {
            program,
            kernel,
            launch,
            options,
            memory,
            clusters: ClusterLayout { grid: launch.grid, cluster },
            cluster,
            blocks: Vec::new(),
            next_cluster: 0,
            resident,
            window,
            runnable: Vec::new(),
            queued: Vec::new(),
            ops: AsyncOps::new(),
            sync: SyncLocations::new(),
            counters: Counters::new(kernel.instructions()),
            findings: Findings::default(),
            notes: BTreeMap::new(),
            printed: String::new(),
            in_flight: VecDeque::new(),
            rng,
            progress: 0,
            executed: 0,
            executed_at_progress: 0,
            last_progress: 0,
            stuck: false,
            last_allocation: 0,
            heap: Vec::new(),
            conflicts: Vec::new(),
            groups: Vec::new(),
            copy_groups: Default::default(),
            runs: Vec::new(),
            box_rows: Vec::new(),
            wakes: Vec::new(),
            tiles: None,
            operand_runs: HashMap::new(),
            sums: Vec::new(),
            fragments: Default::default(),
            pool_grew: false,
            shared_variables: shared_variables(kernel, launch),
            yielded: false,
            waits: 0,
            live_blocks: 0,
            wgmma_complete: false,
            init_fences: Default::default(),
            pair: pair::Role::Alone,
            spare_blocks: Vec::new(),
        }
    }

    fn finish(self) -> (SimOutcome, SimMemory) {
        let outcome = SimOutcome {
            findings: self.findings,
            notes: self.notes.into_keys().collect(),
            counters: self.counters,
            printed: self.printed,
        };
        (outcome, self.memory)
    }

    /// Blocks of a cluster.
    fn cluster_size(&self) -> u32 {
        self.cluster.iter().product()
    }

    /// Starts the next cluster of blocks; false if none is left.
    fn start_cluster(&mut self) -> bool {
        let counts: [u32; 3] = [0, 1, 2].map(|i| self.launch.grid[i] / self.cluster[i]);
        if self.next_cluster as u64 >= counts.iter().map(|&n| n as u64).product() {
            return false;
        }
        let c = self.next_cluster;
        self.next_cluster += 1;
        let at = [c % counts[0], c / counts[0] % counts[1], c / counts[0] / counts[1]];
        let size = self.cluster_size();
        let slots: Vec<u32> = (0..size).map(|_| self.free_slot()).collect();
        for rank in 0..size {
            let within = [
                rank % self.cluster[0],
                rank / self.cluster[0] % self.cluster[1],
                rank / self.cluster[0] / self.cluster[1],
            ];
            let block_at = [0, 1, 2].map(|i| at[i] * self.cluster[i] + within[i]);
            let block = self.new_block(block_at, rank, slots.clone());
            let slot = slots[rank as usize];
            self.queued[slot as usize] = vec![false; block.warps.len()];
            self.blocks[slot as usize] = Some(Box::new(block));
        }
        for &slot in &slots {
            let warps = self.queued[slot as usize].len() as u32;
            (0..warps).for_each(|w| self.enqueue(slot, w));
        }
        self.counters.blocks += size as u64;
        self.live_blocks += size;
        true
    }

    /// Reserves a slot for a block.
    fn free_slot(&mut self) -> u32 {
        // An empty slot that is not promised already has an empty queue.
        let free = (0..self.blocks.len()).find(|&i| self.blocks[i].is_none() && self.queued[i].is_empty());
        let slot = free.unwrap_or_else(|| {
            self.blocks.push(None);
            self.queued.push(Vec::new());
            self.blocks.len() - 1
        });
        self.queued[slot] = vec![false];
        slot as u32
    }

    fn new_block(&mut self, at: [u32; 3], rank: u32, cluster: Vec<u32>) -> Block {
        let [gx, gy, _] = self.launch.grid;
        let index = self.pair.first_block() + at[0] + gx * (at[1] + gy * at[2]);
        let shared = (self.kernel.dynamic_shared - crate::layout::SHARED_START + self.launch.dynamic_shared) as usize;
        let threads = self.launch.block.iter().product::<u32>();
        let warps = threads.div_ceil(32);
        let slot = cluster[rank as usize];
        let cluster_slot = cluster[0];
        let (mut bytes, mut shadow) = match self.spare_blocks.pop() {
            Some((bytes, mut shadow)) => {
                shadow.reset(false);
                (bytes, shadow)
            }
            None => (vec![0xa5; shared], ShadowMemory::new(MemorySpace::Shared, shared as u64, false)),
        };
        if let Some((start, end)) = self.kernel.group_scratch {
            let [start, end] = [start, end].map(|at| at - crate::layout::SHARED_START);
            bytes[start as usize..end as usize].fill(0);
            shadow.initialize(start as u64..end as u64);
        }
        let mut block = Block {
            index,
            at,
            rank,
            cluster,
            shared: bytes,
            shadow,
            warps: Vec::new(),
            barriers: vec![BlockBarrier::default(); 16],
            mbarriers: BTreeMap::new(),
            agents: 0,
            live: threads,
            warpgroups: Vec::new(),
            register_pool: 0,
            cluster_slot,
            cluster_barrier: ClusterBarrier::default(),
            ended: false,
        };
        let entry_registers = gpu::entry_registers(self.kernel, threads, self.options);
        for w in 0..warps {
            let lanes =
                if w == warps - 1 && !threads.is_multiple_of(32) { (1 << (threads % 32)) - 1 } else { u32::MAX };
            let order = WarpClocks::new(index, w, lanes, VectorClock::empty(index));
            let mut warp = Warp {
                index: w,
                slot,
                order,
                frames: Vec::new(),
                fragments: Vec::new(),
                joins: Vec::new(),
                live: lanes,
                local_size: 0,
                local: Vec::new(),
                local_init: Vec::new(),
                local_top: 0,
                copies: Default::default(),
                max_registers: entry_registers,
                clock: 0,
            };
            self.enter(&block, &mut warp, 0, None, lanes);
            warp.fragments.push(Fragment {
                pc: 0,
                mask: lanes,
                frame: 0,
                join: NONE,
                join_pc: NONE,
                state: State::Ready,
                gathered: false,
                backs: 0,
                spin_hash: 0,
            });
            block.warps.push(Some(Box::new(warp)));
        }
        block
    }

    /// Makes a frame for a function.
    fn enter(&mut self, block: &Block, warp: &mut Warp, function: u32, parent: Option<(u32, u32)>, lanes: u32) -> u32 {
        let code = &self.kernel.functions[function as usize];
        let local_base = warp.grow_local(code.local_bytes);
        let mut regs = warp::registers(code);
        for relocation in &code.relocations {
            match *relocation {
                Relocation::Special { slot, which, wide } => {
                    let values: [u32; 32] = std::array::from_fn(|l| self.special(block, warp.index, which, l as u32));
                    if wide {
                        regs.set64(slot, &values.map(u64::from), u32::MAX);
                    } else {
                        regs.set(slot, &values, u32::MAX);
                    }
                }
                Relocation::Local { slot, offset } => {
                    regs.set64(slot, &[(local_base + offset) as u64; 32], u32::MAX);
                }
            }
        }
        let params = vec![0; code.param_bytes as usize * 32];
        warp.push_frame(Frame { function, regs, params, local_base, parent, lanes })
    }

    fn special(&self, block: &Block, warp: u32, which: FixedRegister, lane: u32) -> u32 {
        let [bx, by, _] = self.launch.block;
        let linear = warp * 32 + lane;
        let tid = [linear % bx, linear / bx % by, linear / bx / by];
        let of = |v: [u32; 3], c: u8| v.get(c as usize).copied().unwrap_or(0);
        let clusters: [u32; 3] = [0, 1, 2].map(|i| self.launch.grid[i] / self.cluster[i]);
        match which {
            FixedRegister::Tid(c) => of(tid, c),
            FixedRegister::Ntid(c) => of(self.launch.block, c),
            FixedRegister::Ctaid(c) => of(block.at, c),
            FixedRegister::Nctaid(c) => of(self.launch.grid, c),
            FixedRegister::ClusterId(c) => of([0, 1, 2].map(|i| block.at[i] / self.cluster[i]), c),
            FixedRegister::NclusterId(c) => of(clusters, c),
            FixedRegister::ClusterCtaid(c) => of([0, 1, 2].map(|i| block.at[i] % self.cluster[i]), c),
            FixedRegister::ClusterNctaid(c) => of(self.cluster, c),
            FixedRegister::ClusterCtarank => block.rank,
            FixedRegister::ClusterNctarank => self.cluster_size(),
            FixedRegister::LaneId => lane,
            FixedRegister::WarpId => warp,
            FixedRegister::NwarpId => self.launch.block.iter().product::<u32>().div_ceil(32),
            FixedRegister::SmId => block.index % self.options.gpu.multiprocessors,
            FixedRegister::NsmId => self.options.gpu.multiprocessors,
            FixedRegister::GridId => 1,
            FixedRegister::LanemaskEq => 1 << lane,
            FixedRegister::LanemaskLt => (1 << lane) - 1,
            FixedRegister::LanemaskLe => ((1u32 << lane) - 1) | 1 << lane,
            FixedRegister::LanemaskGt => !(((1u32 << lane) - 1) | 1 << lane),
            FixedRegister::LanemaskGe => !((1u32 << lane) - 1),
            FixedRegister::DynamicSmem => self.launch.dynamic_shared,
            FixedRegister::TotalSmem => self.kernel.static_shared + self.launch.dynamic_shared,
            FixedRegister::ReservedSmem(end) => end as u32 * crate::layout::SHARED_START,
            FixedRegister::Zero => 0,
        }
    }

    /// The thread of a lane, for findings.
    fn site(&self, block: &Block, warp: u32, lane: u32, pc: u32) -> Site {
        let [bx, by, _] = self.launch.block;
        let linear = warp * 32 + lane;
        Site { pc, block: block.at, thread: [linear % bx, linear / bx % by, linear / bx / by] }
    }

    /// The site of a thread (linear) of a block (linear).
    fn site_of(&self, block: u32, thread: u32, pc: u32) -> Site {
        let ([gx, gy, _], [bx, by, _]) = (self.launch.grid, self.launch.block);
        let block = block.saturating_sub(self.pair.first_block());
        let at = [block % gx, block / gx % gy, block / gx / gy];
        Site { pc, block: at, thread: [thread % bx, thread / bx % by, thread / bx / by] }
    }

    fn report(
        &mut self,
        kind: FindingKind,
        site: Site,
        other: Option<u32>,
        memory: Option<(&'static str, u64)>,
        message: impl FnOnce() -> String,
    ) {
        self.findings.report(self.program, self.kernel, kind, site, other, memory, message);
    }

    /// Something that waiting loops may see has changed.
    #[inline]
    fn changed(&mut self) {
        self.progress += 1;
    }

    fn scope_strength(semantics: Option<crate::order::MemorySemantics>, scope: AccessStrength) -> AccessStrength {
        if semantics.is_some() { scope } else { AccessStrength::Weak }
    }
}
