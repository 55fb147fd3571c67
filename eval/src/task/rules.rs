//! The tables of a task file about prompts, scores and published figures.

use serde::{Deserialize, Serialize};

use super::options::text_without_letter;

/// The text around a question.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct PromptRules {
    /// The text of the user's message, with placeholders `{question}` and `{options}` (one line per option). Only a
    /// benchmark whose questions contain their options needs no `{options}`. If the template is absent, the recipe's
    /// template for evaluation is used, which also says what form the answer has.
    pub template: Option<String>,
    /// The system message. If it is absent, the prompt has no system message, and the chat template may add its own.
    pub system: Option<String>,
    /// The form of an option in `{options}`, with placeholders `{letter}` and `{text}`; without it, the options are shown
    /// as the row has them.
    pub option: Option<String>,
    /// The text between two options in `{options}`; without it, each option is a line.
    pub separator: Option<String>,
}

/// How the score of a benchmark is computed from the scores of its rows.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct ScoreRules {
    /// Whether the official score is the mean over tasks instead of the mean over rows. A task is a category, or all
    /// categories of one entry of `merged_categories`.
    #[serde(default)]
    pub task_mean: bool,
    /// The figure that the papers of VideoRFT and Video-R1 report for this benchmark.
    #[serde(default)]
    pub headline: Headline,
    /// Prefixes of category names: for a prefix `NAME`, the categories `NAME_*` are one task, whose score is the mean
    /// of their scores.
    #[serde(default)]
    pub merged_categories: Vec<String>,
    /// What the rows of a group have to do with each other.
    pub groups: Option<GroupRule>,
    /// The metrics that the report has beside the scores of rows.
    pub metrics: Option<MetricKind>,
    /// The thresholds at which shares of rows are reported (`r@0.5`, `iou@0.5`, …).
    #[serde(default)]
    pub thresholds: Vec<f64>,
    /// The thresholds at which shares of boxes are reported (`ap@0.5`).
    #[serde(default)]
    pub box_thresholds: Vec<f64>,
}

/// How the rows of a group are scored together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum GroupRule {
    /// A group is one question, which is right if all its rows are. All scores but `mean_acc` are those of groups.
    AllRight,
}

/// The metrics of a report. [`crate::score_benchmark`] computes them; its module `metrics` has their formulas.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MetricKind {
    /// Temporal grounding: mean IoU and the shares of rows with an IoU of at least each threshold.
    Grounding,
    /// Multiple-choice answers with the segment that they are based on (NExT-GQA).
    GroundedAnswers,
    /// Groups of four questions with a relevance or a logic score (Video-MME-v2).
    QuestionGroups,
    /// Chains of questions about what, when and where (V-STaR).
    EvidenceChains,
}

/// Selects the headline figure of a benchmark: the score that tables of results list.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Headline {
    /// The mean score of all rows of the benchmark.
    #[default]
    Overall,
    /// The mean of the scores of the benchmark's tasks.
    TaskMean,
    /// The mean of two values: the mean over regression rows and the mean over the other rows.
    MeanOfAccuracyAndMra,
}

/// A published score of a model on the benchmark.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct PublishedScore {
    /// The name of the model.
    pub model: String,
    /// The score in percent.
    pub score: f64,
    /// Number of frames that the model saw of each video.
    pub frames: u32,
    /// The publication that reports the score.
    pub source: String,
}

impl PromptRules {
    /// Returns the text that replaces `{options}` in the template.
    pub(super) fn option_list(&self, options: &[String]) -> String {
        let shown = options.iter().map(|option| match &self.option {
            None => option.clone(),
            Some(form) => {
                let letter: String = option.chars().take(1).collect();
                form.replace("{letter}", &letter).replace("{text}", text_without_letter(option))
            }
        });
        match &self.separator {
            None => shown.map(|option| format!("{option}\n")).collect(),
            Some(separator) => shown.collect::<Vec<_>>().join(separator),
        }
    }
}
