//! What launches cost, and where the time went.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Instant;

use reel_kernels::Cost;

use super::{Device, MemorySample};
use crate::error::Result;

const COUNT: u8 = 1;
const RECORD: u8 = 2;

/// Totals of one kernel.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct OpTotals {
    /// Launches.
    pub launches: u64,
    /// Operations and bytes, from the kernels' own cost.
    pub cost: Cost,
    /// Time inside launches.
    pub seconds: f64,
}

/// One launch on the time line.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// The kernel.
    pub name: &'static str,
    /// The part of the work that it belongs to, see [`Profiler::part`].
    pub part: &'static str,
    /// Operations and bytes, from the kernel's own cost.
    pub cost: Cost,
    /// When it began: by the host's clock, or by the device's own, moved to the host's (see [`Profiler`]).
    pub start: Instant,
    /// Seconds that it took.
    pub seconds: f64,
}

/// Collects costs and times of a device's launches while switched on, and how much memory is in use.
///
/// `cpu`, `sim` and `dry` carry a launch out before they return: their times are the host's. `cuda` has an event before and one behind
/// each launch in its stream, and nobody waits for them before the profile is read, so the GPU stays as far behind the host as it would
/// be without. Times between events are the GPU's own, to half a microsecond; where they lie on the host's clock comes from one event
/// that the host waited for before the first launch, so all are late by the time of that wait, some 10 microseconds.
#[derive(Clone, Copy)]
pub struct Profiler<'a>(pub(super) &'a Device);

impl Profiler<'_> {
    /// Switches the totals on or off.
    pub fn count(&self, on: bool) {
        self.collected().switch(COUNT, on);
    }

    /// Switches the time lines of launches and memory on or off.
    pub fn record(&self, on: bool) {
        self.collected().switch(RECORD, on);
        self.0.0.memory.record(on);
    }

    /// From now on launches are asked for by this part of the work, as `forward`; at first by none, which is "".
    pub fn part(&self, name: &'static str) {
        *self.collected().part() = name;
    }

    /// Forgets what was collected; waits for the launches.
    pub fn clear(&self) {
        // A launch that went wrong fails every later call of the device, so its error is not lost.
        let _ = self.read();
        let mut s = self.collected().lock();
        s.totals.clear();
        s.events.clear();
        self.0.0.memory.forget_samples();
    }

    /// Totals by kernel name; waits for the launches.
    ///
    /// # Errors
    /// What the device reports: a launch that went wrong.
    pub fn totals(&self) -> Result<BTreeMap<&'static str, OpTotals>> {
        self.read()?;
        Ok(self.collected().lock().totals.clone())
    }

    /// The time line in the order of its starts; waits for the launches.
    ///
    /// # Errors
    /// What the device reports: a launch that went wrong.
    pub fn events(&self) -> Result<Vec<Event>> {
        self.read()?;
        let mut events = self.collected().lock().events.clone();
        events.sort_by_key(|e| e.start);
        Ok(events)
    }

    /// Bytes in use after each allocation and each release while recording, in order.
    pub fn memory(&self) -> Vec<MemorySample> {
        self.0.0.memory.samples()
    }

    fn collected(&self) -> &Collected {
        &self.0.0.profile
    }

    fn read(&self) -> Result<()> {
        let known = self.0.0.backend.timed()?;
        self.collected().add(known);
        Ok(())
    }
}

/// Which of totals and time line a launch goes into, and the part of the work that asks for it.
#[derive(Clone, Copy)]
pub(super) struct Wanted {
    mode: u8,
    part: &'static str,
}

impl Wanted {
    /// A launch that was wanted, with its time.
    pub(super) fn timed(self, name: &'static str, cost: Cost, start: Instant, seconds: f64) -> Timed {
        Timed { wanted: self, event: Event { name, part: self.part, cost, start, seconds } }
    }
}

/// A launch whose time is known.
pub(super) struct Timed {
    wanted: Wanted,
    pub event: Event,
}

#[derive(Default)]
struct State {
    totals: BTreeMap<&'static str, OpTotals>,
    events: Vec<Event>,
}

/// What was collected of a device.
#[derive(Default)]
pub(super) struct Collected {
    mode: AtomicU8,
    part: Mutex<&'static str>,
    state: Mutex<State>,
}

impl Collected {
    /// Whether anything is collected.
    pub(super) fn active(&self) -> bool {
        self.mode.load(Ordering::Relaxed) != 0
    }

    /// What is collected now, for the launches that are asked for now: times may come when it is something else.
    pub(super) fn wanted(&self) -> Wanted {
        Wanted { mode: self.mode.load(Ordering::Relaxed), part: *self.part() }
    }

    /// Launches whose times became known.
    pub(super) fn add(&self, known: Vec<Timed>) {
        let mut s = self.lock();
        for Timed { wanted: Wanted { mode, .. }, event } in known {
            if mode & COUNT != 0 {
                let t = s.totals.entry(event.name).or_default();
                t.launches += 1;
                t.cost += event.cost;
                t.seconds += event.seconds;
            }
            if mode & RECORD != 0 {
                s.events.push(event);
            }
        }
    }

    fn switch(&self, bits: u8, on: bool) {
        if on {
            self.mode.fetch_or(bits, Ordering::Relaxed);
        } else {
            self.mode.fetch_and(!bits, Ordering::Relaxed);
        }
    }

    fn part(&self) -> std::sync::MutexGuard<'_, &'static str> {
        self.part.lock().unwrap_or_else(|e| e.into_inner())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|e| e.into_inner())
    }
}
