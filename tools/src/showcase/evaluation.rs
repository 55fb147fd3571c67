//! Reads the results of `reel eval` on the held-out clips: the answer to each clip, and the number of correct answers.
//!
//! The model also answers half of the motion clips with their frames in random order. An accuracy as high as with
//! ordered frames would mean that the model does not use the order of frames.

use std::collections::HashMap;
use std::path::Path;

use reel_eval::{Prediction, Task};
use reel_support::diagnostic::input;

use crate::error::{Error, Result};
use crate::showcase::benchmarks::{CLIP_FOLDER, ClipBenchmark, EXTRACTION, shuffled_clips, shuffled_file};
use crate::showcase::clips::{Clip, ClipTask};

/// The number of correct answers, and the number of all answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AnswerTally {
    /// Number of correct answers.
    pub correct: usize,
    /// Number of all answers.
    pub total: usize,
}

impl AnswerTally {
    /// Counts the correct answers.
    fn of<'a>(answers: impl Iterator<Item = &'a ClipAnswer>) -> Self {
        answers.fold(Self::default(), |t, answer| Self {
            correct: t.correct + usize::from(answer.is_correct),
            total: t.total + 1,
        })
    }

    /// Accuracy, 0 to 1: the number of correct answers divided by the number of all answers.
    pub fn accuracy(self) -> f64 {
        self.correct as f64 / self.total.max(1) as f64
    }

    /// Binomial variance of the accuracy.
    pub fn accuracy_variance(self) -> f64 {
        self.accuracy() * (1.0 - self.accuracy()) / self.total.max(1) as f64
    }
}

/// The accuracy of `high` less that of `low`, in standard errors of the difference of two binomial proportions; 0 if
/// the accuracies are equal.
pub fn difference_in_standard_errors(low: AnswerTally, high: AnswerTally) -> f64 {
    if low.accuracy() == high.accuracy() {
        return 0.0;
    }
    (high.accuracy() - low.accuracy()) / (low.accuracy_variance() + high.accuracy_variance()).sqrt()
}

/// An answer to the question about a clip.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClipAnswer {
    /// The output of the model.
    pub output: String,
    /// Whether the answer's score is 1.
    pub is_correct: bool,
}

/// The answers of a model in one evaluation.
#[derive(Clone, Debug)]
pub struct EvaluationAnswers {
    /// The answer to each clip.
    pub ordered: Vec<ClipAnswer>,
    /// The answers to the motion clips with shuffled frames.
    pub shuffled: Vec<ClipAnswer>,
}

impl EvaluationAnswers {
    /// Reads the answers that `reel eval` has written into `folder`.
    ///
    /// # Errors
    /// A file cannot be read, or has no answer to one of the clips.
    pub fn read(folder: &Path, clips: &[Clip]) -> Result<Self> {
        let mut answers: HashMap<String, ClipAnswer> = HashMap::new();
        for benchmark in ClipBenchmark::ALL {
            let file = folder.join(format!("{}.jsonl", benchmark.name()));
            let text = input::read_text(&file, input::MAX_ROWS_BYTES).map_err(|e| Error::cannot_read(&file, &e))?;
            for line in text.lines() {
                let row = Prediction::from_json_line(line)?;
                let is_correct = row.score(&Task::of_own_rows(), EXTRACTION) == 1.0;
                answers.insert(row.path.unwrap_or_default(), ClipAnswer { output: row.output, is_correct });
            }
        }
        let mut take = |file: String| {
            answers.remove(&format!("{CLIP_FOLDER}/{file}")).ok_or_else(|| {
                let what = format!("has no answer about {file}");
                Error::failed(folder.display().to_string(), what, "run the demo again")
            })
        };
        let ordered = clips.iter().map(|clip| take(clip.file.clone())).collect::<Result<_>>()?;
        let shuffled = shuffled_clips(clips).map(|clip| take(shuffled_file(clip))).collect::<Result<_>>()?;
        Ok(Self { ordered, shuffled })
    }

    /// Counts the correct answers to the clips of one task, or of all tasks.
    pub fn tally(&self, clips: &[Clip], task: Option<ClipTask>) -> AnswerTally {
        let of_task = clips.iter().zip(&self.ordered).filter(|(clip, _)| task.is_none_or(|task| task == clip.task));
        AnswerTally::of(of_task.map(|(_, answer)| answer))
    }

    /// Counts the correct answers to motion clips with shuffled frames.
    pub fn shuffled_tally(&self) -> AnswerTally {
        AnswerTally::of(self.shuffled.iter())
    }

    /// The accuracies in one line of text.
    pub fn summary(&self, clips: &[Clip]) -> String {
        let fraction = |t: AnswerTally| format!("{} of {}", t.correct, t.total);
        let (all, motion) = (self.tally(clips, None), self.tally(clips, Some(ClipTask::Motion)));
        format!(
            "{} held-out clips answered correctly; motion clips {}, motion clips with shuffled frames {}",
            fraction(all),
            fraction(motion),
            fraction(self.shuffled_tally())
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn standard_errors_are_those_of_two_proportions() {
        let tally = |correct, total| AnswerTally { correct, total };
        assert_eq!(difference_in_standard_errors(tally(0, 0), tally(0, 240)), 0.0);
        let gain = difference_in_standard_errors(tally(120, 240), tally(180, 240));
        assert!((gain - 0.25 / (0.25f64 / 240.0 + 0.1875 / 240.0).sqrt()).abs() < 1e-12);
        assert_eq!(difference_in_standard_errors(tally(180, 240), tally(120, 240)), -gain);
    }
}
