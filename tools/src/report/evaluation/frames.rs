//! Small frames of the videos that the model saw. They are decoded when the page is written, by a worker process and
//! with the settings of the run, so the page shows the same frames that the model saw, at a smaller size.
//!
//! ```text
//! for each benchmark, which has an equal share of the bytes that are left:
//!     for each video, those with a wrong answer first, each once:
//!         decode it, draw up to 8 frames as one JPEG; end when the share is used up
//! ```
//! Videos are decoded on several threads, but added to the page in order, so the page does not depend on the number of
//! threads.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use reel_input::fetch::MediaAccess;
use reel_input::media::frames::FrameBuf;
use reel_input::media::patches::ImageProcessorSettings;
use reel_input::media::profile::{MediaOverrides, MediaProfile};
use reel_input::media::strip::jpeg_strip;
use reel_input::media::worker::DecodeWorker;
use reel_input::media_loading::load_media_with;
use reel_input::{Conversation, MediaOptions};
use serde_json::{Value, json};

use super::{BenchmarkAnswers, EvaluationRun};

/// Maximum number of frames of a video that the page shows.
const MAX_FRAMES: usize = 8;
/// Maximum width and height of a frame of a video, in pixels.
const MAX_SIDE: usize = 160;
/// Maximum width and height of a single image, in pixels.
const MAX_IMAGE_SIDE: usize = 480;
/// Quality of JPEG.
const QUALITY: u8 = 60;

/// Where the videos of a run come from, and how many bytes of their frames a page may hold.
#[derive(Clone, Debug)]
pub struct FrameSource {
    /// The folder that paths of videos are relative to; `None` for the folder that the run's settings record.
    pub media_root: Option<PathBuf>,
    /// Decodes videos.
    pub decoder: DecodeWorker,
    /// Number of videos that are decoded at the same time.
    pub threads: usize,
    /// Maximum bytes of all images in a page, as base64; 0 for a page without images.
    pub max_bytes: usize,
}

/// The images of a page.
#[derive(Clone, Debug, Default)]
pub struct FrameStrips {
    /// The images of each video, as JSON for the page.
    pub(super) strips: Vec<Value>,
    /// For each benchmark and media key: the index of the images in `strips`, or the reason why there are no images.
    found: HashMap<(String, String), Result<usize, MissingFramesReason>>,
    /// Maximum bytes of all images.
    max_bytes: usize,
}

/// Why a question has no frames in a page.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum MissingFramesReason {
    /// The question was asked without videos and images.
    NoMedia,
    /// The images of other videos have used up the page's maximum bytes for images.
    Limit {
        /// The limit.
        max_bytes: usize,
    },
    /// The file of the video is missing.
    Missing,
    /// Another reason.
    Failed(String),
}

impl MissingFramesReason {
    /// The reason in words.
    pub(super) fn text(&self) -> String {
        match self {
            Self::NoMedia => "the question was asked without a video".into(),
            Self::Limit { max_bytes: 0 } => "the page was written without frames".into(),
            Self::Limit { max_bytes } => {
                format!("the frames of other videos fill the page's limit of {} MiB (--frames-mib)", max_bytes >> 20)
            }
            Self::Missing => "the video is not there any more".into(),
            Self::Failed(reason) => reason.clone(),
        }
    }

    /// The reason in words, without details that differ between videos.
    pub(super) fn text_without_details(&self) -> String {
        match self {
            Self::Failed(_) => "the video cannot be decoded".into(),
            other => other.text(),
        }
    }
}

impl FrameStrips {
    /// Draws the frames of a run's videos. Calls `progress` with the number of videos that are done.
    pub fn load(run: &EvaluationRun, source: &FrameSource, progress: impl Fn(usize)) -> Self {
        let mut all = Self { max_bytes: source.max_bytes, ..Self::default() };
        let mut left = source.max_bytes;
        for (i, benchmark) in run.benchmarks.iter().enumerate() {
            let share = left / (run.benchmarks.len() - i);
            left -= all.add_benchmark(benchmark, source, share, &progress);
        }
        all
    }

    /// The index of the images of an answer's videos, or the reason why there are none.
    pub(super) fn find_strip(&self, benchmark: &str, key: Option<&str>) -> Result<usize, MissingFramesReason> {
        let Some(key) = key else { return Err(MissingFramesReason::NoMedia) };
        let found = self.found.get(&(benchmark.to_string(), key.to_string()));
        found.cloned().unwrap_or(Err(MissingFramesReason::Limit { max_bytes: self.max_bytes }))
    }

