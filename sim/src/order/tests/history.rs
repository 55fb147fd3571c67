//! Random short histories of accesses, checked by shadow memory and by the reference graph.

use super::graph::{BlockWarpLane, EventId, HappensBeforeGraph};
use super::{barrier, xorshift};
use crate::order::*;
use std::collections::{BTreeMap, BTreeSet};

const CLUSTERS: ClusterLayout = ClusterLayout { grid: [3, 1, 1], cluster: [2, 1, 1] };
const BLOCKS: u32 = 3;
const WARPS: u32 = 2;
/// Mask of the lanes that each warp has.
const ALL: u32 = 0b111;
const BYTES: u64 = 32;
const SCOPES: [AccessStrength; 3] = [AccessStrength::Cta, AccessStrength::Cluster, AccessStrength::Gpu];

/// A random step of a history: its kind, warp and lanes, each as an index, and four random numbers whose meaning
/// depends on the kind.
type Step = (u8, u8, u8, [u8; 4]);

/// An access as the reference graph stores it.
#[derive(Debug)]
struct RecordedAccess {
    node: EventId,
    thread: BlockWarpLane,
    writes: bool,
    strength: AccessStrength,
    bytes: (u64, u64),
    /// The asynchronous operation that makes the access, and the operation's lane.
    op: Option<(AsyncOpId, u32)>,
}

/// A strong write to a synchronisation location.
struct StrongWrite {
    thread: BlockWarpLane,
    node: EventId,
    releases: bool,
    scope: AccessStrength,
    rmw: bool,
    fences: Vec<(EventId, AccessStrength)>,
}

struct World {
    warps: Vec<WarpVectorClocks>,
    graph: HappensBeforeGraph,
    shadow: ShadowMemory,
    space: MemorySpace,
    ops: AsyncOperationTable,
    vars: ReleasedClocksByLocation,
    past: Vec<RecordedAccess>,
    spoiled: BTreeSet<u64>,
    written: BTreeSet<u64>,
    tokens: Vec<Vec<(VectorClock, EventId)>>,
    phase: u32,
    ends: BTreeMap<(AsyncOpId, u32), Vec<EventId>>,
    open: Vec<(AsyncOpId, usize, u32)>,
    strong_writes: BTreeMap<u64, Vec<StrongWrite>>,
    fences: BTreeMap<BlockWarpLane, Vec<(EventId, AccessStrength)>>,
    /// For each thread, the release patterns that its strong reads observed. An entry holds the first event of the
    /// pattern, the scope, and the releasing block.
    observed: BTreeMap<BlockWarpLane, Vec<(EventId, AccessStrength, u32)>>,
    /// Index of the mix of access kinds from which [`World::choose`] draws this history's accesses.
    mix: u8,
    conflicts: usize,
    /// Number of accesses that did not conflict only because they are ordered after an earlier access to the same
    /// bytes.
    ordered: usize,
}

impl World {
    fn new(space: MemorySpace, initialized: bool, mix: u8) -> World {
        let warps = (0..BLOCKS * WARPS)
            .map(|w| WarpVectorClocks::new(w / WARPS, w % WARPS, ALL, VectorClock::empty(w / WARPS)));
        World {
            warps: warps.collect(),
            graph: HappensBeforeGraph::default(),
            shadow: ShadowMemory::new(space, BYTES, initialized),
            space,
            ops: AsyncOperationTable::new(),
            vars: ReleasedClocksByLocation::new(),
            past: Vec::new(),
            spoiled: BTreeSet::new(),
            written: if initialized { (0..BYTES).collect() } else { BTreeSet::new() },
            tokens: vec![Vec::new(), Vec::new()],
            phase: 0,
            ends: BTreeMap::new(),
            open: Vec::new(),
            strong_writes: BTreeMap::new(),
            fences: BTreeMap::new(),
            observed: BTreeMap::new(),
            mix: mix % 6,
            conflicts: 0,
            ordered: 0,
        }
    }

    fn thread(w: usize, lane: u32) -> BlockWarpLane {
        (w as u32 / WARPS, w as u32 % WARPS, lane)
    }

