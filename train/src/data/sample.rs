//! Supervised training samples: the token ids and media of a row, and the tokens to learn.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use reel_media::MediaError;
use reel_model::ModelError;
use reel_model::batch::Sequence;
use reel_model::input::encode::{LoadedMedia, encode_prompt, load_media};
use reel_model::input::tokenizer::Tokenizer;
use reel_model::input::{Conversation, MediaOptions, ModelFolder, ModelInput};
use serde_json::Value;

use crate::data::dataset::Dataset;
use crate::data::feed::SampleSource;
use crate::data::labels::{TokenLabeler, Vocabulary};
use crate::options::Recipe;
use crate::run::DataSource;
use crate::{Result, TrainError};

/// A row, ready for training.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sample {
    /// The model's inputs, S tokens.
    pub tokens: ModelInput,
    /// `[S]`: id of the next token where it is learned, else -1.
    pub targets: Vec<i32>,
}

impl Sample {
    /// The sequence for a packed batch.
    pub fn sequence(&self) -> Sequence<'_> {
        self.tokens.sequence()
    }
}

/// Makes training samples of the rows of a data file.
#[derive(Debug)]
pub struct SftSource {
    /// The data file.
    pub data: Dataset,
    /// Config, tokenizer and chat template of the model.
    pub bundle: Arc<ModelFolder>,
    /// The rule that chooses the tokens to learn.
    pub labels: TokenLabeler,
    /// Frame and pixel limits.
    pub media: MediaOptions,
    /// The folder that relative media paths refer to.
    pub media_root: PathBuf,
    /// Whose prompt templates to use.
    pub parity: Recipe,
    /// The samples that earlier epochs have made.
    pub kept: SampleCache,
}

/// Maximum bytes of samples in the cache. Data that fit are decoded only once, in the first epoch.
const MAX_KEPT: usize = 256 << 20;

/// A cache of samples by row number. When it is full, no further samples are added.
#[derive(Debug, Default)]
pub struct SampleCache(Mutex<(HashMap<usize, Arc<Sample>>, usize)>);

impl SampleCache {
    fn get(&self, row: usize) -> Option<Sample> {
        let kept = self.0.lock().unwrap_or_else(|e| e.into_inner()).0.get(&row).cloned();
        kept.map(Arc::unwrap_or_clone)
    }

    fn keep(&self, row: usize, sample: &Sample) {
        let t = &sample.tokens;
        let floats = [&t.pixel_values, &t.pixel_values_videos].map(|p| p.as_ref().map_or(0, Vec::len));
        let bytes = t.frames.total_bytes() + 4 * floats.iter().sum::<usize>() + 40 * t.len();
        let mut kept = self.0.lock().unwrap_or_else(|e| e.into_inner());
        if kept.1 + bytes <= MAX_KEPT && kept.0.insert(row, Arc::new(sample.clone())).is_none() {
            kept.1 += bytes;
        }
    }
}

impl SftSource {
    /// Parses the conversation of a row.
    fn conversation(&self, row: usize) -> Result<Conversation> {
        let messages = self.data.add_location_to_error(row, self.data.row(row)?.supervised_messages(self.parity))?;
        let location = self.data.location(row);
        Conversation::from_json(&location, &Value::Array(messages), &self.media_root)
            .map_err(|e| to_row_error(&location, e))
    }
}

impl DataSource for SftSource {
    fn fingerprint(&self) -> String {
        self.data.fingerprint()
    }

    fn validate_row(&self, row: usize) -> Result<()> {
        self.conversation(row).map(drop)
    }
}

impl SampleSource for SftSource {
    type Sample = Sample;

    fn row_count(&self) -> usize {
        self.data.len()
    }

    fn sample(&self, row: usize) -> Result<Sample> {
        if let Some(sample) = self.kept.get(row) {
            return Ok(sample);
        }
        let location = self.data.location(row);
        let conversation = self.conversation(row)?;
        let tokens = tokenize_conversation(&self.bundle, &conversation, false, &self.media, &location)?;
        let targets = self.labels.next_token_targets(&tokens.input_ids, &self.bundle.tokenizer);
        if targets.iter().all(|&t| t < 0) {
            return Err(TrainError::row(
                location,
                "has no token to learn",
                "add an assistant's answer, or choose other --labels",
            ));
        }
        let sample = Sample { tokens, targets };
        self.kept.keep(row, &sample);
        Ok(sample)
    }

    fn token_count(sample: &Sample) -> usize {
        sample.tokens.len()
    }

    fn location(&self, row: usize) -> (String, usize) {
        (self.data.location(row), self.data.line_number(row))
    }
}

/// Renders a conversation to text, loads its media and tokenizes both. Errors concern the row.
pub(crate) fn tokenize_conversation(
    bundle: &ModelFolder,
    conversation: &Conversation,
    generation_prompt: bool,
    media: &MediaOptions,
    location: &str,
) -> Result<ModelInput> {
    let text = bundle.template.render(conversation, generation_prompt).map_err(|e| to_row_error(location, e))?;
    let media = load_media(bundle, conversation, media).map_err(|e| to_row_error(location, e))?;
    tokenize_text(bundle, &text, media, location)
}

/// Tokenizes a text with its media. Errors concern the row.
pub(crate) fn tokenize_text(
    bundle: &ModelFolder,
    text: &str,
    media: LoadedMedia,
    location: &str,
) -> Result<ModelInput> {
    let tokens = encode_prompt(bundle, text, media, location).map_err(|e| to_row_error(location, e))?;
    let special = &bundle.config.tokens;
    for (pad, grids) in [(special.image, &tokens.image_grid_thw), (special.video, &tokens.video_grid_thw)] {
        // If media of this kind are present, `encode_prompt` has matched the pad tokens with them.
        if grids.is_empty() && tokens.input_ids.contains(&pad) {
            let token = bundle.tokenizer.decode(&[pad], false);
            return Err(TrainError::row(
                location,
                format!("has {token} in a text, but no media for it"),
                "remove it from the text, or remove the row",
            ));
        }
    }
    Ok(tokens)
}

/// Turns an error of a conversation or its media into an error of its row, which can be skipped. The exception is a
/// decoding worker that cannot be started: that is not a fault of the row.
pub(crate) fn to_row_error(location: &str, e: ModelError) -> TrainError {
    if matches!(e, ModelError::Media(MediaError::Worker(_))) {
        return e.into();
    }
    let mut diagnostic = e.into_diagnostic();
    if diagnostic.help.is_empty() {
        diagnostic = diagnostic.with_help("fix the file, or remove the row");
    }
    // Errors of messages already begin with the row's location, because the conversation knows it.
    TrainError::Row(if diagnostic.location.starts_with(location) { diagnostic } else { diagnostic.at(location) })
}

impl Vocabulary for Tokenizer {
    fn special(&self, token: &str) -> Option<u32> {
        self.token_to_id(token)
    }

    fn text(&self, ids: &[u32]) -> String {
        self.decode(ids, false)
    }
}
