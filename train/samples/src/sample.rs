//! Makes samples for supervised fine-tuning: the token ids and media of a row, and the tokens that count in the loss.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use crate::error::{Error, Kind, MediaFailure, Result, RowFailureKind, SkipCause};
use crate::rewards::Recipe;
use reel_input::encode::{PromptOrigin, encode_prompt, load_media, refuse_pads_without_media};
use reel_input::media_loading::LoadedMedia;
use reel_input::tokenizer::Tokenizer;
use reel_input::{Conversation, MediaOptions, ModelFolder, ModelInput, Sequence};
use reel_support::ranges::{RangeName, range};
use serde_json::Value;

use crate::dataset::{DataFile, Dataset};
use crate::feed::SampleSource;
use crate::labels::{LabelVocabulary, TokenLabeler};
use crate::media_files::{ReadMediaFiles, local_files};
use crate::order::mixture::Mixture;
use crate::rows::SupervisedRow;
use crate::source::DataSource;
use crate::turn_marks::refuse_turn_marks;

/// A row, ready for training.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sample {
    /// The model's inputs, S tokens.
    pub tokens: ModelInput,
    /// The target of each of the S tokens, `[S]`: the id of the next token if that token is learned, otherwise -1.
    pub targets: Vec<i32>,
}

impl Sample {
    /// Cuts the sample to its first `length` tokens. The sample stays whole if a token after them belongs to an image
    /// or a video (`is_of_media`).
    fn cut(&mut self, length: usize, is_of_media: impl Fn(u32) -> bool) {
        let ids = &mut self.tokens.input_ids;
        if ids.len() <= length || ids[length..].iter().any(|id| is_of_media(*id)) {
            return;
        }
        ids.truncate(length);
        self.tokens.position_ids.iter_mut().for_each(|positions| positions.truncate(length));
        self.targets.truncate(length);
        // The target of the last remaining token was the first token that was cut off.
        if let Some(last) = self.targets.last_mut() {
            *last = -1;
        }
    }

    /// The sample's model inputs, borrowed for a packed batch.
    pub fn sequence(&self) -> Sequence<'_> {
        self.tokens.sequence()
    }
}

/// The rows of a data file as training samples for supervised fine-tuning.
#[derive(Debug)]
pub struct SftSampleSource {
    /// The data file.
    pub data: Dataset,
    /// Config, tokenizer and chat template of the model.
    pub bundle: Arc<ModelFolder>,
    /// The rule that chooses the tokens that count in the loss.
    pub labels: TokenLabeler,
    /// The maximum number of tokens of a row; a longer row is cut. `None`: no row is cut.
    pub cut_at: Option<usize>,
    /// Frame and pixel limits.
    pub media: MediaOptions,
    /// The folder that relative media paths refer to.
    pub media_root: PathBuf,
    /// The recipe whose prompt templates are used.
    pub parity: Recipe,
    /// Cache of the samples made so far, for later epochs.
    pub kept: SampleCache,
    /// The media files read so far.
    pub files: ReadMediaFiles,
}

/// Maximum size of all cached samples in bytes (256 MiB). If all samples fit, media are decoded only in the first
/// epoch.
const MAX_KEPT: usize = 256 << 20;

/// Cache of samples by row number. A sample that would make the cache exceed [`MAX_KEPT`] bytes is not kept; it is made
/// again in each epoch.
#[derive(Debug, Default)]
pub struct SampleCache(Mutex<CachedSamples>);

#[derive(Debug, Default)]
struct CachedSamples {
    by_row: HashMap<usize, Arc<Sample>>,
    bytes: usize,
}

impl SampleCache {
    fn get(&self, row: usize) -> Option<Sample> {
        let kept = self.0.lock().unwrap_or_else(|e| e.into_inner()).by_row.get(&row).cloned();
        kept.map(Arc::unwrap_or_clone)
    }

    fn keep(&self, row: usize, sample: &Sample) {
        let t = &sample.tokens;
        let floats = [&t.pixel_values, &t.pixel_values_videos].map(|p| p.as_ref().map_or(0, Vec::len));
        let bytes = t.frames.total_bytes() + 4 * floats.iter().sum::<usize>() + 40 * t.len();
        let mut kept = self.0.lock().unwrap_or_else(|e| e.into_inner());
        if kept.bytes + bytes <= MAX_KEPT && kept.by_row.insert(row, Arc::new(sample.clone())).is_none() {
            kept.bytes += bytes;
        }
    }
}

/// The end-of-turn token, which TRL appends to a completion that is plain text.
const END: &str = "<|im_end|>";

