//! The structure reward of OneThinker: whether an answer is JSON with the fields that its kind of problem has
//! (`answer_structure_bonus` of github.com/tulerfeng/OneThinker at 768b20f).

use serde_json::{Map, Value};

use crate::rewards::ProblemType;
use crate::rewards::answer::extract_answer;
use crate::rewards::format::matches_format;
use crate::rewards::grounding::{BoundingBox, numbers};

/// The reward of a complete answer, in halves for kinds with boxes by frame: fields, and share of the frames named.
const STRUCTURE_REWARD: f64 = 0.5;

/// The structure reward of a completion, from 0 to 0.5; `None` for a kind of problem whose answers are not JSON. 0 if
/// the completion does not have the required format, or if the whole answer is not a JSON object.
///
/// Temporal and spatial grounding and segmentation: 0.5 if the object has all fields with the right counts of numbers.
/// Tracking and spatio-temporal grounding: 0.25 for that, and 0.25 times the share of the truth's frames named.
pub fn structure_reward(kind: ProblemType, completion: &str, solution: &str, is_video: bool) -> Option<f32> {
    if !kind.has_structure() {
        return None;
    }
    let object = |text| serde_json::from_str::<Map<String, Value>>(extract_answer(text)).ok();
    let Some(answer) = object(completion).filter(|_| matches_format(completion)) else { return Some(0.0) };
    let is_complete = has_all_fields(kind, &answer, is_video);
    let reward = match kind {
        ProblemType::Tracking | ProblemType::SpatialTemporalGrounding => {
            let share = share_of_frames(&answer, &object(solution).unwrap_or_default());
            STRUCTURE_REWARD / 2.0 * (f64::from(is_complete) + share)
        }
        _ => STRUCTURE_REWARD * f64::from(is_complete),
    };
    Some(reward as f32)
}

/// Whether an answer of a kind that [`ProblemType::has_structure`] has its fields with the right counts of numbers.
fn has_all_fields(kind: ProblemType, answer: &Map<String, Value>, is_video: bool) -> bool {
    let has_time = || answer.get("time").is_some_and(|time| numbers::<2>(time).is_some());
    let has_box = || answer.get("boxes").and_then(BoundingBox::from_json).is_some();
    let has_frames = || {
        let frames = answer.get("boxes").and_then(Value::as_object);
        frames.is_some_and(|frames| frames.values().all(|value| BoundingBox::from_json(value).is_some()))
    };
    match kind {
        ProblemType::TemporalGrounding => has_time(),
        ProblemType::SpatialGrounding => has_box(),
        ProblemType::SpatialTemporalGrounding => has_time() && has_frames(),
        ProblemType::Tracking => has_frames(),
        _ => {
            let has_points = |name| answer.get(name).is_some_and(|points| three_points(points).is_some());
            let has_moment = || answer.get("time").is_some_and(Value::is_number);
            has_box() && has_points("positive_points") && has_points("negative_points") && (!is_video || has_moment())
        }
    }
}

/// Reads a list of three points of two numbers.
pub(crate) fn three_points(value: &Value) -> Option<[[f64; 2]; 3]> {
    let points: Option<Vec<[f64; 2]>> = value.as_array()?.iter().map(numbers::<2>).collect();
    points?.try_into().ok()
}

/// The share of the frames of the truth that the answer names.
fn share_of_frames(answer: &Map<String, Value>, truth: &Map<String, Value>) -> f64 {
    let frames = |of: &Map<String, Value>| of.get("boxes").and_then(Value::as_object).cloned().unwrap_or_default();
    let (answer, truth) = (frames(answer), frames(truth));
    truth.keys().filter(|key| answer.contains_key(*key)).count() as f64 / truth.len().max(1) as f64
}
