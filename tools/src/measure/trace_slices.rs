//! The slices of a trace: stretches of time on a track. Ranges of host threads are slices on the threads' tracks.
//! Each device has a second view of the same ranges: each slice lasts from the first to the last launch of a range.

use std::time::Instant;

use reel_device::{LaunchEvent, RangeEvent};
use serde_json::{Value, json};

/// Thread id of the launches in the trace file. A viewer shows each thread id as a track.
pub(crate) const LAUNCH_TRACK: u64 = 1;
/// Thread id of the first host thread, and of the memory counters.
pub(crate) const FIRST_HOST_TRACK: u64 = 0;

/// Returns the thread id of a host thread in the trace: 0, 2, 3, …; 1 is the thread id of the launches.
pub(crate) fn host_track(thread: usize) -> u64 {
    if thread == 0 { FIRST_HOST_TRACK } else { LAUNCH_TRACK + thread as u64 }
}

/// A stretch of time on a track: a complete event.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct TraceSlice {
    pub name: String,
    /// The category: the kind of a range, or `launch`.
    pub kind: &'static str,
    pub track: u64,
    /// Microseconds since the start of the trace.
    pub start: f64,
    /// Microseconds since the start of the trace.
    pub end: f64,
    pub args: Value,
}

/// Thread id of the ranges of launches on the device.
pub(crate) const DEVICE_RANGE_TRACK: u64 = 1 << 20;

/// The position of a track in a viewer, from the top: the first host thread, the device, the other host threads.
pub(crate) fn track_position(track: u64) -> u64 {
    match track {
        FIRST_HOST_TRACK => 0,
        DEVICE_RANGE_TRACK => 1,
        LAUNCH_TRACK => 2,
        host => host + 1,
    }
}

/// The slices of recorded ranges on the tracks of their threads. `at` converts a moment to microseconds since the start
/// of the trace.
pub(crate) fn host_ranges(ranges: &[RangeEvent], at: impl Fn(Instant) -> f64) -> Vec<TraceSlice> {
    let slice = |range: &RangeEvent| {
        let start = at(range.start);
        let (name, end) = (range.name.to_string(), start + range.seconds * 1e6);
        TraceSlice { name, kind: range.name.kind(), track: host_track(range.thread), start, end, args: json!({}) }
    };
    ranges.iter().map(slice).collect()
}

/// The indices of the ranges around a launch, outermost first.
pub(crate) fn ranges_of_launch(ranges: &[RangeEvent], launch: &LaunchEvent) -> Vec<usize> {
    let innermost = launch.range.map(|id| id.index).filter(|index| *index < ranges.len());
    let mut path: Vec<usize> = std::iter::successors(innermost, |index| ranges[*index].parent).collect();
    path.reverse();
    path
}

/// The slices of ranges on the device's track: each lasts from the start of the first launch in the range to the end
/// of the last one. If launches of another thread's range lie between the launches of a range, this range becomes
/// several slices. `launches` are ordered by start.
pub(crate) fn device_ranges(
    ranges: &[RangeEvent],
    launches: &[LaunchEvent],
    at: impl Fn(Instant) -> f64,
) -> Vec<TraceSlice> {
    let mut slices: Vec<TraceSlice> = Vec::new();
    // The index of the range and of the slice of each range around the present launch, outermost first.
    let mut open: Vec<(usize, usize)> = Vec::new();
    for launch in launches {
        let start = at(launch.start);
        let end = start + launch.seconds * 1e6;
        let path = ranges_of_launch(ranges, launch);
        let shared = open.iter().zip(&path).take_while(|((range, _), index)| range == *index).count();
        open.truncate(shared);
        for &(_, slice) in &open {
            slices[slice].end = slices[slice].end.max(end);
        }
        for &index in &path[shared..] {
            let name = ranges[index].name;
            open.push((index, slices.len()));
            let (name, kind) = (name.to_string(), name.kind());
            slices.push(TraceSlice { name, kind, track: DEVICE_RANGE_TRACK, start, end, args: json!({}) });
        }
    }
    slices
}

/// Sorts slices by track and start, and shortens each slice that ends after the slice around it: viewers show only
/// slices that are nested. Some spans are measured by a different clock than the launches inside them, so a launch can
/// end microseconds after its span.
pub(crate) fn sort_and_nest(mut slices: Vec<TraceSlice>) -> Vec<TraceSlice> {
    slices.sort_by(|a, b| {
        let by_start = a.track.cmp(&b.track).then(a.start.total_cmp(&b.start));
        by_start.then(b.end.total_cmp(&a.end))
    });
    // Track and end of each slice that encloses the present slice, the innermost last.
    let mut open: Vec<(u64, f64)> = Vec::new();
    for slice in &mut slices {
        while open.last().is_some_and(|(track, end)| *track != slice.track || *end <= slice.start) {
            open.pop();
        }
        if let Some((_, end)) = open.last() {
            slice.end = slice.end.min(*end);
        }
        open.push((slice.track, slice.end));
    }
    slices
}

pub(crate) fn complete_event(slice: &TraceSlice) -> Value {
    json!({
        "name": slice.name, "cat": slice.kind, "ph": "X", "pid": std::process::id(), "tid": slice.track, "ts": slice.start,
        "dur": slice.end - slice.start, "args": slice.args,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Two slices of a track are disjoint, or one lies inside the other. No slice is lost, moved or made longer.
        #[test]
        fn slices_of_a_track_are_nested(times in prop::collection::vec((0u64..3, 0u32..100, 0u32..40), 0..60)) {
            let slice = |(i, &(track, start, length)): (usize, &(u64, u32, u32))| TraceSlice {
                name: i.to_string(),
                kind: "task",
                track,
                start: start.into(),
                end: (start + length).into(),
                args: Value::Null,
            };
            let before: Vec<TraceSlice> = times.iter().enumerate().map(slice).collect();
            let after = sort_and_nest(before.clone());
            prop_assert_eq!(after.len(), before.len());
            for a in &after {
                let old = &before[a.name.parse::<usize>().unwrap()];
                prop_assert!(a.start == old.start && a.track == old.track && a.end <= old.end && a.end >= a.start);
                for b in after.iter().filter(|b| b.track == a.track) {
                    let disjoint = a.end <= b.start || b.end <= a.start;
                    let inside = a.start <= b.start && b.end <= a.end || b.start <= a.start && a.end <= b.end;
                    prop_assert!(disjoint || inside, "{a:?} {b:?}");
                }
            }
        }
    }

    #[test]
    fn host_threads_and_launches_have_different_tracks() {
        let tracks: Vec<u64> = (0..5).map(host_track).collect();
        assert_eq!(tracks, [0, 2, 3, 4, 5]);
        assert!(!tracks.contains(&LAUNCH_TRACK) && !tracks.contains(&DEVICE_RANGE_TRACK));
    }
}
