//! A row of the input file of `reel reward`: one or more completions of a prompt.
//!
//! | field | meaning |
//! |---|---|
//! | `problem_type`, `solution` | the kind of problem; the correct answer in `<answer>` tags |
//! | `completion` or `completions` | one text, or the texts of a group |
//! | `lengths` | number of tokens of each completion (optional) |
//! | `shuffled_completions` | completions for shuffled frames, of rows about videos (optional) |
//! | `data_type`, `frames` | `image` or `video`; image files for the semantic reward (optional) |
//! | `answer_space`, `width`, `height`, `duration`, `options` | see [`ProblemFields`] (optional) |
//! | `step` | the training step, a whole number: rows of one step are one batch (needed by `--scale-rewards ema`) |
//!
//! Other fields are ignored. A field that is `null` counts as absent.

use std::path::PathBuf;

use reel_support::diagnostic::Diagnostic;
use serde_json::{Map, Value};

use crate::error::{Error, Kind, Result};
use crate::rewards::problem::ProblemFields;
use crate::rewards::{
    ProblemType, RewardRules, ScaleRewards, Scores, ScoringGroup, SemanticModel, check_solution, reasoning_text,
    semantic_reward,
};

/// One row to be scored.
#[derive(Clone, Debug, PartialEq)]
pub struct RewardRow {
    /// The completions with all data that is needed to score them.
    pub group: ScoringGroup,
    /// Whether the row has `completion` instead of `completions`, so that its scores are numbers instead of lists.
    pub is_single: bool,
    /// Whether `frames` are frames of a video (`data_type` is `video`).
    pub is_video: bool,
    /// The training step whose batch the row belongs to.
    pub step: Option<u64>,
    /// Image files with which completions are compared for the semantic reward; may be empty.
    pub frames: Vec<PathBuf>,
}

impl RewardRow {
    /// Parses a line of JSON and checks its fields, and that it has those that `rules` need. An unknown `problem_type`
    /// is accepted and gives accuracy 0.
    ///
    /// # Errors
    /// The line is not a JSON object, or a field is missing or has a wrong type; the error names the field.
    pub fn parse(line: &str, rules: &RewardRules) -> Result<Self> {
        let fields = RowFields(parse_json_object(line).map_err(|d| Kind::Reward.error(d))?);
        let (completions, is_single) = match (fields.get("completion"), fields.get("completions")) {
            (Some(_), None) => (vec![fields.text("completion")?], true),
            (None, Some(_)) => (fields.texts("completions")?, false),
            (None, None) => {
                return Err(Error::reward("completion", "is missing", "give `completion` or `completions`"));
            }
            (Some(_), Some(_)) => {
                let what = "is given together with `completions`";
                return Err(Error::reward("completion", what, "give only one of the two"));
            }
        };
        let shuffled = fields.get("shuffled_completions").map(|_| fields.texts("shuffled_completions")).transpose()?;
        let lengths = fields.lengths(completions.len())?;
        let data_type = fields.data_type()?;
        if let Some(other) = data_type.filter(|kind| shuffled.is_some() && *kind != "video") {
            let what = format!("is given, but the row's data_type is {other}, and only videos get the temporal reward");
            return Err(Error::reward("shuffled_completions", what, "remove it, or correct data_type"));
        }
        let is_video = data_type == Some("video");
        let frames = fields.get("frames").map(|_| fields.texts("frames")).transpose()?.unwrap_or_default();
        let problem_type = ProblemType::parse(&fields.text("problem_type")?).ok();
        let solution = Some(fields.text("solution")?);
        let step = fields.step()?;
        let needed = |name: &str, is_missing: bool, option: &str, help: &str| match is_missing {
            true => Err(Error::reward(name, format!("is missing, but {option} needs it"), help)),
            false => Ok(()),
        };
        let tokens = "give the number of tokens of each completion";
        needed("lengths", rules.overlong.is_some() && lengths.is_empty(), "--overlong-cache", tokens)?;
        let is_ema = rules.scale == ScaleRewards::Ema;
        needed("step", is_ema && step.is_none(), "--scale-rewards ema", "give the training step of each row")?;
        let read = ProblemFields::from_row(&fields.0, problem_type, rules.answers);
        let fields = read.map_err(|d| Kind::Reward.error(d))?;
        let group =
            ScoringGroup { problem_type, solution, fields, completions, lengths, shuffled, ..ScoringGroup::default() };
        Ok(Self { group, is_single, is_video, step, frames: frames.into_iter().map(PathBuf::from).collect() })
    }