    fn step(&mut self, step: Step) {
        let (kind, warp, lanes, n) = step;
        let w = warp as usize % self.warps.len();
        let lanes = [ALL, ALL, ALL, 1, 2, 4, 3, 6][lanes as usize % 8];
        if self.spoiled.len() as u64 > BYTES / 4 {
            self.settle();
        }
        let kind = match self.mix {
            4 => [0, 0, 0, 0, 0, 0, 6, 7, 0, 0, 0, 0, 8, 9][kind as usize % 14],
            5 => [0, 6, 10, 11, 11, 13, 13, 8, 9, 7, 0, 10, 6, 13][kind as usize % 14],
            _ => kind % 24,
        };
        match kind {
            0..=5 | 20..=23 => self.access(w, lanes, n),
            6 => self.block_barrier(w, n),
            7 => self.sync(w, lanes),
            8 => self.release_token(w, lanes, n),
            9 => self.acquire_token(w, lanes, n),
            10 => self.proxy_fence(w, lanes, n),
            11..=12 => self.start_op(w, lanes, n),
            13 => self.end_op(n),
            14..=15 => self.strong(w, lanes, n, true),
            16..=17 => self.strong(w, lanes, n, false),
            18 => self.fence(w, lanes, n),
            _ => self.cluster_barrier(w, lanes),
        }
    }

    /// Forgets all accesses, as the end of a launch does. Called when more than a quarter of the bytes have had a
    /// conflict, because bytes with a conflict are no longer compared.
    fn settle(&mut self) {
        self.shadow.forget_accesses();
        self.past.clear();
        self.spoiled.clear();
    }

    fn each(lanes: u32) -> impl Iterator<Item = u32> {
        (0..3).filter(move |lane| lanes >> lane & 1 != 0)
    }

    fn block_barrier(&mut self, w: usize, n: [u8; 4]) {
        let block = w as u32 / WARPS;
        let of_block: Vec<usize> = (0..self.warps.len()).filter(|&v| v as u32 / WARPS == block).collect();
        let lanes = if n[1].is_multiple_of(4) { 0b011 } else { ALL };
        let arrives_only = |v: usize| n[0].is_multiple_of(4) && v == w;
        let mut before = Vec::new();
        for &v in &of_block {
            before.extend(Self::each(lanes).map(|lane| self.graph.add_thread_event(Self::thread(v, lane), &[])));
        }
        let meet = self.graph.add_event(&before);
        for &v in of_block.iter().filter(|&&v| !arrives_only(v)) {
            Self::each(lanes).for_each(|lane| _ = self.graph.add_thread_event(Self::thread(v, lane), &[meet]));
        }
        let participants = self.warps.iter_mut().enumerate().filter(|(v, _)| of_block.contains(v));
        let mut participants: Vec<_> =
            participants.map(|(v, warp)| (warp, lanes, if arrives_only(v) { 0 } else { lanes })).collect();
        barrier(&mut participants);
    }

    fn cluster_barrier(&mut self, w: usize, lanes: u32) {
        let other = (w + WARPS as usize) % self.warps.len();
        let before: Vec<EventId> = [w, other]
            .iter()
            .flat_map(|&v| Self::each(lanes).map(move |lane| (v, lane)))
            .collect::<Vec<_>>()
            .into_iter()
            .map(|(v, lane)| self.graph.add_thread_event(Self::thread(v, lane), &[]))
            .collect();
        let meet = self.graph.add_event(&before);
        let mut all = self.warps[w].release(lanes);
        all.join(&self.warps[other].release(lanes));
        for v in [w, other] {
            self.warps[v].acquire(lanes, &all);
            Self::each(lanes).for_each(|lane| _ = self.graph.add_thread_event(Self::thread(v, lane), &[meet]));
        }
    }

    fn sync(&mut self, w: usize, lanes: u32) {
        self.warps[w].sync(lanes);
        let before: Vec<EventId> =
            Self::each(lanes).map(|lane| self.graph.add_thread_event(Self::thread(w, lane), &[])).collect();
        let meet = self.graph.add_event(&before);
        Self::each(lanes).for_each(|lane| _ = self.graph.add_thread_event(Self::thread(w, lane), &[meet]));
    }

