//! Converts a conversation to a [`ModelInput`]: renders the prompt, loads the media, repeats each pad token, computes
//! positions.
//!
//! ```text
//! messages          [{role: user, content: [video v.mp4, "How many?"]}]
//! chat template     "<|im_start|>user\n<|vision_start|><|video_pad|><|vision_end|>How many?<|im_end|>\n…"
//! tokenizer         [151644, 872, 198, 151652, 151656, 151653, …]        one pad token per video
//! repeat pads       [151644, 872, 198, 151652, 151656 × 144, 151653, …]  one pad token per vision token
//! positions         [3][S], see mrope.rs
//! ```
//! In Qwen3-VL each frame pair of a video has a run of pad tokens of its own, after the time of its frames; see
//! [`mod@crate::video_marks`].

use std::borrow::Cow;
use std::path::Path;
use std::sync::Arc;

use crate::chat::{ChatTemplate, PromptEnd};
use crate::config::{GenerationConfig, ModelConfig, open_preprocessor_config};
use crate::error::{Error, Result};
use crate::family::Family;
use crate::media::patches::ImageProcessorSettings;
use crate::media_loading::{LoadedMedia, MediaOptions, load_media_with};
use crate::messages::Conversation;
use crate::model_input::ModelInput;
use crate::tokenizer::{TokenId, Tokenizer};
use crate::video_marks::{self, VIDEO_PAD};
use crate::window::GridThw;

/// Everything in a model folder except the weights: config, tokenizer, chat template and preprocessor settings.
/// [`ModelFolder::open`] checks that these files agree.
#[derive(Debug)]
pub struct ModelFolder {
    /// The model's sizes and token ids, from config.json.
    pub config: ModelConfig,
    /// The default sampling parameters, from generation_config.json.
    pub generation: GenerationConfig,
    /// The settings in preprocessor_config.json.
    pub preprocessor: ImageProcessorSettings,
    /// The tokenizer, from tokenizer.json.
    pub tokenizer: Arc<Tokenizer>,
    /// The chat template.
    pub template: ChatTemplate,
}

impl ModelFolder {
    /// Reads the files of a model folder. The folder need not contain weights.
    pub fn open(folder: &Path) -> Result<Self> {
        let config = ModelConfig::open(folder)?;
        let tokenizer = Arc::new(Tokenizer::open(folder)?);
        tokenizer.check_fits(&config)?;
        Ok(Self {
            generation: GenerationConfig::open(folder)?,
            preprocessor: open_preprocessor_config(folder, &config)?,
            template: ChatTemplate::open(folder)?,
            config,
            tokenizer,
        })
    }

    /// The text that stands before a completion of `prompt` and belongs to its thought: `<think>` and a newline if the
    /// chat template has begun the thought (Qwen3-VL's Thinking models), else nothing. The completion itself then has
    /// no opening tag.
    pub fn begun_thought(&self, prompt: &[TokenId]) -> &'static str {
        let end = self.tokenizer.decode(&prompt[prompt.len().saturating_sub(4)..], false);
        if end.trim_end().ends_with("<think>") { "<think>\n" } else { "" }
    }

    /// The ids that end a completion, from generation_config.json or, if it has none, from config.json.
    pub fn stop_token_ids(&self) -> &[TokenId] {
        if self.generation.eos_token_id.is_empty() { &self.config.tokens.eos } else { &self.generation.eos_token_id }
    }
}

/// Encodes a conversation. Adds a generation prompt unless the last message is from the assistant.
pub fn encode(folder: &ModelFolder, conversation: &Conversation, options: &MediaOptions) -> Result<ModelInput> {
    let rendered = options.with_template_variables(conversation);
    let text = folder.template.render_to_end(&rendered, PromptEnd::default_for_conversation(conversation))?;
    let media = load_media(folder, conversation, options)?;
    encode_prompt(folder, &text, media, PromptOrigin::Conversation(conversation))
}

/// Loads and resizes all images and videos of a conversation, in order.
pub fn load_media(folder: &ModelFolder, conversation: &Conversation, options: &MediaOptions) -> Result<LoadedMedia> {
    load_media_with(folder.preprocessor, conversation, options)
}

/// The origin of a rendered prompt, for the location in error messages.
#[derive(Clone, Copy, Debug)]
pub enum PromptOrigin<'a> {
    /// A plain text, with the name of its source.
    Text(&'a str),
    /// The messages of a conversation.
    Conversation(&'a Conversation),
}

impl PromptOrigin<'_> {
    fn location(&self) -> &str {
        match self {
            PromptOrigin::Text(name) => name,
            PromptOrigin::Conversation(conversation) => &conversation.location,
        }
    }

    /// The location of the text that contains `token`; `None` if the chat template has written the token.
    fn location_of_typed(&self, token: &str) -> Option<String> {
        match self {
            PromptOrigin::Text(name) => Some((*name).to_string()),
            PromptOrigin::Conversation(conversation) => conversation.location_of_text(token),
        }
    }
}

