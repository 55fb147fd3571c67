//! Inspects one image or video of a row: whether the file exists and can be decoded, its duration and its size in
//! pixels.

use std::io::Write;
use std::path::Path;

use reel_input::config::Family;
use reel_input::fetch::decode_data_uri;
use reel_input::frame_folder::{check_frame_sizes_equal, frames_in_folder};
use reel_input::media_loading::MediaOptions;
use reel_input::messages::{ContentPart, MediaSource, VideoPart, VideoSource};
use reel_support::diagnostic::{Diagnostic, display_path};
use serde::Serialize;

use crate::Result;
use crate::error::{Error, Kind, MediaFailure};

/// Properties of an image or a video: name, duration, frame rate and size.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct MediaProperties {
    /// The file, or `data: URI`.
    pub name: String,
    /// Length of a video in seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seconds: Option<f64>,
    /// Frames per second of a video.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fps: Option<f64>,
    /// Height and width in pixels, if the file was decoded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<(usize, usize)>,
}

/// Why an image or a video cannot be used.
#[derive(Clone, Debug)]
pub(super) struct MediaFault {
    pub(super) is_missing: bool,
    pub(super) diagnostic: Diagnostic,
}

/// Inspects images and videos.
#[derive(Clone, Copy, Debug)]
pub struct MediaInspector<'a> {
    /// Frame limits, pixel limits and the decoder to use.
    pub options: &'a MediaOptions,
    /// Whether files are decoded; otherwise only their existence is checked.
    pub decodes: bool,
    /// The family of the model for which frames are resized.
    pub family: Family,
}

/// Returns a key that is equal for the same image or video in different rows, and the location of `part` in the
/// messages.
pub(super) fn key_and_location(part: &ContentPart) -> (String, &str) {
    match part {
        ContentPart::Text(_) => (String::new(), ""),
        ContentPart::Image(image) => (format!("{:?}", image.source), &image.location),
        ContentPart::Video(video) => (format!("{:?} {:?}", video.source, video.overrides), &video.location),
    }
}

