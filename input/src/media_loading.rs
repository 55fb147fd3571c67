//! Loads the images and videos of a conversation: reads files, addresses and data URIs, decodes them, and resizes them
//! as the model's image processor does.

use std::borrow::Cow;
use std::io::Write;
use std::path::Path;

use reel_support::diagnostic::{input, print_note_once};
use tempfile::NamedTempFile;

use crate::error::{Error, Result};
use crate::family::Family;
use crate::fetch::{self, MediaAccess};
use crate::frame_folder::{self, frames_in_folder};
use crate::media::frames::FrameBuf;
use crate::media::image::RgbImage;
use crate::media::patches::{self, ImageProcessorSettings};
use crate::media::profile::{MediaOverrides, MediaProfile};
use crate::media::resize::{ImagePixelLimits, VideoPixelLimits};
use crate::media::video::PixelBuffer;
use crate::media::worker::DecodeWorker;
use crate::media::{with_file_name, with_message_part};
use crate::media_frames::MediaFrames;
use crate::messages::{ContentPart, Conversation, FRAME_TIMES_KEY, ImagePart, MediaSource, VideoPart, VideoSource};
use crate::video_marks::VideoMarks;
use crate::window::GridThw;

/// The time between two frame pairs of a video that M-RoPE positions assume.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SecondPerGrid {
    /// The time that follows from the rate at which frames were sampled.
    #[default]
    True,
    /// One second for every video, as in the training code of VideoRFT and Video-R1.
    One,
}

/// How images and videos are loaded.
#[derive(Debug, Clone)]
pub struct MediaOptions {
    /// The profile, which sets the limits for frames and pixels.
    pub profile: MediaProfile,
    /// Command-line flags, which override the same keys in a message's image or video part.
    pub overrides: MediaOverrides,
    /// The settings that the model was trained with; flags and the keys of a message's part override them.
    pub trained: MediaOverrides,
    /// Decodes videos in a worker process. Its time limit also applies to each download.
    pub decoder: DecodeWorker,
    /// Which files and addresses may be read.
    pub access: MediaAccess,
    /// The time between two frame pairs of a video that M-RoPE positions of Qwen2.5-VL assume.
    pub second_per_grid: SecondPerGrid,
    /// The form of a video's prompt in Qwen3-VL; `None` for the default.
    pub video_marks: Option<VideoMarks>,
    /// Whether the chat template numbers images and videos (its variable `add_vision_id`).
    pub add_vision_id: bool,
}

impl Default for MediaOptions {
    fn default() -> Self {
        Self {
            profile: MediaProfile::Qwen,
            overrides: MediaOverrides::default(),
            trained: MediaOverrides::default(),
            decoder: DecodeWorker::from_this_program(),
            access: MediaAccess::default(),
            second_per_grid: SecondPerGrid::True,
            video_marks: None,
            add_vision_id: false,
        }
    }
}

impl MediaOptions {
    /// Refuses options that do not fit a model of `family`.
    ///
    /// # Errors
    /// The error names the setting: a profile or a form of prompts of another family, or limits that are too small.
    pub fn check_fits(&self, family: Family) -> Result<()> {
        if family != Family::Qwen3Vl {
            let of_other = |name: &str, value: &str| {
                let what = format!("is {value}, which is for Qwen3-VL, but the model is a {}", family.name());
                Err(Error::setting(name, what, "leave it out, or use a Qwen3-VL model"))
            };
            if self.profile == MediaProfile::Qwen3Processor {
                return of_other("profile", self.profile.name());
            }
            if let Some(marks) = self.video_marks {
                return of_other("video_marks", marks.name());
            }
        }
        let rules = self.profile.for_family(family);
        self.overrides.validate(rules)?;
        self.trained.validate(rules)
    }

