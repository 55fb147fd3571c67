//! Release and acquire patterns on memory locations, as the PTX ISA's memory consistency model pairs them.

use super::{AccessStrength, Agent, ClusterLayout, VectorClock, WarpClocks};
use std::collections::HashMap;

/// The semantics of a strong access. Volatile is relaxed at `.sys`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MemorySemantics {
    /// `.relaxed`, `.volatile`.
    Relaxed,
    /// `.acquire`.
    Acquire,
    /// `.release`.
    Release,
    /// `.acq_rel`.
    AcqRel,
}

impl MemorySemantics {
    fn acquires(self) -> bool {
        matches!(self, MemorySemantics::Acquire | MemorySemantics::AcqRel)
    }
    fn releases(self) -> bool {
        matches!(self, MemorySemantics::Release | MemorySemantics::AcqRel)
    }
}

/// What a release pattern left in a location, for those who read its value; block and scope are those of the pattern's
/// first operation (the release or the fence).
#[derive(Clone, Debug)]
struct Released {
    block: u32,
    scope: AccessStrength,
    clock: VectorClock,
}

/// A location's released values.
#[derive(Clone, Debug)]
struct Location {
    /// All that a read of the present value observes; one entry a scope, below `.gpu` also one a block.
    all: Vec<Released>,
    /// What the last releasing thread alone put there: that goes on through its own later writes.
    last: Vec<Released>,
    by: Agent,
    /// Block and scope of the last write: a read that is not morally strong with it observes nothing.
    write: (u32, AccessStrength),
}

/// The locations of a launch that carry released values. The caller tells each strong access, in the order in which they
/// are performed; a read observes the last write. Locations are named by any number that tells them apart.
#[derive(Clone, Debug, Default)]
pub struct SyncLocations {
    locations: HashMap<u64, Location>,
}

impl SyncLocations {
    /// None yet.
    pub fn new() -> SyncLocations {
        SyncLocations::default()
    }

    /// `lane` writes `address` strongly at `scope`. A read-modify-write (`rmw`; tell its reading part first, by
    /// [`on_strong_read`](SyncLocations::on_strong_read)) goes on with what others released there, another write ends it but for
    /// the same thread's.
    #[expect(clippy::too_many_arguments, reason = "an access has this many properties")]
    pub fn on_strong_write(
        &mut self,
        address: u64,
        warp: &mut WarpClocks,
        lane: u32,
        sem: MemorySemantics,
        scope: AccessStrength,
        rmw: bool,
        clusters: &ClusterLayout,
    ) {
        let releases = sem.releases() || warp.has_fences();
        if !releases && self.locations.is_empty() {
            return;
        }
        let (by, block) = (warp.agent(lane), warp.block());
        if let Some(location) = self.locations.get_mut(&address) {
            if !rmw {
                location.overwrite(by);
            } else if location.linked(block, scope, clusters).is_none() {
                location.all.clear();
            }
            location.write = (block, scope);
        }
        if releases {
            self.put(address, warp, lane, sem, scope);
        }
    }

    fn put(&mut self, address: u64, warp: &mut WarpClocks, lane: u32, sem: MemorySemantics, scope: AccessStrength) {
        let (by, block) = (warp.agent(lane), warp.block());
        let fences = warp.fenced(lane).into_iter();
        let mut new: Vec<Released> = fences.map(|(scope, clock)| Released { block, scope, clock }).collect();
        if sem.releases() {
            new.push(Released { block, scope, clock: warp.release(1 << lane) });
        }
        if new.is_empty() {
            return;
        }
        let none = || Location { all: Vec::new(), last: Vec::new(), by, write: (block, scope) };
        let location = self.locations.entry(address).or_insert_with(none);
        if location.by != by {
            location.last.clear();
            location.by = by;
        }
        for new in new {
            add(&mut location.all, &new);
            add(&mut location.last, &new);
        }
    }

    /// A weak write to `address`: later reads observe no release.
    pub fn on_weak_write(&mut self, address: u64) {
        if !self.locations.is_empty() {
            self.locations.remove(&address);
        }
    }

    /// Whether no location carries anything: weak writes need not be told then.
    pub fn is_empty(&self) -> bool {
        self.locations.is_empty()
    }

    /// `lane` reads `address` strongly at `scope` (also the reading part of a read-modify-write, before its write). What was
    /// released there is acquired now (`sem` acquires) or by the lane's next fence.
    pub fn on_strong_read(
        &mut self,
        address: u64,
        warp: &mut WarpClocks,
        lane: u32,
        sem: MemorySemantics,
        scope: AccessStrength,
        clusters: &ClusterLayout,
    ) {
        if self.locations.is_empty() {
            return;
        }
        let Some(location) = self.locations.get(&address) else { return };
        let block = warp.block();
        let Some(observed) = location.linked(block, scope, clusters) else { return };
        for release in observed {
            let needed = clusters.common_scope(release.block, block);
            if release.scope < needed {
                continue;
            }
            if sem.acquires() && scope >= needed {
                warp.acquire(1 << lane, &release.clock);
            } else {
                warp.observe(lane, needed, &release.clock);
            }
        }
    }
}

impl Location {
    /// What an access of `block` at `scope` observes; none when it is not morally strong with the last write.
    fn linked(&self, block: u32, scope: AccessStrength, clusters: &ClusterLayout) -> Option<&[Released]> {
        let (by, write) = self.write;
        (scope.min(write) >= clusters.common_scope(by, block)).then_some(&self.all)
    }

    /// A write that is no read-modify-write: only its own thread's releases go on.
    fn overwrite(&mut self, by: Agent) {
        self.all = if self.by == by { self.last.clone() } else { Vec::new() };
    }
}

/// Releases that the same threads can acquire are kept as one.
fn add(released: &mut Vec<Released>, new: &Released) {
    let alike =
        |old: &&mut Released| old.scope == new.scope && (new.scope == AccessStrength::Gpu || old.block == new.block);
    match released.iter_mut().find(alike) {
        Some(old) => old.clock.join(&new.clock),
        None => released.push(new.clone()),
    }
}
