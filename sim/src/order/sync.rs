//! Release and acquire patterns on memory locations, as the PTX ISA's memory consistency model pairs them.

use super::{Agent, Clusters, Know, Strength, WarpOrder};
use std::collections::HashMap;

/// The semantics of a strong access. Volatile is relaxed at `.sys`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Sem {
    /// `.relaxed`, `.volatile`.
    Relaxed,
    /// `.acquire`.
    Acquire,
    /// `.release`.
    Release,
    /// `.acq_rel`.
    AcqRel,
}

impl Sem {
    fn acquires(self) -> bool {
        matches!(self, Sem::Acquire | Sem::AcqRel)
    }
    fn releases(self) -> bool {
        matches!(self, Sem::Release | Sem::AcqRel)
    }
}

/// What a release pattern left in a location, for those who read its value.
#[derive(Clone, Debug)]
struct Released {
    block: u32,
    scope: Strength,
    know: Know,
}

/// A location's released values.
#[derive(Clone, Debug)]
struct Location {
    /// All that a read of the present value observes; one entry a scope, below `.gpu` also one a block.
    all: Vec<Released>,
    /// What the last releasing thread alone put there: that goes on through its own later writes.
    last: Vec<Released>,
    by: Agent,
}

/// The locations of a launch that carry released values. The caller tells each strong access, in the order in which they
/// are performed; a read observes the last write. Locations are named by any number that tells them apart.
#[derive(Clone, Debug, Default)]
pub struct SyncVars {
    locations: HashMap<u64, Location>,
}

impl SyncVars {
    /// None yet.
    pub fn new() -> SyncVars {
        SyncVars::default()
    }

    /// `lane` writes `address` strongly at `scope`. A read-modify-write (`rmw`; tell its reading part first, by
    /// [`on_strong_read`](SyncVars::on_strong_read)) goes on with what others released there, another write ends it but for
    /// the same thread's.
    pub fn on_strong_write(
        &mut self,
        address: u64,
        warp: &mut WarpOrder,
        lane: u32,
        sem: Sem,
        scope: Strength,
        rmw: bool,
    ) {
        if !sem.releases() && !warp.has_fences() && (rmw || self.locations.is_empty()) {
            return;
        }
        let (by, block) = (warp.agent(lane), warp.block());
        let mut new: Vec<Released> = Vec::new();
        let fences = warp.fenced(lane).into_iter();
        new.extend(fences.map(|(fence, know)| Released { block, scope: scope.min(fence), know }));
        if sem.releases() {
            new.push(Released { block, scope, know: warp.release(1 << lane) });
        }
        if !rmw {
            self.overwrite(address, by);
        }
        if new.is_empty() {
            return;
        }
        let none = || Location { all: Vec::new(), last: Vec::new(), by };
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

    /// A write that is no read-modify-write: only its own thread's releases go on.
    fn overwrite(&mut self, address: u64, by: Agent) {
        if let Some(location) = self.locations.get_mut(&address) {
            if location.by == by {
                location.all = location.last.clone();
            } else {
                self.locations.remove(&address);
            }
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
        warp: &mut WarpOrder,
        lane: u32,
        sem: Sem,
        scope: Strength,
        clusters: &Clusters,
    ) {
        if self.locations.is_empty() {
            return;
        }
        let Some(location) = self.locations.get(&address) else { return };
        let block = warp.block();
        for release in &location.all {
            let needed = clusters.between(release.block, block);
            if release.scope < needed || scope < needed {
                continue;
            }
            if sem.acquires() {
                warp.acquire(1 << lane, &release.know);
            } else {
                warp.observe(lane, needed, &release.know);
            }
        }
    }
}

/// Releases that the same threads can acquire are kept as one.
fn add(released: &mut Vec<Released>, new: &Released) {
    let alike = |old: &&mut Released| old.scope == new.scope && (new.scope == Strength::Gpu || old.block == new.block);
    match released.iter_mut().find(alike) {
        Some(old) => old.know.join(&new.know),
        None => released.push(new.clone()),
    }
}
