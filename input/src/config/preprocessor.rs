//! `preprocessor_config.json` or `processor_config.json`: the settings by which the image processor resizes and
//! normalises images and frames.

use std::path::Path;

use crate::error::{Error, Result};
use crate::media::patches::{ImageProcessorSettings, VideoProcessorLimits};
use reel_support::diagnostic::input;

use super::fields::JsonFields;
use super::{Family, ModelConfig, VisionConfig};

/// The largest accepted `min_pixels`; the published value is 3136.
const MAX_MIN_PIXELS: u64 = 1 << 24;

/// The smallest accepted standard deviation of a channel; published values are above 0.2.
const MIN_STD: f32 = 1e-3;

const HELP: &str = "use the preprocessor_config.json that was published with these weights";

/// Reads the image processor's settings of a model folder and checks them against the vision tower. transformers 5 has
/// them under `image_processor` in `processor_config.json`, earlier versions in `preprocessor_config.json`. Without
/// either file, the defaults apply. The settings of the video processor (`video_processor`, or
/// `video_preprocessor_config.json`) must be the same, because this program processes images and frames in one way. The
/// video processor's size and frame limits only apply with the profile `qwen3-processor`; other profiles (`--profile`)
/// set these limits.
///
/// # Errors
/// A file cannot be read, has an unsupported value, or contradicts another file.
pub fn open_preprocessor_config(folder: &Path, config: &ModelConfig) -> Result<ImageProcessorSettings> {
    let processor = read_fields(&folder.join("processor_config.json"))?;
    let nested = |key: &str| processor.as_ref().map_or(Ok(None), |fields| fields.opt_object(key));
    let family = config.family();
    let images = [nested("image_processor")?, read_fields(&folder.join("preprocessor_config.json"))?];
    let mut found: Option<(String, ImageProcessorSettings)> = None;
    for fields in images.into_iter().flatten() {
        let (location, own) = (fields.location(), from_fields(&fields, family)?);
        match &found {
            Some((first, settings)) => check_equal(&location, &own, first, settings)?,
            None => found = Some((location, own)),
        }
    }
    let default = || (folder.join("preprocessor_config.json").display().to_string(), default_settings(family));
    let (location, mut found) = found.unwrap_or_else(default);
    check_fits(&location, &found, &config.vision)?;
    let videos = [nested("video_processor")?, read_fields(&folder.join("video_preprocessor_config.json"))?];
    let mut of_videos: Option<(String, VideoProcessorLimits)> = None;
    for fields in videos.into_iter().flatten() {
        let own = from_fields(&fields, family)?;
        let limits = video_limits(&fields, &own)?;
        let own = ImageProcessorSettings { min_pixels: found.min_pixels, max_pixels: found.max_pixels, ..own };
        check_equal(&fields.location(), &own, &location, &found)?;
        match &of_videos {
            Some((first, other)) if family == Family::Qwen3Vl && *other != limits => {
                let what = format!("has {limits:?}, but {first} has {other:?}");
                let help = "remove the file that does not belong to this model, or correct it";
                return Err(Error::input(fields.location(), what, help));
            }
            _ => of_videos = Some((fields.location(), limits)),
        }
    }
    if let Some((_, limits)) = of_videos {
        found.videos = limits;
    }
    Ok(found)
}

/// The limits for videos, in the file of a video processor whose sizes are those of `own`.
fn video_limits(fields: &JsonFields, own: &ImageProcessorSettings) -> Result<VideoProcessorLimits> {
    let default = VideoProcessorLimits::default();
    let sizes = fields.has_key("size") || fields.has_key("min_pixels") || fields.has_key("max_pixels");
    let frames = |key: &str, default: i64| Ok::<_, Error>(fields.opt_positive_int(key)?.map_or(default, |n| n as i64));
    let fps = fields.opt_f64("fps")?.unwrap_or(default.fps);
    if !(fps.is_finite() && fps > 0.0) {
        return Err(fields.error("fps", format!("is {fps}, expected a number above 0")));
    }
    Ok(VideoProcessorLimits {
        min_volume: if sizes { own.min_pixels } else { default.min_volume },
        max_volume: if sizes { own.max_pixels } else { default.max_volume },
        fps,
        min_frames: frames("min_frames", default.min_frames)?,
        max_frames: frames("max_frames", default.max_frames)?,
    })
}

/// Parses the text of a preprocessor_config.json of a model of `family`; `file` names its source in error messages.
pub fn parse_preprocessor_config(file: &str, text: &str, family: Family) -> Result<ImageProcessorSettings> {
    from_fields(&JsonFields::parse(file, text, HELP)?, family)
}

/// Checks that two files of a folder have the same settings.
fn check_equal(
    location: &str,
    own: &ImageProcessorSettings,
    first: &str,
    settings: &ImageProcessorSettings,
) -> Result<()> {
    let pair = |key: &'static str, own: &dyn std::fmt::Debug, other: &dyn std::fmt::Debug| {
        (key, format!("{own:?}"), format!("{other:?}"))
    };
    let pairs = [
        pair("min_pixels", &own.min_pixels, &settings.min_pixels),
        pair("max_pixels", &own.max_pixels, &settings.max_pixels),
        pair("image_mean", &own.image_mean, &settings.image_mean),
        pair("image_std", &own.image_std, &settings.image_std),
        pair("patch_size", &own.patch_size, &settings.patch_size),
        pair("temporal_patch_size", &own.temporal_patch_size, &settings.temporal_patch_size),
        pair("merge_size", &own.merge_size, &settings.merge_size),
    ];
    match pairs.into_iter().find(|(_, own, other)| own != other) {
        Some((key, own, other)) => {
            let what = format!("is {own}, but {other} in {first}");
            let help = "remove the file that does not belong to this model, or correct it";
            Err(Error::input(format!("{location}: {key}"), what, help))
        }
        None => Ok(()),
    }
}