    /// Checks that answers can be compared with the row's solution, see [`check_solution`].
    ///
    /// # Errors
    /// The solution cannot be compared with answers.
    pub fn check_solution(&self) -> Result<(), Diagnostic> {
        check_solution(self.group.problem_type, self.group.solution.as_deref().unwrap_or_default())
    }

    /// Scores the row. The semantic reward needs a `model` and a row with `frames`.
    ///
    /// # Errors
    /// The model fails, or does not return one similarity per text and frame.
    pub fn score(mut self, rules: &RewardRules, model: Option<&mut dyn SemanticModel>) -> Result<Scores> {
        if let Some(model) = model.filter(|_| !self.frames.is_empty()) {
            let texts: Vec<&str> = self.group.completions.iter().map(|c| reasoning_text(c)).collect();
            let cosines =
                model.similarities(&texts, &self.frames, rules.answers.recipe.uses_negative_frames(self.is_video))?;
            let is_complete = |cosines: &Vec<f32>| cosines.len() == self.frames.len();
            if cosines.len() != texts.len() || !cosines.iter().all(is_complete) {
                let what = "the model did not return one similarity per text and frame";
                return Err(Error::reward("semantic", what, "report this as a bug"));
            }
            self.group.semantic = Some(cosines.iter().map(|cosines| semantic_reward(cosines)).collect());
        }
        Ok(self.group.score(rules))
    }
}

/// Parses a line that holds one JSON object.
///
/// # Errors
/// The line is not JSON, or not an object.
pub fn parse_json_object(line: &str) -> Result<Map<String, Value>, Diagnostic> {
    let wrong = |what: String| Diagnostic::new("the line", what, "write one JSON object per line");
    match serde_json::from_str(line).map_err(|e| wrong(format!("is not JSON: {e}")))? {
        Value::Object(fields) => Ok(fields),
        _ => Err(wrong("is not an object".into())),
    }
}

/// Returns the string in the field `name` of a JSON object.
///
/// # Errors
/// The field is missing or not a string.
pub fn string_field(fields: &Map<String, Value>, name: &str) -> Result<String, Diagnostic> {
    match fields.get(name) {
        Some(Value::String(text)) => Ok(text.clone()),
        Some(Value::Null) | None => Err(Diagnostic::new(name, "is missing", "add the field, or remove the row")),
        Some(_) => Err(Diagnostic::new(name, "is not a string", "write the field as a JSON string")),
    }
}

/// The fields of a row, with typed accessors whose errors name the field.
struct RowFields(Map<String, Value>);

impl RowFields {
    fn get(&self, name: &str) -> Option<&Value> {
        self.0.get(name).filter(|value| !value.is_null())
    }

    fn text(&self, name: &str) -> Result<String> {
        string_field(&self.0, name).map_err(|d| Kind::Reward.error(d))
    }

    /// Returns the field `name`, a list of at least one string.
    fn texts(&self, name: &str) -> Result<Vec<String>> {
        let error = |what: &str| Err(Error::reward(name, what, "give a list of strings"));
        let Some(Value::Array(list)) = self.get(name) else { return error("is not a list") };
        let texts: Option<Vec<String>> = list.iter().map(|text| text.as_str().map(String::from)).collect();
        match texts {
            None => error("contains a value that is not a string"),
            Some(texts) if texts.is_empty() => error("is empty"),
            Some(texts) => Ok(texts),
        }
    }

    fn lengths(&self, completions: usize) -> Result<Vec<usize>> {
        let error = |what: String| {
            Err(Error::reward("lengths", what, "give the number of tokens of each completion, in order"))
        };
        let list = match self.get("lengths") {
            None => return Ok(Vec::new()),
            Some(Value::Array(list)) => list,
            Some(_) => return error("is not a list".into()),
        };
        let lengths: Option<Vec<usize>> = list.iter().map(|n| usize::try_from(n.as_u64()?).ok()).collect();
        match lengths {
            None => error("contains a value that is not a token count".into()),
            Some(lengths) if lengths.len() != completions => {
                error(format!("has {} numbers for {completions} completions", lengths.len()))
            }
            Some(lengths) => Ok(lengths),
        }
    }