    fn release_token(&mut self, w: usize, lanes: u32, n: [u8; 4]) {
        let clock = self.warps[w].release(lanes);
        let before: Vec<EventId> =
            Self::each(lanes).map(|lane| self.graph.add_thread_event(Self::thread(w, lane), &[])).collect();
        let node = self.graph.add_event(&before);
        self.tokens[n[0] as usize % 2].push((clock, node));
    }

    fn acquire_token(&mut self, w: usize, lanes: u32, n: [u8; 4]) {
        for (clock, node) in &self.tokens[n[0] as usize % 2] {
            self.warps[w].acquire(lanes, clock);
            Self::each(lanes).for_each(|lane| _ = self.graph.add_thread_event(Self::thread(w, lane), &[*node]));
        }
    }

    fn proxy_fence(&mut self, w: usize, lanes: u32, n: [u8; 4]) {
        let spaces = [!n[0].is_multiple_of(4), n[0] % 4 != 1];
        self.warps[w].fence_proxy(lanes, spaces[0], spaces[1]);
        Self::each(lanes).for_each(|lane| self.graph.add_proxy_fence(Self::thread(w, lane), spaces));
    }

    fn fence(&mut self, w: usize, lanes: u32, n: [u8; 4]) {
        let scope = SCOPES[n[0] as usize % 3];
        self.warps[w].fence(lanes, MemoryFence::acq_rel(scope));
        for lane in Self::each(lanes) {
            let thread = Self::thread(w, lane);
            let node = self.graph.add_thread_event(thread, &[]);
            self.fences.entry(thread).or_default().push((node, scope));
            let mut acquired = Vec::new();
            for &(first, of, block) in self.observed.entry(thread).or_default().iter() {
                if scope.min(of) >= CLUSTERS.common_scope(block, thread.0) {
                    acquired.push(first);
                }
            }
            self.graph.add_thread_event(thread, &acquired);
        }
    }

    /// Makes the first lane in `lanes` access one of two synchronisation locations strongly; `n` selects location,
    /// scope and semantics.
    fn strong(&mut self, w: usize, lanes: u32, n: [u8; 4], writes: bool) {
        let (lane, address) = (lanes.trailing_zeros(), n[0] as u64 % 2);
        let scope = SCOPES[n[1] as usize % 3].max(SCOPES[n[1] as usize / 3 % 3]);
        let sem =
            [MemorySemantics::Relaxed, MemorySemantics::Acquire, MemorySemantics::Release, MemorySemantics::AcqRel]
                [n[2] as usize % 4];
        let rmw = writes && !n[3].is_multiple_of(3);
        let thread = Self::thread(w, lane);
        if rmw || !writes {
            self.vars.on_strong_read(address, &mut self.warps[w], lane, sem, scope, &CLUSTERS);
            let acquired =
                self.observe(thread, address, matches!(sem, MemorySemantics::Acquire | MemorySemantics::AcqRel), scope);
            self.graph.add_thread_event(thread, &acquired);
        }
        if writes {
            self.vars.on_strong_write(address, &mut self.warps[w], lane, sem, scope, rmw, &CLUSTERS);
            let node = self.graph.add_thread_event(thread, &[]);
            let fences = self.fences.get(&thread).cloned().unwrap_or_default();
            let releases = matches!(sem, MemorySemantics::Release | MemorySemantics::AcqRel);
            self.strong_writes.entry(address).or_default().push(StrongWrite {
                thread,
                node,
                releases,
                scope,
                rmw,
                fences,
            });
        }
    }