impl MediaInspector<'_> {
    /// Inspects an image or a video.
    ///
    /// # Errors
    /// Outer error: the decoding worker cannot be started. Inner error: the image or video cannot be used.
    pub(super) fn inspect(&self, part: &ContentPart) -> Result<Result<MediaProperties, MediaFault>> {
        let looked = match part {
            ContentPart::Text(_) => return Ok(Err(fault(Diagnostic::new("", "is a text", "")))),
            ContentPart::Image(image) => self.image(&image.source),
            ContentPart::Video(video) => match &video.source {
                VideoSource::Frames(frames) => {
                    let name = format!("{} frames", frames.len());
                    let checked = video.check_frame_count(frames.len());
                    let facts = checked.and_then(|()| self.frames(frames));
                    facts.map(|facts| MediaProperties { name, ..facts[0].clone() })
                }
                VideoSource::File(source) => self.video(video, source),
            },
        };
        match looked {
            Ok(fact) => Ok(Ok(fact)),
            Err(e) if e.kind == Kind::Media(MediaFailure::Worker) => Err(e),
            Err(e) => {
                let missing = part_paths(part).into_iter().find(|path| is_missing(path));
                let diagnostic = match missing {
                    Some(path) => Diagnostic::new(
                        display_path(path),
                        "does not exist",
                        "correct the path, give --media-root, or remove the row",
                    ),
                    None => e.diagnostic,
                };
                Ok(Err(MediaFault { is_missing: missing.is_some(), diagnostic }))
            }
        }
    }

    /// Inspects the image files that are the frames of a video.
    fn frames(&self, frames: &[MediaSource]) -> Result<Vec<MediaProperties>, Error> {
        frames.iter().map(|frame| self.image(frame)).collect()
    }

    fn image(&self, source: &MediaSource) -> Result<MediaProperties, Error> {
        let rule = self.options.overrides.exif_orientation();
        let image = match source {
            MediaSource::Path(path) => {
                let path = self.options.access.allowed_path(path)?;
                if !self.decodes {
                    return self.exists(&path, source);
                }
                reel_input::media::image::open(&path, rule)?
            }
            MediaSource::Data(uri) => reel_input::media::image::from_data_uri(uri, rule)?,
            MediaSource::Url(_) => return Ok(fact(source)),
        };
        Ok(MediaProperties { size: Some((image.height, image.width)), ..fact(source) })
    }

    /// Inspects a video that is a single file or a folder of frames.
    fn video(&self, video: &VideoPart, source: &MediaSource) -> Result<MediaProperties, Error> {
        let overrides = self.options.overrides.or_fallback(video.overrides);
        let look = |path: &Path| {
            if !self.decodes {
                return self.exists(path, source);
            }
            let info = self.options.decoder.probe(path)?;
            // Decodes the frames that training would select, to find out whether decoding fails.
            self.options.decoder.decode_resized(path, self.options.profile.for_family(self.family), &overrides)?;
            let seconds = info.total_frames as f64 / info.video_fps;
            Ok(MediaProperties {
                seconds: Some(seconds).filter(|s| s.is_finite()),
                fps: Some(info.video_fps),
                size: Some((info.height, info.width)),
                ..fact(source)
            })
        };
        match source {
            MediaSource::Path(path) => {
                let path = self.options.access.allowed_path(path)?;
                if !path.is_dir() {
                    return look(&path);
                }
                let frames: Vec<_> = frames_in_folder(&path)?.into_iter().map(MediaSource::Path).collect();
                video.check_frame_count(frames.len())?;
                let facts = self.frames(&frames)?;
                check_frame_sizes_equal(&frames, facts.iter().filter_map(|fact| fact.size))?;
                Ok(MediaProperties { name: source.path_or_address(), ..facts[0].clone() })
            }
            MediaSource::Url(_) => Ok(fact(source)),
            MediaSource::Data(uri) => {
                let folder = std::env::temp_dir();
                let bytes = decode_data_uri(uri)?;
                let file = tempfile::NamedTempFile::new_in(&folder)
                    .and_then(|mut file| file.write_all(&bytes).map(|()| file))
                    .map_err(|e| media_error(Diagnostic::cannot_write(&folder, &e)))?;
                look(file.path())
            }
        }
    }

    /// Checks that a file can be opened.
    fn exists(&self, path: &Path, source: &MediaSource) -> Result<MediaProperties, Error> {
        match reel_support::diagnostic::input::open_regular_file(path) {
            Ok(_) => Ok(fact(source)),
            Err(e) => Err(media_error(Diagnostic::cannot_read(path, &e))),
        }
    }
}

fn media_error(diagnostic: Diagnostic) -> Error {
    Kind::Media(MediaFailure::Unreadable).error(diagnostic)
}

fn fact(source: &MediaSource) -> MediaProperties {
    MediaProperties { name: source.path_or_address(), seconds: None, fps: None, size: None }
}

fn fault(diagnostic: Diagnostic) -> MediaFault {
    MediaFault { is_missing: false, diagnostic }
}

/// Whether no file or folder exists at `path`. A file that cannot be reached for another reason, such as symbolic links
/// that lead in a circle, is not missing.
fn is_missing(path: &Path) -> bool {
    std::fs::metadata(path).is_err_and(|e| e.kind() == std::io::ErrorKind::NotFound)
}

/// Returns the paths of the local files of an image or a video.
fn part_paths(part: &ContentPart) -> Vec<&Path> {
    let sources: Vec<&MediaSource> = match part {
        ContentPart::Text(_) => Vec::new(),
        ContentPart::Image(image) => vec![&image.source],
        ContentPart::Video(video) => match &video.source {
            VideoSource::File(source) => vec![source],
            VideoSource::Frames(frames) => frames.iter().collect(),
        },
    };
    let paths = sources.into_iter().filter_map(|source| match source {
        MediaSource::Path(path) => Some(path.as_path()),
        _ => None,
    });
    paths.collect()
}
