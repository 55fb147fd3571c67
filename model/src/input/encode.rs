//! The whole way from a conversation to [`Tokens`]: prompt by the template, media to patches, pads multiplied, positions.

use std::path::Path;

use reel_media::MediaError;
use reel_media::frames::FrameBuf;
use reel_media::image::RgbImage;
use reel_media::patches::{self, PatchProcessor};
use reel_media::profile::{MediaOverrides, MediaProfile};
use reel_media::resize::ImagePixelLimits;
use reel_media::video::PixelBuffer;
use reel_media::worker::DecodeWorker;

use super::chat::ChatTemplate;
use super::fetch;
use super::media_frames::MediaFrames;
use super::messages::{ContentPart, Conversation, ImagePart, MediaSource, VideoPart, VideoSource};
use super::model_input::ModelInput;
use super::tokenizer::Tokenizer;
use super::window::GridThw;
use crate::TokenId;
use crate::config::{GenerationConfig, ModelConfig, PreprocessorConfig};
use crate::error::{ModelError, Result};

/// Everything of a model folder but its weights, held against each other.
#[derive(Debug)]
pub struct Bundle {
    /// config.json
    pub config: ModelConfig,
    /// generation_config.json
    pub generation: GenerationConfig,
    /// preprocessor_config.json
    pub preprocessor: PreprocessorConfig,
    /// tokenizer.json
    pub tokenizer: Tokenizer,
    /// The chat template.
    pub template: ChatTemplate,
}

impl Bundle {
    /// Reads a model folder. Its weights are not touched, and need not be there.
    pub fn open(folder: &Path) -> Result<Self> {
        let config = ModelConfig::open(folder)?;
        let tokenizer = Tokenizer::open(folder)?;
        tokenizer.check_fits(&config)?;
        Ok(Self {
            generation: GenerationConfig::open(folder)?,
            preprocessor: PreprocessorConfig::open(folder, &config)?,
            template: ChatTemplate::open(folder)?,
            config,
            tokenizer,
        })
    }

    /// Ids of which any ends an answer: generation_config.json's, else config.json's.
    pub fn stop_ids(&self) -> &[u32] {
        if self.generation.eos_token_id.is_empty() { &self.config.tokens.eos } else { &self.generation.eos_token_id }
    }
}

/// Where the time step of films comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SecondPerGrid {
    /// The true rate of the frames that were taken.
    #[default]
    True,
    /// 1.0 for every film, as the references' training does.
    One,
}

/// How media are read.
#[derive(Debug, Clone)]
pub struct MediaOptions {
    /// Frame and pixel limits.
    pub profile: MediaProfile,
    /// Flags; they win over the keys of a part.
    pub overrides: MediaOverrides,
    /// What decodes films.
    pub decoder: DecodeWorker,
    /// Time steps of films.
    pub second_per_grid: SecondPerGrid,
}

impl Default for MediaOptions {
    fn default() -> Self {
        Self {
            profile: MediaProfile::Qwen,
            overrides: MediaOverrides::default(),
            decoder: DecodeWorker::this_program(),
            second_per_grid: SecondPerGrid::True,
        }
    }
}

/// A conversation's media. See [`Tokens`] for the fields.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct LoadedMedia {
    /// Pictures and films.
    pub frames: MediaFrames,
    /// One a picture.
    pub image_grid_thw: Vec<GridThw>,
    /// One a film.
    pub video_grid_thw: Vec<GridThw>,
    /// Seconds from one frame pair to the next, one a film.
    pub second_per_grid_ts: Vec<f32>,
    /// Which frames were taken, film after film.
    pub frame_indices: Vec<i64>,
}

/// Prompt, media and positions of a conversation. A generation prompt is added unless the last turn is the assistant's.
pub fn encode(bundle: &Bundle, conversation: &Conversation, options: &MediaOptions) -> Result<ModelInput> {
    let text = bundle.template.render(conversation, !conversation.ends_with_assistant())?;
    let media = load_media(bundle, conversation, options)?;
    assemble(bundle, &text, media, &conversation.location)
}

