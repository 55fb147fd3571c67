//! The profiler of a device: costs and times of launches, and memory in use over time.

use std::collections::BTreeMap;

use super::Device;
use crate::error::Result;
use crate::memory::MemorySample;
use crate::profile::{LaunchEvent, OpTotals, ProfileData, TIMELINE_BIT, TOTALS_BIT};
use reel_support::ranges::{RangeGuard, RangeName, range, record_details};

/// A phase of the work, such as `forward`. Dropping the guard ends the phase. Later launches are then counted under the
/// name that was set before the phase.
#[derive(Debug)]
#[must_use = "the phase ends when this value is dropped"]
pub struct PhaseGuard {
    device: Device,
    outer: &'static str,
    _range: RangeGuard,
}

impl Drop for PhaseGuard {
    fn drop(&mut self) {
        self.device.profiler().set_work_part(self.outer);
    }
}

/// Collects the costs and times of a device's launches, and its bytes in use, while collecting is turned on.
///
/// On `cuda`, durations come from the GPU's clock, with a resolution of half a microsecond. Start times are converted
/// to the host's clock by one event for which the host waited. So they are late by the duration of that wait, about
/// 10 microseconds.
#[derive(Clone, Copy)]
pub struct Profiler<'a>(pub(super) &'a Device);

impl Profiler<'_> {
    /// Turns the collection of totals by kernel on or off.
    pub fn collect_totals(&self, on: bool) {
        self.collected().set_mode_bits(TOTALS_BIT, on);
    }

    /// Turns the recording of the timelines of launches and memory on or off. While it is on, recorded ranges include
    /// layers and ops.
    pub fn record_timeline(&self, on: bool) {
        record_details(on);
        self.collected().set_mode_bits(TIMELINE_BIT, on);
        self.0.0.memory.record_samples(on);
    }

    /// Sets the part of the work, for example `forward`, to which later launches belong. The part is empty at first.
    pub fn set_work_part(&self, name: &'static str) {
        self.collected().set_part(name);
    }

    /// Begins a phase of the work, which ends when the guard is dropped. The phase is recorded as a range of host time,
    /// and its launches are counted under `name`.
    pub fn phase(&self, name: &'static str) -> PhaseGuard {
        let outer = self.collected().set_part(name);
        PhaseGuard { device: self.0.clone(), outer, _range: range(RangeName::Phase(name)) }
    }

    /// Waits for the launches in flight, then starts the collection of an attached GPU profiler, such as
    /// `nsys profile --capture-range=cudaProfilerApi`. Does nothing on devices other than a GPU.
    ///
    /// # Errors
    /// A launch in flight has failed.
    pub fn start_external_profiler(&self) -> Result<()> {
        self.0.0.backend.start_external_profiler()
    }

    /// Waits for the launches in flight, then stops the collection of an attached GPU profiler.
    ///
    /// # Errors
    /// A launch in flight has failed.
    pub fn stop_external_profiler(&self) -> Result<()> {
        self.0.0.backend.stop_external_profiler()
    }

    /// Waits for the launches in flight and deletes everything that was collected.
    pub fn clear(&self) {
        // The error of a failed launch is not lost here, because every later call of the device returns it.
        let _ = self.read();
        self.collected().clear();
        self.0.0.memory.clear_samples();
    }

    /// Waits for the launches in flight and returns the totals by kernel name.
    pub fn totals(&self) -> Result<BTreeMap<&'static str, OpTotals>> {
        self.read()?;
        Ok(self.collected().totals())
    }

    /// Waits for the launches in flight and returns the timeline, ordered by start time.
    pub fn launch_events(&self) -> Result<Vec<LaunchEvent>> {
        self.read()?;
        Ok(self.collected().events())
    }

    /// The bytes in use after each allocation and each release that happened while [`Self::record_timeline`] was on,
    /// in order.
    pub fn memory_samples(&self) -> Vec<MemorySample> {
        self.0.0.memory.samples()
    }

    fn collected(&self) -> &ProfileData {
        &self.0.0.profile
    }

    fn read(&self) -> Result<()> {
        let known = self.0.0.backend.collect_timings()?;
        self.collected().add_timed_launches(known);
        Ok(())
    }
}