    /// Adds the videos of a benchmark until their images have `share` bytes. Returns the number of bytes that were
    /// used.
    fn add_benchmark(
        &mut self,
        benchmark: &BenchmarkAnswers,
        source: &FrameSource,
        share: usize,
        progress: &impl Fn(usize),
    ) -> usize {
        if share == 0 {
            return 0;
        }
        let options = match media_options(&benchmark.settings, source) {
            Ok(options) => options,
            Err(reason) => {
                let keys = benchmark.answers.iter().filter_map(|answer| answer.media_key());
                let failed =
                    |key| ((benchmark.task.name.clone(), key), Err(MissingFramesReason::Failed(reason.clone())));
                self.found.extend(keys.map(failed));
                return 0;
            }
        };
        let (root, options) = options;
        let family = serde_json::from_value(benchmark.settings["options"]["family"].clone()).unwrap_or_default();
        let processor = ImageProcessorSettings::of_published(family);
        let mut used = 0;
        for group in keys_wrong_first(benchmark).chunks(source.threads.max(1)) {
            let loaded: Vec<Result<Value, MissingFramesReason>> = std::thread::scope(|scope| {
                let (root, options) = (&root, &options);
                let threads: Vec<_> = group
                    .iter()
                    .map(|media| scope.spawn(move || strips_of(media.parts, root, options, processor)))
                    .collect();
                let joined = threads.into_iter().map(|thread| thread.join());
                joined
                    .map(|done| done.unwrap_or(Err(MissingFramesReason::Failed("the decoder failed".into()))))
                    .collect()
            });
            for (media, strips) in group.iter().zip(loaded) {
                let index = match strips {
                    Ok(strips) => {
                        let bytes = strips.to_string().len();
                        if used + bytes > share {
                            return used;
                        }
                        used += bytes;
                        self.strips.push(strips);
                        Ok(self.strips.len() - 1)
                    }
                    Err(reason) => Err(reason),
                };
                self.found.insert((benchmark.task.name.clone(), media.key.clone()), index);
            }
            progress(self.found.len());
        }
        used
    }
}

/// The videos and images of one or several questions.
struct Media<'a> {
    key: String,
    parts: &'a [Value],
}

/// The distinct videos of a benchmark. Videos with a wrong answer come first; otherwise the order of the file is
/// kept.
fn keys_wrong_first(benchmark: &BenchmarkAnswers) -> Vec<Media<'_>> {
    let scores = benchmark.scores();
    let rows = || benchmark.answers.iter().zip(&scores);
    let wrong = rows().filter(|(_, score)| **score < 1.0);
    let right = rows().filter(|(_, score)| **score >= 1.0);
    let mut known = std::collections::HashSet::new();
    let media = wrong.chain(right).filter_map(|(answer, _)| {
        let key = answer.media_key()?;
        known.insert(key.clone()).then_some(Media { key, parts: &answer.media })
    });
    media.collect()
}

/// The folder of the videos and the options with which the run loaded them, or the reason why they cannot be loaded.
fn media_options(settings: &Value, source: &FrameSource) -> Result<(PathBuf, MediaOptions), String> {
    let recorded = settings["media_root"].as_str().map(PathBuf::from);
    let Some(root) = source.media_root.clone().or(recorded) else {
        return Err("the run does not record the folder of its videos; give it as --media-root".into());
    };
    let options = &settings["options"];
    let profile = options["profile"].as_str().and_then(|name| MediaProfile::parse(name).ok());
    let Some(profile) = profile else {
        return Err("the settings of the run have no known frame profile (--profile)".into());
    };
    let limits: MediaOverrides = serde_json::from_value(options.clone()).unwrap_or_default();
    let options = MediaOptions {
        profile,
        overrides: MediaOverrides::default(),
        trained: limits,
        decoder: source.decoder.clone(),
        access: MediaAccess::default(),
        ..MediaOptions::default()
    };
    Ok((root, options))
}

/// The images of a question's videos as JSON, or the reason why there are none.
fn strips_of(
    parts: &[Value],
    root: &Path,
    options: &MediaOptions,
    processor: ImageProcessorSettings,
) -> Result<Value, MissingFramesReason> {
    if paths_in(parts).any(|path| !path.contains("://") && !path.starts_with("data:") && !root.join(path).exists()) {
        return Err(MissingFramesReason::Missing);
    }
    // The folder is removed from error messages, so that the page does not depend on where the videos are.
    let failed = |error: String| MissingFramesReason::Failed(error.replace(&format!("{}/", root.display()), ""));
    let messages = json!([{"role": "user", "content": parts}]);
    let conversation = Conversation::from_json("prompt", &messages, root).map_err(|e| failed(e.to_string()))?;
    let loaded = load_media_with(processor, &conversation, options);
    let loaded = loaded.map_err(|e| failed(e.to_string()))?;
    let (videos, images) = (&loaded.frames.videos, &loaded.frames.images);
    let video_times = loaded.frames.video_times.iter().map(Vec::as_slice).chain(std::iter::repeat(&[][..]));
    let strip = |frames: &FrameBuf, times: &[f64], max_side: usize| {
        let strip = jpeg_strip(frames, MAX_FRAMES, max_side, QUALITY).map_err(|e| failed(e.to_string()))?;
        let rounded = |&i: &usize| Some((times.get(i)? * 100.0).round() / 100.0);
        let times: Vec<f64> = strip.shown.iter().filter_map(rounded).collect();
        Ok(json!({
            "src": format!("data:image/jpeg;base64,{}", STANDARD.encode(&strip.bytes)),
            "shown": strip.shown.len(), "frames": frames.frames, "width": strip.width, "height": strip.height,
            "times": times,
        }))
    };
    let of_videos = videos.iter().zip(video_times).map(|(frames, times)| strip(frames, times, MAX_SIDE));
    let of_images = images.iter().map(|frame| strip(frame, &[], MAX_IMAGE_SIDE));
    of_videos.chain(of_images).collect::<Result<Vec<Value>, MissingFramesReason>>().map(Value::Array)
}

/// The paths and addresses of videos and images in the parts of a message.
fn paths_in(parts: &[Value]) -> impl Iterator<Item = &str> {
    let values = parts.iter().flat_map(|part| [&part["video"], &part["image"]]);
    values
        .flat_map(|value| value.as_array().map_or(std::slice::from_ref(value), Vec::as_slice))
        .filter_map(Value::as_str)
}
