//! `--folded OUT`: the launches of a trace as folded stacks, which flamegraph.pl, inferno and speedscope read.
//!
//! Each line is a stack: the host's spans around the launch, outermost first; then part, layer and op, unless a span
//! already has this name; then the kernel. After a space follows the time of all launches with this stack, in whole
//! microseconds. Time without a launch is not in the output.
//!
//! ```text
//! profiled round;decoder 3;skinny_linear;matmul_fwd 46
//! ```
//!
//! The input is the list of trace events (`trace.rs`), so new kinds of spans in the trace appear here without further
//! code.

use std::collections::BTreeMap;
use std::fmt::Write;

use serde_json::Value;

/// A complete event (`X`) of the trace.
struct Slice<'a> {
    name: &'a str,
    track: u64,
    /// Microseconds since the start of the trace.
    start: f64,
    end: f64,
    args: &'a Value,
}

impl<'a> Slice<'a> {
    fn of_event(event: &'a Value) -> Option<Self> {
        if event["ph"] != "X" {
            return None;
        }
        let start = event["ts"].as_f64()?;
        let end = start + event["dur"].as_f64()?;
        Some(Slice { name: event["name"].as_str()?, track: event["tid"].as_u64()?, start, end, args: &event["args"] })
    }
}

/// Folds the launches of a trace (`traceEvents`).
///
/// A launch is the slice at which a flow event ends (`f`); the host's call is the slice at which the flow begins (`s`).
pub fn folded_stacks(events: &[Value]) -> String {
    let slices: Vec<Slice> = events.iter().filter_map(Slice::of_event).collect();
    let mut by_track: BTreeMap<u64, Vec<&Slice>> = BTreeMap::new();
    for slice in &slices {
        by_track.entry(slice.track).or_default().push(slice);
    }
    let tracks: BTreeMap<u64, Track> = by_track.into_iter().map(|(id, slices)| (id, Track::new(slices))).collect();
    let flow_ends = |phase: &str| -> BTreeMap<u64, (u64, f64)> {
        let of_phase = events.iter().filter(|event| event["ph"] == *phase);
        of_phase.filter_map(|e| Some((e["id"].as_u64()?, (e["tid"].as_u64()?, e["ts"].as_f64()?)))).collect()
    };
    let (calls, launches) = (flow_ends("s"), flow_ends("f"));
    let mut stacks: BTreeMap<String, f64> = BTreeMap::new();
    for (id, (track, at)) in launches {
        let Some(launch) = tracks.get(&track).and_then(|track| track.around(at).pop()) else { continue };
        let host = calls.get(&id).and_then(|&(track, at)| Some(tracks.get(&track)?.around(at))).unwrap_or_default();
        *stacks.entry(stack(&host, launch)).or_default() += launch.end - launch.start;
    }
    let mut text = String::new();
    for (stack, microseconds) in stacks {
        let whole = microseconds.round();
        if whole > 0.0 {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{stack} {whole:.0}");
        }
    }
    text
}

/// The slices of a track, ordered by start, each with the index of the slice around it. Slices of a track are nested.
struct Track<'a, 'b> {
    slices: Vec<&'b Slice<'a>>,
    parents: Vec<Option<usize>>,
}

impl<'a, 'b> Track<'a, 'b> {
    fn new(mut slices: Vec<&'b Slice<'a>>) -> Self {
        slices.sort_by(|a, b| a.start.total_cmp(&b.start).then(b.end.total_cmp(&a.end)));
        let (mut parents, mut open): (Vec<Option<usize>>, Vec<usize>) = (Vec::new(), Vec::new());
        for (index, slice) in slices.iter().enumerate() {
            while open.last().is_some_and(|&last| slices[last].end <= slice.start) {
                open.pop();
            }
            parents.push(open.last().copied());
            open.push(index);
        }
        Self { slices, parents }
    }

    /// The slices that contain the moment `at`, outermost first. Only the last slice that has begun and its ancestors
    /// can contain this moment.
    fn around(&self, at: f64) -> Vec<&'b Slice<'a>> {
        let begun = self.slices.partition_point(|slice| slice.start <= at);
        let path = std::iter::successors(begun.checked_sub(1), |&index| self.parents[index]);
        let contains = |slice: &&Slice| slice.end > at || slice.start == at;
        let mut found: Vec<&Slice> = path.map(|index| self.slices[index]).filter(contains).collect();
        found.reverse();
        found
    }
}