    /// Returns the first events of the release patterns that a read of `address` by `thread` acquires at once.
    /// Patterns that the read observes without acquiring are kept for the thread's later fences.
    fn observe(&mut self, thread: BlockWarpLane, address: u64, acquires: bool, scope: AccessStrength) -> Vec<EventId> {
        let strong_writes = self.strong_writes.entry(address).or_default();
        let (mut at, mut reader) = (strong_writes.len(), (thread.0, scope));
        let mut firsts: Vec<(EventId, AccessStrength, u32)> = Vec::new();
        while at > 0 {
            at -= 1;
            let put = &strong_writes[at];
            if put.scope.min(reader.1) < CLUSTERS.common_scope(put.thread.0, reader.0) {
                break;
            }
            firsts.extend(put.fences.iter().map(|&(node, scope)| (node, scope, put.thread.0)));
            let own = strong_writes[..=at].iter().filter(|old| old.thread == put.thread && old.releases);
            firsts.extend(own.map(|old| (old.node, old.scope, old.thread.0)));
            if !put.rmw {
                break;
            }
            reader = (put.thread.0, put.scope);
        }
        let reaches =
            |&(_, of, block): &(EventId, AccessStrength, u32)| scope.min(of) >= CLUSTERS.common_scope(block, thread.0);
        let now = firsts.iter().filter(|first| acquires && reaches(first)).map(|first| first.0).collect();
        self.observed.entry(thread).or_default().extend(firsts);
        now
    }

    fn start_op(&mut self, w: usize, lanes: u32, n: [u8; 4]) {
        let kind =
            [AsyncOpKind::CpAsync, AsyncOpKind::BulkCopy, AsyncOpKind::Reduce, AsyncOpKind::Wgmma][n[0] as usize % 4];
        let strength = if kind == AsyncOpKind::Reduce { AccessStrength::Gpu } else { AccessStrength::Weak };
        let reads = n[0] >> 2 & 1 != 0;
        let lanes = if kind == AsyncOpKind::CpAsync { lanes } else { 1 << lanes.trailing_zeros() };
        let op = self.ops.start(kind, &self.warps[w], lanes, 7);
        for lane in Self::each(lanes) {
            let thread = Self::thread(w, lane);
            let node = self.graph.add_thread_event(thread, &[]);
            let start = (n[1] as u64 + 4 * lane as u64) % BYTES;
            let bytes = (start, (start + 1 + n[2] as u64 % 8).min(BYTES));
            let mut out = Vec::new();
            let cx = RaceCheckContext { ops: &self.ops, clusters: &CLUSTERS };
            let run = (bytes.0, bytes.1 - bytes.0);
            let write = (!reads).then_some(strength);
            self.shadow.check_async_ranges(&[run], op, &self.warps[w], lane, write, 7, &cx, &mut out);
            let strength = if reads { AccessStrength::Weak } else { strength };
            let mine = RecordedAccess { node, thread, writes: !reads, strength, bytes, op: Some((op, lane)) };
            self.compare(mine, reads, out.first());
        }
        self.open.push((op, w, lanes));
    }

    /// Completes a random open operation. Either its lanes wait for it, or a virtual agent (such as an mbarrier)
    /// observes the completion; threads that later acquire this agent's clock from `tokens` then know of the
    /// completion, too.
    fn end_op(&mut self, n: [u8; 4]) {
        if self.open.is_empty() {
            return;
        }
        let (op, w, lanes) = self.open.swap_remove(n[0] as usize % self.open.len());
        if n[1].is_multiple_of(2) {
            self.ops.mark_observed_by_lanes(op, &self.warps[w], lanes);
            for lane in Self::each(lanes) {
                let node = self.graph.add_thread_event(Self::thread(w, lane), &[]);
                self.ends.entry((op, lane)).or_default().push(node);
            }
            return;
        }
        self.phase += 1;
        let token = n[2] as usize % 2;
        let agent = Agent::virtual_agent(w as u32 / WARPS, 5 + token as u32);
        self.ops.mark_observed(op, agent, self.phase);
        let mut clock = self.warps[w].release(lanes);
        clock.record_happens_before(agent, self.phase);
        let before: Vec<EventId> =
            Self::each(lanes).map(|lane| self.graph.add_thread_event(Self::thread(w, lane), &[])).collect();
        let node = self.graph.add_event(&before);
        // A thread that has observed a phase of an mbarrier has also observed the earlier phases.
        let mut earlier: Vec<EventId> = self.tokens[token].iter().map(|t| t.1).collect();
        earlier.push(node);
        let node = self.graph.add_event(&earlier);
        self.tokens[token].iter().for_each(|(old, _)| clock.join(old));
        Self::each(lanes).for_each(|lane| self.ends.entry((op, lane)).or_default().push(node));
        self.tokens[token] = vec![(clock, node)];
    }

