//! Options of every subcommand that reads videos or images.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use anyhow::Result;
use clap::{Args, ValueEnum};
use reel_input::MediaOptions;
use reel_input::config::{Family, ModelConfig};
use reel_input::fetch::{MediaAccess, RemoteMedia};
use reel_input::media::profile::{MediaOverrides, MediaProfile};
use reel_input::media::worker::{self, DecodeWorker, DiskFrameCache, FrameCache, FrameCacheCounts, FrameCacheOptions};
use reel_input::video_marks::VideoMarks;
use reel_support::diagnostic::{input, print_note_once};
use reel_support::error::{Error, Kind, MediaFailure};
use reel_train::file_names::RUN_FILE;
use serde::{Deserialize, Serialize};

use crate::common::{CommonOptions, DeviceName};
use crate::fail::usage_error;

/// Options for frame selection and pixel limits.
#[derive(Args, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[command(next_help_heading = "Media options")]
pub struct MediaFlags {
    /// Frame and pixel limits: videorft-train, video-r1-train, videorft-eval, qwen, uniform-16, stride-1fps or
    /// qwen3-processor (the sizes of a Qwen3-VL folder) [default: videorft-train for sft and grpo, videorft-eval for
    /// eval, else qwen]
    #[arg(long, value_name = "NAME")]
    pub profile: Option<String>,
    #[command(flatten)]
    #[serde(flatten)]
    limits: MediaOverrides,
    /// Leave images with an EXIF orientation as they are stored, as qwen-vl-utils does; by default they are turned
    /// upright, as by transformers and datasets
    #[arg(long)]
    ignore_exif_orientation: bool,
    /// How the frame pairs of a video stand in the prompt of Qwen3-VL: in place of the marks around the video
    /// (transformers 4.57, vLLM) or between them (transformers 5) [default: inner]
    #[arg(long, value_name = "FORM")]
    #[serde(skip_serializing_if = "Option::is_none")]
    video_marks: Option<VideoMarks>,
    /// Number images and videos in the prompt, as the chat template does with its variable add_vision_id
    #[arg(long)]
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    add_vision_id: bool,
}

impl MediaFlags {
    /// Returns the profile that `--profile` names, else `default`.
    pub fn profile(&self, default: MediaProfile) -> Result<MediaProfile> {
        self.profile.as_deref().map_or(Ok(default), MediaProfile::parse).map_err(media_error_to_usage_error)
    }

    /// Returns a copy of these options, with the profile `name` if `--profile` is not given.
    pub fn with_default_profile(&self, name: &str) -> Self {
        let mut flags = self.clone();
        flags.profile.get_or_insert_with(|| name.to_string());
        flags
    }

    /// Returns the names of the options that are given, such as `--nframes`.
    pub fn given_options(&self) -> Vec<String> {
        let Ok(serde_json::Value::Object(fields)) = serde_json::to_value(self) else { return Vec::new() };
        let given = fields.into_iter().filter(|(_, value)| !value.is_null() && *value != false);
        given.map(|(name, _)| format!("--{}", name.replace('_', "-"))).collect()
    }

    /// Checks the limits that the options set, and returns them. They take precedence over the limits of the profile
    /// and over those that a chat message sets for its image or video.
    pub fn limit_overrides(&self, profile: MediaProfile) -> Result<MediaOverrides> {
        let overrides = self.unchecked_limit_overrides();
        // The limits are checked again when the model is known ([`check_fits_model`]); those of Qwen2.5-VL are lower.
        overrides.validate(profile.for_family(Family::Qwen25Vl)).map_err(media_error_to_usage_error)?;
        if let Some(frames) = overrides.frames_at_any_rate(profile) {
            print_note_once(format!(
                "--fps: has no effect with the profile {profile}, which takes {frames} frames of every video; give \
                 --min-frames or --max-frames, too, or --profile qwen"
            ));
        }
        Ok(overrides)
    }

    /// Returns the options for reading the images and videos of training rows: with the default profile of the training
    /// commands.
    pub fn training_options(
        &self,
        access: &MediaAccessFlags,
        worker: &WorkerFlags,
        media_root: &Path,
        common: &CommonOptions,
    ) -> Result<MediaOptions> {
        let profile = self.profile(MediaProfile::VideorftTrain)?;
        let form = self.with_prompt_form_or(self, MediaOptions::default());
        Ok(MediaOptions {
            profile,
            overrides: self.limit_overrides(profile)?,
            decoder: worker.decode_worker(common)?,
            access: access.media_access(media_root),
            ..form
        })
    }