impl SftSampleSource {
    /// Parses the fields of a row.
    fn row(&self, row: usize) -> Result<SupervisedRow> {
        self.data.add_location_to_error(row, self.data.row(row)?.to_supervised_row(self.parity))
    }

    /// Whether a token stands for an image or a video, or marks where one begins or ends.
    fn is_of_media(&self, id: u32) -> bool {
        const TOKENS: [&str; 4] = ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"];
        TOKENS.iter().any(|token| self.bundle.tokenizer.token_to_id(token) == Some(id))
    }

    /// Reads the messages of a row and its tools. Refuses a key that neither this program nor the chat template reads.
    fn conversation(&self, location: &str, messages: Vec<Value>, tools: Value) -> Result<Conversation> {
        let template = Some(self.bundle.template.template_text());
        let mut conversation = Conversation::from_row(location, &Value::Array(messages), &self.media_root, template)
            .and_then(|conversation| conversation.with_tools_column(tools))
            .map_err(|e| to_row_error(location, e))?;
        if self.labels.selects_answers() {
            refuse_turn_marks(location, &mut conversation)?;
        }
        Ok(conversation)
    }

    /// Makes the sample of a conversation. `learned` tells for each assistant message whether it is learned.
    fn chat(&self, location: &str, messages: Vec<Value>, tools: Value, learned: &[bool]) -> Result<Sample> {
        if learned.contains(&false) && !self.labels.selects_answers() {
            let what =
                "has an answer that must not be learned (because it is part of `prompt`, or by its `loss` or `weight`)";
            return Err(Error::row(location, what, "use --labels assistant, which does not train on this answer"));
        }
        let conversation = self.conversation(location, messages, tools)?;
        let tokens = self.files.load_with_retry(&conversation, &self.media_root, || {
            tokenize_conversation(&self.bundle, &conversation, false, &self.media, location)
        })?;
        if let Some(written) = self.labels.answer_count(&tokens.input_ids, &*self.bundle.tokenizer)
            && written != learned.len()
        {
            let what = format!(
                "has {} answers, but the chat template writes {written} headers <|im_start|>assistant, so the tokens of \
                 each answer cannot be told",
                learned.len()
            );
            return Err(Error::row(location, what, "use the chat template of the published model, or --labels text"));
        }
        let targets = self.labels.next_token_targets(&tokens.input_ids, learned, &*self.bundle.tokenizer);
        Ok(Sample { tokens, targets })
    }

    /// Makes the sample of a prompt and a completion in plain text. Appends `<|im_end|>` to the completion if it is
    /// missing.
    fn text(&self, location: &str, prompt: &str, completion: &str) -> Result<Sample> {
        let end = if completion.ends_with(END) { "" } else { END };
        let text = |text: &str| tokenize_text_with_media(&self.bundle, text, LoadedMedia::default(), location);
        let tokens = text(&format!("{prompt}{completion}{end}"))?;
        // A token that spans the end of the prompt and the start of the completion is learned, so the prompt ends
        // before it.
        let given = text(prompt)?.input_ids;
        let prompt_len = tokens.input_ids.iter().zip(&given).take_while(|(both, prompt)| both == prompt).count();
        let targets = self.labels.completion_targets(&tokens.input_ids, prompt_len);
        Ok(Sample { tokens, targets })
    }
}

impl DataSource for SftSampleSource {
    fn fingerprint(&self) -> String {
        self.data.fingerprint()
    }

    fn files(&self) -> &[DataFile] {
        self.data.files()
    }

    fn mixture(&self) -> Option<&Mixture> {
        self.data.mixture()
    }

    fn held_out_rows(&self) -> &[usize] {
        self.data.held_out_rows()
    }

    fn validate_row(&self, row: usize) -> Result<()> {
        match self.row(row)? {
            SupervisedRow::Chat { messages, tools, .. } => {
                self.conversation(&self.data.location(row), messages, tools).map(drop)
            }
            SupervisedRow::Text { .. } => Ok(()),
        }
    }

    fn media_files(&self, row: usize) -> Result<Vec<PathBuf>> {
        let SupervisedRow::Chat { messages, tools, .. } = self.row(row)? else { return Ok(Vec::new()) };
        let conversation = self.conversation(&self.data.location(row), messages, tools)?;
        Ok(local_files(&conversation).into_iter().map(Path::to_path_buf).collect())
    }
}

impl SampleSource for SftSampleSource {
    type Sample = Sample;

    fn row_count(&self) -> usize {
        self.data.len()
    }