    /// The conversation with the variables of the chat template that these options set.
    pub fn with_template_variables<'c>(&self, conversation: &'c Conversation) -> Cow<'c, Conversation> {
        const ADD_VISION_ID: &str = "add_vision_id";
        if !self.add_vision_id || conversation.template_variables.contains_key(ADD_VISION_ID) {
            return Cow::Borrowed(conversation);
        }
        let mut numbered = conversation.clone();
        numbered.template_variables.insert(ADD_VISION_ID.to_string(), true.into());
        Cow::Owned(numbered)
    }

    /// The limits of an image or a video for a model with this image processor. `part` has the limits that the
    /// conversation sets for this image or video.
    fn limits_for_model(&self, part: MediaOverrides, processor: &ImageProcessorSettings) -> Result<MediaOverrides> {
        part.refuse_limits_without_effect(self.profile)?;
        part.refuse_limits_of_other_family(processor.family)?;
        Ok(processor.limits_of_profile(self.profile, self.media_limits(part)))
    }

    /// The limits of an image or a video. `part` has the limits that the conversation sets for this image or video.
    pub(crate) fn media_limits(&self, part: MediaOverrides) -> MediaOverrides {
        let limits = self.overrides.or_fallback(part).or_fallback(self.trained);
        if let (Some(_), None, Some(frames)) = (part.fps, self.overrides.fps, limits.frames_at_any_rate(self.profile)) {
            print_note_once(format!(
                "`fps` of videos has no effect with the profile {}, which takes {frames} frames of every video; give \
                 --min-frames or --max-frames, or --profile qwen",
                self.profile
            ));
        }
        limits
    }
}

impl LoadedMedia {
    /// Creates the media of a conversation without images and videos.
    pub fn empty(processor: ImageProcessorSettings, video_marks: Option<VideoMarks>) -> Self {
        Self {
            frames: MediaFrames { processor, ..MediaFrames::default() },
            video_marks: video_marks.unwrap_or_default(),
            ..Self::default()
        }
    }

    /// Appends further images and videos for the same model.
    pub fn append(&mut self, next: LoadedMedia) {
        self.frames.append(&next.frames);
        self.image_grid_thw.extend(next.image_grid_thw);
        self.video_grid_thw.extend(next.video_grid_thw);
        self.second_per_grid_ts.extend(next.second_per_grid_ts);
        self.frame_indices.extend(next.frame_indices);
    }
}

/// The loaded images and videos of a conversation. The fields have the same meaning as in [`ModelInput`].
#[derive(Debug, Clone, Default, PartialEq)]
pub struct LoadedMedia {
    /// Decoded images and videos.
    pub frames: MediaFrames,
    /// The grid of each image.
    pub image_grid_thw: Vec<GridThw>,
    /// The grid of each video.
    pub video_grid_thw: Vec<GridThw>,
    /// Seconds from one frame pair to the next, for each video.
    pub second_per_grid_ts: Vec<f32>,
    /// The indices of the sampled frames of all videos, one video after another.
    pub frame_indices: Vec<i64>,
    /// The form of a video's prompt in Qwen3-VL.
    pub video_marks: VideoMarks,
}

/// Loads and resizes all images and videos of a conversation, in order, for a model whose folder has these preprocessor
/// settings.
pub fn load_media_with(
    processor: ImageProcessorSettings,
    conversation: &Conversation,
    options: &MediaOptions,
) -> Result<LoadedMedia> {
    let mut media = LoadedMedia::empty(processor, options.video_marks);
    for part in conversation.media_parts() {
        match part {
            ContentPart::Text(_) => {}
            ContentPart::Image(image) => {
                let frame =
                    load_image(image, options, &processor).map_err(|e| with_message_part(e, &image.location))?;
                media.image_grid_thw.push(media.frames.grid_thw(&frame)?);
                media.frames.images.push(frame);
            }
            ContentPart::Video(video) => {
                let mut loaded =
                    load_video(video, options, &processor).map_err(|e| with_message_part(e, &video.location))?;
                media.video_grid_thw.push(media.frames.grid_thw(&loaded.frames)?);
                media.frames.videos.push(loaded.frames);
                media.frames.video_times.push(loaded.times);
                if processor.family == Family::Qwen25Vl {
                    media.second_per_grid_ts.push(match options.second_per_grid {
                        SecondPerGrid::True => (processor.temporal_patch_size as f64 / loaded.sample_fps) as f32,
                        SecondPerGrid::One => 1.0,
                    });
                }
                media.frame_indices.append(&mut loaded.frame_indices);
            }
        }
    }
    Ok(media)
}

fn load_image(image: &ImagePart, options: &MediaOptions, processor: &ImageProcessorSettings) -> Result<FrameBuf> {
    let keys = options.limits_for_model(image.overrides, processor)?;
    let limits = ImagePixelLimits::new(options.profile.for_family(processor.family), &keys);
    let rgb = open_image(&image.source, options, image.overrides)?;
    patches::resize_image(&rgb, &limits, processor, &image.source.path_or_address())
}

