//! Boxes in an answer, and their intersection over union (IoU): one box, boxes by frame, and their means over frames.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use regex::Regex;
use serde_json::Value;

use super::answer_json::json_in;
use super::times::ratio;
use crate::rewards::python_number::parse_python_float;

/// A box `[x1, y1, x2, y2]` as an answer names it: its sides may be reversed, and it may be out of the frame.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BoundingBox(pub [f64; 4]);

/// Boxes by the key of their frame; `None` for a frame whose value is not a box.
pub type BoxesByFrame = BTreeMap<String, Option<BoundingBox>>;

/// The keys of an object whose value is a box or boxes, in order of precedence.
const KEYS: [&str; 3] = ["boxes", "bbox_2d", "bbox"];

/// A bracket of four numbers in prose.
static BRACKET: LazyLock<Regex> = LazyLock::new(bracket);

#[expect(clippy::expect_used, reason = "the expression is constant, and each test compiles it")]
fn bracket() -> Regex {
    let number = r"\s*([+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)\s*";
    Regex::new(&format!(r"[\[(]{}[\])]", [number; 4].join(","))).expect("a valid expression")
}

impl BoundingBox {
    /// Reads a JSON list of four finite numbers, which may be written as texts.
    pub fn from_json(value: &Value) -> Option<Self> {
        numbers(value).map(Self)
    }

    /// Multiplies the x coordinates by `scale[0]` and the y coordinates by `scale[1]`.
    #[must_use]
    pub fn scaled(self, scale: [f64; 2]) -> Self {
        let [x1, y1, x2, y2] = self.0;
        Self([x1 * scale[0], y1 * scale[1], x2 * scale[0], y2 * scale[1]])
    }

    /// The area; 0 if a side is not positive.
    fn area(self) -> f64 {
        let [x1, y1, x2, y2] = self.0;
        (x2 - x1).max(0.0) * (y2 - y1).max(0.0)
    }
}

/// Reads a JSON list of `N` finite numbers, which may be written as texts.
pub fn numbers<const N: usize>(value: &Value) -> Option<[f64; N]> {
    let number = |value: &Value| match value {
        Value::Number(number) => number.as_f64(),
        Value::String(text) => parse_python_float(text).filter(|x| x.is_finite()),
        _ => None,
    };
    value.as_array()?.iter().map(number).collect::<Option<Vec<f64>>>()?.try_into().ok()
}

/// Returns the value of the first of [`KEYS`] that an object has.
fn boxes_field(value: &Value) -> Option<&Value> {
    KEYS.iter().find_map(|key| value.get(key))
}

/// Returns the only box that the text of an answer names; `None` if it names none or several.
///
/// In JSON ([`json_in`]) this is a list of four numbers, an object with `boxes`, `bbox_2d` or `bbox`, or a list of one
/// of these; in any other text the only bracket of four numbers.
pub fn box_in(text: &str) -> Option<BoundingBox> {
    if let Some(value) = json_in(text) {
        return only_box(&value);
    }
    let mut found = BRACKET.captures_iter(text);
    let numbers: Vec<f64> = found.next()?.iter().skip(1).flatten().filter_map(|n| n.as_str().parse().ok()).collect();
    let only = Some(BoundingBox(numbers.try_into().ok()?)).filter(|_| found.next().is_none());
    only.filter(|b| b.0.iter().all(|x| x.is_finite()))
}

fn only_box(value: &Value) -> Option<BoundingBox> {
    let of_list = |value: &Value| match value.as_array().map(Vec::as_slice) {
        Some([only]) => BoundingBox::from_json(only),
        _ => BoundingBox::from_json(value),
    };
    match value {
        Value::Object(_) => of_list(boxes_field(value)?),
        Value::Array(list) => match list.as_slice() {
            [only @ Value::Object(_)] => of_list(boxes_field(only)?),
            _ => of_list(value),
        },
        _ => None,
    }
}

