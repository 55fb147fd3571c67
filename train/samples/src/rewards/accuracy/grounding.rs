//! Accuracy of answers that name times and places: temporal, spatial and spatio-temporal grounding, tracking, and
//! segmentation by a box and points. The formulas are OneThinker's (github.com/tulerfeng/OneThinker at 768b20f).

use serde_json::Value;

use crate::rewards::grounding::{
    BoundingBox, BoxesByFrame, Segment, box_in, box_iou, boxes_by_frame, common_frames_iou, json_in, segments_in,
    segments_of, temporal_iou, tracking_iou,
};
use crate::rewards::malformed::Malformed;
use crate::rewards::problem::ProblemFields;
use crate::rewards::structure::three_points;

/// Distance of points, in the units of the coordinates, at which their similarity is exp(-1/2).
const POINT_SIGMA: f64 = 50.0;

/// Distance of times in seconds at which their similarity is exp(-1).
const TIME_SCALE: f64 = 2.0;

/// Temporal IoU of the segments in both texts ([`segments_in`]). With a `duration`, by Time-R1's rule, which is below
/// 0 if one end is off by more than the duration.
pub fn temporal_accuracy(answer: &str, truth: &str, duration: Option<f64>) -> Result<f64, Malformed> {
    let answer = ordered(segments_in(answer))?;
    let Some(truth) = segments_in(truth) else { return Ok(0.0) };
    let iou = temporal_iou(&answer, &truth);
    let Some(duration) = duration else { return Ok(iou) };
    let ([answer], [truth]) = (&answer[..], &truth[..]) else { return Err(Malformed::SeveralTimes) };
    let nearness = |a: f64, b: f64| 1.0 - (a - b).abs() / duration;
    // Distances may be larger than the range of f64 times the duration, but then the IoU is 0.
    Ok(if iou > 0.0 { iou * nearness(answer.start, truth.start) * nearness(answer.end, truth.end) } else { 0.0 })
}

fn ordered(segments: Option<Vec<Segment>>) -> Result<Vec<Segment>, Malformed> {
    let segments = segments.ok_or(Malformed::NoTime)?;
    if segments.iter().any(|s| s.end < s.start) { Err(Malformed::ReversedTime) } else { Ok(segments) }
}

/// Box IoU of the boxes in both texts ([`box_in`]); the answer's is multiplied by `scale` first.
pub fn spatial_accuracy(answer: &str, truth: &str, scale: [f64; 2]) -> Result<f64, Malformed> {
    let answer = box_in(answer).ok_or(Malformed::NoBox)?;
    Ok(box_in(truth).map_or(0.0, |truth| box_iou(&answer.scaled(scale), &truth)))
}

/// The mean box IoU over all frames of the truth ([`tracking_iou`]).
pub fn tracking_accuracy(answer: &str, truth: &str, scale: [f64; 2]) -> Result<f64, Malformed> {
    let frames = |text| json_in(text).as_ref().and_then(boxes_by_frame);
    let answer = scaled(frames(answer).ok_or(Malformed::NoFrames)?, scale);
    Ok(frames(truth).map_or(0.0, |truth| tracking_iou(&answer, &truth)))
}

fn scaled(frames: BoxesByFrame, scale: [f64; 2]) -> BoxesByFrame {
    frames.into_iter().map(|(key, found)| (key, found.map(|found| found.scaled(scale)))).collect()
}

/// Half the temporal IoU, and half the mean box IoU over the frames that both name ([`common_frames_iou`]). The answer
/// is a JSON object; frames are named by its keys, not counted. The part that the answer does not have counts 0.
pub fn spatial_temporal_accuracy(answer: &str, truth: &str, scale: [f64; 2]) -> Result<f64, Malformed> {
    let object = |text| json_in(text).filter(Value::is_object);
    let frames = |object: &Value| boxes_by_frame(object).filter(|_| object["boxes"].is_object());
    let answer = object(answer).ok_or(Malformed::NoFrames)?;
    let (times, boxes) = (segments_of(&answer), frames(&answer));
    if times.is_none() && boxes.is_none() {
        return Err(Malformed::NoFrames);
    }
    let Some(truth) = object(truth) else { return Ok(0.0) };
    let in_time = temporal_iou(&times.unwrap_or_default(), &segments_of(&truth).unwrap_or_default());
    let boxes = scaled(boxes.unwrap_or_default(), scale);
    Ok(0.5 * in_time + 0.5 * common_frames_iou(&boxes, &frames(&truth).unwrap_or_default()))
}

/// A segmentation by points: a box, three points inside of the object, three outside, and for a video the time.
struct PointPrompt {
    bounds: Option<BoundingBox>,
    positive: [[f64; 2]; 3],
    negative: [[f64; 2]; 3],
    time: Option<f64>,
}

impl PointPrompt {
    fn parse(text: &str) -> Option<Self> {
        let object = json_in(text)?;
        let points = |name| three_points(object.get(name)?);
        Some(Self {
            bounds: object.get("boxes").and_then(BoundingBox::from_json),
            positive: points("positive_points")?,
            negative: points("negative_points")?,
            time: object.get("time").and_then(Value::as_f64),
        })
    }
}