/// Refuses a prompt that has image or video pad tokens but no images or no videos for them: the media have probably
/// been lost, and the model would take the pad tokens for text.
///
/// # Errors
/// The prompt has an image pad token and no image, or a video pad token and no video.
pub fn refuse_pads_without_media(folder: &ModelFolder, input: &ModelInput, origin: PromptOrigin<'_>) -> Result<()> {
    let tokens = &folder.config.tokens;
    for (kind, pad, grids) in
        [("image", tokens.image, &input.image_grid_thw), ("video", tokens.video, &input.video_grid_thw)]
    {
        if grids.is_empty() && input.input_ids.contains(&pad) {
            let token = pad_token(kind);
            let location = origin.location_of_typed(&token).unwrap_or_else(|| origin.location().to_string());
            let what = format!("has the token {token}, and there is no {kind} for it");
            return Err(Error::input(location, what, "remove this token"));
        }
    }
    Ok(())
}

/// The token that stands for an image or a video.
fn pad_token(kind: &str) -> String {
    format!("<|{kind}_pad|>")
}

/// Encodes a rendered prompt: repeats each pad token once for each vision token of its image or video, and computes
/// the positions.
///
/// If there are no images, image pad tokens in the prompt are text and not repeated, as in transformers. If there are
/// no videos, the same holds for video pad tokens.
pub fn encode_prompt(
    folder: &ModelFolder,
    text: &str,
    media: LoadedMedia,
    origin: PromptOrigin<'_>,
) -> Result<ModelInput> {
    let tokens = &folder.config.tokens;
    let by_frame_pair = folder.config.family() == Family::Qwen3Vl && !media.video_grid_thw.is_empty();
    let text = match by_frame_pair {
        true => {
            check_pad_count(text.matches(VIDEO_PAD).count(), media.video_grid_thw.len(), "video", origin)?;
            let times = frame_pair_times(&media, origin)?;
            Cow::Owned(video_marks::write_times(text, &times, media.video_marks))
        }
        false => Cow::Borrowed(text),
    };
    let mut ids = folder.tokenizer.encode(&text)?;
    let unit = folder.config.vision.patches_per_vision_token();
    let has_media = !media.image_grid_thw.is_empty() || !media.video_grid_thw.is_empty();
    for (kind, pad, grids) in
        [("image", tokens.image, &media.image_grid_thw), ("video", tokens.video, &media.video_grid_thw)]
    {
        // If the prompt has no images but videos, or the reverse, M-RoPE needs a grid for each pad token after
        // <|vision_start|>.
        if grids.is_empty() && has_media && ids.windows(2).any(|pair| pair == [tokens.vision_start, pad]) {
            let token = pad_token(kind);
            let location = origin.location_of_typed(&token).unwrap_or_else(|| origin.location().to_string());
            let what = format!("has <|vision_start|>{token} in its text, but no {kind} for it, only other media");
            return Err(Error::input(location, what, format!("remove {token} from the text")));
        }
        if !grids.is_empty() {
            let of_runs = |&[t, h, w]: &GridThw| match by_frame_pair && kind == "video" {
                true => std::iter::repeat_n(h * w / unit, t),
                false => std::iter::repeat_n(t * h * w / unit, 1),
            };
            let counts: Vec<usize> = grids.iter().flat_map(of_runs).collect();
            ids = expand(ids, pad, &counts, kind, origin)?;
        }
    }
    let mut made = ModelInput {
        input_ids: ids,
        frames: media.frames,
        image_grid_thw: media.image_grid_thw,
        video_grid_thw: media.video_grid_thw,
        second_per_grid_ts: media.second_per_grid_ts,
        frame_indices: media.frame_indices,
        ..ModelInput::default()
    };
    made.compute_positions(&folder.config, origin.location())?;
    Ok(made)
}

/// Replaces the i-th `pad` token by `counts[i]` copies of it.
fn expand(
    ids: Vec<TokenId>,
    pad: TokenId,
    counts: &[usize],
    kind: &str,
    origin: PromptOrigin<'_>,
) -> Result<Vec<TokenId>> {
    check_pad_count(ids.iter().filter(|&&id| id == pad).count(), counts.len(), kind, origin)?;
    let mut counts = counts.iter();
    let mut expanded = Vec::with_capacity(ids.len() + counts.clone().sum::<usize>());
    for id in ids {
        let n = if id == pad { counts.next().copied().unwrap_or(1) } else { 1 };
        expanded.extend(std::iter::repeat_n(id, n));
    }
    Ok(expanded)
}

/// Checks that the prompt has one pad token for each image or video.
fn check_pad_count(pads: usize, media: usize, kind: &str, origin: PromptOrigin<'_>) -> Result<()> {
    if pads == media {
        return Ok(());
    }
    let token = pad_token(kind);
    let numbers = format!("the prompt has {pads} such tokens for {media} {kind}(s)");
    Err(match origin.location_of_typed(&token) {
        Some(location) => {
            let what = format!("has the token {token} in its text, so {numbers}");
            Error::input(location, what, "remove it from the text")
        }
        None => {
            let what = format!("the chat template does not write one {token} for each {kind}: {numbers}");
            Error::input(origin.location(), what, "use the chat template of the published model")
        }
    })
}

