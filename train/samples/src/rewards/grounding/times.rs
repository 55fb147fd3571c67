//! Segments of time in an answer, and temporal IoU.

use std::sync::LazyLock;

use regex::Regex;
use serde_json::Value;

use super::answer_json::json_in;
use crate::rewards::python_number::parse_number;

/// A segment of a video in seconds, as an answer names it: it may end before it starts, and be out of the video.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Segment {
    /// The start in seconds.
    pub start: f64,
    /// The end in seconds.
    pub end: f64,
}

/// A point in time: `hours:minutes:seconds`, `minutes:seconds` or a number, with or without a unit of seconds.
const TIME: &str = r"([+\-−]?(?:\d+:\d+(?::\d+)?(?:\.\d+)?|(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:[eE][+\-]?\d+)?|\.\d+))(?:\s*(?:seconds?|secs?|s)\b)?";

/// A whole text that is a [`TIME`].
static WHOLE_TIME: LazyLock<Regex> = LazyLock::new(|| regex(&format!(r"(?i)^\s*{TIME}\s*$")));

/// A [`TIME`] at the beginning of a text, and one after it with a word or dash between them.
static TIME_RANGE: LazyLock<Regex> = LazyLock::new(|| regex(&format!(r"(?i){TIME}\s*(?:to|and|[\-–—−~])\s*{TIME}")));

#[expect(clippy::expect_used, reason = "the expressions of this file are constant, and each test compiles them")]
fn regex(expression: &str) -> Regex {
    Regex::new(expression).expect("a valid expression")
}

/// Returns the segments that the text of an answer names; `None` if it names none.
///
/// An answer with JSON ([`json_in`]) is read by [`segments_of`]. In any other text, each `T to T`, `T and T` or `T - T`
/// (also with –, —, − and ~) is a segment. A time T is a number of seconds or `mm:ss` or `h:mm:ss`, with or without s,
/// sec, secs, second or seconds; digits of all scripts are read.
pub fn segments_in(text: &str) -> Option<Vec<Segment>> {
    json_in(text).map_or_else(|| segments_in_prose(text), |value| segments_of(&value))
}

/// Returns the segments in a JSON value: a list of two times, a list of such lists, or an object with `time`, or with
/// `start_time` and `end_time`. A time is a number or a text such as `14`, `14 s`, `00:14` or `0:01:14.5`; a text as
/// the value of `time` is read as prose. `None` for any other value, and for an empty list.
pub fn segments_of(value: &Value) -> Option<Vec<Segment>> {
    let list = match value {
        Value::Object(fields) => match (fields.get("time"), fields.get("start_time"), fields.get("end_time")) {
            (Some(Value::String(text)), ..) => return segments_in_prose(text),
            (Some(time), ..) => time.as_array()?,
            (None, Some(start), Some(end)) => {
                return Some(vec![Segment { start: time_of(start)?, end: time_of(end)? }]);
            }
            _ => return None,
        },
        Value::Array(list) => list,
        _ => return None,
    };
    if let Some(segment) = segment_of(list) {
        return Some(vec![segment]);
    }
    let all: Option<Vec<Segment>> = list.iter().map(|pair| segment_of(pair.as_array()?)).collect();
    all.filter(|segments| !segments.is_empty())
}

fn segment_of(pair: &[Value]) -> Option<Segment> {
    let [start, end] = pair else { return None };
    Some(Segment { start: time_of(start)?, end: time_of(end)? })
}

fn time_of(value: &Value) -> Option<f64> {
    match value {
        Value::Number(number) => number.as_f64(),
        Value::String(text) => seconds(WHOLE_TIME.captures(text)?.get(1)?.as_str()),
        _ => None,
    }
}

fn segments_in_prose(text: &str) -> Option<Vec<Segment>> {
    let (mut segments, mut at, mut last_end) = (Vec::new(), 0, 0);
    while let Some(found) = TIME_RANGE.captures_at(text, at) {
        let (Some(all), Some(start), Some(end)) = (found.get(0), found.get(1), found.get(2)) else { break };
        // A number that continues another one, as the last one of `3,5` or `1.2.3`, is no time, unless a segment ends
        // there. A sign after a letter or digit is a dash.
        let before = &text[..start.start()];
        let separated = before.trim_end_matches(['.', ',', ':']);
        let follows_segment = last_end + 1 == before.len() && separated.len() == last_end;
        let continues = separated.ends_with(char::is_numeric)
            && (separated.len() < before.len() || start.as_str().starts_with('.'))
            && !follows_segment;
        if continues || start.as_str().starts_with(['-', '−', '+']) && before.ends_with(char::is_alphanumeric) {
            at = start.start() + text[start.start()..].chars().next().map_or(1, char::len_utf8);
            continue;
        }
        segments.push(Segment { start: seconds(start.as_str())?, end: seconds(end.as_str())? });
        (at, last_end) = (all.end(), all.end());
    }
    Some(segments).filter(|segments| !segments.is_empty())
}

