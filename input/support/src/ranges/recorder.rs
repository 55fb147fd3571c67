//! The recorder of ranges: it keeps all ranges of a time window for a trace, and spans that callers have measured.

use std::cell::Cell;
use std::sync::atomic::Ordering;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use serde_json::Value;

use super::{LISTENERS, RECORDER, RangeName, host_thread_number, listen};

/// A recorded range.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RangeEvent {
    /// The name of the range.
    pub name: RangeName,
    /// The index of the enclosing range of the same thread in the list of recorded ranges. It is smaller than this
    /// range's own index.
    pub parent: Option<usize>,
    /// The number of the thread; see [`host_thread_number`].
    pub thread: usize,
    /// The time at which the range began.
    pub start: Instant,
    /// Duration in seconds. A range that was still open when the window ended is cut at that time.
    pub seconds: f64,
}

/// A span of host time that its caller has measured. Unlike a range, it has a free name and details for the viewer.
#[derive(Clone, Debug, PartialEq)]
pub struct SpanEvent {
    /// The name of the span.
    pub name: String,
    /// The number of the thread; see [`host_thread_number`].
    pub thread: usize,
    /// The time at which the span began.
    pub start: Instant,
    /// Duration in seconds.
    pub seconds: f64,
    /// What a viewer shows with the span: a JSON object, or null.
    pub details: Value,
}

/// An id of a recorded range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RangeId {
    /// The number of the time window.
    window: u64,
    /// The index of the range among the recorded ranges of the window.
    pub index: usize,
}

/// A recorded range that has not ended.
#[derive(Debug)]
pub(super) struct OpenRange {
    id: RangeId,
    /// The range that was the innermost one before this range began.
    outer: Option<RangeId>,
}

#[derive(Default)]
struct Recording {
    /// The number of the current time window, or of the last one if no window is open.
    window: u64,
    is_on: bool,
    /// The ranges of the window. The bool tells whether the range is still open.
    events: Vec<(RangeEvent, bool)>,
    spans: Vec<SpanEvent>,
}

static RECORDING: Mutex<Recording> =
    Mutex::new(Recording { window: 0, is_on: false, events: Vec::new(), spans: Vec::new() });

thread_local! {
    /// The innermost recorded range of this thread.
    static INNERMOST: Cell<Option<RangeId>> = const { Cell::new(None) };
}

fn recording() -> MutexGuard<'static, Recording> {
    RECORDING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Begins a time window: ranges that begin from now on are recorded, and the ranges of an earlier window are dropped.
pub fn start_recording_ranges() {
    let mut recording = recording();
    *recording = Recording { window: recording.window + 1, is_on: true, ..Recording::default() };
    listen(RECORDER, true);
}

/// Ends the time window and returns its ranges, in the order in which they began.
pub fn take_recorded_ranges() -> Vec<RangeEvent> {
    let mut recording = recording();
    listen(RECORDER, false);
    recording.is_on = false;
    let seconds =
        |event: &RangeEvent, is_open| if is_open { event.start.elapsed().as_secs_f64() } else { event.seconds };
    let events = std::mem::take(&mut recording.events).into_iter();
    events.map(|(event, is_open)| RangeEvent { seconds: seconds(&event, is_open), ..event }).collect()
}

/// Returns the recorded spans of the time window, and forgets them.
pub fn take_recorded_spans() -> Vec<SpanEvent> {
    std::mem::take(&mut recording().spans)
}

/// Records a span of this thread that began at `start` and took `seconds`, if a time window is open.
pub fn record_span(name: impl Into<String>, start: Instant, seconds: f64, details: Value) {
    if LISTENERS.load(Ordering::Relaxed) & RECORDER != 0 {
        let thread = host_thread_number();
        recording().spans.push(SpanEvent { name: name.into(), thread, start, seconds, details });
    }
}

/// The innermost recorded range of this thread that is still open.
pub fn current_range() -> Option<RangeId> {
    INNERMOST.get()
}

pub(super) fn begin_range(name: RangeName) -> Option<OpenRange> {
    let thread = host_thread_number();
    let outer = INNERMOST.get();
    let mut recording = recording();
    if !recording.is_on {
        return None;
    }
    let id = RangeId { window: recording.window, index: recording.events.len() };
    let parent = outer.filter(|outer| outer.window == id.window).map(|outer| outer.index);
    recording.events.push((RangeEvent { name, parent, thread, start: Instant::now(), seconds: 0.0 }, true));
    INNERMOST.set(Some(id));
    Some(OpenRange { id, outer })
}

pub(super) fn end_range(OpenRange { id, outer }: OpenRange) {
    INNERMOST.set(outer);
    let mut recording = recording();
    if recording.window != id.window {
        return;
    }
    // The window may have ended. Then the range is no longer in the list.
    if let Some((event, is_open)) = recording.events.get_mut(id.index) {
        event.seconds = event.start.elapsed().as_secs_f64();
        *is_open = false;
    }
}

#[cfg(test)]
mod tests {
    use super::super::{in_layer, in_op, range, record_details};
    use super::*;

    /// Returns the recorded ranges of this thread: name, and name of the parent. Other tests of the program may
    /// record at the same time.
    fn taken() -> Vec<(String, String)> {
        let events = take_recorded_ranges();
        let name = |event: &RangeEvent| event.name.to_string();
        let parent = |event: &RangeEvent| event.parent.map_or(String::new(), |index| name(&events[index]));
        let own = events.iter().filter(|event| event.thread == host_thread_number());
        own.map(|event| (name(event), parent(event))).collect()
    }

    /// There is only one test, because the process has one recorder.
    #[test]
    fn ranges_have_parents_and_windows() {
        let outside = range(RangeName::Task("before the window"));
        start_recording_ranges();
        {
            let _step = range(RangeName::Step(3));
            let _layer = in_layer("decoder", 1);
            let _op = in_op("not recorded without launches");
        }
        record_details(true);
        {
            let _phase = range(RangeName::Phase("forward"));
            let _layer = in_layer("decoder", 1);
            let _same = in_layer("decoder", 1);
            {
                let _op = in_op("lora_linear");
                let _inner = in_op("linear");
            }
            let _op = in_op("add");
        }
        let open = range(RangeName::Phase("open at the end"));
        drop(outside);
        let pair = |a: &str, b: &str| (a.to_string(), b.to_string());
        let want = [
            pair("step 3", ""),
            pair("forward", ""),
            pair("decoder 1", "forward"),
            pair("lora_linear", "decoder 1"),
            pair("add", "decoder 1"),
            pair("open at the end", ""),
        ];
        assert_eq!(taken(), want);
        // A range of an earlier window is not a parent in the next window, and its end changes nothing there.
        start_recording_ranges();
        let next = range(RangeName::Task("next window"));
        drop((next, open));
        assert_eq!(taken(), [pair("next window", "")]);
        record_details(false);
        drop(range(RangeName::Task("after the window")));
        assert_eq!((taken(), current_range()), (Vec::new(), None));
    }
}
