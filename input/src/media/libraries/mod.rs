//! Loads the FFmpeg libraries, and finds out their versions, decoders and encoders.

#[cfg(all(feature = "ffmpeg", target_arch = "x86_64"))]
#[allow(unsafe_code)]
mod load;

#[cfg(feature = "ffmpeg")]
use ffmpeg_next as ffmpeg;

#[cfg(feature = "ffmpeg")]
use std::path::Path;
use std::path::PathBuf;

/// Name of this program's FFmpeg in error messages about a missing codec.
pub const FFMPEG_BUILD_NAME: &str = if cfg!(feature = "ffmpeg") { "this FFmpeg" } else { "this build without FFmpeg" };

/// Loads the FFmpeg libraries if they are not loaded yet. Must be called before any function of FFmpeg. The error says
/// which library is missing.
#[cfg(all(feature = "ffmpeg", target_arch = "x86_64"))]
pub(crate) fn load_ffmpeg() -> Result<(), &'static str> {
    load::load_ffmpeg()
}

/// Does nothing: on this architecture the libraries are loaded when the program starts.
#[cfg(all(feature = "ffmpeg", not(target_arch = "x86_64")))]
pub(crate) fn load_ffmpeg() -> Result<(), &'static str> {
    Ok(())
}

/// Loads the FFmpeg libraries, to read or write the video `path`.
///
/// # Errors
/// This machine lacks a library.
#[cfg(feature = "ffmpeg")]
pub(crate) fn load_ffmpeg_for_video(path: &Path) -> crate::media::Result<()> {
    load_ffmpeg().map_err(|what| {
        crate::error::Error::media_file(
            path,
            format!("is a video, and FFmpeg is not usable: {what}"),
            "install the FFmpeg libraries of this version, take a release of reel (it contains them), build reel on this \
             machine, or give images",
        )
    })
}

/// The folder of the FFmpeg libraries that were installed together with this program (`lib/reel` beside its `bin`).
/// `None`: FFmpeg is the system's.
pub fn installed_ffmpeg_folder() -> Option<PathBuf> {
    #[cfg(all(feature = "ffmpeg", target_arch = "x86_64"))]
    return load::installed_ffmpeg_folder();
    #[cfg(not(all(feature = "ffmpeg", target_arch = "x86_64")))]
    None
}

/// Names and versions (`major.minor.micro`) of the FFmpeg libraries; empty in a build without FFmpeg.
///
/// # Errors
/// This machine lacks a library; the error says which one.
pub fn ffmpeg_library_names_and_versions() -> Result<Vec<(&'static str, String)>, &'static str> {
    #[cfg(feature = "ffmpeg")]
    let versions = {
        load_ffmpeg()?;
        [
            ("libavcodec", ffmpeg::codec::version()),
            ("libavformat", ffmpeg::format::version()),
            ("libavutil", ffmpeg::util::version()),
            ("libswscale", ffmpeg::software::scaling::version()),
        ]
    };
    #[cfg(not(feature = "ffmpeg"))]
    let versions: [(&str, u32); 0] = [];
    let dotted = |v: u32| format!("{}.{}.{}", v >> 16, (v >> 8) & 0xff, v & 0xff);
    Ok(versions.into_iter().map(|(name, version)| (name, dotted(version))).collect())
}

/// Whether FFmpeg has a decoder of this name (`h264`, `hevc`, `vp9`, `libdav1d`, …).
#[cfg(feature = "ffmpeg")]
pub fn has_decoder(name: &str) -> bool {
    load_ffmpeg().is_ok() && ffmpeg::decoder::find_by_name(name).is_some()
}

/// Whether FFmpeg has an encoder of this name (`libx264`, `mpeg4`, …).
#[cfg(feature = "ffmpeg")]
pub fn has_encoder(name: &str) -> bool {
    load_ffmpeg().is_ok() && ffmpeg::encoder::find_by_name(name).is_some()
}

/// Always false: this build has no FFmpeg.
#[cfg(not(feature = "ffmpeg"))]
pub fn has_decoder(_name: &str) -> bool {
    false
}

/// Always false: this build has no FFmpeg.
#[cfg(not(feature = "ffmpeg"))]
pub fn has_encoder(_name: &str) -> bool {
    false
}

#[cfg(all(test, feature = "ffmpeg"))]
mod tests {
    use super::*;

    #[test]
    fn reports_versions_and_built_in_codecs() {
        let versions = ffmpeg_library_names_and_versions().unwrap();
        assert!(versions.iter().all(|(_, v)| v.split('.').count() == 3 && !v.starts_with("0.")), "{versions:?}");
        assert!(has_decoder("mpeg4") && !has_decoder("no such codec"));
        assert!(has_encoder("mpeg4") && !has_encoder("no such codec"));
    }
}