/// The seconds of a time without its unit. `None` if the number is too large.
fn seconds(time: &str) -> Option<f64> {
    let unsigned = time.trim_start_matches(['-', '−', '+']);
    let sum = unsigned.split(':').try_fold(0.0, |sum, part| Some(sum * 60.0 + parse_number(part)?))?;
    Some(if time.starts_with(['-', '−']) { -sum } else { sum }).filter(|x| x.is_finite())
}

/// The length of the intersection of two sets of segments divided by the length of their union, in 0..=1. Overlapping
/// segments of a set count once. 0 if a segment ends before it starts, and if the union has no length.
///
/// For one segment on both sides, this is `max(0, min e - max s) / (max e - min s)`, as in OneThinker and EasyVideoR1;
/// for several, VideoChat-R1's `compute_iou`.
pub fn temporal_iou(answer: &[Segment], truth: &[Segment]) -> f64 {
    let (Some(answer), Some(truth)) = (merged(answer), merged(truth)) else { return 0.0 };
    let (mut i, mut j, mut common) = (0, 0, 0.0);
    while let (Some(a), Some(b)) = (answer.get(i), truth.get(j)) {
        common += (a.end.min(b.end) - a.start.max(b.start)).max(0.0);
        if a.end < b.end { i += 1 } else { j += 1 }
    }
    let length = |segments: &[Segment]| segments.iter().map(|s| s.end - s.start).sum::<f64>();
    ratio(common, length(&answer) + length(&truth) - common)
}

/// `part / whole` in 0..=1; 0 if the whole is not a positive finite number.
pub(super) fn ratio(part: f64, whole: f64) -> f64 {
    if whole > 0.0 && whole.is_finite() { (part / whole).min(1.0) } else { 0.0 }
}