/// Reads and resizes all media of a conversation, in order.
pub fn load_media(bundle: &Bundle, conversation: &Conversation, options: &MediaOptions) -> Result<LoadedMedia> {
    let processor = bundle.preprocessor.processor();
    let mut media =
        LoadedMedia { frames: MediaFrames { processor, ..MediaFrames::default() }, ..LoadedMedia::default() };
    for part in conversation.media() {
        match part {
            ContentPart::Text(_) => {}
            ContentPart::Image(image) => {
                let picture = load_image(image, options, &processor)?;
                media.image_grid_thw.push(media.frames.grid(&picture)?);
                media.frames.images.push(picture);
            }
            ContentPart::Video(video) => {
                let mut film = load_video(video, options, &processor)?;
                media.video_grid_thw.push(media.frames.grid(&film.frames)?);
                media.frames.videos.push(film.frames);
                media.second_per_grid_ts.push(match options.second_per_grid {
                    SecondPerGrid::True => (processor.temporal_patch_size as f64 / film.sample_fps) as f32,
                    SecondPerGrid::One => 1.0,
                });
                media.frame_indices.append(&mut film.frame_indices);
            }
        }
    }
    Ok(media)
}

/// Ids of a rendered prompt with each pad multiplied to the tokens of its picture or film, and the positions.
///
/// `location` opens errors. Pads in a prompt without any media of their kind stay single, as in the reference.
pub fn assemble(bundle: &Bundle, text: &str, media: LoadedMedia, location: &str) -> Result<ModelInput> {
    let tokens = &bundle.config.tokens;
    let mut ids = bundle.tokenizer.encode(text)?;
    let unit = bundle.config.vision.merge_unit();
    for (kind, pad, grids) in
        [("image", tokens.image, &media.image_grid_thw), ("video", tokens.video, &media.video_grid_thw)]
    {
        if !grids.is_empty() {
            let counts: Vec<usize> = grids.iter().map(|grid| grid.iter().product::<usize>() / unit).collect();
            ids = expand(ids, pad, &counts, kind, location)?;
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
    made.compute_positions(&bundle.config, location)?;
    Ok(made)
}

/// Multiplies the i-th pad to `counts[i]`.
fn expand(ids: Vec<TokenId>, pad: TokenId, counts: &[usize], kind: &str, location: &str) -> Result<Vec<TokenId>> {
    let pads = ids.iter().filter(|&&id| id == pad).count();
    if pads != counts.len() {
        let what =
            format!("the prompt has {pads} places for {kind}s (<|{kind}_pad|>) but the messages have {}", counts.len());
        let help =
            format!("take `<|{kind}_pad|>` out of the texts, or use a chat template that places every {kind} once");
        return Err(ModelError::messages(location, what, help));
    }
    let mut counts = counts.iter();
    let mut expanded = Vec::with_capacity(ids.len() + counts.clone().sum::<usize>());
    for id in ids {
        let n = if id == pad { counts.next().copied().unwrap_or(1) } else { 1 };
        expanded.extend(std::iter::repeat_n(id, n));
    }
    Ok(expanded)
}

fn load_image(image: &ImagePart, options: &MediaOptions, processor: &PatchProcessor) -> Result<FrameBuf> {
    let limits = ImagePixelLimits::new(options.profile, &options.overrides.or(image.overrides));
    let picture = open_picture(&image.source)?;
    Ok(patches::resize_image(&picture, &limits, processor, &image.source.name())?)
}

fn open_picture(source: &MediaSource) -> Result<RgbImage> {
    Ok(match source {
        MediaSource::Path(path) => reel_media::image::open(path)?,
        MediaSource::Data(uri) => reel_media::image::from_data_uri(uri)?,
        MediaSource::Url(url) => reel_media::image::decode(&fetch::url(url, fetch::LARGEST_PICTURE)?, url)?,
    })
}

/// A film, with what its positions are made from.
struct Film {
    frames: FrameBuf,
    sample_fps: f64,
    frame_indices: Vec<i64>,
}

fn load_video(video: &VideoPart, options: &MediaOptions, processor: &PatchProcessor) -> Result<Film> {
    let keys = options.overrides.or(video.overrides);
    match &video.source {
        VideoSource::Frames(frames) => frame_list(frames, video, keys, options, processor),
        VideoSource::File(MediaSource::Path(path)) => film(path, keys, options, processor),
        VideoSource::File(source) => {
            let bytes = match source {
                MediaSource::Url(url) => fetch::url(url, fetch::LARGEST_FILM)?,
                MediaSource::Data(uri) => fetch::data_uri(uri)?,
                MediaSource::Path(path) => std::fs::read(path).map_err(|e| ModelError::read(path, e))?,
            };
            film_in_memory(&source.name(), &bytes, keys, options, processor)
        }
    }
}

/// A list of pictures: each by the picture limits, an odd list repeats its last.
fn frame_list(
    frames: &[MediaSource],
    video: &VideoPart,
    keys: MediaOverrides,
    options: &MediaOptions,
    processor: &PatchProcessor,
) -> Result<Film> {
    let sample_fps = keys.fps.unwrap_or(2.0);
    if !(sample_fps > 0.0 && sample_fps.is_finite()) {
        let what = format!("is {sample_fps}; it must be above 0");
        return Err(ModelError::messages(format!("{}: fps", video.location), what, "give the frames' rate a second"));
    }
    let pictures = frames.iter().map(open_picture).collect::<Result<Vec<RgbImage>>>()?;
    let limits = ImagePixelLimits::new(options.profile, &keys);
    let name = frames.first().map(MediaSource::name).unwrap_or_default();
    let frames = patches::resize_image_list(&pictures, &limits, processor, &name)?;
    Ok(Film { frames, sample_fps, frame_indices: even((0..pictures.len() as i64).collect()) })
}

/// Frames go in pairs: an odd number repeats its last.
fn even(mut indices: Vec<i64>) -> Vec<i64> {
    if indices.len() % 2 == 1 {
        indices.extend(indices.last().copied());
    }
    indices
}

fn film(path: &Path, keys: MediaOverrides, options: &MediaOptions, processor: &PatchProcessor) -> Result<Film> {
    let read = options.decoder.decode_resized(path, options.profile, &keys)?;
    let data = match read.data {
        PixelBuffer::Owned(data) => data,
        PixelBuffer::Shared(map) => map.to_vec(),
    };
    let frames = FrameBuf { data, frames: read.indices.len(), height: read.height, width: read.width };
    // The image processor's own resize, which most frames already have.
    let frames = patches::processor_resize(frames, processor)?;
    let frame_indices = even(read.indices.iter().map(|&i| i as i64).collect());
    Ok(Film { frames, sample_fps: read.sample_fps, frame_indices })
}

/// Films that are not files become one for as long as the worker reads them.
fn film_in_memory(
    name: &str,
    bytes: &[u8],
    keys: MediaOverrides,
    options: &MediaOptions,
    processor: &PatchProcessor,
) -> Result<Film> {
    use std::io::Write;
    let folder = std::env::temp_dir();
    let file = tempfile::NamedTempFile::new_in(&folder).and_then(|mut file| file.write_all(bytes).map(|()| file));
    let file = file.map_err(|e| ModelError::write(&folder, e))?;
    // Errors name the source of the video, not the temporary file.
    film(file.path(), keys, options, processor).map_err(|error| match error {
        ModelError::Media(MediaError::File(d)) => MediaError::file(name, d.what, d.help).into(),
        other => other,
    })
}

impl PreprocessorConfig {
    /// The numbers as the media crate takes them.
    pub fn processor(&self) -> PatchProcessor {
        PatchProcessor {
            min_pixels: self.min_pixels,
            max_pixels: self.max_pixels,
            patch_size: self.patch_size,
            temporal_patch_size: self.temporal_patch_size,
            merge_size: self.merge_size,
            rescale_factor: 1.0 / 255.0,
            image_mean: self.image_mean,
            image_std: self.image_std,
        }
    }
}
