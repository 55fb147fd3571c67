//! Times of launches by the GPU's own clock, without waiting for any: an event before and one behind each, read in bulk.
#![allow(unsafe_code)]

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use reel_kernels::cuda::driver::{Event as Mark, Stream};
use reel_kernels::cuda::{CudaError, Driver};
use reel_kernels::{Cost, Launch};

use super::told;
use crate::device::profiler::{Timed, Wanted};
use crate::error::Result;

/// Launches of a device that may be under way with their events. When there are as many, the older half is read: the GPU is working on
/// the younger one meanwhile, so it does not stand still for it.
pub(super) const PAIRS: usize = 4096;

/// An event that the host waited for ties the GPU's clock to the host's. Clocks drift apart by some microseconds a second, so it is tied
/// anew when nothing is under way after this long.
const TIE: Duration = Duration::from_secs(10);

/// A launch that is under way.
struct Asked {
    name: &'static str,
    cost: Cost,
    wanted: Wanted,
    /// Before it and behind it.
    marks: [Mark; 2],
}

/// The launches of one stream whose times are wanted.
pub(super) struct Timeline {
    driver: Arc<dyn Driver>,
    stream: Stream,
    /// A mark that was reached, and when that was by the host's clock.
    tie: (Mark, Instant),
    tied: Instant,
    free: Vec<[Mark; 2]>,
    asked: VecDeque<Asked>,
    /// Launches that may be under way with their marks.
    pairs: usize,
}

impl Timeline {
    /// With at most `pairs` (> 1) launches under way. Waits once, for the tie.
    pub fn new(driver: Arc<dyn Driver>, stream: Stream, pairs: usize) -> std::result::Result<Timeline, CudaError> {
        let mark = driver.event()?;
        let now = Instant::now();
        let (free, asked) = (Vec::new(), VecDeque::new());
        let mut timeline = Timeline { driver, stream, tie: (mark, now), tied: now, free, asked, pairs };
        timeline.tie()?;
        Ok(timeline)
    }

    fn tie(&mut self) -> std::result::Result<(), CudaError> {
        // SAFETY: event and stream are live.
        unsafe {
            // What is still under way would be waited for too, and be taken for the time between the mark and the host.
            self.driver.synchronize(self.stream)?;
            self.driver.record(self.tie.0, self.stream)?;
            self.driver.wait(self.tie.0)?;
        }
        self.tied = Instant::now();
        self.tie.1 = self.tied;
        Ok(())
    }

    /// Asks for a launch between two marks; the launches whose times are known by now.
    pub fn launch(&mut self, launch: &Launch, wanted: Wanted, ask: impl FnOnce() -> Result<()>) -> Result<Vec<Timed>> {
        if self.asked.is_empty() && self.tied.elapsed() > TIE {
            self.tie().map_err(told)?;
        }
        let full = self.asked.len() == self.pairs;
        let known = if full { self.read_oldest(self.pairs / 2).map_err(told)? } else { Vec::new() };
        let marks = self.marks().map_err(told)?;
        if let Err(e) = self.between(marks, ask) {
            self.free.push(marks);
            return Err(e);
        }
        self.asked.push_back(Asked { name: launch.name(), cost: launch.cost(), wanted, marks });
        Ok(known)
    }

    fn between(&self, [before, behind]: [Mark; 2], ask: impl FnOnce() -> Result<()>) -> Result<()> {
        // SAFETY: events and stream are live.
        unsafe {
            self.driver.record(before, self.stream).map_err(told)?;
            ask()?;
            self.driver.record(behind, self.stream).map_err(told)
        }
    }

    /// A pair that nobody uses.
    fn marks(&mut self) -> std::result::Result<[Mark; 2], CudaError> {
        if let Some(marks) = self.free.pop() {
            return Ok(marks);
        }
        let before = self.driver.event()?;
        // SAFETY: the event was not recorded.
        let behind = self.driver.event().inspect_err(|_| unsafe { self.driver.end_event(before) })?;
        Ok([before, behind])
    }

    /// Waits for all launches.
    pub fn read(&mut self) -> std::result::Result<Vec<Timed>, CudaError> {
        self.read_oldest(self.asked.len())
    }

    fn read_oldest(&mut self, count: usize) -> std::result::Result<Vec<Timed>, CudaError> {
        let Some(last) = count.checked_sub(1).and_then(|i| self.asked.get(i)) else { return Ok(Vec::new()) };
        // SAFETY: the event is live.
        unsafe { self.driver.wait(last.marks[1])? }
        // Spans are 32-bit numbers of milliseconds: short ones are exact, so each read begins where the last one ended.
        let known: std::result::Result<Vec<Timed>, CudaError> =
            self.asked.iter().take(count).map(|asked| self.time(asked)).collect();
        let known = known?;
        // SAFETY: both were reached.
        let span = unsafe { self.driver.elapsed(self.tie.0, last.marks[1])? };
        self.tie.1 += positive(span);
        self.free.extend(self.asked.drain(..count).map(|a| a.marks));
        if let Some(marks) = self.free.last_mut() {
            std::mem::swap(&mut marks[1], &mut self.tie.0);
        }
        Ok(known)
    }

    fn time(&self, asked: &Asked) -> std::result::Result<Timed, CudaError> {
        let [before, behind] = asked.marks;
        // SAFETY: the events are live.
        let (since, seconds) =
            unsafe { (self.driver.elapsed(self.tie.0, before)?, self.driver.elapsed(before, behind)?) };
        let start = self.tie.1 + positive(since);
        Ok(asked.wanted.timed(asked.name, asked.cost, start, seconds))
    }
}

/// Marks lie behind the tie in their stream; what rounding may make negative is nothing.
fn positive(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds).unwrap_or_default()
}

impl Drop for Timeline {
    fn drop(&mut self) {
        let pairs = self.free.drain(..).chain(self.asked.drain(..).map(|a| a.marks));
        for mark in pairs.flatten().chain([self.tie.0]) {
            // SAFETY: each is ours and ended once; the driver keeps one that is still to be reached until then.
            unsafe { self.driver.end_event(mark) }
        }
    }
}
