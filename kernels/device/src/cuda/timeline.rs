//! The timeline of profiled launches. Times come from the GPU's clock, and the host does not wait for each launch.
//!
//! ```text
//! anchor:     an event that the host waits for; host time of this event = now
//! launch:     record event, enqueue launch, record event
//! wait:       wait for the last event; for each launch
//!                 start    = host time of the anchor + elapsed(anchor, first event)
//!                 duration = elapsed(first event, second event)
//!             the last event becomes the new anchor, because the driver's times are exact for short spans only
//! ```
#![allow(unsafe_code)]

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::error::device_error;
use crate::cuda::driver::{EventHandle as CudaEvent, StreamHandle};
use crate::cuda::{CudaError, Driver};
use crate::error::Result;
use crate::profile::{LaunchRecord, TimedLaunch};

/// Maximum number of profiled launches in flight. At the maximum, the times of the older half are read while the GPU
/// works on the newer half.
pub(super) const MAX_LAUNCHES_IN_FLIGHT: usize = 4096;

/// Age at which the anchor (an event with a known host time) is replaced, as soon as no launch is in flight. The
/// clocks of GPU and host drift apart by some microseconds per second.
const ANCHOR_LIFETIME: Duration = Duration::from_secs(10);

/// A profiled launch in flight, with the events around it.
struct TimedPair {
    record: LaunchRecord,
    /// The events before and after the launch.
    events: [CudaEvent; 2],
}

/// The profiled launches of one stream.
pub(super) struct LaunchTimeline {
    driver: Arc<dyn Driver>,
    stream: StreamHandle,
    /// An event that the GPU has reached, and the time of the event by the host's clock.
    anchor: (CudaEvent, Instant),
    anchored_at: Instant,
    free: Vec<[CudaEvent; 2]>,
    in_flight: VecDeque<TimedPair>,
    /// Maximum number of launches in flight.
    max_in_flight: usize,
}

impl LaunchTimeline {
    /// Creates a timeline with at most `max_in_flight` (> 1) launches in flight. Waits for the GPU once, to set the
    /// anchor.
    pub fn new(
        driver: Arc<dyn Driver>,
        stream: StreamHandle,
        max_in_flight: usize,
    ) -> std::result::Result<LaunchTimeline, CudaError> {
        let event = driver.event()?;
        let now = Instant::now();
        let (free, in_flight) = (Vec::new(), VecDeque::new());
        let mut timeline =
            LaunchTimeline { driver, stream, anchor: (event, now), anchored_at: now, free, in_flight, max_in_flight };
        timeline.set_anchor()?;
        Ok(timeline)
    }

    fn set_anchor(&mut self) -> std::result::Result<(), CudaError> {
        // SAFETY: the timeline owns the event, and its stream is live.
        unsafe {
            // Without this wait, work in flight would delay the event and shift the anchor's host time.
            self.driver.synchronize(self.stream)?;
            self.driver.record(self.anchor.0, self.stream)?;
            self.driver.wait(self.anchor.0)?;
        }
        self.anchored_at = Instant::now();
        self.anchor.1 = self.anchored_at;
        Ok(())
    }

    /// Enqueues a launch between two events. Returns earlier launches whose times have become known.
    pub fn launch(
        &mut self,
        mut record: LaunchRecord,
        enqueue: impl FnOnce() -> Result<()>,
    ) -> Result<Vec<TimedLaunch>> {
        if self.in_flight.is_empty() && self.anchored_at.elapsed() > ANCHOR_LIFETIME {
            self.set_anchor().map_err(device_error)?;
        }
        let full = self.in_flight.len() == self.max_in_flight;
        let timed = if full { self.read_oldest(self.max_in_flight / 2).map_err(device_error)? } else { Vec::new() };
        let events = self.events().map_err(device_error)?;
        if let Err(e) = self.enqueue_between(events, enqueue) {
            self.free.push(events);
            return Err(e);
        }
        record.record_host_return();
        self.in_flight.push_back(TimedPair { record, events });
        Ok(timed)
    }

    fn enqueue_between(&self, [before, after]: [CudaEvent; 2], enqueue: impl FnOnce() -> Result<()>) -> Result<()> {
        // SAFETY: the timeline owns both events, and its stream is live.
        unsafe {
            self.driver.record(before, self.stream).map_err(device_error)?;
            enqueue()?;
            self.driver.record(after, self.stream).map_err(device_error)
        }
    }

    /// Returns two events for a launch: a pair that an earlier launch no longer uses, else a new pair.
    fn events(&mut self) -> std::result::Result<[CudaEvent; 2], CudaError> {
        if let Some(events) = self.free.pop() {
            return Ok(events);
        }
        let before = self.driver.event()?;
        // SAFETY: the event was never recorded, so nothing waits for it.
        let after = self.driver.event().inspect_err(|_| unsafe { self.driver.destroy_event(before) })?;
        Ok([before, after])
    }

    /// Waits for all launches in flight and returns them with their times.
    pub fn wait_for_all(&mut self) -> std::result::Result<Vec<TimedLaunch>, CudaError> {
        self.read_oldest(self.in_flight.len())
    }

    fn read_oldest(&mut self, count: usize) -> std::result::Result<Vec<TimedLaunch>, CudaError> {
        let Some(last) = count.checked_sub(1).and_then(|i| self.in_flight.get(i)) else { return Ok(Vec::new()) };
        // SAFETY: the timeline owns the event.
        unsafe { self.driver.wait(last.events[1])? }
        // The driver returns the time between two events in milliseconds as f32, which is exact for short spans only.
        // So each read makes the last event the new anchor.
        let times: std::result::Result<Vec<(Instant, f64)>, CudaError> =
            self.in_flight.iter().take(count).map(|pair| self.time(pair)).collect();
        let times = times?;
        // SAFETY: both events were reached.
        let span = unsafe { self.driver.elapsed(self.anchor.0, last.events[1])? };
        self.anchor.1 += positive(span);
        let mut timed = Vec::with_capacity(count);
        for (pair, (start, seconds)) in self.in_flight.drain(..count).zip(times) {
            self.free.push(pair.events);
            timed.push(pair.record.with_time(start, seconds));
        }
        if let Some(events) = self.free.last_mut() {
            std::mem::swap(&mut events[1], &mut self.anchor.0);
        }
        Ok(timed)
    }

    /// Returns the start of a launch by the host's clock, and its duration in seconds.
    fn time(&self, pair: &TimedPair) -> std::result::Result<(Instant, f64), CudaError> {
        let [before, after] = pair.events;
        // SAFETY: the timeline owns the events, which have been reached.
        let (since, seconds) =
            unsafe { (self.driver.elapsed(self.anchor.0, before)?, self.driver.elapsed(before, after)?) };
        Ok((self.anchor.1 + positive(since), seconds))
    }
}

/// Converts seconds to a duration. A negative value, which only rounding can cause, becomes zero.
fn positive(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds).unwrap_or_default()
}

impl Drop for LaunchTimeline {
    fn drop(&mut self) {
        let pairs = self.free.drain(..).chain(self.in_flight.drain(..).map(|pair| pair.events));
        for event in pairs.flatten().chain([self.anchor.0]) {
            // SAFETY: each event is destroyed once; the driver keeps an event that is not reached yet until it is
            // reached.
            unsafe { self.driver.destroy_event(event) }
        }
    }
}