    /// Returns `options` with the form of prompts that these options set, or else `fallback`.
    pub fn with_prompt_form_or(&self, fallback: &Self, options: MediaOptions) -> MediaOptions {
        MediaOptions {
            video_marks: self.video_marks.or(fallback.video_marks),
            add_vision_id: self.add_vision_id || fallback.add_vision_id,
            ..options
        }
    }

    /// Refuses options about prompts, for a command that makes none.
    pub fn refuse_prompt_form(&self) -> Result<()> {
        let given = [("--video-marks", self.video_marks.is_some()), ("--add-vision-id", self.add_vision_id)];
        match given.iter().find(|(_, is_given)| *is_given) {
            Some((name, _)) => Err(usage_error(name, "is about prompts, but this command makes none", "leave it out")),
            None => Ok(()),
        }
    }

    /// Returns the limits that the options set, without checks, for a command that only shows what qwen-vl-utils
    /// would do with them.
    pub fn unchecked_limit_overrides(&self) -> MediaOverrides {
        MediaOverrides { ignore_exif_orientation: self.ignore_exif_orientation.then_some(true), ..self.limits }
    }
}

/// Refuses media options that do not fit a model with this config.
pub fn check_fits_model(options: &MediaOptions, config: &ModelConfig) -> Result<()> {
    options.check_fits(config.family()).map_err(media_error_to_usage_error)
}

/// The frame and pixel settings of the run that trained a model.
#[derive(Debug)]
pub struct TrainingMediaSettings {
    /// The file run.json that records the settings.
    pub file: PathBuf,
    pub flags: MediaFlags,
}

impl TrainingMediaSettings {
    /// Reads the settings from run.json in the folder that `reel sft` or `reel grpo` wrote, or in the folder above a
    /// checkpoint. `None` if the folder is not from a run.
    pub fn read_from_run_folder(folder: &Path) -> Option<Self> {
        let is_checkpoint = folder.file_name().is_some_and(|name| name.to_string_lossy().starts_with("checkpoint-"));
        let file = if is_checkpoint { folder.parent()?.join(RUN_FILE) } else { folder.join(RUN_FILE) };
        let text = input::read_file(&file, input::MAX_CONFIG_BYTES).ok()?;
        let mut run: serde_json::Value = serde_json::from_slice(&text).ok()?;
        let flags: MediaFlags = serde_json::from_value(run.get_mut("options")?.take()).ok()?;
        flags.profile.is_some().then_some(Self { file, flags })
    }
}

impl fmt::Display for TrainingMediaSettings {
    /// Writes the settings as options on a command line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let o = &self.flags;
        write!(f, "--profile {}", o.profile.as_deref().unwrap_or_default())?;
        let Ok(serde_json::Value::Object(limits)) = serde_json::to_value(o.limits) else { return Err(fmt::Error) };
        let mut given = limits.iter().filter_map(|(name, value)| Some((name.replace('_', "-"), value.as_f64()?)));
        given.try_for_each(|(name, n)| write!(f, " --{name} {n}"))?;
        if let Some(marks) = o.video_marks {
            write!(f, " --video-marks {}", marks.name())?;
        }
        if o.add_vision_id {
            f.write_str(" --add-vision-id")?;
        }
        if o.ignore_exif_orientation { f.write_str(" --ignore-exif-orientation") } else { Ok(()) }
    }
}

/// Options that say where the media of rows and messages may come from.
#[derive(Args, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[command(next_help_heading = "Media options")]
pub struct MediaAccessFlags {
    /// Download the images and videos that rows or messages name by http or https address; addresses of private
    /// networks and of this machine stay refused
    #[arg(long)]
    allow_remote_media: bool,
    /// Refuse media files outside of --media-root, including files outside that a symbolic link leads to
    #[arg(long)]
    confine_media: bool,
}

impl MediaAccessFlags {
    /// Returns which files and addresses rows and messages may name; relative paths are relative to `media_root`.
    pub fn media_access(&self, media_root: &Path) -> MediaAccess {
        MediaAccess {
            remote: if self.allow_remote_media { RemoteMedia::Public } else { RemoteMedia::Refused },
            confined_to: self.confine_media.then(|| media_root.to_path_buf()),
        }
    }
}

/// Turns the error of a media setting into an error about the option with the setting's name (exit code 2); other
/// errors are returned unchanged.
pub fn media_error_to_usage_error(e: Error) -> anyhow::Error {
    if e.kind != Kind::Media(MediaFailure::Setting) {
        return e.into();
    }
    let d = e.diagnostic;
    usage_error(&format!("--{}", d.location.replace('_', "-")), d.what, d.help)
}

/// What decodes videos.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Decoder {
    // FFmpeg's software decoders.
    #[default]
    Cpu,
    // The video decoders of an NVIDIA GPU.
    Nvdec,
}

