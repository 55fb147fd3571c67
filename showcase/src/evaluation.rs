//! Evaluation on held-out clips: greedy answers to the question of every clip.
//!
//! Motion clips are asked about a second time with their frames in random orders: an accuracy as high as with ordered
//! frames would mean that the model does not use the order of frames.

use std::path::Path;

use reel_engine::{Engine, GenerationRequest};
use reel_media::profile::MediaOverrides;
use reel_model::checkpoint::Checkpoint;
use reel_model::input::ModelInput;
use reel_model::input::encode::{MediaOptions, ModelFolder, encode};
use reel_model::input::messages::{ContentPart, Conversation, MediaSource, VideoPart, VideoSource};
use reel_model::qwen2_5_vl::Qwen25Vl;
use reel_runtime::{Cx, DType, Device};
use reel_train::rollout::with_shuffled_frames;

use crate::Result;
use crate::clips::{Clip, ClipTask, extract_answer};

/// Maximum tokens of an answer; the correct completions are much shorter.
const MAX_ANSWER_TOKENS: usize = 48;
/// Clips per batch.
const BATCH: usize = 24;
/// Number of random frame orders in which each motion clip is asked about.
const SHUFFLES: u64 = 3;

/// The number of correct answers among a number of answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AnswerTally {
    /// Number of correct answers.
    pub correct: usize,
    /// Number of all answers.
    pub total: usize,
}

impl AnswerTally {
    /// Counts the correct answers; each answer comes with its clip.
    pub fn count_correct<'a>(answers: impl Iterator<Item = (&'a Clip, &'a String)>) -> Self {
        answers.fold(Self::default(), |t, (clip, text)| Self {
            correct: t.correct + usize::from(extract_answer(text) == clip.answer),
            total: t.total + 1,
        })
    }

    /// Accuracy: correct answers over all, 0 to 1.
    pub fn accuracy(self) -> f64 {
        self.correct as f64 / self.total.max(1) as f64
    }

    /// Binomial variance of the accuracy.
    pub fn accuracy_variance(self) -> f64 {
        self.accuracy() * (1.0 - self.accuracy()) / self.total.max(1) as f64
    }
}

/// How far the accuracy of `high` is above that of `low`, in standard errors of the difference of two binomial
/// proportions; 0 if the accuracies are equal.
pub fn difference_in_standard_errors(low: AnswerTally, high: AnswerTally) -> f64 {
    if low.accuracy() == high.accuracy() {
        return 0.0;
    }
    (high.accuracy() - low.accuracy()) / (low.accuracy_variance() + high.accuracy_variance()).sqrt()
}

/// The answers of a model in one evaluation.
#[derive(Clone, Debug)]
pub struct EvaluationAnswers {
    /// The answer to each clip.
    pub ordered: Vec<String>,
    /// The answers to the motion clips with shuffled frames: to all clips in a first random order, then in a second,
    /// and so on.
    pub shuffled: Vec<String>,
}

impl EvaluationAnswers {
    /// Counts the correct answers to the clips of one task, or of all tasks.
    pub fn tally(&self, clips: &[Clip], task: Option<ClipTask>) -> AnswerTally {
        AnswerTally::count_correct(clips.iter().zip(&self.ordered).filter(|(c, _)| task.is_none_or(|t| t == c.task)))
    }

    /// Counts the correct answers to motion clips with shuffled frames.
    pub fn shuffled_tally(&self, clips: &[Clip]) -> AnswerTally {
        let motion: Vec<&Clip> = clips.iter().filter(|c| c.task == ClipTask::Motion).collect();
        AnswerTally::count_correct(motion.into_iter().cycle().zip(&self.shuffled))
    }

    /// The accuracies in one line of text.
    pub fn summary(&self, clips: &[Clip]) -> String {
        let fraction = |t: AnswerTally| format!("{} of {}", t.correct, t.total);
        let (all, motion, shuffled) =
            (self.tally(clips, None), self.tally(clips, Some(ClipTask::Motion)), self.shuffled_tally(clips));
        format!(
            "{} held-out clips answered correctly; motion clips {}, motion clips with shuffled frames {}",
            fraction(all),
            fraction(motion),
            fraction(shuffled)
        )
    }
}

/// The questions about the held-out clips, encoded as model inputs.
pub struct ClipEvaluation {
    bundle: ModelFolder,
    ordered: Vec<ModelInput>,
    shuffled: Vec<ModelInput>,
}

impl ClipEvaluation {
    /// Encodes the questions about the clips in `clip_folder`, for models with the tokenizer of the model in
    /// `model_folder`.
    ///
    /// # Errors
    /// The model folder cannot be opened, or a clip cannot be decoded.
    pub fn new(model_folder: &Path, clip_folder: &Path, clips: &[Clip], media: &MediaOptions) -> Result<Self> {
        let bundle = ModelFolder::open(model_folder)?;
        let ask = |clip: &Clip| -> Result<ModelInput> {
            let source = VideoSource::File(MediaSource::Path(clip_folder.join(&clip.file)));
            let video = ContentPart::Video(VideoPart {
                source,
                overrides: MediaOverrides::default(),
                location: clip.file.clone(),
            });
            Ok(encode(&bundle, &Conversation::from_user_message(vec![video], clip.task.question()), media)?)
        };
        let ordered = clips.iter().map(ask).collect::<Result<Vec<_>>>()?;
        let motion = |order: u64| {
            let motion = clips.iter().zip(&ordered).filter(|(c, _)| c.task == ClipTask::Motion);
            motion.zip(0u64..).map(move |((_, tokens), i)| with_shuffled_frames(tokens, (order << 32) + i))
        };
        let shuffled = (0..SHUFFLES).flat_map(motion).collect();
        Ok(Self { bundle, ordered, shuffled })
    }

    /// Generates greedy answers to all questions with the model in `model_folder`.
    ///
    /// # Errors
    /// The weights cannot be opened, or generation fails.
    pub fn run(&self, model_folder: &Path, device: &Device) -> Result<EvaluationAnswers> {
        let files = Checkpoint::open(model_folder)?;
        let weights = Qwen25Vl::open(device, &files, &self.bundle.config, DType::F32)?;
        let engine = Engine::new(&weights, &Cx::inference(device, DType::F32))?;
        let answer = |questions: &[ModelInput]| -> Result<Vec<String>> {
            let mut answers = Vec::new();
            for questions in questions.chunks(BATCH) {
                let requests = questions.iter().map(|q| GenerationRequest {
                    max_new_tokens: MAX_ANSWER_TOKENS,
                    eos_token_ids: self.bundle.stop_token_ids().to_vec(),
                    ..GenerationRequest::new(q)
                });
                let (completions, _) = engine.generate(requests.collect(), |_| {})?;
                answers.extend(completions.iter().map(|c| self.bundle.tokenizer.decode(&c.ids, true)));
            }
            Ok(answers)
        };
        Ok(EvaluationAnswers { ordered: answer(&self.ordered)?, shuffled: answer(&self.shuffled)? })
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