    fn sample(&self, row: usize) -> Result<Sample> {
        if let Some(sample) = self.kept.get(row) {
            return Ok(sample);
        }
        let location = self.data.location(row);
        let mut sample = match self.row(row)? {
            SupervisedRow::Chat { messages, learned, tools } => self.chat(&location, messages, tools, &learned)?,
            SupervisedRow::Text { prompt, completion } => self.text(&location, &prompt, &completion)?,
        };
        if let Some(length) = self.cut_at {
            sample.cut(length, |id| self.is_of_media(id));
        }
        if sample.targets.iter().all(|&t| t < 0) {
            return Err(nothing_to_learn_error(location));
        }
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

/// The error for a row in which no token is learned.
pub fn nothing_to_learn_error(location: String) -> Error {
    Error::row(location, "has no token to learn", "add an assistant's answer, or choose other --labels")
}

/// Makes model inputs of a conversation: renders its text with the chat template and loads its media. Errors name the
/// row at `location`, and the run can skip that row.
pub fn tokenize_conversation(
    bundle: &ModelFolder,
    conversation: &Conversation,
    generation_prompt: bool,
    media: &MediaOptions,
    location: &str,
) -> Result<ModelInput> {
    let rendered = media.with_template_variables(conversation);
    let text = bundle.template.render(&rendered, generation_prompt).map_err(|e| to_row_error(location, e))?;
    let has_media = conversation.media_parts().next().is_some();
    let decoding = has_media.then(|| range(RangeName::Phase("media decoding")));
    let media = load_media(bundle, conversation, media).map_err(|e| to_row_error(location, e))?;
    drop(decoding);
    encode_row(bundle, &text, media, PromptOrigin::Conversation(conversation)).map_err(|e| to_row_error(location, e))
}

/// Makes model inputs of a rendered text and its loaded media. Errors name the row at `location`, and the run can skip
/// that row.
pub fn tokenize_text_with_media(
    bundle: &ModelFolder,
    text: &str,
    media: LoadedMedia,
    location: &str,
) -> Result<ModelInput> {
    encode_row(bundle, text, media, PromptOrigin::Text(location)).map_err(|e| to_row_error(location, e))
}

fn encode_row(bundle: &ModelFolder, text: &str, media: LoadedMedia, origin: PromptOrigin<'_>) -> Result<ModelInput> {
    let tokens = encode_prompt(bundle, text, media, origin)?;
    refuse_pads_without_media(bundle, &tokens, origin)?;
    Ok(tokens)
}

/// Turns an error of a conversation or its media into an error of its row, which the run can skip. If a decoding
/// worker cannot be started, the row is not at fault, and the error is returned unchanged.
pub fn to_row_error(location: &str, e: Error) -> Error {
    let was_read = e.kind == Kind::Media(MediaFailure::File);
    let cause = match e.kind {
        Kind::Media(MediaFailure::Worker) => return e,
        Kind::Media(MediaFailure::Timeout) => Some(SkipCause::DecoderTimeout),
        Kind::Media(MediaFailure::Killed) => Some(SkipCause::DecoderKilled),
        Kind::Media(_) | Kind::Io => Some(SkipCause::Media),
        _ => None,
    };
    let mut diagnostic = e.diagnostic;
    if diagnostic.help.is_empty() {
        diagnostic = diagnostic.with_help("fix the file, or remove the row");
    }
    // An error about the conversation's messages already begins with the row's location.
    if !diagnostic.location.starts_with(location) {
        diagnostic = diagnostic.at(location);
    }
    let kind = cause.map_or(RowFailureKind::Row, |cause| RowFailureKind::Media { cause, was_read });
    Kind::Row(kind).error(diagnostic)
}

impl LabelVocabulary for Tokenizer {
    fn special(&self, token: &str) -> Option<u32> {
        self.token_to_id(token)
    }

    fn text(&self, ids: &[u32]) -> String {
        self.decode(ids, false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_sample_is_cut_unless_media_would_be() {
        let sample = |ids: [u32; 5]| {
            let input_ids = ids.to_vec();
            let positions = || (0..5).collect();
            let tokens =
                ModelInput { input_ids, position_ids: [positions(), positions(), positions()], ..Default::default() };
            Sample { tokens, targets: vec![-1, 2, 3, 4, -1] }
        };
        let cut = |ids, length| {
            let mut sample = sample(ids);
            sample.cut(length, |id| id == 9);
            assert!(sample.tokens.position_ids.iter().all(|positions| positions.len() == sample.tokens.len()));
            sample.targets
        };
        assert_eq!(cut([9, 1, 2, 3, 4], 3), [-1, 2, -1]);
        assert_eq!(cut([1, 1, 9, 3, 4], 2), [-1, 2, 3, 4, -1]);
        assert_eq!(cut([1, 1, 2, 3, 4], 5), [-1, 2, 3, 4, -1]);
    }
}
