//! Command line options that name a model and a prompt. The prompt is a file of chat messages, or a question about a
//! video or an image.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use anyhow::Result;
use clap::Args;
use reel_input::ModelInput;
use reel_input::encode::{ModelFolder, encode};
use reel_input::fetch::{MediaAccess, RemoteMedia};
use reel_input::media::profile::{MediaOverrides, MediaProfile};
use reel_input::media_loading::{MediaOptions, SecondPerGrid};
use reel_input::messages::{ContentPart, Conversation, ImagePart, MediaSource, VideoPart, VideoSource};
use reel_input::request::RequestSettings;
use reel_model::lora::{Adapter, is_adapter_folder};
use reel_support::diagnostic::escape_controls;
use reel_tools::measure::trace;
use reel_train::options::Recipe;

use crate::common::CommonOptions;
use crate::fail::{failed, usage_error};
use crate::media::{MediaAccessFlags, MediaFlags, TrainingMediaSettings, WorkerFlags, check_fits_model};
use crate::request::read_chat_request;
use crate::{hub, output, replaced};

/// Options that select a model and, optionally, a LoRA adapter.
#[derive(Args, Clone, Debug)]
pub struct ModelFlags {
    /// Model folder, Hugging Face model id, or folder of a LoRA adapter that names its base model
    #[arg(long, value_name = "MODEL")]
    pub model: String,
    /// Folder of a LoRA adapter for the model, as reel sft --lora-r or PEFT writes it
    #[arg(long, value_name = "DIR")]
    pub adapter: Option<PathBuf>,
}

/// Options for chat messages in a file, and for reading their media.
#[derive(Args, Clone, Debug)]
pub struct MessageFlags {
    /// Chat messages: a JSON list in the format of OpenAI and Qwen, or the body of an OpenAI chat request; - is stdin
    #[arg(long, value_name = "M.json")]
    pub messages: Option<PathBuf>,
    /// Folder that media paths are relative to [default: the folder of the messages or data file; for stdin the working
    /// directory]
    #[arg(long, value_name = "DIR")]
    media_root: Option<PathBuf>,
    #[command(flatten)]
    media: MediaFlags,
    #[command(flatten)]
    access: MediaAccessFlags,
    #[command(flatten)]
    worker: WorkerFlags,
    /// Recipe (see reel sft --help): paper, videorft or video-r1. The recipe has an effect only on the prompts of
    /// generate --data; other commands accept the option for scripts that pass it to several commands
    #[arg(long, value_enum, default_value_t, hide_possible_values = true)]
    pub parity: Recipe,
}

/// Options for a question about a video or an image, instead of a messages file.
#[derive(Args, Clone, Debug)]
pub struct QuestionFlags {
    /// Video of the prompt
    #[arg(long, value_name = "FILE|URL", conflicts_with = "messages", value_parser = file_or_address)]
    video: Option<String>,
    /// Image of the prompt
    #[arg(long, value_name = "FILE|URL", conflicts_with = "messages", value_parser = file_or_address)]
    image: Option<String>,
    /// Text of the prompt
    #[arg(long, value_name = "TEXT", conflicts_with = "messages", required_unless_present_any = ["messages", "data"])]
    prompt: Option<String>,
}

/// Parses a path or an address, which must not be empty.
fn file_or_address(text: &str) -> Result<String, String> {
    if text.is_empty() { Err("give a file or an address".into()) } else { Ok(text.to_string()) }
}

/// A prompt, encoded for the model in a folder.
#[derive(Debug)]
pub struct EncodedPrompt {
    pub folder: PathBuf,
    /// Everything in the model folder except the weights.
    pub bundle: ModelFolder,
    /// Model inputs of the prompt.
    pub tokens: Arc<ModelInput>,
    /// The sampling fields of the messages file, if it is the body of a request.
    pub settings: RequestSettings,
    /// Seconds that preprocessing took.
    pub seconds: f64,
}

impl ModelFlags {
    /// Returns the base model (folder or id), and the folder of the adapter if there is one.
    pub fn base_model_and_adapter_folder(&self) -> Result<(String, Option<PathBuf>)> {
        let folder = Path::new(&self.model);
        if !is_adapter_folder(folder) {
            return Ok((self.model.clone(), self.adapter.clone()));
        }
        if self.adapter.is_some() {
            return Err(usage_error("--model", "is an adapter itself", "give a base model, or omit --adapter"));
        }
        let help = format!("give --model BASE --adapter {}", folder.display());
        let base = Adapter::open(folder)?.local_base_model(folder, &help)?;
        Ok((base.display().to_string(), Some(folder.to_path_buf())))
    }
}