/// Returns the boxes of an answer in JSON: those of an object's `boxes`, `bbox_2d` or `bbox`, by frame, or a list of
/// boxes. The boxes of a list get the keys 1, 2, …. `None` if the value has neither.
pub fn boxes_by_frame(value: &Value) -> Option<BoxesByFrame> {
    match boxes_field(value).unwrap_or(value) {
        Value::Array(list) => {
            let boxes = list.iter().map(BoundingBox::from_json);
            Some(boxes.enumerate().map(|(i, found)| ((i + 1).to_string(), found)).collect())
        }
        Value::Object(frames) if boxes_field(value).is_some() => {
            Some(frames.iter().map(|(key, value)| (key.clone(), BoundingBox::from_json(value))).collect())
        }
        _ => None,
    }
}

/// The area of the intersection of two boxes divided by the area of their union, in 0..=1. No pixel is added to sides,
/// nothing is clipped or reordered; a side that is not positive gives the area 0, and the union 0 gives 0 (OneThinker).
pub fn box_iou(a: &BoundingBox, b: &BoundingBox) -> f64 {
    let [[x1, y1, x2, y2], other] = [a.0, b.0];
    let common = BoundingBox([x1.max(other[0]), y1.max(other[1]), x2.min(other[2]), y2.min(other[3])]).area();
    ratio(common, a.area() + b.area() - common)
}

/// The mean of the IoU over all frames of the truth, in 0..=1. A frame for which the answer has no box counts 0, and
/// frames that the truth does not have do not count (OneThinker).
pub fn tracking_iou(answer: &BoxesByFrame, truth: &BoxesByFrame) -> f64 {
    truth.iter().map(|(key, truth)| frame_iou(answer.get(key), truth)).sum::<f64>() / truth.len().max(1) as f64
}

/// The mean of the IoU over the frames that both the answer and the truth name, in 0..=1; 0 if there are none
/// (OneThinker's spatio-temporal rule).
pub fn common_frames_iou(answer: &BoxesByFrame, truth: &BoxesByFrame) -> f64 {
    let common = truth.iter().filter(|(key, _)| answer.contains_key(*key));
    let (sum, n) = common.fold((0.0, 0), |(sum, n), (key, truth)| (sum + frame_iou(answer.get(key), truth), n + 1));
    sum / f64::from(n.max(1))
}

