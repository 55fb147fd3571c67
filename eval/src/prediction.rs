//! Predictions: a prediction is a row of a benchmark together with the output of a model. Parses predictions and
//! computes their scores.
//!
//! Scores follow the evaluation scripts of VideoRFT and Video-R1 ([`Extraction::Tags`]).

use std::borrow::Cow;

use reel_samples::rewards::grounding::{segments_in, temporal_iou};
use reel_samples::rewards::{
    ProblemType, accuracy_reward, check_solution, extract_answer, free_form_accuracy, mean_relative_accuracy,
    multiple_choice_accuracy, numerical_accuracy, ocr_accuracy, parse_json_object, string_field,
};
use reel_support::diagnostic::Diagnostic;
use serde::Deserialize;
use serde_json::Value;

use crate::Extraction;
use crate::error::{Kind, Result};
use crate::row_fields::segments;
use crate::task::{FoundAnswer, Task, text_of_scalar};

/// A row of predictions: the benchmark's `problem_type`, `solution` and `category`, and the model's `output`, or the
/// `error` that explains why the row has no output.
#[derive(Clone, Debug, PartialEq)]
pub struct Prediction {
    /// The kind of problem; `None` for an unknown kind.
    pub problem_type: Option<ProblemType>,
    /// The correct answer in `<answer>` tags.
    pub solution: String,
    /// The options of a multiple-choice question; empty if the row does not list them.
    pub options: Vec<String>,
    /// The categories of the row within the benchmark: `categories`, else `category`.
    pub categories: Vec<String>,
    /// The group of rows that are scored together.
    pub group: Option<GroupMember>,
    /// The segments of the video, in seconds, on which the right answer is based (column `evidence`).
    pub evidence: Vec<[f64; 2]>,
    /// The score of a judge from 0 to 3 (column `judge`). An answer is right from 2 on.
    pub judge: Option<f64>,
    /// The name of the benchmark, which `reel eval` writes into the row.
    pub benchmark: Option<String>,
    /// The row's id within the benchmark (`problem_id`).
    pub id: Option<String>,
    /// The question (column `problem`).
    pub question: Option<String>,
    /// The path of the video (column `path`).
    pub path: Option<String>,
    /// The output of the model.
    pub output: String,
    /// Whether the output was cut at the maximum number of tokens.
    pub is_truncated: bool,
    /// The reason why the row has no output; `None` if the row has an output. A row with an error scores 0.
    pub error: Option<String>,
}

/// The place of a row in a group of rows that are scored together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GroupMember {
    /// The name of the group (column `group`).
    pub name: String,
    /// Which of the group's questions the row asks (column `part`).
    pub part: String,
    /// The kind of group (column `group_type`).
    pub kind: String,
    /// The order in which the group's questions build on each other (column `group_structure`).
    pub structure: String,
    /// The level of difficulty (column `level`).
    pub level: String,
}

/// The lowest score of a judge at which an answer is right (V-STaR's rule).
const MIN_JUDGE_SCORE: f64 = 2.0;

impl Prediction {
    /// Parses a line of JSON. Unknown columns are ignored.
    ///
    /// # Errors
    /// The line is not a JSON object, or a column is missing or has a wrong type; the error names the column.
    pub fn from_json_line(line: &str) -> Result<Self> {
        let fields = parse_json_object(line).map_err(|d| Kind::Failed.error(d))?;
        let text = |name: &str| string_field(&fields, name).map_err(|d| Kind::Failed.error(d));
        let wrong = |name: &str, what: &str| Kind::Failed.error(Diagnostic::new(name, what, "correct the row"));
        let given = |name: &str| fields.get(name).filter(|value| !value.is_null());
        // Columns that are only shown may have any type, because the score does not need them.
        let shown = |name: &str| given(name).and_then(text_of_scalar);
        let scalar = |name: &str| match given(name) {
            Some(value) => text_of_scalar(value).ok_or_else(|| wrong(name, "is not a text or a number")),
            None => Ok(String::new()),
        };
        let listed = fields.get("options").and_then(Value::as_array).into_iter().flatten();
        let group: Option<Result<GroupMember>> = given("group").map(|_| {
            let (name, part, kind) = (scalar("group")?, scalar("part")?, scalar("group_type")?);
            Ok(GroupMember { name, part, kind, structure: scalar("group_structure")?, level: scalar("level")? })
        });
        let evidence = given("evidence").map(|value| {
            segments(value).ok_or_else(|| wrong("evidence", "is not a list of starts and ends in seconds"))
        });
        let is_judged = |score: &f64| (0.0..=3.0).contains(score);
        let judge = given("judge")
            .map(|value| value.as_f64().filter(is_judged).ok_or_else(|| wrong("judge", "is not a number from 0 to 3")));
        let categories = match given("categories") {
            None => given("category").map(|_| text("category")).transpose()?.into_iter().collect(),
            Some(value) => {
                Vec::<String>::deserialize(value).map_err(|_| wrong("categories", "is not a list of texts"))?
            }
        };
        Ok(Self {
            problem_type: ProblemType::parse(&text("problem_type")?).ok(),
            solution: text("solution")?,
            options: listed.filter_map(|option| option.as_str().map(String::from)).collect(),
            categories,
            group: group.transpose()?,
            evidence: evidence.transpose()?.unwrap_or_default(),
            judge: judge.transpose()?,
            benchmark: shown("benchmark"),
            id: shown("problem_id"),
            question: shown("problem"),
            path: shown("path").filter(|path| !path.is_empty()),
            output: text("output")?,
            is_truncated: fields.get("generation").is_some_and(|made| made["finish_reason"] == "length"),
            error: match fields.get("error") {
                None | Some(Value::Null) => None,
                Some(_) => Some(text("error")?),
            },
        })
    }