/// For each video, the time in seconds of each frame pair: the mean of the times of its two frames.
fn frame_pair_times(media: &LoadedMedia, origin: PromptOrigin<'_>) -> Result<Vec<Vec<f64>>> {
    let size = media.frames.processor.temporal_patch_size;
    let pair = |frames: &[f64]| frames.first().zip(frames.last()).map_or(0.0, |(first, last)| (first + last) / 2.0);
    let times: Vec<Vec<f64>> =
        media.frames.video_times.iter().map(|times| times.chunks(size).map(pair).collect()).collect();
    match times.iter().map(Vec::len).eq(media.video_grid_thw.iter().map(|grid| grid[0])) {
        true => Ok(times),
        false => Err(Error::input(
            origin.location(),
            "has a video whose frames have no known times",
            "give the video as a file or as a list of frames",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn golden_folder() -> ModelFolder {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/train/model_a");
        ModelFolder::open(&folder).unwrap()
    }

    #[test]
    fn typed_pads_without_media_are_text() {
        let folder = golden_folder();
        let typed = "<|vision_start|><|image_pad|><|vision_end|><|video_pad|>";
        let input = encode_prompt(&folder, typed, LoadedMedia::default(), PromptOrigin::Text("m")).unwrap();
        let tokens = &folder.config.tokens;
        assert_eq!((input.len(), input.input_ids[1], input.input_ids[3]), (4, tokens.image, tokens.video));
        assert_eq!(input.position_ids, [vec![0, 1, 2, 3], vec![0, 1, 2, 3], vec![0, 1, 2, 3]]);
        input.check(&folder.config, "m").unwrap();

        let with_image = || LoadedMedia { image_grid_thw: vec![[1, 4, 4]], ..LoadedMedia::default() };
        let beside = encode_prompt(&folder, typed, with_image(), PromptOrigin::Text("m")).unwrap();
        assert_eq!(beside.input_ids.iter().filter(|&&id| id == tokens.image).count(), 4);
        let typed = format!("{typed}<|vision_start|><|video_pad|>");
        let error = encode_prompt(&folder, &typed, with_image(), PromptOrigin::Text("m")).unwrap_err().to_string();
        assert!(error.starts_with("m: has <|vision_start|><|video_pad|> in its text, but no video for it"), "{error}");
        assert!(error.ends_with("remove <|video_pad|> from the text"), "{error}");
    }

    #[test]
    fn errors_of_typed_pads_name_the_part_of_the_message() {
        let folder = golden_folder();
        let with_image = || LoadedMedia { image_grid_thw: vec![[1, 4, 4]], ..LoadedMedia::default() };
        let image = serde_json::json!({"type": "image", "image": "a.png"});
        let text = |text: &str| serde_json::json!({"type": "text", "text": text});
        let error = |contents: &[serde_json::Value], media: LoadedMedia| {
            let messages: serde_json::Value =
                contents.iter().map(|content| serde_json::json!({"role": "user", "content": content})).collect();
            let conversation = Conversation::from_json("m", &messages, Path::new("")).unwrap();
            let origin = PromptOrigin::Conversation(&conversation);
            let rendered = folder.template.render(&conversation, true).unwrap();
            let encoded = encode_prompt(&folder, &rendered, media, origin);
            encoded.and_then(|input| refuse_pads_without_media(&folder, &input, origin)).unwrap_err().to_string()
        };
        let picture = serde_json::json!([image, text("?")]);
        for (contents, media, want) in [
            (
                vec![picture.clone(), "a <|image_pad|>".into()],
                with_image(),
                "m: message 1: has the token <|image_pad|> in its text, so the prompt has 2 such tokens for 1 image(s); \
                 remove it from the text",
            ),
            (
                vec![serde_json::json!([image, text("<|vision_start|><|video_pad|>")])],
                with_image(),
                "m: message 0, part 1: has <|vision_start|><|video_pad|> in its text, but no video for it, \
                 only other media; remove <|video_pad|> from the text",
            ),
            (
                vec!["x".into(), serde_json::json!([text("x"), text("<|video_pad|>")])],
                LoadedMedia::default(),
                "m: message 1, part 1: has the token <|video_pad|>, and there is no video for it; remove this token",
            ),
            // The token is in no text of the user, so the error is about the template and the number of media.
            (
                vec![picture.clone(), picture],
                with_image(),
                "m: the chat template does not write one <|image_pad|> for each image: the prompt has 2 such tokens for 1 \
                 image(s); use the chat template of the published model",
            ),
        ] {
            assert_eq!(error(&contents, media), want);
        }
    }
}