    fn step(&self) -> Result<Option<u64>> {
        let number = |value: &Value| {
            value.as_u64().ok_or_else(|| {
                Error::reward("step", format!("is {value}, which is not a step"), "give a whole number, 0 or more")
            })
        };
        self.get("step").map(number).transpose()
    }

    /// Returns the field `data_type`: `video`, `image` or `text`.
    fn data_type(&self) -> Result<Option<&str>> {
        match self.get("data_type") {
            None => Ok(None),
            Some(Value::String(kind)) if ["video", "image", "text"].contains(&kind.as_str()) => Ok(Some(kind)),
            Some(other) => Err(Error::reward("data_type", format!("is {other}"), "use \"image\" or \"video\"")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rewards::{AnswerRules, OverlongPenalty, TemporalIou};
    use proptest::prelude::*;
    use serde_json::json;

    fn parse(line: &str) -> Result<RewardRow> {
        RewardRow::parse(line, &RewardRules::default())
    }

    fn row() -> Value {
        json!({"problem_type": "multiple choice", "solution": "<answer>A</answer>", "lengths": [400, 400],
            "completions": ["<think>a. b</think><answer>A</answer>", "<answer>B</answer>"], "extra": {"x": 1}})
    }

    fn with(name: &str, value: Value) -> Result<RewardRow> {
        let mut row = row();
        row[name] = value;
        parse(&row.to_string())
    }

    #[test]
    fn errors_name_the_field() {
        for (name, value) in [
            ("solution", json!(3)),
            ("solution", Value::Null),
            ("problem_type", json!(["OCR"])),
            ("completions", json!("x")),
            ("completions", json!([])),
            ("completions", json!(["x", 1])),
            ("completion", json!("x")),
            ("lengths", json!([400])),
            ("lengths", json!([400, -1])),
            ("lengths", json!([400, 1.5])),
            ("lengths", json!(400)),
            ("shuffled_completions", json!([])),
            ("shuffled_completions", json!("x")),
            ("frames", json!([])),
            ("frames", json!("a.png")),
            ("data_type", json!("audio")),
        ] {
            let e = with(name, value.clone()).unwrap_err().to_string();
            assert!(e.starts_with(&format!("{name}: ")) && e.contains("; "), "{name} {value}: {e}");
        }
        assert!(with("completions", Value::Null).unwrap_err().to_string().starts_with("completion: is missing"));
        for line in ["", "{", "[]", "3", "{\"solution\": \"\\ud800\"}"] {
            assert!(parse(line).unwrap_err().to_string().starts_with("the line: "), "{line}");
        }
        assert_eq!(with("problem_type", json!("essay")).unwrap().group.problem_type, None);
        assert_eq!(with("lengths", Value::Null).unwrap().group.lengths, [0; 0]);
    }

    #[test]
    fn only_videos_have_completions_for_shuffled_frames() {
        let with_type = |data_type: Value| {
            let mut row = row();
            row["shuffled_completions"] = json!(["a"]);
            row["data_type"] = data_type;
            parse(&row.to_string())
        };
        assert!(with_type(json!("video")).unwrap().is_video && with_type(Value::Null).is_ok());
        for other in ["image", "text"] {
            let e = with_type(json!(other)).unwrap_err().to_string();
            let wanted = format!("shuffled_completions: is given, but the row's data_type is {other}, and only videos");
            assert!(e.starts_with(&wanted), "{e}");
        }
    }

    #[test]
    fn fields_that_rules_need_are_checked() {
        let grounding =
            json!({"problem_type": "temporal grounding", "solution": "<answer>[1, 2]</answer>", "completion": "x"});
        let spatial = json!({"problem_type": "spatial grounding", "solution": "<answer>[1, 2, 3, 4]</answer>", "completion": "x"});
        let plain = RewardRules::default();
        let time_r1 = AnswerRules { temporal_iou: TemporalIou::TimeR1, ..AnswerRules::default() };
        let time_r1 = RewardRules { answers: time_r1, ..RewardRules::default() };
        let overlong = RewardRules { overlong: OverlongPenalty::new(10, 100).ok(), ..RewardRules::default() };
        let ema = RewardRules { scale: ScaleRewards::Ema, ..RewardRules::default() };
        let with = |row: &Value, fields: Value| {
            let mut row = row.clone();
            fields.as_object().unwrap().iter().for_each(|(key, value)| row[key] = value.clone());
            row.to_string()
        };
        for (row, fields, rules, start) in [
            (&grounding, json!({}), &time_r1, "duration: is missing, but --temporal-iou time-r1 needs it; "),
            (
                &grounding,
                json!({"duration": 0}),
                &time_r1,
                "duration: is 0, but --temporal-iou time-r1 needs a number above 0; ",
            ),
            (&grounding, json!({"duration": "60"}), &time_r1, "duration: is \"60\", but "),
            (&grounding, json!({"duration": 60}), &time_r1, ""),
            (&grounding, json!({"duration": 0}), &plain, ""),
            (
                &spatial,
                json!({"answer_space": "0-1000"}),
                &plain,
                "width: is missing, but answer_space 0-1000 needs it; ",
            ),
            (&spatial, json!({"answer_space": "0-1000", "width": 9, "height": -1}), &plain, "height: is -1, but "),
            (
                &spatial,
                json!({"answer_space": "0-999", "width": 9, "height": 9}),
                &plain,
                "answer_space: is \"0-999\", which is unknown; ",
            ),
            (&spatial, json!({"answer_space": "pixel"}), &plain, ""),
            (&spatial, json!({}), &overlong, "lengths: is missing, but --overlong-cache needs it; "),
            (&spatial, json!({}), &ema, "step: is missing, but --scale-rewards ema needs it; "),
            (&spatial, json!({"step": 1.5}), &plain, "step: is 1.5, which is not a step; "),
            (&spatial, json!({"step": 0}), &ema, ""),
        ] {
            let error = RewardRow::parse(&with(row, fields), rules).err().map(|e| e.to_string()).unwrap_or_default();
            assert!(error.starts_with(start) && error.is_empty() == start.is_empty(), "{start}: {error}");
        }
    }

    proptest! {
        #[test]
        fn any_line_gives_a_row_or_an_error(line in "\\PC*") {
            if let Err(e) = parse(&line) {
                prop_assert!(e.to_string().contains(": ") && e.to_string().contains("; "));
            }
        }
    }

    /// A model that records its last call: the texts, and the flag `negative`. Its third field is a number of frames:
    /// the result leaves out that many frames at the start.
    struct RecordingModel(Vec<String>, bool, usize);

    impl SemanticModel for RecordingModel {
        fn similarities(&mut self, texts: &[&str], frames: &[PathBuf], negative: bool) -> Result<Vec<Vec<f32>>> {
            self.0 = texts.iter().map(|t| t.to_string()).collect();
            self.1 = negative;
            Ok(texts.iter().map(|_| frames.iter().skip(self.2).map(|_| 0.25).collect()).collect())
        }
    }

    #[test]
    fn one_model_call_scores_the_whole_group() {
        let mut model = RecordingModel(vec![], false, 0);
        let mut score = |data_type: &str, recipe| {
            let mut row = row();
            row["frames"] = json!(["0.png", "1.png"]);
            row["data_type"] = json!(data_type);
            let row = parse(&row.to_string()).unwrap();
            let scores = row
                .score(
                    &RewardRules {
                        answers: AnswerRules { recipe, ..AnswerRules::default() },
                        ..RewardRules::default()
                    },
                    Some(&mut model),
                )
                .unwrap();
            assert_eq!(scores.semantic, [0.5, 0.0]);
            assert_eq!(model.0, ["b", "<answer>B</answer>"]);
            model.1
        };
        use crate::rewards::Recipe::{Paper, VideoR1, Videorft};
        assert!(score("video", Videorft));
        assert!(!score("image", Videorft) && !score("video", Paper) && !score("video", VideoR1));
        let scores = parse(&row().to_string()).unwrap().score(&RewardRules::default(), Some(&mut model)).unwrap();
        assert!(scores.semantic.is_empty());
        let mut short = row();
        short["frames"] = json!(["0.png", "1.png"]);
        let short = parse(&short.to_string()).unwrap();
        let e =
            short.score(&RewardRules::default(), Some(&mut RecordingModel(vec![], false, 1))).unwrap_err().to_string();
        assert!(e.starts_with("semantic: "), "{e}");
    }
}