fn open_image(source: &MediaSource, options: &MediaOptions, part: MediaOverrides) -> Result<RgbImage> {
    let rule = options.media_limits(part).exif_orientation();
    let image = match source {
        MediaSource::Path(path) => crate::media::image::open(&options.access.allowed_path(path)?, rule)?,
        MediaSource::Data(uri) => crate::media::image::from_data_uri(uri, rule)?,
        MediaSource::Url(url) => {
            let file = options.access.download(url, fetch::MAX_IMAGE_BYTES, options.decoder.program.timeout)?;
            let bytes = input::read_file(file.path(), fetch::MAX_IMAGE_BYTES)
                .map_err(|e| Error::cannot_read(source.path_or_address(), e))?;
            crate::media::image::decode(&bytes, &source.path_or_address(), rule)?
        }
    };
    options.decoder.check((image.height * image.width) as u64)?;
    Ok(image)
}

/// Loads the frame of a video that is shown at `seconds`, or a part of it, as an image of the size that `options` set
/// for images. `region` has left, top, right and bottom in thousandths of the frame's width and height.
///
/// # Errors
/// A time outside of the video; a region without area; the errors of decoding.
pub fn load_video_frame(
    path: &Path,
    seconds: f64,
    region: Option<[f64; 4]>,
    options: &MediaOptions,
    processor: &ImageProcessorSettings,
) -> Result<FrameBuf> {
    let path = options.access.allowed_path(path)?;
    let info = options.decoder.probe(&path)?;
    let (rate, last) = (info.video_fps, info.total_frames.saturating_sub(1));
    let duration = info.total_frames as f64 / rate;
    if !(0.0..=duration).contains(&seconds) {
        let what = format!("is {seconds} s, outside of the video of {duration:.3} s");
        return Err(Error::setting("time", what, "give a time of the video"));
    }
    let index = ((seconds * rate) as u64).min(last);
    // The decoder selects at least two frames: this one, and the next or the one before.
    let first = index.min(last.saturating_sub(1)) as f64;
    let around = |offset: f64| Some(((first + offset) / rate).max(0.0));
    let pair = MediaOverrides {
        nframes: Some(2),
        video_start: around(-0.5),
        video_end: around(1.5),
        ..MediaOverrides::default()
    };
    let read = options.decoder.decode(&path, MediaProfile::Qwen, &pair)?;
    let (height, width) = (read.height, read.width);
    let frame = read.indices.iter().position(|&i| i == index).unwrap_or(0) * height * width * 3;
    let [left, top, right, bottom] = match region {
        None => [0, 0, width, height],
        Some(region) => region_in_pixels(region, height, width)?,
    };
    let row = |y: usize| &read.data[frame + (y * width + left) * 3..frame + (y * width + right) * 3];
    let data = (top..bottom).flat_map(|y| row(y).iter().copied()).collect();
    let image = RgbImage { data, height: bottom - top, width: right - left };
    let keys = options.limits_for_model(MediaOverrides::default(), processor)?;
    let limits = ImagePixelLimits::new(options.profile.for_family(processor.family), &keys);
    patches::resize_image(&image, &limits, processor, &path.display().to_string())
}

/// The pixels of a frame that a region in thousandths of its sides covers at least in part: left, top, right, bottom.
fn region_in_pixels(region: [f64; 4], height: usize, width: usize) -> Result<[usize; 4]> {
    let [left, top, right, bottom] = region;
    if !(left < right && top < bottom && region.iter().all(|side| (0.0..=1000.0).contains(side))) {
        let what = format!("is {region:?}");
        return Err(Error::setting("box", what, "give [left, top, right, bottom] from 0 to 1000, left below right"));
    }
    let at = |side: f64, pixels: usize, up: bool| {
        let exact = side * pixels as f64 / 1000.0;
        (if up { exact.ceil() } else { exact.floor() }) as usize
    };
    Ok([at(left, width, false), at(top, height, false), at(right, width, true), at(bottom, height, true)])
}

/// A loaded video, with the values from which its prompt and its M-RoPE positions are computed.
struct LoadedVideo {
    frames: FrameBuf,
    sample_fps: f64,
    frame_indices: Vec<i64>,
    /// The time of each frame in seconds.
    times: Vec<f64>,
}

