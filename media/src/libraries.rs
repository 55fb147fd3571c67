//! What the FFmpeg that this program runs with can do.

use ffmpeg_next as ffmpeg;

/// FFmpeg's libraries with their versions, as `(name, "major.minor.micro")`.
pub fn versions() -> Vec<(&'static str, String)> {
    let dotted = |v: u32| format!("{}.{}.{}", v >> 16, (v >> 8) & 0xff, v & 0xff);
    vec![
        ("libavcodec", dotted(ffmpeg::codec::version())),
        ("libavformat", dotted(ffmpeg::format::version())),
        ("libavutil", dotted(ffmpeg::util::version())),
        ("libswscale", dotted(ffmpeg::software::scaling::version())),
    ]
}

/// Whether there is a decoder of this name (`h264`, `hevc`, `vp9`, `libdav1d`, …).
pub fn has_decoder(name: &str) -> bool {
    ffmpeg::decoder::find_by_name(name).is_some()
}

/// Whether there is an encoder of this name (`libx264`, `mpeg4`, …).
pub fn has_encoder(name: &str) -> bool {
    ffmpeg::encoder::find_by_name(name).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ffmpeg_is_there_and_knows_its_own_codecs() {
        assert!(versions().iter().all(|(_, v)| v.split('.').count() == 3 && !v.starts_with("0.")), "{:?}", versions());
        assert!(has_decoder("mpeg4") && !has_decoder("no such codec"));
        assert!(has_encoder("mpeg4") && !has_encoder("no such codec"));
    }
}
