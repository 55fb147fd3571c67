//! Fuzz targets for image and video files.

use reel_media::image::{self, ExifOrientation};

use super::{FuzzTarget, repository_file};
use crate::mutate::{PartFormat, Seed};
use crate::verdict::{require, value_if_accepted};

/// Image files. The seeds are small images of every format and every kind of pixels.
pub const IMAGE: FuzzTarget = FuzzTarget {
    name: "image",
    words: &[],
    seeds: || {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden/pixels/kinds");
        let mut names: Vec<String> = std::fs::read_dir(folder)?
            .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
            .filter(|name: &std::io::Result<String>| name.as_ref().is_ok_and(|name| !name.ends_with(".safetensors")))
            .collect::<std::io::Result<_>>()?;
        names.sort();
        let seed = |name: &String| {
            let kind = if name.ends_with(".png") { PartFormat::Png } else { PartFormat::Bytes };
            Ok(Seed::new(kind, repository_file(&format!("tests/golden/pixels/kinds/{name}"))?))
        };
        names.iter().map(seed).collect()
    },
    open: || {
        Ok(Box::new(|input| {
            let Some(image) = value_if_accepted(image::decode(input, "image", ExifOrientation::Apply))? else {
                return Ok(false);
            };
            require(image.view().is_ok(), || "an image without pixels".to_string())?;
            Ok(true)
        }))
    },
};

/// Video files, which a worker process decodes.
#[cfg(feature = "ffmpeg")]
pub const VIDEO: FuzzTarget = FuzzTarget {
    name: "video",
    words: &[],
    seeds: || {
        let names =
            ["h264_709.mp4", "h264_vfr.mp4", "h264_rot90.mp4", "open_group_cut.mp4", "vp9.webm", "mpeg4_odd.avi"];
        names
            .iter()
            .map(|name| Ok(Seed::new(PartFormat::Bytes, repository_file(&format!("tests/golden/clips/{name}"))?)))
            .collect()
    },
    open: || {
        use reel_media::profile::{MediaOverrides, MediaProfile};
        use reel_media::worker::DecodeWorker;

        let path = super::scratch_folder()?.join("clip");
        let worker = DecodeWorker { memory_mib: 512, threads: 1, ..DecodeWorker::from_this_program() };
        let overrides = MediaOverrides { nframes: Some(4), ..MediaOverrides::default() };
        Ok(Box::new(move |input| {
            std::fs::write(&path, input).map_err(|e| e.to_string())?;
            let info = value_if_accepted(worker.probe(&path))?;
            let video = value_if_accepted(worker.decode_resized(&path, MediaProfile::Qwen, &overrides))?;
            let Some(video) = video else { return Ok(false) };
            let expected = video.indices.len() * video.height * video.width * 3;
            require(video.data.len() == expected && expected > 0, || format!("{} bytes of pixels", video.data.len()))?;
            Ok(info.is_some())
        }))
    },
};
