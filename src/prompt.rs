//! What a command asks the model: messages from a file, or a question about a film or picture.

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::Result;
use clap::Args;
use reel_media::profile::{MediaOverrides, MediaProfile};
use reel_model::hub::{Progress, resolve};
use reel_model::input::ModelInput;
use reel_model::input::encode::{Bundle, MediaOptions, SecondPerGrid, encode};
use reel_model::input::messages::{ContentPart, Conversation, ImagePart, MediaSource, VideoPart, VideoSource};
use reel_model::lora::{ADAPTER_CONFIG, Adapter, is_adapter};
use reel_train::options::Recipe;

use crate::common::Common;
use crate::fail::{bad_usage, failed};
use crate::media::{MediaFlags, WorkerFlags};
use crate::{output, trace};

/// A model, and what is put on it.
#[derive(Args, Clone, Debug)]
pub struct ModelFlags {
    /// The model folder, or a hub id; or the folder of a LoRA adapter, which names its model
    #[arg(long, value_name = "MODEL")]
    model: String,
    /// The folder of a LoRA adapter to put on the model, as reel sft --lora-r or PEFT wrote it
    #[arg(long, value_name = "DIR")]
    adapter: Option<PathBuf>,
}

/// Messages in a file, and how their media are read.
#[derive(Args, Clone, Debug)]
pub struct MessageFlags {
    /// Chat messages, a JSON list as OpenAI and Qwen write them
    #[arg(long, value_name = "M.json")]
    pub messages: Option<PathBuf>,
    /// The folder that media paths are relative to [default: that of the messages]
    #[arg(long, value_name = "DIR")]
    media_root: Option<PathBuf>,
    #[command(flatten)]
    media: MediaFlags,
    #[command(flatten)]
    worker: WorkerFlags,
    /// Whose rules to follow; they differ in training and rewards, so nothing depends on it here
    #[arg(long, value_enum, default_value_t, hide_possible_values = true)]
    parity: Recipe,
}

/// A question about a film or a picture, instead of messages.
#[derive(Args, Clone, Debug)]
pub struct QuestionFlags {
    /// A film to ask about
    #[arg(long, value_name = "FILE|URL", conflicts_with = "messages")]
    video: Option<String>,
    /// A picture to ask about
    #[arg(long, value_name = "FILE|URL", conflicts_with = "messages")]
    image: Option<String>,
    /// What to ask
    #[arg(long, value_name = "TEXT", conflicts_with = "messages", required_unless_present = "messages")]
    prompt: Option<String>,
}

/// A model folder and a prompt for it.
#[derive(Debug)]
pub struct Prompt {
    /// The model folder.
    pub folder: PathBuf,
    /// What is in it but the weights.
    pub bundle: Bundle,
    /// The prompt as the model reads it.
    pub tokens: ModelInput,
    /// Seconds that making it took.
    pub seconds: f64,
}

impl ModelFlags {
    /// The model to open, and the folder of the adapter to put on it.
    pub fn parts(&self) -> Result<(String, Option<PathBuf>)> {
        let folder = Path::new(&self.model);
        if !is_adapter(folder) {
            return Ok((self.model.clone(), self.adapter.clone()));
        }
        if self.adapter.is_some() {
            return Err(bad_usage("--model", "is an adapter itself", "give a model, or leave --adapter out"));
        }
        let place = format!("{}: base_model_name_or_path", folder.join(ADAPTER_CONFIG).display());
        let cure = format!("give --model BASE --adapter {}", folder.display());
        let base = match Adapter::open(folder)?.base() {
            Some(base) => base.to_string(),
            None => return Err(failed(place, "is missing", cure)),
        };
        // What looks like a path is none of the hub's ids.
        if base.starts_with(['/', '.']) && !Path::new(&base).is_dir() {
            return Err(failed(place, format!("names {base}, which is not there"), cure));
        }
        Ok((base, Some(folder.to_path_buf())))
    }
}

/// The folder of a MODEL argument: a folder, or a hub id.
pub fn folder(model: &str) -> Result<PathBuf> {
    if is_adapter(Path::new(model)) {
        return Err(failed(model, "is an adapter, not a model", "give its model, or make one of both with reel merge"));
    }
    let mut said = Instant::now();
    let mut say = |p: Progress| {
        if output::watched() && (said.elapsed().as_millis() > 200 || p.total == Some(p.done)) {
            said = Instant::now();
            let of = p.total.map_or(String::new(), |t| format!(" of {:.1}", t as f64 / 1e6));
            let end = if p.total == Some(p.done) { "\n" } else { "" };
            eprint!("\rfetching {}: {:.1}{of} MB{end}", p.file, p.done as f64 / 1e6);
        }
    };
    Ok(resolve(model, &mut say)?)
}

impl MessageFlags {
    /// Reads the messages and prepares them.
    pub fn encode(&self, model: &str, common: &Common) -> Result<Prompt> {
        let path = self.messages.as_deref().unwrap_or(Path::new("-"));
        self.encode_conversation(model, common, || Ok(Conversation::open(path, self.media_root.as_deref())?))
    }

    /// Prepares the messages, or else the question.
    pub fn encode_or_ask(&self, question: &QuestionFlags, model: &str, common: &Common) -> Result<Prompt> {
        match &self.messages {
            Some(_) => self.encode(model, common),
            None => self.encode_conversation(model, common, || Ok(question.conversation(self.media_root.as_deref()))),
        }
    }

    fn encode_conversation(
        &self,
        model: &str,
        common: &Common,
        conversation: impl FnOnce() -> Result<Conversation>,
    ) -> Result<Prompt> {
        let begun = Instant::now();
        let folder = folder(model)?;
        let bundle = trace::span("open", || Bundle::open(&folder))?;
        let conversation = conversation()?;
        let options = MediaOptions {
            profile: self.media.profile(MediaProfile::Qwen)?,
            overrides: self.media.overrides(),
            decoder: self.worker.decoder(common)?,
            second_per_grid: SecondPerGrid::True,
        };
        let tokens = trace::span("preprocess", || encode(&bundle, &conversation, &options))?;
        Ok(Prompt { folder, bundle, tokens, seconds: begun.elapsed().as_secs_f64() })
    }
}

impl QuestionFlags {
    fn conversation(&self, media_root: Option<&Path>) -> Conversation {
        let source = |text: &String| MediaSource::parse(text, media_root.unwrap_or(Path::new("")));
        let overrides = MediaOverrides::default();
        let image = self
            .image
            .as_ref()
            .map(|i| ContentPart::Image(ImagePart { source: source(i), overrides, place: "--image".into() }));
        let video = self.video.as_ref().map(|v| {
            ContentPart::Video(VideoPart { source: VideoSource::File(source(v)), overrides, place: "--video".into() })
        });
        Conversation::question(image.into_iter().chain(video).collect(), self.prompt.as_deref().unwrap_or_default())
    }
}
