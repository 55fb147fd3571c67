//! The profiler of a device: costs and times of launches, and memory in use over time.

use std::collections::BTreeMap;

use super::Device;
use crate::error::Result;
use crate::memory::MemorySample;
use crate::profile::{COUNT, LaunchEvent, OpTotals, ProfileData, RECORD};

/// Collects the costs and times of a device's launches, and its bytes in use, while collecting is turned on.
///
/// On `cuda`, durations come from the GPU's clock, with a resolution of half a microsecond. Start times are converted
/// to the host's clock by one event that the host waited for, so they are late by the time of that wait, about 10
/// microseconds.
#[derive(Clone, Copy)]
pub struct Profiler<'a>(pub(super) &'a Device);

impl Profiler<'_> {
    /// Turns collecting the totals by kernel on or off.
    pub fn collect_totals(&self, on: bool) {
        self.collected().switch(COUNT, on);
    }

    /// Turns recording the timelines of launches and memory on or off.
    pub fn record_timeline(&self, on: bool) {
        self.collected().switch(RECORD, on);
        self.0.0.memory.record_samples(on);
    }

    /// Sets the part of the work, for example `forward`, that the launches from now on belong to. At first it is
    /// empty.
    pub fn set_work_part(&self, name: &'static str) {
        self.collected().set_part(name);
    }

    /// Waits for the launches in flight and deletes everything that was collected.
    pub fn clear(&self) {
        // An error of a failed launch is not lost here: every later call of the device reports it.
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
