//! The exam: every held-out film's question, answered greedily.

use std::path::Path;

use anyhow::Result;
use reel_engine::{Engine, Request, Sampling, Stop};
use reel_media::profile::Overrides;
use reel_model::checkpoint::Checkpoint;
use reel_model::input::Tokens;
use reel_model::input::encode::{Bundle, MediaOptions, encode};
use reel_model::input::messages::{Conversation, Part, Source, VideoPart, VideoSource};
use reel_model::qwen2_5_vl::Qwen25Vl;
use reel_runtime::{Cx, DType, Device};

use super::clips::Clip;
use crate::model;

/// Tokens of an answer at most; the right ones are much shorter.
const LONGEST: usize = 48;
/// Films that are answered at a time.
const BATCH: usize = 16;

/// Questions as the model reads them.
pub struct Exam {
    bundle: Bundle,
    questions: Vec<Tokens>,
}

impl Exam {
    /// Prepares the questions about films that lie in `films`, for models with the tokenizer of `folder`.
    pub fn new(folder: &Path, films: &Path, clips: &[Clip], media: &MediaOptions) -> Result<Self> {
        let bundle = Bundle::open(folder)?;
        let ask = |clip: &Clip| -> Result<Tokens> {
            let source = VideoSource::File(Source::Path(films.join(&clip.file)));
            let film = Part::Video(VideoPart { source, overrides: Overrides::default(), place: clip.file.clone() });
            Ok(encode(&bundle, &Conversation::question(vec![film], clip.task.question()), media)?)
        };
        let questions = clips.iter().map(ask).collect::<Result<_>>()?;
        Ok(Self { bundle, questions })
    }

    /// What the model of `folder` says to each question.
    pub fn take(&self, folder: &Path, device: &Device) -> Result<Vec<String>> {
        let files = Checkpoint::open(folder)?;
        let weights = Qwen25Vl::open(device, &files, &self.bundle.config, DType::F32)?;
        let engine = Engine::new(&weights, &Cx::inference(device, DType::F32))?;
        let mut said = Vec::new();
        for questions in self.questions.chunks(BATCH) {
            let requests = questions.iter().map(|q| Request {
                prompt: model::sequence(q),
                rope_delta: q.rope_delta,
                sampling: Sampling::default(),
                max_new_tokens: LONGEST,
                eos: self.bundle.stop_ids(),
                min_new_tokens: 0,
                stops: vec![Stop::none()],
            });
            let (completions, _) = engine.generate(requests.collect(), |_| {})?;
            said.extend(completions.iter().map(|c| self.bundle.tokenizer.decode(&c.ids, true)));
        }
        Ok(said)
    }
}