fn load_video(video: &VideoPart, options: &MediaOptions, processor: &ImageProcessorSettings) -> Result<LoadedVideo> {
    let keys = options.limits_for_model(video.overrides, processor)?;
    refuse_list_keys(video, processor.family)?;
    match &video.source {
        VideoSource::Frames(frames) => frame_list(frames, video, options, processor, false),
        VideoSource::File(source) => {
            // The worker reads files, so other sources are written to temporary files, which exist until the worker has
            // finished.
            let temporary = match source {
                MediaSource::Path(path) => {
                    let path = options.access.allowed_path(path)?;
                    if !path.is_dir() {
                        return video_file(&path, keys, options, processor);
                    }
                    let frames: Vec<_> = frames_in_folder(&path)?.into_iter().map(MediaSource::Path).collect();
                    return frame_list(&frames, video, options, processor, true);
                }
                MediaSource::Url(url) => {
                    options.access.download(url, fetch::MAX_VIDEO_BYTES, options.decoder.program.timeout)?
                }
                MediaSource::Data(uri) => temporary_file(&fetch::decode_data_uri(uri)?)?,
            };
            video_file(temporary.path(), keys, options, processor)
                .map_err(|error| with_file_name(error, &source.path_or_address()))
        }
    }
}

/// Loads a video that is given as a list of images. The size limits for images apply to each image. The images of a
/// folder must all have the same size.
fn frame_list(
    frames: &[MediaSource],
    video: &VideoPart,
    options: &MediaOptions,
    processor: &ImageProcessorSettings,
    is_folder: bool,
) -> Result<LoadedVideo> {
    let keys = options.limits_for_model(video.overrides, processor)?;
    video.check_frame_count(frames.len())?;
    let [sample_fps, raw_fps] = list_rates(video, options.media_limits(video.overrides), processor.family)?;
    let images =
        frames.iter().map(|frame| open_image(frame, options, video.overrides)).collect::<Result<Vec<RgbImage>>>()?;
    if is_folder {
        frame_folder::check_frame_sizes_equal(frames, images.iter().map(|image| (image.height, image.width)))?;
    }
    let rules = options.profile.for_family(processor.family);
    // Frames with times are those of a file, so only the file's rule resizes them; so does the processor with all lists.
    let is_of_file = video.frame_times.is_some() || options.profile == MediaProfile::Qwen3Processor;
    let limits = (!is_of_file).then(|| ImagePixelLimits::of_listed_frames(rules, &keys));
    let name = frames.first().map(MediaSource::path_or_address).unwrap_or_default();
    let frame_limits = VideoPixelLimits::new(rules, &keys);
    let frames = patches::resize_image_list(&images, limits.as_ref(), &frame_limits, processor, &name)?;
    // qwen-vl-utils 0.0.14 counts the repeated last image of an odd list as a further frame; the processor does not.
    let counted = match processor.family == Family::Qwen3Vl && options.profile != MediaProfile::Qwen3Processor {
        true => frames.frames,
        false => images.len(),
    };
    let times = match &video.frame_times {
        Some(times) => times.clone(),
        None => (0..counted).map(|i| i as f64 / raw_fps).collect(),
    };
    Ok(LoadedVideo { frames, sample_fps, frame_indices: even((0..images.len() as i64).collect()), times })
}

/// The rate in frames per second at which the frames of a list were sampled, and the rate from which their times
/// follow: both `fps` in Qwen2.5-VL; `sample_fps` and `raw_fps` in Qwen3-VL, as in qwen-vl-utils 0.0.14.
fn list_rates(video: &VideoPart, keys: MediaOverrides, family: Family) -> Result<[f64; 2]> {
    let rate = |key: &str, given: Option<f64>, default: f64| match given.unwrap_or(default) {
        rate if rate > 0.0 && rate.is_finite() => Ok(rate),
        rate => Err(Error::input(
            format!("{}: {key}", video.location),
            format!("is {rate}, expected a number above 0"),
            "give the frame rate of the listed frames, in frames per second",
        )),
    };
    match family {
        Family::Qwen25Vl => {
            let given = keys.fps.filter(|fps| video.max_frame_count().is_none() || *fps > 0.0);
            let fps = rate("fps", given, 2.0)?;
            Ok([fps, fps])
        }
        Family::Qwen3Vl => {
            if video.overrides.fps.is_some() && video.max_frame_count().is_none() {
                print_note_once(
                    "`fps` of a list of frames has no effect with Qwen3-VL, as in qwen-vl-utils 0.0.14, which takes 2 \
                     frames per second; give `sample_fps`, and `raw_fps` if the frames were counted at another rate"
                        .to_string(),
                );
            }
            let sample_fps = rate("sample_fps", keys.sample_fps, 2.0)?;
            Ok([sample_fps, rate("raw_fps", keys.raw_fps, sample_fps)?])
        }
    }
}

