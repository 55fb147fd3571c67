//! What launches cost, and where the time went.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Instant;

use reel_kernels::Cost;

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
    /// Microseconds from the start of the recording.
    pub start_us: f64,
    /// Microseconds that it took.
    pub duration_us: f64,
}

struct State {
    totals: BTreeMap<&'static str, OpTotals>,
    events: Vec<Event>,
    origin: Instant,
}

/// Collects costs and times of launches while switched on.
pub struct Profile {
    mode: AtomicU8,
    state: Mutex<State>,
}

impl Default for Profile {
    fn default() -> Profile {
        let state = State { totals: BTreeMap::new(), events: Vec::new(), origin: Instant::now() };
        Profile { mode: AtomicU8::new(0), state: Mutex::new(state) }
    }
}

impl Profile {
    /// Switches the totals on or off.
    pub fn count(&self, on: bool) {
        self.switch(COUNT, on);
    }

    /// Switches the time line (and the totals) on or off; the time line starts now.
    pub fn record(&self, on: bool) {
        self.lock().origin = Instant::now();
        self.switch(COUNT | RECORD, on);
    }

    /// Forgets what was collected.
    pub fn clear(&self) {
        let mut s = self.lock();
        s.totals.clear();
        s.events.clear();
        s.origin = Instant::now();
    }

    /// Totals by kernel name.
    pub fn totals(&self) -> BTreeMap<&'static str, OpTotals> {
        self.lock().totals.clone()
    }

    /// The time line.
    pub fn events(&self) -> Vec<Event> {
        self.lock().events.clone()
    }

    pub(super) fn active(&self) -> bool {
        self.mode.load(Ordering::Relaxed) != 0
    }

    pub(super) fn add(&self, name: &'static str, cost: Cost, start: Instant, seconds: f64) {
        let mut s = self.lock();
        let t = s.totals.entry(name).or_default();
        t.launches += 1;
        t.cost += cost;
        t.seconds += seconds;
        if self.mode.load(Ordering::Relaxed) & RECORD != 0 {
            let start_us = start.duration_since(s.origin).as_secs_f64() * 1e6;
            s.events.push(Event { name, start_us, duration_us: seconds * 1e6 });
        }
    }

    fn switch(&self, bits: u8, on: bool) {
        if on {
            self.mode.fetch_or(bits, Ordering::Relaxed);
        } else {
            self.mode.fetch_and(!bits, Ordering::Relaxed);
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|e| e.into_inner())
    }
}