/// The defaults of transformers' `Qwen2VLImageProcessor`, or the settings of the published Qwen3-VL models.
fn default_settings(family: Family) -> ImageProcessorSettings {
    match family {
        Family::Qwen25Vl => {
            ImageProcessorSettings { max_pixels: 28 * 28 * 1280, ..ImageProcessorSettings::of_published(family) }
        }
        Family::Qwen3Vl => ImageProcessorSettings::of_published(family),
    }
}

fn from_fields(fields: &JsonFields, family: Family) -> Result<ImageProcessorSettings> {
    let default = default_settings(family);
    check_steps(fields)?;
    let size = fields.opt_object("size")?;
    let edge = |key: &str, edge: &str, default: u64| -> Result<u64> {
        if let Some(pixels) = fields.opt_positive_int(key)? {
            return Ok(pixels as u64);
        }
        let of_size = size.as_ref().map(|size| size.opt_positive_int(edge)).transpose()?.flatten();
        Ok(of_size.map_or(default, |pixels| pixels as u64))
    };
    let min_pixels = edge("min_pixels", "shortest_edge", default.min_pixels)?;
    let max_pixels = edge("max_pixels", "longest_edge", default.max_pixels)?;
    if min_pixels > max_pixels {
        return Err(fields.error("min_pixels", format!("is {min_pixels}, above max_pixels {max_pixels}")));
    }
    // Every smaller image would be enlarged to `min_pixels` pixels.
    if min_pixels > MAX_MIN_PIXELS {
        return Err(fields.error("min_pixels", format!("is {min_pixels}, above the limit of {MAX_MIN_PIXELS}")));
    }
    let image_std = triple(fields, "image_std", default.image_std)?;
    if image_std.iter().any(|&x| x < MIN_STD) {
        return Err(fields.error("image_std", format!("must be at least {MIN_STD} for every channel")));
    }
    Ok(ImageProcessorSettings {
        min_pixels,
        max_pixels,
        image_mean: triple(fields, "image_mean", default.image_mean)?,
        image_std,
        patch_size: fields.opt_positive_int("patch_size")?.unwrap_or(default.patch_size),
        temporal_patch_size: fields.opt_positive_int("temporal_patch_size")?.unwrap_or(default.temporal_patch_size),
        merge_size: fields.opt_positive_int("merge_size")?.unwrap_or(default.merge_size),
        ..default
    })
}

fn check_fits(file: &str, settings: &ImageProcessorSettings, vision: &VisionConfig) -> Result<()> {
    for (key, ours, theirs) in [
        ("patch_size", settings.patch_size, vision.patch_size),
        ("temporal_patch_size", settings.temporal_patch_size, vision.temporal_patch_size),
        ("merge_size", settings.merge_size, vision.spatial_merge_size),
    ] {
        if ours != theirs {
            let what = format!("is {ours}, but the vision tower in config.json has {theirs}");
            return Err(Error::input(format!("{file}: {key}"), what, HELP));
        }
    }
    Ok(())
}

/// Rejects a config that switches off a step of the image processor, or changes it in a way that this program does
/// not support.
fn check_steps(fields: &JsonFields) -> Result<()> {
    for key in ["do_resize", "do_rescale", "do_normalize", "do_convert_rgb"] {
        if fields.opt_bool(key)? == Some(false) {
            return Err(fields.error(key, "is false, which is not supported"));
        }
    }
    if let Some(resample) = fields.opt_int("resample")?
        && resample != 3
    {
        return Err(fields.error("resample", format!("is {resample}; only 3 (bicubic) is supported")));
    }
    if let Some(factor) = fields.opt_f64("rescale_factor")?
        && (factor * 255.0 - 1.0).abs() > 1e-6
    {
        return Err(fields.error("rescale_factor", format!("is {factor}; only 1/255 is supported")));
    }
    Ok(())
}

/// The fields of a file; `None` if there is no such file.
fn read_fields(path: &Path) -> Result<Option<JsonFields>> {
    match input::read_text(path, input::MAX_CONFIG_BYTES) {
        Ok(text) => JsonFields::parse(&path.display().to_string(), &text, HELP).map(Some),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Error::cannot_read(path, e)),
    }
}

fn triple(fields: &JsonFields, key: &str, default: [f32; 3]) -> Result<[f32; 3]> {
    let Some(numbers) = fields.opt_f64_list(key)? else { return Ok(default) };
    match numbers[..] {
        [r, g, b] if numbers.iter().all(|x| x.is_finite()) => Ok([r as f32, g as f32, b as f32]),
        _ => Err(fields.error(key, "must be three finite numbers (red, green, blue)")),
    }
}