    fn access(&mut self, w: usize, lanes: u32, n: [u8; 4]) {
        let (access, mut strength) = self.choose(n);
        if access == AccessKind::Atomic {
            strength = strength.max(AccessStrength::Cta);
        }
        // Strong accesses mostly have one size, because strong accesses of different sizes race.
        let bytes = match strength {
            AccessStrength::Weak => [4, 4, 4, 2, 1, 8, 16][n[2] as usize % 7],
            _ => [4, 8][usize::from(n[2] >= 245)],
        };
        let n = if self.mix == 4 { [n[0], n[1], n[2], n[3] % 4] } else { n };
        let stride = [0, bytes, bytes, 4][n[3] as usize % 4];
        let mut offsets = [0; 32];
        for (lane, offset) in offsets.iter_mut().enumerate() {
            *offset = (n[3] as u64 / 4 * bytes + lane as u64 * stride) / bytes * bytes % BYTES;
        }
        let mut out = Vec::new();
        let cx = RaceCheckContext { ops: &self.ops, clusters: &CLUSTERS };
        self.shadow.check_access(access, &self.warps[w], lanes, &offsets, bytes as u32, strength, 3, &cx, &mut out);
        let in_order: Vec<u32> =
            self.warps[w].lane_groups_with_clocks().flat_map(|(mask, _)| Self::each(mask & lanes)).collect();
        for lane in in_order {
            let thread = Self::thread(w, lane);
            let node = self.graph.add_thread_event(thread, &[]);
            let start = offsets[lane as usize];
            let writes = access != AccessKind::Read;
            let mine = RecordedAccess { node, thread, writes, strength, bytes: (start, start + bytes), op: None };
            let found: Vec<&Conflict> = out.iter().filter(|conflict| conflict.lane == lane).collect();
            assert!(found.len() <= 1, "more than one conflict for lane {lane}");
            self.compare(mine, access != AccessKind::Write, found.first().copied());
        }
    }

    /// Draws the kind and strength of an access from the mix `self.mix`: 0 any, 1 mostly reads, 2 mostly strong, 3
    /// weak only, 4 mostly reads of few addresses, 5 weak only, among many operations and fences.
    fn choose(&self, n: [u8; 4]) -> (AccessKind, AccessStrength) {
        let anything = [AccessKind::Read, AccessKind::Write, AccessKind::Read, AccessKind::Write, AccessKind::Atomic];
        let reads = [AccessKind::Read, AccessKind::Read, AccessKind::Read, AccessKind::Read, AccessKind::Write];
        let access = [anything, reads, anything, anything, reads, anything][self.mix as usize][n[0] as usize % 5];
        let mixed = [
            AccessStrength::Weak,
            AccessStrength::Weak,
            AccessStrength::Weak,
            AccessStrength::Cta,
            AccessStrength::Cluster,
            AccessStrength::Gpu,
        ];
        let strong = [
            AccessStrength::Gpu,
            AccessStrength::Gpu,
            AccessStrength::Gpu,
            AccessStrength::Cta,
            AccessStrength::Cluster,
            AccessStrength::Weak,
        ];
        let weak = [AccessStrength::Weak; 6];
        let strength = [mixed, mixed, strong, weak, mixed, weak][self.mix as usize][n[1] as usize % 6];
        (access, strength)
    }