    /// Returns the prediction in the form in which `task` scores it. The scripts of the built-in benchmarks, which have
    /// no OCR and free-form problems, give such problems no points. A user's own benchmark may have such problems, and
    /// they are then scored.
    #[must_use]
    pub fn prepare_for_scoring(mut self, task: &Task) -> Self {
        if task.user_file_text.is_none() {
            let has_rule = |kind: &ProblemType| !matches!(kind, ProblemType::Ocr | ProblemType::FreeForm);
            self.problem_type = self.problem_type.filter(has_rule);
        }
        self
    }

    /// Checks that the row's solution can be compared with outputs.
    ///
    /// # Errors
    /// The conditions of [`reel_samples::rewards::check_solution`]: for example, the kind of problem is unknown, or the
    /// solution has no `<answer>` tags or is not a number where a number is needed.
    pub fn check_solution(&self) -> Result<(), Diagnostic> {
        check_solution(self.problem_type, &self.solution)
    }

    /// Whether this is a regression problem, which is scored by the relative error of the answer.
    pub fn is_regression(&self) -> bool {
        self.problem_type == Some(ProblemType::Regression)
    }

    /// Whether the score may be between 0 and 1, as in problems whose answer can be partly right.
    pub fn has_partial_score(&self) -> bool {
        use ProblemType::{Boolean, Math, MultipleChoice, Numerical};
        self.problem_type.is_some_and(|kind| !matches!(kind, MultipleChoice | Numerical | Boolean | Math))
    }