/// Returns the local folder of a MODEL argument. A path is returned as it is; a Hugging Face id is looked up in the
/// hub cache and downloaded if missing.
pub fn find_or_download_model(model: &str) -> Result<PathBuf> {
    if model.is_empty() {
        return Err(usage_error("--model", "is empty", "give a model folder, or a Hugging Face model id"));
    }
    if is_adapter_folder(Path::new(model)) {
        let help = match base_model_of_adapter(Path::new(model)) {
            Some(base) => format!("give its base model, {base}, or merge the two with reel merge"),
            None => "give its base model, or merge the two with reel merge".to_string(),
        };
        return Err(failed(model, "is an adapter, not a model", help));
    }
    // A path that exists but cannot be read is not treated as a Hugging Face id: the error of reading it is reported.
    if let Err(e) = std::fs::metadata(model)
        && e.kind() != std::io::ErrorKind::NotFound
    {
        return Err(output::cannot_read(Path::new(model), e));
    }
    hub::local_model_folder(model)
}

/// Returns the base model that the adapter in `folder` names.
pub fn base_model_of_adapter(folder: &Path) -> Option<String> {
    Some(escape_controls(Adapter::open(folder).ok()?.base_model()?).into_owned())
}

impl MessageFlags {
    /// Returns true if the chat messages come from standard input.
    pub fn reads_standard_input(&self) -> bool {
        self.messages.as_deref().is_some_and(|path| path == Path::new("-"))
    }

    /// Reads the chat messages from their file (default: stdin) and encodes them for the model.
    ///
    /// Frame and pixel limits are those of the run that trained the model, or its adapter in the folder `adapter`,
    /// unless options or messages set others.
    pub fn encode(&self, model: &str, adapter: Option<&Path>, common: &CommonOptions) -> Result<EncodedPrompt> {
        let path = self.messages.as_deref().unwrap_or(Path::new("-"));
        // If the messages file is in the working directory (`./m.json`), messages about its media files name no
        // folder.
        let own_folder = path.parent().filter(|folder| *folder != Path::new(".")).unwrap_or(Path::new(""));
        let root = self.media_root.as_deref().unwrap_or(own_folder);
        self.encode_conversation(model, adapter, self.access.media_access(root), common, || {
            let request = read_chat_request(path)?;
            Ok((request.conversation(root)?, request.settings))
        })
    }

    /// Encodes the messages file, or the question if there is no messages file.
    pub fn encode_messages_or_question(
        &self,
        question: &QuestionFlags,
        model: &str,
        adapter: Option<&Path>,
        common: &CommonOptions,
    ) -> Result<EncodedPrompt> {
        match &self.messages {
            Some(_) => self.encode(model, adapter, common),
            None => {
                // The user typed the path or address of the media, so reading it needs no further option; only
                // --confine-media still applies.
                let root = self.media_root.as_deref().unwrap_or(Path::new(""));
                let access = MediaAccess { remote: RemoteMedia::Public, ..self.access.media_access(root) };
                self.encode_conversation(model, adapter, access, common, || {
                    Ok((question.conversation(self.media_root.as_deref()), RequestSettings::default()))
                })
            }
        }
    }

    fn encode_conversation(
        &self,
        model: &str,
        adapter: Option<&Path>,
        access: MediaAccess,
        common: &CommonOptions,
        conversation: impl FnOnce() -> Result<(Conversation, RequestSettings)>,
    ) -> Result<EncodedPrompt> {
        let begun = Instant::now();
        // Wrong flags are refused before a model is looked up or downloaded.
        self.validate()?;
        let folder = find_or_download_model(model)?;
        let bundle = trace::span("open", || ModelFolder::open(&folder))?;
        let (conversation, settings) = conversation()?;
        media_files(&conversation)
            .try_for_each(|(path, location)| replaced::refuse_input_that_is_output(path, location))?;
        let has_media = conversation.media_parts().next().is_some();
        let options = self.media_options(adapter.unwrap_or(&folder), access, has_media && !common.quiet, common)?;
        check_fits_model(&options, &bundle.config)?;
        let tokens = Arc::new(trace::span("preprocess", || encode(&bundle, &conversation, &options))?);
        Ok(EncodedPrompt { folder, bundle, tokens, settings, seconds: begun.elapsed().as_secs_f64() })
    }

