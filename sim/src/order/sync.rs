//! Release and acquire patterns on memory locations, as the PTX memory consistency model pairs them.
//!
//! ```text
//! st.release [flag]  (or fence; st.relaxed [flag])   attaches the thread's clock to the location `flag`
//! ld.acquire [flag]  (or ld.relaxed [flag]; fence)   joins the attached clock, if it reads that value
//! ```
//!
//! Both accesses must be morally strong: each one's scope includes the other's thread.

use super::{AccessStrength, Agent, ClusterLayout, VectorClock, WarpVectorClocks};
use std::collections::HashMap;

/// Memory semantics of a strong access. `.volatile` counts as relaxed at `.sys`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MemorySemantics {
    /// `.relaxed` or `.volatile`.
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

/// A vector clock that a release pattern attached to a location, with the block of the releasing thread and the scope
/// of the release or fence.
#[derive(Clone, Debug)]
struct Released {
    block: u32,
    scope: AccessStrength,
    clock: VectorClock,
}

/// The vector clocks that are attached to a location.
#[derive(Clone, Debug)]
struct SyncLocation {
    /// All vector clocks that a read of the current value acquires: one for scope `.gpu`; for each narrower scope, one
    /// per releasing block.
    all: Vec<Released>,
    /// The vector clocks that the last releasing thread itself attached. A later plain write of this thread keeps
    /// these clocks and removes the clocks of other threads.
    last: Vec<Released>,
    by: Agent,
    /// Block and scope of the last write. A read that is not morally strong with this write acquires nothing.
    write: (u32, AccessStrength),
}

/// The memory locations to which a launch's release patterns attached vector clocks. The caller gives each location a
/// unique number and reports every strong access in execution order; a read observes the last write.
#[derive(Clone, Debug, Default)]
pub struct ReleasedClocksByLocation {
    locations: HashMap<u64, SyncLocation>,
}

impl ReleasedClocksByLocation {
    /// Creates an empty table of locations.
    pub fn new() -> ReleasedClocksByLocation {
        ReleasedClocksByLocation::default()
    }

    /// Reports that `lane` writes location `address` strongly at `scope`. A read-modify-write (`rmw`) keeps the vector
    /// clocks that other threads attached; report its read first, by
    /// [`on_strong_read`](ReleasedClocksByLocation::on_strong_read). Any other write removes these clocks.
    #[expect(clippy::too_many_arguments, reason = "each argument is a separate property of the access")]
    pub fn on_strong_write(
        &mut self,
        address: u64,
        warp: &mut WarpVectorClocks,
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
            } else if location.observed_clocks(block, scope, clusters).is_none() {
                location.all.clear();
            }
            location.write = (block, scope);
        }
        if releases {
            self.attach_clocks(address, warp, lane, sem, scope);
        }
    }

    fn attach_clocks(
        &mut self,
        address: u64,
        warp: &mut WarpVectorClocks,
        lane: u32,
        sem: MemorySemantics,
        scope: AccessStrength,
    ) {
        let (by, block) = (warp.agent(lane), warp.block());
        let fences = warp.fence_clocks(lane).into_iter();
        let mut new: Vec<Released> = fences.map(|(scope, clock)| Released { block, scope, clock }).collect();
        if sem.releases() {
            new.push(Released { block, scope, clock: warp.release(1 << lane) });
        }
        if new.is_empty() {
            return;
        }
        let none = || SyncLocation { all: Vec::new(), last: Vec::new(), by, write: (block, scope) };
        let location = self.locations.entry(address).or_insert_with(none);
        if location.by != by {
            location.last.clear();
            location.by = by;
        }
        for new in new {
            add_release(&mut location.all, &new);
            add_release(&mut location.last, &new);
        }
    }

    /// Reports a weak write to a location: later reads acquire nothing.
    pub fn on_weak_write(&mut self, address: u64) {
        if !self.locations.is_empty() {
            self.locations.remove(&address);
        }
    }

    /// Returns true if no location has a vector clock, so that weak writes need not be reported.
    pub fn is_empty(&self) -> bool {
        self.locations.is_empty()
    }

    /// Reports that `lane` reads location `address` strongly at `scope` (for a read-modify-write, before its write).
    /// The lane acquires the attached vector clocks now if `sem` is an acquire, otherwise at its next fence.
    pub fn on_strong_read(
        &mut self,
        address: u64,
        warp: &mut WarpVectorClocks,
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
        let Some(observed) = location.observed_clocks(block, scope, clusters) else { return };
        for release in observed {
            let needed = clusters.common_scope(release.block, block);
            if release.scope < needed {
                continue;
            }
            if sem.acquires() && scope >= needed {
                warp.acquire(1 << lane, &release.clock);
            } else {
                warp.record_observed_clock(lane, needed, &release.clock);
            }
        }
    }
}

impl SyncLocation {
    /// Returns the vector clocks that an access of `block` at `scope` observes; `None` if it is not morally strong
    /// with the last write.
    fn observed_clocks(&self, block: u32, scope: AccessStrength, clusters: &ClusterLayout) -> Option<&[Released]> {
        let (by, write) = self.write;
        (scope.min(write) >= clusters.common_scope(by, block)).then_some(&self.all)
    }

    /// Records a write by `by` that is not a read-modify-write: only the vector clocks that `by` attached itself
    /// remain.
    fn overwrite(&mut self, by: Agent) {
        self.all = if self.by == by { self.last.clone() } else { Vec::new() };
    }
}

/// Adds a released vector clock to a list; joins it with a clock in the list that the same threads can acquire, if
/// there is one.
fn add_release(released: &mut Vec<Released>, new: &Released) {
    let alike =
        |old: &&mut Released| old.scope == new.scope && (new.scope == AccessStrength::Gpu || old.block == new.block);
    match released.iter_mut().find(alike) {
        Some(old) => old.clock.join(&new.clock),
        None => released.push(new.clone()),
    }
}