/// Sorts segments and joins those that overlap or touch; `None` if one ends before it starts.
fn merged(segments: &[Segment]) -> Option<Vec<Segment>> {
    let mut sorted = segments.to_vec();
    sorted.sort_by(|a, b| a.start.total_cmp(&b.start));
    let mut joined: Vec<Segment> = Vec::with_capacity(sorted.len());
    for segment in sorted {
        if segment.end < segment.start || segment.start.is_nan() || segment.end.is_nan() {
            return None;
        }
        match joined.last_mut().filter(|last| segment.start <= last.end) {
            Some(last) => last.end = last.end.max(segment.end),
            None => joined.push(segment),
        }
    }
    Some(joined)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pairs(text: &str) -> Option<Vec<(f64, f64)>> {
        Some(segments_in(text)?.iter().map(|s| (s.start, s.end)).collect())
    }

    #[test]
    fn all_forms_of_times_are_read() {
        for (text, want) in [
            (r#"{"time": [11.2, 17.5]}"#, vec![(11.2, 17.5)]),
            (r#"{"start_time": "14.8", "end_time": "0:01:14.5"}"#, vec![(14.8, 74.5)]),
            (r#"{"time": ["14 s", "00:18"]}"#, vec![(14.0, 18.0)]),
            (r#"{"time": "14 to 18 seconds"}"#, vec![(14.0, 18.0)]),
            (r#"{"time": [[1, 2], ["3s", 4e0]]}"#, vec![(1.0, 2.0), (3.0, 4.0)]),
            ("[(2, 5), (8, 12)]", vec![(2.0, 5.0), (8.0, 12.0)]),
            ("35.6s - 50.9s", vec![(35.6, 50.9)]),
            ("between 15.2 and 25.3", vec![(15.2, 25.3)]),
            ("00:23 – 1:00:29.5", vec![(23.0, 3629.5)]),
            ("From 12 SECONDS TO 16 sec, then 40~50.", vec![(12.0, 16.0), (40.0, 50.0)]),
            ("49.7 to 86.2 and 28.6 to 36.8", vec![(49.7, 86.2), (28.6, 36.8)]),
            ("14 to 18,20 to 30", vec![(14.0, 18.0), (20.0, 30.0)]),
            ("１４ to １８", vec![(14.0, 18.0)]),
            ("-4 to 16", vec![(-4.0, 16.0)]),
            ("10-20", vec![(10.0, 20.0)]),
            ("1,000 to 1,200.5", vec![(1000.0, 1200.5)]),
            (".5 to 1.4e1", vec![(0.5, 14.0)]),
            ("20 to 12", vec![(20.0, 12.0)]),
        ] {
            assert_eq!(pairs(text), Some(want), "{text}");
        }
        for text in [
            "",
            "14",
            "in the middle",
            "[]",
            "{}",
            r#"{"time": [12, 16, 20]}"#,
            r#"{"time": 12}"#,
            r#"{"time": null}"#,
            r#"{"time": [true, 2]}"#,
            r#"{"time": [14, 18"#,
            r#"{"time": [NaN, 16]}"#,
            r#"{"span": [14, 18]}"#,
            r#"{"answer": {"time": [14, 18]}}"#,
            "{'time': [14, 18]}",
            "[2, 5, 8, 12]",
            "[(2, 5, 7)]",
            "3,5 to 8",
            "1.2.3 to 5",
            "1e999 to 2e999",
        ] {
            assert_eq!(pairs(text), None, "{text}");
        }
    }

    fn of(pairs: &[(f64, f64)]) -> Vec<Segment> {
        pairs.iter().map(|&(start, end)| Segment { start, end }).collect()
    }

    #[test]
    fn iou_of_special_segments() {
        for (answer, truth, want) in [
            (&[(12.0, 20.0)][..], &[(12.0, 20.0)][..], 1.0),
            (&[(20.0, 12.0)], &[(12.0, 20.0)], 0.0),
            (&[(15.0, 15.0)], &[(15.0, 15.0)], 0.0),
            (&[(-4.0, 16.0)], &[(12.0, 20.0)], 4.0 / 24.0),
            (&[(2.0, 5.0), (2.0, 5.0), (8.0, 12.0)], &[(2.0, 5.0), (8.0, 12.0)], 1.0),
            (&[(5.0, 2.0), (8.0, 12.0)], &[(8.0, 12.0)], 0.0),
            (&[(-1e308, 1e308)], &[(12.0, 20.0)], 0.0),
            (&[], &[], 0.0),
        ] {
            assert_eq!(temporal_iou(&of(answer), &of(truth)), want, "{answer:?} {truth:?}");
        }
    }

    fn any_segments() -> impl Strategy<Value = Vec<(u8, u8)>> {
        prop::collection::vec((0u8..40, 0u8..40).prop_map(|(a, b)| (a.min(b), a.max(b))), 0..6)
    }

    fn whole_seconds(pairs: &[(u8, u8)]) -> Vec<Segment> {
        pairs.iter().map(|&(s, e)| Segment { start: f64::from(s), end: f64::from(e) }).collect()
    }

    proptest! {
        /// Counts the seconds that each set covers, one by one.
        #[test]
        fn iou_equals_rasterised_segments(a in any_segments(), b in any_segments()) {
            let covers = |set: &[(u8, u8)], t: u8| set.iter().any(|&(s, e)| s <= t && t < e);
            let count = |test: &dyn Fn(u8) -> bool| (0..40).filter(|&t| test(t)).count() as f64;
            let common = count(&|t| covers(&a, t) && covers(&b, t));
            let union = count(&|t| covers(&a, t) || covers(&b, t));
            let want = if union > 0.0 { common / union } else { 0.0 };
            let got = temporal_iou(&whole_seconds(&a), &whole_seconds(&b));
            prop_assert!((got - want).abs() < 1e-12, "{} {}", got, want);
        }

        /// Splitting, repeating and reordering segments changes nothing.
        #[test]
        fn iou_depends_on_the_covered_time_only(a in any_segments(), b in any_segments(), cut in 0u8..40) {
            let whole = temporal_iou(&whole_seconds(&a), &whole_seconds(&b));
            let mut parts: Vec<(u8, u8)> = a.iter().flat_map(|&(s, e)| {
                let middle = cut.clamp(s, e);
                [(middle, e), (s, middle), (s, e)]
            }).collect();
            parts.reverse();
            prop_assert!((temporal_iou(&whole_seconds(&parts), &whole_seconds(&b)) - whole).abs() < 1e-12);
            prop_assert_eq!(temporal_iou(&whole_seconds(&b), &whole_seconds(&a)), whole);
        }

        #[test]
        fn any_text_gives_an_iou_from_0_to_1(text in "([0-9]{1,3}|[.,:es~–−-]| to | and |[\\[\\](){}\"]|time|\\PC){0,30}") {
            if let Some(segments) = segments_in(&text) {
                let iou = temporal_iou(&segments, &of(&[(3.0, 30.0)]));
                prop_assert!((0.0..=1.0).contains(&iou), "{}", iou);
            }
        }

        #[test]
        fn written_times_are_read(start in 0u32..100_000, tenths in 0u32..10, end in 0u32..100_000) {
            let clock = format!("{}:{:02}:{:02}.{tenths} - {}:{:02}", start / 3600, start / 60 % 60, start % 60, end / 60, end % 60);
            let want = Some(vec![(f64::from(start * 10 + tenths) / 10.0, f64::from(end))]);
            let near = pairs(&clock).is_some_and(|got| (got[0].0 - want.as_ref().unwrap()[0].0).abs() < 1e-9);
            prop_assert!(near, "{}", clock);
            prop_assert_eq!(pairs(&format!("{start}.{tenths}s to {end} seconds")), want);
        }
    }
}