    /// Refuses wrong frame and pixel options, before a model is looked up or downloaded.
    pub fn validate(&self) -> Result<()> {
        self.media.limit_overrides(self.media.profile(MediaProfile::Qwen)?).map(drop)
    }

    /// Returns the folder that the media paths in the rows of a data file are relative to: `--media-root`, else the
    /// folder of the data file, as in training.
    pub fn media_root_of_rows(&self, data: &Path) -> PathBuf {
        self.media_root.clone().unwrap_or_else(|| reel_input::rows::media_root(data))
    }

    /// Returns which files and addresses the rows may name for their media; `media_root` is the folder for relative
    /// paths.
    pub fn media_access(&self, media_root: &Path) -> MediaAccess {
        self.access.media_access(media_root)
    }

    /// Returns the options for loading images and videos. Frame and pixel limits that no option sets are those of the
    /// run that wrote the model or adapter in `trained_folder`. With `says_so`, a line on stderr names that run.
    pub fn media_options(
        &self,
        trained_folder: &Path,
        access: MediaAccess,
        says_so: bool,
        common: &CommonOptions,
    ) -> Result<MediaOptions> {
        media_options(&self.media, &self.worker, Some(trained_folder), access, says_so, common)
    }
}

/// Returns the options for loading images and videos. The form of prompts that no option sets is that of the run that
/// wrote the model or adapter in `trained_folder`, if there is such a run; so are frame and pixel limits, unless the
/// options name a profile. With `says_so`, a line on stderr names that run.
pub fn media_options(
    media: &MediaFlags,
    worker: &WorkerFlags,
    trained_folder: Option<&Path>,
    access: MediaAccess,
    says_so: bool,
    common: &CommonOptions,
) -> Result<MediaOptions> {
    let run = trained_folder.and_then(TrainingMediaSettings::read_from_run_folder);
    let defaults = media.with_prompt_form_or(run.as_ref().map_or(media, |run| &run.flags), MediaOptions::default());
    let trained = run.filter(|_| media.profile.is_none());
    if let Some(trained) = trained.as_ref().filter(|_| says_so) {
        let file = trained.file.display().to_string();
        reel_support::diagnostic::note!(
            "frame and pixel limits as in training: {trained} (from {}; options take precedence)",
            escape_controls(&file)
        );
    }
    let of_profile = trained.as_ref().map_or(media, |trained| &trained.flags);
    let profile = of_profile.profile(MediaProfile::Qwen)?;
    Ok(MediaOptions {
        profile,
        overrides: media.limit_overrides(profile)?,
        trained: trained.map(|trained| trained.flags.limit_overrides(profile)).transpose()?.unwrap_or_default(),
        decoder: worker.decode_worker(common)?,
        access,
        second_per_grid: SecondPerGrid::True,
        ..defaults
    })
}

/// Returns the image and video files of a conversation, each with its location in the messages.
pub fn media_files(conversation: &Conversation) -> impl Iterator<Item = (&Path, &str)> {
    conversation.media_parts().flat_map(|part| {
        let (sources, location) = media_sources(part);
        sources.into_iter().filter_map(move |source| match source {
            MediaSource::Path(path) => Some((path.as_path(), location)),
            _ => None,
        })
    })
}

/// Returns the sources of an image or video, and its location in the messages.
fn media_sources(part: &ContentPart) -> (Vec<&MediaSource>, &str) {
    match part {
        ContentPart::Text(_) => (Vec::new(), ""),
        ContentPart::Image(image) => (vec![&image.source], &image.location),
        ContentPart::Video(video) => match &video.source {
            VideoSource::File(file) => (vec![file], &video.location),
            VideoSource::Frames(frames) => (frames.iter().collect(), &video.location),
        },
    }
}

impl QuestionFlags {
    fn conversation(&self, media_root: Option<&Path>) -> Conversation {
        let source = |text: &String| MediaSource::parse(text, media_root.unwrap_or(Path::new("")));
        let overrides = MediaOverrides::default();
        let image = self
            .image
            .as_ref()
            .map(|i| ContentPart::Image(ImagePart { source: source(i), overrides, location: "--image".into() }));
        let video = self.video.as_ref().map(|v| {
            ContentPart::Video(VideoPart {
                source: VideoSource::File(source(v)),
                overrides,
                frame_times: None,
                location: "--video".into(),
            })
        });
        Conversation::from_user_message(
            image.into_iter().chain(video).collect(),
            self.prompt.as_deref().unwrap_or_default(),
        )
    }
}
