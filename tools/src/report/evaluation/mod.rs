//! The page of an evaluation (`reel eval`): scores beside published ones, scores by category, every single answer with
//! the frames that the model saw, and the settings of the run. A page may show a second run over the same questions.
//!
//! ```text
//! predictions, scores, settings of a run -> EvaluationRun            the command reads the files
//! wrong answers first -> videos -> frames as JPEG, up to a limit      frames.rs
//! scores, bars, settings -> HTML                                      scores.rs, settings.rs
//! answers and frames -> JSON, which answers.js shows                  data.rs
//! ```
//! The page is a function of these inputs: it has no time stamps and no name of an output folder, so a merged or
//! resumed run gives the same page as an uninterrupted run.

mod answer;
mod data;
mod frames;
mod scores;
mod settings;

use reel_eval::{BenchmarkReport, Comparison, Extraction, Task, compare_runs};
use serde_json::Value;

use crate::error::{Error, Result};
use crate::report::escape::escape_html;
use crate::report::html::HtmlPage;

pub use answer::AnsweredRow;
pub use frames::{FrameSource, FrameStrips};

const STYLE: &str = include_str!("answers.css");
const SCRIPT: &str = include_str!("answers.js");

/// One evaluation of a model: its answers to the questions of the benchmarks.
#[derive(Clone, Debug)]
pub struct EvaluationRun {
    /// The name of this run on a page that compares two runs.
    pub name: String,
    /// The benchmarks, in the order of the page.
    pub benchmarks: Vec<BenchmarkAnswers>,
}

/// The answers to the questions of a benchmark.
#[derive(Clone, Debug)]
pub struct BenchmarkAnswers {
    /// The benchmark.
    pub task: Task,
    /// The scores of the benchmark.
    pub report: BenchmarkReport,
    /// The settings of the run (`NAME.jsonl.run.json`).
    pub settings: Value,
    /// The answers, in the order of the file.
    pub answers: Vec<AnsweredRow>,
}

impl EvaluationRun {
    /// The benchmark of this name.
    fn benchmark(&self, name: &str) -> Option<&BenchmarkAnswers> {
        self.benchmarks.iter().find(|own| own.task.name == name)
    }

    fn answer_count(&self) -> usize {
        self.benchmarks.iter().map(|own| own.answers.len()).sum()
    }

    /// The model's name and the run's name, as one text.
    fn label(&self) -> String {
        format!("{} ({})", settings::model_name(self.first_settings()), self.name)
    }

    fn first_settings(&self) -> &Value {
        self.benchmarks.first().map_or(&Value::Null, |own| &own.settings)
    }
}

impl BenchmarkAnswers {
    /// The rule that extracts answers from outputs. The scores used the same rule.
    fn extraction(&self) -> Extraction {
        self.report.extraction
    }

    /// The score of each answer, from 0 to 1.
    fn scores(&self) -> Vec<f64> {
        self.answers.iter().map(|answer| answer.prediction.score(&self.task, self.extraction())).collect()
    }
}

/// Compares the two runs on each benchmark that both runs have.
fn comparisons(run: &EvaluationRun, against: &EvaluationRun) -> Result<Vec<Comparison>> {
    let mut compared = Vec::new();
    for own in &run.benchmarks {
        let Some(other) = against.benchmark(&own.task.name) else { continue };
        let rows =
            [own, other].map(|run| run.answers.iter().map(|answer| answer.prediction.clone()).collect::<Vec<_>>());
        let comparison = compare_runs(&own.task, [&rows[0], &rows[1]], own.extraction());
        compared.push(comparison.map_err(|e| {
            let wrong = e.diagnostic;
            let file = format!("{}/{}.jsonl", against.name, own.task.name);
            let what = format!("cannot be compared with {}: {} {}", run.name, wrong.location, wrong.what);
            Error::failed(file, what, wrong.help)
        })?);
    }
    Ok(compared)
}

/// The HTML page of a run. If `against` is given, the page compares it with a second run over the same questions.
///
/// # Errors
/// The runs have no benchmark in common, or rows of the same name have different questions.
pub fn evaluation_page_html(
    run: &EvaluationRun,
    against: Option<&EvaluationRun>,
    frames: &FrameStrips,
) -> Result<String> {
    let compared = against.map(|against| comparisons(run, against)).transpose()?.unwrap_or_default();
    if against.is_some() && compared.is_empty() {
        let other = against.map_or("", |against| &against.name);
        let what = format!("has no benchmark in common with {}", run.name);
        return Err(Error::failed(other, what, "give a run of the same benchmarks"));
    }
    let mut models: Vec<String> =
        [Some(run), against].into_iter().flatten().map(|run| settings::model_name(run.first_settings())).collect();
    models.dedup();
    let mut page =
        HtmlPage::new(&format!("Evaluation of {}", models.join(" and "))).with_style(STYLE).with_script(SCRIPT);
    page.add("<button type=\"button\" id=\"theme\" hidden>Colours</button>\n");
    let own = settings::settings_summary(run.first_settings());
    let is_same = against.is_none_or(|against| settings::settings_summary(against.first_settings()) == own);
    let summary = if is_same { own } else { "The settings of the runs differ; see below.".into() };
    let questions = if run.answer_count() == 1 { "question" } else { "questions" };
    let names: Vec<&str> = run.benchmarks.iter().map(|own| &own.task.title[..]).collect();
    page.add(&format!(
        "<p>{} {questions} of {}. {}</p>\n",
        scores::with_digit_groups(run.answer_count()),
        escape_html(&names.join(", ")),
        escape_html(&summary),
    ));
    scores::add_scores(&mut page, run, against, &compared);
    data::add_answers(&mut page, run, against, frames);
    settings::add_settings(&mut page, run, against);
    Ok(page.into_html())
}

#[cfg(test)]
mod tests;