/// Whether a segmentation problem is about a video: as its row says, else if its truth has a time.
pub(crate) fn is_video(fields: &ProblemFields, truth: &str) -> bool {
    fields.is_video.unwrap_or_else(|| json_in(truth).is_some_and(|truth| truth.get("time").is_some()))
}

/// For an image 0.5 IoU + 0.25 P + 0.25 N, for a video 0.3 IoU + 0.3 exp(-|Δt| / 2 s) + 0.2 P + 0.2 N, where P and N
/// are the similarities of the positive and negative points ([`points_similarity`]). An answer without its box has the
/// IoU 0. The answer's box and points are scaled as [`ProblemFields::answer_scale`] says.
pub fn segmentation_accuracy(answer: &str, truth: &str, fields: &ProblemFields) -> Result<f64, Malformed> {
    let is_video = is_video(fields, truth);
    let answer = PointPrompt::parse(answer).ok_or(Malformed::NoPoints)?;
    let Some(truth) = PointPrompt::parse(truth) else { return Ok(0.0) };
    let scale = fields.answer_scale;
    let of_boxes = match (answer.bounds, truth.bounds) {
        (Some(answer), Some(truth)) => box_iou(&answer.scaled(scale), &truth),
        _ => 0.0,
    };
    let to_truth = |points: [[f64; 2]; 3]| points.map(|[x, y]| [x * scale[0], y * scale[1]]);
    let positive = points_similarity(to_truth(answer.positive), truth.positive);
    let negative = points_similarity(to_truth(answer.negative), truth.negative);
    if !is_video {
        return Ok(0.5 * of_boxes + 0.25 * positive + 0.25 * negative);
    }
    let at = answer.time.ok_or(Malformed::NoTime)?;
    let in_time = truth.time.map_or(0.0, |truth| (-(at - truth).abs() / TIME_SCALE).exp());
    Ok(0.3 * of_boxes + 0.3 * in_time + 0.2 * positive + 0.2 * negative)
}

/// exp(-d² / (2 · 50²)), where d is the mean distance of three pairs of points under the best assignment.
fn points_similarity(answer: [[f64; 2]; 3], truth: [[f64; 2]; 3]) -> f64 {
    let distance = |i: usize, j: usize| (answer[i][0] - truth[j][0]).hypot(answer[i][1] - truth[j][1]);
    let assignments = [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]];
    let sums = assignments.map(|order| (0..3).map(|i| distance(i, order[i])).sum::<f64>());
    let mean = sums.into_iter().fold(f64::INFINITY, f64::min) / 3.0;
    (-mean * mean / (2.0 * POINT_SIGMA * POINT_SIGMA)).exp()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn time_r1_weighs_the_iou_with_the_distances_of_both_ends() {
        let at = |answer: &str, duration| temporal_accuracy(answer, "[12, 20]", duration);
        assert_eq!(at("14 to 18", None), Ok(0.5));
        assert_eq!(at("14 to 18", Some(60.0)), Ok(0.5 * (1.0 - 2.0 / 60.0) * (1.0 - 2.0 / 60.0)));
        assert_eq!(at("12 to 16, 18 to 20", Some(60.0)), Err(Malformed::SeveralTimes));
        assert_eq!(at("20 to 12", Some(60.0)), Err(Malformed::ReversedTime));
        assert_eq!(at("none", None), Err(Malformed::NoTime));
    }

    #[test]
    fn parts_of_a_spatio_temporal_answer_count_one_half_each() {
        let truth = r#"{"time": [3, 9], "boxes": {"1": [0, 0, 2, 2], "2": [0, 0, 4, 4]}}"#;
        for (answer, want) in [
            (truth, Ok(1.0)),
            (r#"{"time": [3, 6]}"#, Ok(0.25)),
            (r#"{"boxes": {"2": [0, 0, 4, 2]}}"#, Ok(0.25)),
            (r#"{"time": [9, 3], "boxes": [[0, 0, 2, 2]]}"#, Ok(0.0)),
            ("3 to 9", Err(Malformed::NoFrames)),
            (r#"{"label": "cup"}"#, Err(Malformed::NoFrames)),
        ] {
            assert_eq!(spatial_temporal_accuracy(answer, truth, [1.0; 2]), want, "{answer}");
        }
        let large = r#"{"boxes": {"1": [0, 0, 1000, 500]}}"#;
        assert_eq!(spatial_temporal_accuracy(large, truth, [0.002, 0.004]), Ok(0.5));
        assert_eq!(tracking_accuracy(large, truth, [0.002, 0.004]), Ok(0.5));
    }

    proptest! {
        /// Points in another order have the same similarity, and equal points 1.
        #[test]
        fn points_are_assigned_in_any_order(points in prop::array::uniform3(prop::array::uniform2(-1e3f64..1e3)), others in prop::array::uniform3(prop::array::uniform2(-1e3f64..1e3)), turn in 0usize..3) {
            let mut turned = points;
            turned.rotate_left(turn);
            turned.swap(0, turn);
            prop_assert_eq!(points_similarity(turned, points), 1.0);
            prop_assert!((points_similarity(turned, others) - points_similarity(points, others)).abs() < 1e-12);
            prop_assert!((points_similarity(others, points) - points_similarity(points, others)).abs() < 1e-12);
        }
    }
}