fn frame_iou(answer: Option<&Option<BoundingBox>>, truth: &Option<BoundingBox>) -> f64 {
    match (answer, truth) {
        (Some(Some(answer)), Some(truth)) => box_iou(answer, truth),
        _ => 0.0,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn all_forms_of_a_box_are_read() {
        let want = Some(BoundingBox([1.0, 2.5, 3.0, 4.0]));
        for text in [
            r#"{"boxes": [1, 2.5, 3, 4]}"#,
            r#"{"boxes": [["1", "2.5", "3", "4"]]}"#,
            r#"{"bbox": [1, 2.5, 3, 4], "label": "cup"}"#,
            r#"[{"bbox_2d": [1, 2.5, 3, 4]}]"#,
            "```json\n[{\"bbox_2d\": [1, 2.5, 3, 4]}]\n```",
            r#"{"boxes": [0, 0, 9, 9]}{"boxes": [1, 2.5, 3, 4]}"#,
            "[1, 2.5, 3, 4]",
            "[[1, 2.5, 3, 4]]",
            "(1, 2.5, 3, 4)",
            "The cup is at [1, 2.5, 3.0, 4.] in the frame.",
        ] {
            assert_eq!(box_in(text), want, "{text}");
        }
        for text in [
            "",
            "[1, 2, 3]",
            r#"{"boxes": [1, 2, 3, 4, 5]}"#,
            r#"{"boxes": null, "bbox": [1, 2, 3, 4]}"#,
            r#"{"boxes": {"1": [1, 2, 3, 4]}}"#,
            r#"{"boxes": ["1px", "2", "3", "4"]}"#,
            r#"{"boxes": ["nan", "2", "3", "4"]}"#,
            r#"{"box": [1, 2, 3, 4]}"#,
            r#"[{"bbox_2d": [1, 2, 3, 4]}, {"bbox_2d": [1, 2, 3, 4]}]"#,
            "[1, 2, 3, 4] or [1, 2, 3, 4]",
            "at [1, 2, 3, 4, 5]",
            "at [1, 2, 3, 1e999]",
        ] {
            assert_eq!(box_in(text), None, "{text}");
        }
    }

    #[test]
    fn boxes_of_frames_are_compared_by_key() {
        let frames = |value: Value| boxes_by_frame(&value).unwrap();
        let truth = frames(json!({"boxes": {"1": [0, 0, 2, 2], "2": [0, 0, 4, 4]}}));
        for (answer, tracking, common) in [
            (json!({"boxes": {"1": [0, 0, 2, 2], "2": [0, 0, 4, 4]}}), 1.0, 1.0),
            (json!({"boxes": {"1": [0, 0, 2, 2], "9": [0, 0, 4, 4]}}), 0.5, 1.0),
            (json!({"boxes": {"01": [0, 0, 2, 2]}}), 0.0, 0.0),
            (json!({"boxes": {"1": [0, 0, 1, 2], "2": "x"}}), 0.25, 0.25),
            (json!({"boxes": {}}), 0.0, 0.0),
            (json!([[0, 0, 2, 2], [0, 0, 4, 2], [0, 0, 1, 1]]), 0.75, 0.75),
        ] {
            let answer_boxes = frames(answer.clone());
            let got = (tracking_iou(&answer_boxes, &truth), common_frames_iou(&answer_boxes, &truth));
            assert_eq!(got, (tracking, common), "{answer}");
        }
        for value in
            [json!({"time": [1, 2]}), json!({"boxes": "x"}), json!({"boxes": null}), json!({"1": [0, 0, 2, 2]})]
        {
            assert_eq!(boxes_by_frame(&value), None, "{value}");
        }
    }

    fn any_box() -> impl Strategy<Value = BoundingBox> {
        prop::array::uniform4(-12i8..12).prop_map(|sides| BoundingBox(sides.map(f64::from)))
    }

    proptest! {
        /// Counts the unit squares of each box, one by one.
        #[test]
        fn iou_equals_rasterised_boxes(a in any_box(), b in any_box()) {
            let holds = |b: &BoundingBox, x: f64, y: f64| b.0[0] <= x && x < b.0[2] && b.0[1] <= y && y < b.0[3];
            let count = |test: &dyn Fn(f64, f64) -> bool| {
                (-12..12).flat_map(|x| (-12..12).map(move |y| (f64::from(x), f64::from(y)))).filter(|&(x, y)| test(x, y)).count() as f64
            };
            let common = count(&|x, y| holds(&a, x, y) && holds(&b, x, y));
            let union = count(&|x, y| holds(&a, x, y) || holds(&b, x, y));
            prop_assert_eq!(box_iou(&a, &b), if union > 0.0 { common / union } else { 0.0 });
        }

        #[test]
        fn iou_is_symmetric_and_independent_of_scale(a in any_box(), b in any_box(), scale in prop::array::uniform2(0.5f64..4.0)) {
            prop_assert_eq!(box_iou(&a, &b), box_iou(&b, &a));
            prop_assert!((box_iou(&a.scaled(scale), &b.scaled(scale)) - box_iou(&a, &b)).abs() < 1e-9);
        }

        #[test]
        fn iou_of_any_numbers_is_from_0_to_1(a in prop::array::uniform4(any::<f64>()), b in prop::array::uniform4(any::<f64>())) {
            let iou = box_iou(&BoundingBox(a), &BoundingBox(b));
            prop_assert!((0.0..=1.0).contains(&iou), "{}", iou);
        }

        #[test]
        fn no_text_panics(text in "([0-9.e-]{1,4}|[\\[\\](){}:,\" ]|boxes|bbox|\\PC){0,40}") {
            box_in(&text);
            json_in(&text).as_ref().map(boxes_by_frame);
        }
    }
}