    /// Returns the answer in the output, in the form that is compared with the solution. It is "" if the reference
    /// protocol of `task` finds none.
    pub fn answer(&self, task: &Task, extraction: Extraction) -> Cow<'_, str> {
        match self.found_answer(task, extraction) {
            Some(FoundAnswer::Text(text)) => text.into(),
            Some(FoundAnswer::Chance) => "".into(),
            None => extraction.answer(&self.output, self.problem_type, &self.options).into(),
        }
    }

    /// Returns the answer that the reference protocol of `task` finds; `None` with another extraction.
    fn found_answer(&self, task: &Task, extraction: Extraction) -> Option<FoundAnswer> {
        let protocol = task.reference.as_ref().filter(|_| extraction == Extraction::Reference)?;
        Some(protocol.answer.find_answer(&self.output, self.problem_type, &self.options))
    }

    /// Returns the score from 0 to 1. Problems of other kinds than those of VideoRFT's and Video-R1's benchmarks score as
    /// in training. An answer that a judge has scored is right or wrong. An unknown kind of problem and a row with an
    /// `error` score 0.
    pub fn score(&self, task: &Task, extraction: Extraction) -> f64 {
        if self.error.is_some() {
            return 0.0;
        }
        if let Some(judge) = self.judge {
            return f64::from(u8::from(judge >= MIN_JUDGE_SCORE));
        }
        if self.found_answer(task, extraction) == Some(FoundAnswer::Chance) {
            return 1.0 / self.options.len().max(1) as f64;
        }
        let (answer, truth) = (&*self.answer(task, extraction), extract_answer(&self.solution));
        match self.problem_type {
            Some(ProblemType::MultipleChoice) => multiple_choice_accuracy(answer, truth),
            Some(ProblemType::Numerical) => numerical_accuracy(answer, truth),
            Some(ProblemType::Regression) => f64::from(mean_relative_accuracy(answer, truth).unwrap_or(0.0)),
            Some(ProblemType::Ocr) => ocr_accuracy(answer, truth),
            Some(ProblemType::FreeForm) => free_form_accuracy(answer, truth),
            // In f64, because thresholds are compared with the IoU.
            Some(ProblemType::TemporalGrounding) => {
                let segments = |text| segments_in(text).unwrap_or_default();
                temporal_iou(&segments(answer), &segments(truth))
            }
            kind => f64::from(accuracy_reward(kind, &format!("<answer>{answer}</answer>"), &self.solution)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn score(kind: &str, output: &str, solution: &str) -> f32 {
        let row = json!({"problem_type": kind, "solution": format!("<answer>{solution}</answer>"), "output": output});
        Prediction::from_json_line(&row.to_string()).unwrap().score(&Task::of_own_rows(), Extraction::Tags) as f32
    }

    #[test]
    fn output_without_tags_is_the_answer() {
        for (output, want) in [
            ("<answer>B</answer>", 1.0),
            (" B \n", 1.0),
            ("B.", 0.0),
            ("<answer></answer>B", 0.0),
            ("<answer>A</answer>B", 0.0),
        ] {
            assert_eq!(score("multiple choice", output, "B"), want, "{output}");
        }
        assert_eq!(score("multiple choice", "", ""), 1.0);
        assert_eq!(score("numerical", "39.56", "39.559"), 1.0);
        assert_eq!([score("free-form", "a red", "a red"), score("OCR", "a red", "a red")], [1.0, 1.0]);
        assert_eq!(
            [score("free-form", "green", "red"), score("OCR", "green", "red"), score("essay", "B", "B")],
            [0.0; 3]
        );
        // Free-form answers score the weighted mean of ROUGE-1 (1/2), ROUGE-2 (0) and ROUGE-L (1/2). In the OCR case,
        // one of two words is wrong.
        assert!((score("free-form", "a car", "a dog") - 1.0 / 3.0).abs() < 1e-6);
        assert_eq!(score("OCR", "a car", "a dog"), 0.5);
    }

    #[test]
    fn kinds_without_a_rule_and_unusable_solutions_are_named() {
        let fault = |kind: &str, solution: &str| {
            let row = json!({"problem_type": kind, "solution": solution, "output": "1"});
            Prediction::from_json_line(&row.to_string()).unwrap().check_solution().err().map(|d| d.location)
        };
        assert_eq!(fault("regression", "<answer>5</answer>"), None);
        for solution in ["5", "<answer></answer>", "<answer>nan</answer>", "<answer>five</answer>"] {
            assert_eq!(fault("regression", solution).as_deref(), Some("solution"), "{solution}");
        }
        assert_eq!(fault("essay", "<answer>B</answer>").as_deref(), Some("problem_type"));
        assert_eq!(fault("OCR", "<answer>B</answer>").or(fault("free-form", "<answer>B</answer>")), None);
    }

    #[test]
    fn row_with_an_error_scores_0() {
        let row =
            json!({"problem_type": "multiple choice", "solution": "", "output": "", "error": "v.mp4: is missing"});
        let row = Prediction::from_json_line(&row.to_string()).unwrap();
        assert_eq!(
            (row.score(&Task::of_own_rows(), Extraction::Tags), row.error.as_deref()),
            (0.0, Some("v.mp4: is missing"))
        );
    }

    #[test]
    fn thresholds_are_compared_in_f32() {
        for (output, truth, want) in [
            ("90", "100", 0.9),
            ("85", "100", 0.7),
            ("70", "100", 0.4),
            ("105", "100", 1.0),
            ("50", "100", 0.0),
            ("0", "0", 1.0),
            ("0.1", "0", 0.0),
            ("nan", "5", 0.0),
            ("1e400", "5", 0.0),
            ("5", "inf", 0.0),
            ("1,000", "1000.0", 1.0),
            ("about 5", "5", 0.0),
        ] {
            assert_eq!(score("regression", output, truth), want, "{output} for {truth}");
        }
    }

    #[test]
    fn errors_name_the_column() {
        let good = json!({"problem_type": "regression", "solution": "", "output": "", "category": "c"});
        for (name, value) in [
            ("problem_type", Value::Null),
            ("solution", json!(3)),
            ("output", json!(["x"])),
            ("output", Value::Null),
            ("category", json!(1)),
        ] {
            let mut row = good.clone();
            row[name] = value;
            let e = Prediction::from_json_line(&row.to_string()).unwrap_err().to_string();
            assert!(e.starts_with(&format!("{name}: ")) && e.contains("; "), "{e}");
        }
        for line in ["", "[]", "{\"problem_type\""] {
            assert!(Prediction::from_json_line(line).unwrap_err().to_string().starts_with("the line: "));
        }
    }

    proptest! {
        #[test]
        fn score_is_always_in_0_1(kind in "multiple choice|numerical|regression|OCR|free-form", output in "\\PC{0,12}|-?[0-9.,]{0,6}", truth in "-?[0-9.,]{0,6}|nan|inf") {
            prop_assert!((0.0..=1.0).contains(&score(&kind, &output, &truth)));
        }

        #[test]
        fn smaller_error_never_scores_less(truth in 1.0f64..1e4, near in 0.0f64..1.0, more in 0.0f64..1.0) {
            let at = |distance: f64| score("regression", &format!("{}", truth * (1.0 + distance)), &format!("{truth}"));
            prop_assert!(at(near) >= at(near + more));
        }
    }
}