/// The stack frames of a launch, joined by semicolons.
fn stack(host: &[&Slice], launch: &Slice) -> String {
    let mut frames: Vec<&str> = host.iter().map(|slice| slice.name).collect();
    // The innermost slice is the host's call, which has the op's name.
    let call = frames.pop();
    let further = ["part", "layer", "op"].into_iter().filter_map(|key| launch.args[key].as_str());
    for frame in further.chain(call).filter(|frame| !frame.is_empty()) {
        if !frames.contains(&frame) {
            frames.push(frame);
        }
    }
    if frames.last() != Some(&launch.name) {
        frames.push(launch.name);
    }
    // A semicolon would begin a new frame.
    frames.iter().map(|frame| frame.replace(';', ",")).collect::<Vec<_>>().join(";")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn slice(name: &str, track: u64, start: f64, duration: f64, args: Value) -> Value {
        json!({"name": name, "ph": "X", "pid": 1, "tid": track, "ts": start, "dur": duration, "args": args})
    }

    fn flow(id: u64, call: (u64, f64), launch: (u64, f64)) -> [Value; 2] {
        let event = |phase: &str, (track, at)| json!({"ph": phase, "id": id, "tid": track, "ts": at});
        [event("s", call), event("f", launch)]
    }

    #[test]
    fn launches_with_the_same_stack_are_summed() {
        let forward = json!({"part": "forward", "layer": "decoder 0", "op": "linear"});
        let mut events = vec![
            json!({"name": "process_name", "ph": "M", "pid": 1, "tid": 0, "args": {"name": "reel"}}),
            slice("step; 1", 0, 0.0, 100.0, json!({})),
            slice("linear", 0, 10.0, 5.0, json!({})),
            slice("linear", 0, 20.0, 5.0, json!({})),
            slice("adamw", 0, 120.0, 5.0, json!({})),
            slice("matmul_fwd", 1, 11.0, 30.4, forward.clone()),
            slice("matmul_fwd", 1, 50.0, 20.4, forward),
            slice("adamw", 1, 130.0, 7.0, json!({})),
            slice("fill", 1, 140.0, 0.4, json!({})),
        ];
        events.extend(flow(0, (0, 10.0), (1, 11.0)));
        events.extend(flow(1, (0, 20.0), (1, 50.0)));
        events.extend(flow(2, (0, 120.0), (1, 130.0)));
        // Adds a launch of less than half a microsecond. The trace has no slice for its call.
        events.extend(flow(3, (7, 139.0), (1, 140.0)));
        let want = "adamw 7\nstep, 1;forward;decoder 0;linear;matmul_fwd 51\n";
        assert_eq!(folded_stacks(&events), want);
    }

    /// If a span of the trace already names the part, layer or op of a launch, the stack does not repeat this name.
    #[test]
    fn deeper_spans_are_not_repeated() {
        let args = json!({"part": "backward", "layer": "decoder 3", "op": "linear backward"});
        let mut events = vec![
            slice("step 1", 0, 0.0, 100.0, json!({})),
            slice("micro-batch 0", 0, 1.0, 90.0, json!({})),
            slice("backward", 0, 2.0, 80.0, json!({})),
            slice("decoder 3", 0, 3.0, 20.0, json!({})),
            slice("linear backward", 0, 4.0, 3.0, json!({})),
            slice("linear backward", 0, 5.0, 1.0, json!({})),
            slice("matmul_dx", 1, 6.0, 9.0, args),
        ];
        events.extend(flow(0, (0, 5.0), (1, 6.0)));
        let want = "step 1;micro-batch 0;backward;decoder 3;linear backward;matmul_dx 9\n";
        assert_eq!(folded_stacks(&events), want);
    }

    /// A call that begins at the same time as the span around it, or after another span has ended, gets the correct
    /// stack.
    #[test]
    fn spans_around_a_moment_are_the_enclosing_ones() {
        let events = [
            slice("a", 0, 0.0, 10.0, json!({})),
            slice("b", 0, 0.0, 4.0, json!({})),
            slice("c", 0, 4.0, 3.0, json!({})),
            slice("d", 0, 5.0, 1.0, json!({})),
        ];
        let slices: Vec<Slice> = events.iter().filter_map(Slice::of_event).collect();
        let track = Track::new(slices.iter().collect());
        let names = |at: f64| track.around(at).iter().map(|slice| slice.name).collect::<String>();
        assert_eq!([names(0.0), names(4.0), names(5.5), names(6.5), names(9.0)], ["ab", "ac", "acd", "ac", "a"]);
        assert_eq!(names(11.0), "");
    }
}
