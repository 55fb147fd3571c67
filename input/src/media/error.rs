//! Errors of media files: which file or setting, what is wrong, what to do.

use std::path::Path;

use reel_support::diagnostic::input::UnsuitableFile;
use reel_support::diagnostic::{Diagnostic, failed_start_help, resource_shortage_help};

use crate::error::{Error, Kind, MediaFailure};

/// The location in errors about a `data:` URI, in place of the URI, which is too long.
pub const DATA_URI: &str = "data: URI";

/// The error of a media file that cannot be read: [`MediaFailure::Unreadable`]; [`MediaFailure::File`] if the file is
/// something else than its name says; or [`MediaFailure::Worker`] if this machine lacks a resource such as memory or
/// open files.
pub(crate) fn cannot_read_media(path: &Path, error: &std::io::Error) -> Error {
    let why = error.get_ref().and_then(|cause| cause.downcast_ref());
    let fault = match why {
        Some(UnsuitableFile::Other { .. }) => MediaFailure::File,
        _ if resource_shortage_help(error).is_some() => MediaFailure::Worker,
        _ => MediaFailure::Unreadable,
    };
    Kind::Media(fault).error(Diagnostic::cannot_read(path, error))
}

pub(crate) fn cannot_start_worker(program: &Path, error: &std::io::Error) -> Error {
    let what = format!("cannot be started as the process that decodes media: {error}");
    let help = failed_start_help(error).unwrap_or("check that the program exists and may be executed");
    Kind::Media(MediaFailure::Worker).error(Diagnostic::new(program.display().to_string(), what, help))
}

/// The error of an `operation` on a file that failed because this machine could not create threads.
#[cfg_attr(not(feature = "ffmpeg"), expect(dead_code, reason = "only decoding uses it"))]
pub(crate) fn cannot_start_threads(path: &Path, operation: &str, error: &std::io::Error) -> Error {
    let what = format!("{operation} failed because threads cannot be created: {error}");
    let help = failed_start_help(error).unwrap_or("check the limits of this process (ulimit -a)");
    Kind::Media(MediaFailure::Worker).error(Diagnostic::new(path.display().to_string(), what, help))
}

/// Replaces the path in an error about a media file by `name`, for a caller that knows a better name of the file.
/// Errors of settings and of the worker program, and other errors, stay as they are.
#[must_use]
pub fn with_file_name(mut error: Error, name: &str) -> Error {
    if let Kind::Media(failure) = error.kind
        && !matches!(failure, MediaFailure::Setting | MediaFailure::Worker)
    {
        error.diagnostic.location = name.to_owned();
    }
    error
}

/// Adds `part`, the part of a chat message that has the media, to the error's location if the location is a setting or
/// a `data:` URI. Other errors already have the path or address of their file.
#[must_use]
pub fn with_message_part(mut error: Error, part: &str) -> Error {
    let location = &mut error.diagnostic.location;
    if error.kind == Kind::Media(MediaFailure::Setting) || location == DATA_URI {
        *location = format!("{part}: {location}");
    }
    error
}

/// Names the image file in an error about the size of an image: a [`MediaFailure::Setting`] becomes a
/// [`MediaFailure::File`], and a [`MediaFailure::Memory`] gets the file's name. Other errors stay as they are.
pub(crate) fn with_image_name(mut error: Error, name: &str) -> Error {
    if let Kind::Media(MediaFailure::Setting | MediaFailure::Memory) = error.kind {
        error.diagnostic.location = name.to_owned();
    }
    if error.kind == Kind::Media(MediaFailure::Setting) {
        error.kind = Kind::Media(MediaFailure::File);
    }
    error
}