/// Options for decoding one media file: by what, and within which limits.
#[derive(Args, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[command(next_help_heading = "Media options")]
pub struct WorkerFlags {
    /// Time limit for decoding one media file, in seconds
    #[arg(long, value_name = "S", default_value_t = reel_support::worker::DEFAULT_WORKER_TIMEOUT.as_secs_f64())]
    media_timeout: f64,
    /// Memory limit for decoding one media file, in MiB
    #[arg(long, value_name = "MIB", default_value_t = worker::DEFAULT_DECODE_MEMORY_MIB)]
    media_memory: u64,
    /// What decodes videos; frames have the same bits. nvdec: the GPU of --device (on other devices the first GPU),
    /// for H.264 and HEVC in 4:2:0 with 8 bits, HEVC also 10; other videos are decoded on the CPU, with a note.
    /// --media-memory then leaves out memory of the GPU
    #[arg(long, value_name = "DECODER", value_enum, default_value_t = Decoder::Cpu)]
    decoder: Decoder,
}

impl Default for WorkerFlags {
    fn default() -> Self {
        Self {
            media_timeout: reel_support::worker::DEFAULT_WORKER_TIMEOUT.as_secs_f64(),
            media_memory: worker::DEFAULT_DECODE_MEMORY_MIB,
            decoder: Decoder::Cpu,
        }
    }
}

/// Maximum bytes of decoded frames in the cache (256 MiB).
const MAX_FRAMES: usize = 256 << 20;

/// Returns the cache of decoded frames, which all decoders of this process share.
fn frame_cache() -> Arc<FrameCache> {
    static CACHE: OnceLock<Arc<FrameCache>> = OnceLock::new();
    CACHE.get_or_init(|| Arc::new(FrameCache::new(MAX_FRAMES))).clone()
}

/// The cache on disk that all decoders of this process share.
static DISK_CACHE: Mutex<Option<Arc<DiskFrameCache>>> = Mutex::new(None);

/// Opens the cache of `--frame-cache`, which the decoders that are created from now on use.
pub fn open_disk_cache(options: &FrameCacheOptions) -> Result<()> {
    if options.frame_cache.is_none() && options.frame_cache_limit.is_some() {
        return Err(usage_error(
            "--frame-cache-limit",
            "has no effect without --frame-cache",
            "give --frame-cache DIR",
        ));
    }
    *DISK_CACHE.lock().unwrap_or_else(PoisonError::into_inner) =
        options.open().map_err(media_error_to_usage_error)?.map(Arc::new);
    Ok(())
}

/// Prints how many videos this process has read from the cache on disk and how many it has decoded.
pub fn print_disk_cache_use() {
    let cache = DISK_CACHE.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(cache) = &*cache {
        let FrameCacheCounts { read, decoded } = cache.counts();
        let folder = cache.folder().display();
        reel_support::diagnostic::note!("frame cache {folder}: frames of {read} videos read, of {decoded} decoded");
    }
}

impl WorkerFlags {
    /// Creates a decoder that decodes each media file in a worker process of this program, within these limits. Frames
    /// are kept in a cache that all decoders of this process share. With `--decoder nvdec`, checks that the GPU can
    /// decode.
    pub fn decode_worker(&self, common: &CommonOptions) -> Result<DecodeWorker> {
        let mut decoder = DecodeWorker::from_this_program();
        decoder.program.timeout = self.timeout()?;
        if self.media_memory == 0 {
            return Err(usage_error("--media-memory", "is 0, so no file could be decoded", "give MiB, 1 or more"));
        }
        decoder.memory_mib = self.media_memory;
        decoder.cache = Some(frame_cache());
        decoder.disk_cache = DISK_CACHE.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if common.threads.is_some() {
            decoder.threads = common.threads()?;
        }
        if self.decoder == Decoder::Nvdec {
            let index = if let DeviceName::Cuda(index) = common.device()? { index } else { 0 };
            decoder.gpu = Some(index);
            decoder.check_gpu().map_err(media_error_to_usage_error)?;
        }
        Ok(decoder)
    }

    /// Leaves `--decoder` aside, for a command that decodes no videos and may run on a machine without a GPU.
    pub fn decode_on_cpu(&mut self) {
        self.decoder = Decoder::Cpu;
    }

    fn timeout(&self) -> Result<Duration> {
        Duration::try_from_secs_f64(self.media_timeout).ok().filter(|d| !d.is_zero()).ok_or_else(|| {
            usage_error(
                "--media-timeout",
                format!("{} is not a time limit", self.media_timeout),
                "give seconds above 0",
            )
        })
    }
}
