//! Reports versions, decoders and encoders of the FFmpeg libraries that this program is linked with.

#[cfg(feature = "ffmpeg")]
use ffmpeg_next as ffmpeg;

/// Name of this program's FFmpeg in error messages about a missing codec.
pub const FFMPEG_BUILD_NAME: &str = if cfg!(feature = "ffmpeg") { "this FFmpeg" } else { "this build without FFmpeg" };

/// Names and versions (`major.minor.micro`) of the FFmpeg libraries; empty in a build without FFmpeg.
pub fn ffmpeg_library_names_and_versions() -> Vec<(&'static str, String)> {
    #[cfg(feature = "ffmpeg")]
    let versions = [
        ("libavcodec", ffmpeg::codec::version()),
        ("libavformat", ffmpeg::format::version()),
        ("libavutil", ffmpeg::util::version()),
        ("libswscale", ffmpeg::software::scaling::version()),
    ];
    #[cfg(not(feature = "ffmpeg"))]
    let versions: [(&str, u32); 0] = [];
    let dotted = |v: u32| format!("{}.{}.{}", v >> 16, (v >> 8) & 0xff, v & 0xff);
    versions.into_iter().map(|(name, version)| (name, dotted(version))).collect()
}

/// Whether FFmpeg has a decoder of this name (`h264`, `hevc`, `vp9`, `libdav1d`, …).
#[cfg(feature = "ffmpeg")]
pub fn has_decoder(name: &str) -> bool {
    ffmpeg::decoder::find_by_name(name).is_some()
}

/// Whether FFmpeg has an encoder of this name (`libx264`, `mpeg4`, …).
#[cfg(feature = "ffmpeg")]
pub fn has_encoder(name: &str) -> bool {
    ffmpeg::encoder::find_by_name(name).is_some()
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
        let versions = ffmpeg_library_names_and_versions();
        assert!(versions.iter().all(|(_, v)| v.split('.').count() == 3 && !v.starts_with("0.")), "{versions:?}");
        assert!(has_decoder("mpeg4") && !has_decoder("no such codec"));
        assert!(has_encoder("mpeg4") && !has_encoder("no such codec"));
    }
}