    /// Checks that the reference graph agrees with `found`, the conflict that shadow memory reported for the access
    /// `mine`, then records the access.
    fn compare(&mut self, mine: RecordedAccess, reads: bool, found: Option<&Conflict>) {
        let touched: BTreeSet<u64> = (mine.bytes.0..mine.bytes.1).collect();
        if touched.is_disjoint(&self.spoiled) {
            let mut kinds = BTreeSet::new();
            if reads && !touched.is_subset(&self.written) {
                kinds.insert("uninitialized");
            }
            kinds.extend(self.past.iter().filter_map(|old| self.judge(&mine, old)));
            // Ignore a missing proxy fence after a read, the least severe conflict: the graph does not model it.
            let found = found.filter(|conflict| conflict.kind != ConflictKind::ProxyRead);
            let kind = found.map(|conflict| match conflict.kind {
                ConflictKind::Uninitialized => "uninitialized",
                ConflictKind::Race { .. } => "race",
                ConflictKind::NotWaited(_) => "not waited",
                ConflictKind::Proxy | ConflictKind::ProxyRead | ConflictKind::TensorMapProxy => "proxy",
            });
            let agrees = kind.map_or(kinds.is_empty(), |kind| kinds.contains(kind));
            let past: Vec<&RecordedAccess> =
                self.past.iter().filter(|old| Self::conflicts_unless_ordered(&mine, old)).collect();
            assert!(agrees, "shadow memory reports {found:?}, the graph {kinds:?}, for {mine:?} after {past:#?}");
            self.conflicts += !kinds.is_empty() as usize;
            let met = self.past.iter().any(|old| Self::conflicts_unless_ordered(&mine, old));
            self.ordered += (kinds.is_empty() && met) as usize;
            if !kinds.is_empty() {
                self.spoiled.extend(&touched);
            }
        } else {
            self.spoiled.extend(&touched);
        }
        if mine.writes {
            self.written.extend(touched);
        }
        self.past.push(mine);
    }

    /// Returns true if the two accesses conflict unless they are ordered.
    fn conflicts_unless_ordered(mine: &RecordedAccess, old: &RecordedAccess) -> bool {
        let apart = mine.bytes.1 <= old.bytes.0 || old.bytes.1 <= mine.bytes.0;
        !apart && (mine.writes || old.writes) && (mine.op.is_none() || mine.op != old.op)
    }

    fn judge(&self, mine: &RecordedAccess, old: &RecordedAccess) -> Option<&'static str> {
        if !Self::conflicts_unless_ordered(mine, old) {
            return None;
        }
        let through_async = |past: &RecordedAccess| past.op.is_some_and(|(op, _)| self.ops.kind(op).uses_async_proxy());
        let weakest = mine.strength.min(old.strength);
        let strong = weakest != AccessStrength::Weak && weakest >= CLUSTERS.common_scope(mine.thread.0, old.thread.0);
        let seen: Vec<EventId> = match old.op {
            None => vec![old.node],
            Some(end) => self.ends.get(&end).cloned().unwrap_or_default(),
        };
        if !seen.iter().any(|&node| self.graph.happens_before(node, mine.node)) {
            let same_bytes = mine.op.is_some() || old.op.is_some() || mine.bytes == old.bytes;
            let exempt = strong && same_bytes && through_async(mine) == through_async(old);
            return (!exempt).then_some(if old.op.is_some() { "not waited" } else { "race" });
        }
        let fenced = |&node: &EventId| self.graph.is_proxy_fence_between(node, mine.node, self.space as usize);
        let unseen = through_async(mine) && old.writes && !through_async(old) && !seen.iter().any(fenced);
        unseen.then_some("proxy")
    }
}

/// Draws the numbers of a random step.
fn random_step(random: &mut impl FnMut() -> u64) -> Step {
    let bytes = random().to_le_bytes();
    (bytes[0], bytes[1], bytes[2], [bytes[3], bytes[4], bytes[5], bytes[6]])
}

fn run(seed: u64, steps: usize) -> (usize, usize) {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut random = move || xorshift(&mut state).wrapping_mul(0x2545_f491_4f6c_dd1d) >> 8;
    let head = random();
    let space = if head & 1 != 0 { MemorySpace::Shared } else { MemorySpace::Global };
    let mut world = World::new(space, head & 6 != 0, (head >> 3) as u8);
    (0..steps).for_each(|_| world.step(random_step(&mut random)));
    (world.conflicts, world.ordered)
}

/// Short histories come first, so that the first failure has a short history.
#[test]
fn shadow_memory_agrees_with_the_reference_graph() {
    let (mut conflicts, mut ordered) = (0, 0);
    for seed in 0..4000 {
        let (c, o) = run(seed, 10 + seed as usize / 40);
        conflicts += c;
        ordered += o;
    }
    assert!(
        conflicts > 10_000 && ordered > 10_000,
        "the test covers too little: {conflicts} conflicts, {ordered} ordered"
    );
}
