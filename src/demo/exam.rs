//! The exam: every held-out film's question, answered greedily; those about order also with the frames in random orders.

use std::path::Path;

use anyhow::Result;
use reel_engine::{Engine, GenerationRequest, SamplingParams, StopCondition};
use reel_media::profile::MediaOverrides;
use reel_model::checkpoint::Checkpoint;
use reel_model::input::ModelInput;
use reel_model::input::encode::{Bundle, MediaOptions, encode};
use reel_model::input::messages::{ContentPart, Conversation, MediaSource, VideoPart, VideoSource};
use reel_model::qwen2_5_vl::Qwen25Vl;
use reel_runtime::{Cx, DType, Device};
use reel_train::rollout::shuffled;

use super::clips::{Clip, Task, answer_of};
use crate::model;

/// Tokens of an answer at most; the right ones are much shorter.
const LONGEST: usize = 48;
/// Films that are answered at a time.
const BATCH: usize = 24;
/// Random orders in which each film of a motion is shown.
const ORDERS: u64 = 3;

/// Right answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Right ones.
    pub right: usize,
    /// All.
    pub of: usize,
}

impl Tally {
    /// Of answers with the films that they are about.
    pub fn of<'a>(answers: impl Iterator<Item = (&'a Clip, &'a String)>) -> Self {
        answers.fold(Self::default(), |t, (clip, text)| Self {
            right: t.right + usize::from(answer_of(text) == clip.answer),
            of: t.of + 1,
        })
    }

    /// The share of right ones.
    pub fn share(self) -> f64 {
        self.right as f64 / self.of.max(1) as f64
    }

    /// The binomial variance of the share.
    pub fn variance(self) -> f64 {
        self.share() * (1.0 - self.share()) / self.of.max(1) as f64
    }
}

/// How far one share lies above another, in standard errors of the difference of two binomial shares; of shares that are equal, 0.
pub fn standard_errors(low: Tally, high: Tally) -> f64 {
    if low.share() == high.share() {
        return 0.0;
    }
    (high.share() - low.share()) / (low.variance() + high.variance()).sqrt()
}

/// What was said in an exam.
#[derive(Clone, Debug)]
pub struct Said {
    /// To each film.
    pub ordered: Vec<String>,
    /// To each film of a motion with its frames in random orders, one order after the other.
    pub shuffled: Vec<String>,
}

impl Said {
    /// Right answers of one task, or of all.
    pub fn tally(&self, clips: &[Clip], task: Option<Task>) -> Tally {
        Tally::of(clips.iter().zip(&self.ordered).filter(|(c, _)| task.is_none_or(|t| t == c.task)))
    }

    /// Right answers to shuffled films.
    pub fn shuffled_tally(&self, clips: &[Clip]) -> Tally {
        let motion: Vec<&Clip> = clips.iter().filter(|c| c.task == Task::Motion).collect();
        Tally::of(motion.into_iter().cycle().zip(&self.shuffled))
    }

    /// The figures in a line.
    pub fn line(&self, clips: &[Clip]) -> String {
        let share = |t: Tally| format!("{} of {}", t.right, t.of);
        let (all, motion, shuffled) =
            (self.tally(clips, None), self.tally(clips, Some(Task::Motion)), self.shuffled_tally(clips));
        format!(
            "{} held-out films answered correctly; motion {}, with shuffled frames {}",
            share(all),
            share(motion),
            share(shuffled)
        )
    }
}

/// Questions as the model reads them.
pub struct Exam {
    bundle: Bundle,
    ordered: Vec<ModelInput>,
    shuffled: Vec<ModelInput>,
}

impl Exam {
    /// Prepares the questions about films that lie in `films`, for models with the tokenizer of `folder`.
    pub fn new(folder: &Path, films: &Path, clips: &[Clip], media: &MediaOptions) -> Result<Self> {
        let bundle = Bundle::open(folder)?;
        let ask = |clip: &Clip| -> Result<ModelInput> {
            let source = VideoSource::File(MediaSource::Path(films.join(&clip.file)));
            let film = ContentPart::Video(VideoPart {
                source,
                overrides: MediaOverrides::default(),
                place: clip.file.clone(),
            });
            Ok(encode(&bundle, &Conversation::question(vec![film], clip.task.question()), media)?)
        };
        let ordered = clips.iter().map(ask).collect::<Result<Vec<_>>>()?;
        let motion = |order: u64| {
            let films = clips.iter().zip(&ordered).filter(|(c, _)| c.task == Task::Motion);
            films.zip(0u64..).map(move |((_, tokens), i)| shuffled(tokens, (order << 32) + i))
        };
        let shuffled = (0..ORDERS).flat_map(motion).collect();
        Ok(Self { bundle, ordered, shuffled })
    }

    /// What the model of `folder` says to each question.
    pub fn take(&self, folder: &Path, device: &Device) -> Result<Said> {
        let files = Checkpoint::open(folder)?;
        let weights = Qwen25Vl::open(device, &files, &self.bundle.config, DType::F32)?;
        let engine = Engine::new(&weights, &Cx::inference(device, DType::F32))?;
        let answer = |questions: &[ModelInput]| -> Result<Vec<String>> {
            let mut said = Vec::new();
            for questions in questions.chunks(BATCH) {
                let requests = questions.iter().map(|q| GenerationRequest {
                    prompt: model::sequence(q),
                    rope_delta: q.rope_delta,
                    sampling: SamplingParams::default(),
                    max_new_tokens: LONGEST,
                    eos: self.bundle.stop_ids(),
                    min_new_tokens: 0,
                    stops: vec![StopCondition::none()],
                });
                let (completions, _) = engine.generate(requests.collect(), |_| {})?;
                said.extend(completions.iter().map(|c| self.bundle.tokenizer.decode(&c.ids, true)));
            }
            Ok(said)
        };
        Ok(Said { ordered: answer(&self.ordered)?, shuffled: answer(&self.shuffled)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gains_are_told_in_standard_errors() {
        let tally = |right, of| Tally { right, of };
        assert_eq!(standard_errors(tally(0, 0), tally(0, 240)), 0.0);
        let gain = standard_errors(tally(120, 240), tally(180, 240));
        assert!((gain - 0.25 / (0.25f64 / 240.0 + 0.1875 / 240.0).sqrt()).abs() < 1e-12);
        assert_eq!(standard_errors(tally(180, 240), tally(120, 240)), -gain);
    }
}