/// Refuses the keys `sample_fps`, `raw_fps` and `frame_times`, where nothing would read them: for Qwen2.5-VL, for a
/// file, and a rate beside times. Refuses times that are not one for each frame of the list.
fn refuse_list_keys(video: &VideoPart, family: Family) -> Result<()> {
    let (limits, is_list) = (&video.overrides, video.is_frame_list());
    let given = [
        (FRAME_TIMES_KEY, video.frame_times.is_some()),
        ("sample_fps", limits.sample_fps.is_some()),
        ("raw_fps", limits.raw_fps.is_some()),
    ];
    let mut given = given.iter().filter(|(_, is_given)| *is_given);
    let Some((key, _)) = given.next() else { return Ok(()) };
    let (what, help) = match (family, is_list) {
        (Family::Qwen25Vl, _) => ("is read for Qwen3-VL only", "give fps"),
        (Family::Qwen3Vl, false) => {
            ("is for a list of frames, but the video is a file", "remove it, or list the frames")
        }
        (Family::Qwen3Vl, true) => match (&video.frame_times, &video.source) {
            (Some(_), _) if given.next().is_some() => ("is given beside a rate", "give one of them"),
            (Some(times), VideoSource::Frames(frames)) if times.len() != frames.len() => {
                ("has not one time for each frame of the list", "give as many times as frames")
            }
            (Some(_), VideoSource::File(_)) => {
                ("is for a list of frames, but the video is a folder", "list the frames")
            }
            _ => return Ok(()),
        },
    };
    Err(Error::input(format!("{}: {key}", video.location), what, help))
}

/// Repeats the last index if the number of indices is odd, because frames are used in pairs.
fn even(mut indices: Vec<i64>) -> Vec<i64> {
    if indices.len() % 2 == 1 {
        indices.extend(indices.last().copied());
    }
    indices
}

fn video_file(
    path: &Path,
    keys: MediaOverrides,
    options: &MediaOptions,
    processor: &ImageProcessorSettings,
) -> Result<LoadedVideo> {
    let read = options.decoder.decode_resized(path, options.profile.for_family(processor.family), &keys)?;
    let data = match read.data {
        PixelBuffer::Owned(data) => data,
        shared => shared.to_vec(),
    };
    let frames = FrameBuf { data: data.into(), frames: read.indices.len(), height: read.height, width: read.width };
    // Qwen2.5-VL's image processor resizes a second time. Most frames already have the right size after the first
    // resize, so this resize leaves them as they are.
    let frames = patches::processor_resize(frames, processor)?;
    let frame_indices: Vec<i64> = read.indices.iter().map(|&i| i as i64).collect();
    let frame_indices =
        if options.profile == MediaProfile::Qwen3Processor { frame_indices } else { even(frame_indices) };
    let times = read.indices.iter().map(|&i| i as f64 / read.video_fps).collect();
    Ok(LoadedVideo { frames, sample_fps: read.sample_fps, frame_indices, times })
}

