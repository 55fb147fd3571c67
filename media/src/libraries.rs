//! What the FFmpeg that this program runs with can do.

#[cfg(feature = "ffmpeg")]
use ffmpeg_next as ffmpeg;

/// What messages call it.
pub const BUILD_NAME: &str = if cfg!(feature = "ffmpeg") { "this FFmpeg" } else { "a build without FFmpeg" };

/// FFmpeg's libraries with their versions, as `(name, "major.minor.micro")`; none in a build without FFmpeg.
pub fn ffmpeg_versions() -> Vec<(&'static str, String)> {
    #[cfg(feature = "ffmpeg")]
    let found = [
        ("libavcodec", ffmpeg::codec::version()),
        ("libavformat", ffmpeg::format::version()),
        ("libavutil", ffmpeg::util::version()),
        ("libswscale", ffmpeg::software::scaling::version()),
    ];
    #[cfg(not(feature = "ffmpeg"))]
    let found: [(&str, u32); 0] = [];
    let dotted = |v: u32| format!("{}.{}.{}", v >> 16, (v >> 8) & 0xff, v & 0xff);
    found.into_iter().map(|(name, version)| (name, dotted(version))).collect()
}

/// Whether there is a decoder of this name (`h264`, `hevc`, `vp9`, `libdav1d`, …).
#[cfg(feature = "ffmpeg")]
pub fn has_decoder(name: &str) -> bool {
    ffmpeg::decoder::find_by_name(name).is_some()
}

/// Whether there is an encoder of this name (`libx264`, `mpeg4`, …).
#[cfg(feature = "ffmpeg")]
pub fn has_encoder(name: &str) -> bool {
    ffmpeg::encoder::find_by_name(name).is_some()
}

/// Never: there is no FFmpeg.
#[cfg(not(feature = "ffmpeg"))]
pub fn has_decoder(_name: &str) -> bool {
    false
}

/// Never: there is no FFmpeg.
#[cfg(not(feature = "ffmpeg"))]
pub fn has_encoder(_name: &str) -> bool {
    false
}

#[cfg(all(test, feature = "ffmpeg"))]
mod tests {
    use super::*;

    #[test]
    fn ffmpeg_is_there_and_knows_its_own_codecs() {
        assert!(
            ffmpeg_versions().iter().all(|(_, v)| v.split('.').count() == 3 && !v.starts_with("0.")),
            "{:?}",
            ffmpeg_versions()
        );
        assert!(has_decoder("mpeg4") && !has_decoder("no such codec"));
        assert!(has_encoder("mpeg4") && !has_encoder("no such codec"));
    }
}