fn temporary_file(bytes: &[u8]) -> Result<NamedTempFile> {
    let folder = std::env::temp_dir();
    let file = NamedTempFile::new_in(&folder).and_then(|mut file| file.write_all(bytes).map(|()| file));
    file.map_err(|e| Error::cannot_write(&folder, e))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::prompt_fields::PromptFields;

    #[test]
    fn errors_of_settings_and_data_uris_name_the_part() {
        let image = |source: &str| serde_json::json!({"type": "image", "image": source});
        let video = |source: &str| serde_json::json!({"type": "video", "video": source, "nframes": 3});
        let text = serde_json::json!({"type": "text", "text": "x"});
        for (part, want) in [
            (image("data:image/png;base64,A!"), "m: message 0, part 1: data: URI: contains invalid base64"),
            (video("data:video/mp4;base64,A!"), "m: message 0, part 1: data: URI: "),
            (image("nosuch.png"), "nosuch.png: "),
        ] {
            let messages = serde_json::json!([{"role": "user", "content": [text.clone(), part]}]);
            let conversation = Conversation::from_json("m", &messages, Path::new("")).unwrap();
            let error = load_media_with(ImageProcessorSettings::default(), &conversation, &MediaOptions::default());
            let error = error.unwrap_err().to_string();
            assert!(error.starts_with(want), "{error}");
        }
        let error = Error::setting("nframes", "is 3", "give an even number");
        assert_eq!(with_message_part(error, "m").to_string(), "m: nframes: is 3; give an even number");
    }

    #[test]
    fn times_that_no_frame_has_are_refused() {
        let refused = |family: Family, part: serde_json::Value| {
            let messages = serde_json::json!([{"role": "user", "content": [part]}]);
            let loaded = Conversation::from_json("m", &messages, Path::new("")).and_then(|conversation| {
                let processor = ImageProcessorSettings::of_published(family);
                load_media_with(processor, &conversation, &MediaOptions::default())
            });
            loaded.unwrap_err().to_string()
        };
        let list = |times: serde_json::Value| serde_json::json!({"type": "video", "video": ["0.png", "1.png"], "frame_times": times});
        let file = serde_json::json!({"type": "video", "video": "v.mp4", "frame_times": [0, 1]});
        let mut with_rate = list([0, 1].into());
        with_rate["sample_fps"] = 2.into();
        for (family, part, want) in [
            (Family::Qwen3Vl, list([0].into()), "has not one time for each frame"),
            (Family::Qwen3Vl, list([1, 0].into()), "is not a list of ascending times"),
            (Family::Qwen3Vl, list("0, 1".into()), "is not a list of ascending times"),
            (Family::Qwen3Vl, file, "the video is a file"),
            (Family::Qwen3Vl, with_rate, "is given beside a rate"),
            (Family::Qwen25Vl, list([0, 1].into()), "is read for Qwen3-VL only"),
        ] {
            let error = refused(family, part);
            assert!(error.starts_with("m: message 0, part 0: frame_times: ") && error.contains(want), "{error}");
        }
    }

    #[test]
    fn a_list_of_frames_is_taken_whole() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["0.png", "1.png", "2.png"] {
            std::fs::write(folder.path().join(name), "no image").unwrap();
        }
        let load = |conversation: Conversation| {
            let loaded = load_media_with(ImageProcessorSettings::default(), &conversation, &MediaOptions::default());
            loaded.unwrap_err().to_string()
        };
        let messages = |video: serde_json::Value| serde_json::json!([{"role": "user", "content": [video]}]);
        let list = serde_json::json!(["0.png", "1.png", "2.png"]);
        for video in [serde_json::json!("."), list] {
            let given = |key: &str, value: serde_json::Value| {
                let mut part = serde_json::json!({"type": "video", "video": video});
                part[key] = value;
                load(Conversation::from_json("m", &messages(part), folder.path()).unwrap())
            };
            for (key, wrong, asked) in [
                ("nframes", 2.0, "nframes asks for 2; "),
                ("max_frames", 2.0, "max_frames asks for at most 2; "),
                ("min_frames", 4.0, "min_frames asks for at least 4; "),
                ("video_start", 1.0, "video_start asks for those from 1 s on; "),
                ("video_end", 1.5, "video_end asks for those up to 1.5 s; "),
            ] {
                let error = given(key, wrong.into());
                assert!(error.contains("is a list of 3 frames") && error.contains(asked), "{error}");
            }
            // The list has 3 frames. Settings that allow 3 frames are accepted, so the next error is about the
            // missing file.
            for (key, value) in [("nframes", 3), ("nframes", 4), ("max_frames", 3), ("min_frames", 3)] {
                let error = given(key, value.into());
                assert!(error.contains("0.png"), "{key} {value}: {error}");
            }
        }
        let num_frames = |n: i64| {
            let fields = serde_json::json!({"media_io_kwargs": {"video": {"num_frames": n}}});
            let fields = PromptFields::from_body("r", fields.as_object().unwrap()).unwrap();
            let messages = messages(serde_json::json!({"type": "video", "video": "."}));
            load(Conversation::from_request("r", &messages, folder.path(), Vec::new(), fields).unwrap())
        };
        assert!(
            num_frames(2).contains("is a list of 3 frames, all of which are used, but num_frames asks for at most 2")
        );
        assert!(num_frames(3).contains("0.png") && num_frames(8).contains("0.png"), "{}", num_frames(8));
    }
}
