//! Reads a container without decoding: the time and key flag of each packet, and the packets themselves if they fit
//! in memory.

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::ptr;

use ffmpeg_next as ffmpeg;

use ffmpeg::codec::Id;
use ffmpeg::codec::packet::side_data::Type as SideDataType;
use ffmpeg::ffi;
use ffmpeg::format::context::Input;

use super::av1::FrameHeaders;
use super::convert::Rotation;
use super::error::ffmpeg_error;
use super::truncation::is_truncated;
use crate::error::{Error, Result};
use crate::media::error::cannot_read_media;
use crate::media::frames::MAX_IMAGE_PIXELS;
use crate::media::video::types::VideoInfo;

/// Container formats that may be opened. Playlists and similar formats are left out, because they make FFmpeg open
/// other files.
const CONTAINERS: &str = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,gif,mpegts,mpeg,mpegvideo,flv,asf,ogg,h264,hevc,ivf,obu,m4v,\
                          mjpeg,nut,mxf,wtv,rm,y4m,yuv4mpegpipe,apng";

/// Maximum number of bytes of packets that are kept of a file with a table of all its packets (MP4). Of a longer video,
/// most packets are not needed, and the table leads to those that are.
const MAX_KEPT_WITH_TABLE: u64 = 64 << 20;

/// One packet of the video stream, which holds one frame. Packets are in decoding order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PacketInfo {
    /// Presentation time in the stream's time base.
    pub pts: Option<i64>,
    /// Decoding time in the stream's time base.
    pub dts: Option<i64>,
    /// Size of the packet in bytes.
    pub size: usize,
    /// Whether decoding may start at this packet.
    pub key: bool,
    /// Whether the packet's frame is decoded but never displayed: an edit list cuts it off, or it only serves as
    /// reference for other frames.
    pub hidden: bool,
}

/// Codec parameters of the video stream: a deep copy that nothing modifies.
pub(super) struct CodecParameters(ffmpeg::codec::Parameters);

// SAFETY: the parameters own their memory and nothing writes to it after `describe`, so threads may read it.
unsafe impl Sync for CodecParameters {}

impl CodecParameters {
    pub(super) fn codec_id(&self) -> ffmpeg::codec::Id {
        self.0.id()
    }

    /// The pixel format of the software decoder's frames: a number of `AVPixelFormat`, -1 if it is unknown.
    pub(super) fn pixel_format(&self) -> i32 {
        // SAFETY: the parameters are alive.
        unsafe { (*self.0.as_ptr()).format }
    }

    /// A decoder context with these parameters, not yet opened.
    pub(super) fn unopened_decoder(&self) -> std::result::Result<ffmpeg::codec::Context, ffmpeg::Error> {
        ffmpeg::codec::Context::from_parameters(self.0.clone())
    }
}

/// A video as its container describes it.
pub(super) struct VideoFile {
    pub path: PathBuf,
    pub parameters: CodecParameters,
    pub time_base: ffmpeg::Rational,
    /// Coded `(height, width)` in pixels, before any rotation.
    pub coded_size: (usize, usize),
    pub rotation: Rotation,
    pub video_fps: f64,
    /// All packets in decoding order.
    pub packets: Vec<PacketInfo>,
    /// Index of the first packet that can be decoded: 0, or the first key frame of a file that starts inside a group of
    /// pictures.
    pub start: usize,
    /// Number of frames that are hidden because they cannot be decoded: the file starts inside their group of pictures.
    pub left_out_frames: u64,
    /// The compressed data of all packets; `None` if it exceeds the limit for keeping it in memory.
    pub data: Option<Vec<ffmpeg::Packet>>,
    /// Whether this is HEVC with one temporal layer. HEVC marks some frames as "not referenced". Only with one temporal
    /// layer does no other frame refer to such a frame, so that it can be skipped.
    pub has_one_layer: bool,
    /// The headers of the frames of an AV1 video, which say what other frames they need.
    pub av1_headers: Option<FrameHeaders>,
}

impl VideoFile {
    /// Reads the whole container. Keeps the compressed data of its packets if these have at most `max_kept_bytes`
    /// together, or [`MAX_KEPT_WITH_TABLE`].
    pub(super) fn read_container(path: &Path, max_kept_bytes: u64) -> Result<Self> {
        let (mut input, stream) = open_container_and_stream(path)?;
        let mut video = describe(path, &input, stream)?;
        let has_table = input.format().name().starts_with("mov");
        let max_kept_bytes = if has_table { max_kept_bytes.min(MAX_KEPT_WITH_TABLE) } else { max_kept_bytes };
        let mut data = Some(Vec::new());
        let mut bytes = 0u64;
        let mut truncated = false;
        loop {
            let mut packet = ffmpeg::Packet::empty();
            match packet.read(&mut input) {
                Ok(()) if packet.stream() != stream => continue,
                Ok(()) => {}
                Err(ffmpeg::Error::Eof) => break,
                Err(_) => {
                    truncated = true;
                    break;
                }
            }
            video.packets.push(packet_info(&packet, video.parameters.codec_id()));
            if let Some(headers) = &mut video.av1_headers {
                headers.read_packet(packet.data().unwrap_or_default());
            }
            truncated = packet.is_corrupt();
            bytes += packet.size() as u64;
            match data.as_mut() {
                Some(all) if bytes <= max_kept_bytes => all.push(packet),
                _ => data = None,
            }
        }
        video.data = data;
        if has_reliable_key_flags(video.parameters.codec_id()) {
            (video.start, video.left_out_frames) = hide_incomplete_group(&mut video.packets);
        }
        // A file is cut off if its index lists more frames than the packets that could be read.
        truncated |= video.packets.len() < index_entries(&input, stream) || is_truncated(path);
        if truncated {
            if let Some(e) = read_error(&input) {
                return Err(cannot_read_media(path, &e));
            }
            return Err(Error::media_file(
                path,
                format!(
                    "is truncated: the file ends after {} frames, but its header or index states more",
                    video.packets.len()
                ),
                "copy or download it again",
            ));
        }
        if video.total_frames() == 0 {
            return Err(Error::media_file(path, "its video stream has no frames", "use another video"));
        }
        video.ensure_frame_rate(&input, stream)?;
        Ok(video)
    }

    pub(super) fn total_frames(&self) -> u64 {
        self.packets.iter().filter(|e| !e.hidden).count() as u64
    }

    /// Number of pixels of a coded frame.
    pub(super) fn coded_pixels(&self) -> u64 {
        (self.coded_size.0 as u64).saturating_mul(self.coded_size.1 as u64)
    }

    /// Displayed `(height, width)` in pixels.
    pub(super) fn displayed_height_and_width(&self) -> (usize, usize) {
        self.rotation.displayed_height_and_width(self.coded_size)
    }

    pub(super) fn video_info(&self) -> VideoInfo {
        let (height, width) = self.displayed_height_and_width();
        let codec = self.parameters.codec_id().name().to_owned();
        let (total_frames, left_out_frames) = (self.total_frames(), self.left_out_frames);
        VideoInfo { codec, height, width, total_frames, left_out_frames, video_fps: self.video_fps }
    }

    /// If the container states no average frame rate, uses the stream's base rate, or the number of frames divided by
    /// the duration.
    fn ensure_frame_rate(&mut self, input: &Input, stream: usize) -> Result<()> {
        if self.video_fps.is_finite() && self.video_fps > 0.0 {
            return Ok(());
        }
        let rate = |r: ffmpeg::Rational| f64::from(r.numerator()) / f64::from(r.denominator());
        let seconds = input.duration() as f64 / f64::from(ffi::AV_TIME_BASE);
        let candidates =
            [input.stream(stream).map_or(f64::NAN, |s| rate(s.rate())), self.total_frames() as f64 / seconds];
        match candidates.into_iter().find(|r| r.is_finite() && *r > 0.0) {
            Some(found) => self.video_fps = found,
            None => {
                return Err(Error::media_file(
                    &self.path,
                    "states neither a frame rate nor a duration",
                    "convert it to mp4 with a frame rate (ffmpeg -r)",
                ));
            }
        }
        Ok(())
    }
}

/// Returns the I/O error, if any, that the system reported while the file was read. Demuxers treat it as end of file.
fn read_error(input: &Input) -> Option<std::io::Error> {
    // SAFETY: the context is open; its `pb` is null, or valid as long as the context is open.
    let code = unsafe { (*input.as_ptr()).pb.as_ref() }.map_or(0, |io| io.error);
    match ffmpeg::Error::from(code) {
        ffmpeg::Error::Other { errno } if code < 0 => Some(std::io::Error::from_raw_os_error(errno)),
        _ => None,
    }
}

/// Opens a container and finds its best video stream; returns the open container and the stream's index.
pub(super) fn open_container_and_stream(path: &Path) -> Result<(Input, usize)> {
    ffmpeg::log::set_level(ffmpeg::log::Level::Quiet);
    let mut url = b"file:".to_vec();
    url.extend_from_slice(path.as_os_str().as_bytes());
    let url =
        CString::new(url).map_err(|_| Error::media_file(path, "its name contains a zero byte", "rename the file"))?;
    let options: ffmpeg::Dictionary =
        [("protocol_whitelist", "file"), ("format_whitelist", CONTAINERS)].into_iter().collect();
    let mut context = ptr::null_mut();
    // SAFETY: `url` outlives the call. FFmpeg allocates the context; on failure it frees it and leaves null. FFmpeg
    // replaces the dictionary by one with the unused entries, which `own` takes over and frees.
    let opened = unsafe {
        let mut options = options.disown();
        let code = ffi::avformat_open_input(&mut context, url.as_ptr(), ptr::null(), &mut options);
        drop(ffmpeg::Dictionary::own(options));
        code
    };
    if opened < 0 {
        return Err(ffmpeg_error(path, "opening it as a video", ffmpeg::Error::from(opened)));
    }
    // SAFETY: the context was opened above and has no other owner.
    let mut input = unsafe { Input::wrap(context) };
    // SAFETY: the context is valid and no per-stream options are given.
    let found = unsafe { ffi::avformat_find_stream_info(input.as_mut_ptr(), ptr::null_mut()) };
    if found < 0 {
        return Err(ffmpeg_error(path, "reading its streams", ffmpeg::Error::from(found)));
    }
    let best = input.streams().best(ffmpeg::media::Type::Video).map(|s| s.index());
    let Some(stream) = best else {
        return Err(Error::media_file(path, "has no video stream", "use a video file"));
    };
    for other in 0..input.streams().len() {
        if other != stream {
            // SAFETY: `other` is below the number of streams, and the context is not shared.
            unsafe { (**(*input.as_mut_ptr()).streams.add(other)).discard = ffi::AVDiscard::AVDISCARD_ALL };
        }
    }
    Ok((input, stream))
}

fn describe(path: &Path, input: &Input, index: usize) -> Result<VideoFile> {
    let stream =
        input.stream(index).ok_or_else(|| Error::media_file(path, "has no video stream", "use a video file"))?;
    let parameters = stream.parameters().clone();
    // SAFETY: the parameters are a copy that is alive.
    let (height, width) = unsafe { ((*parameters.as_ptr()).height, (*parameters.as_ptr()).width) };
    let coded_size = match (usize::try_from(height), usize::try_from(width)) {
        (Ok(h), Ok(w)) if h.saturating_mul(w) > MAX_IMAGE_PIXELS => {
            let what = format!("has frames of {h} x {w} pixels, above the limit of {MAX_IMAGE_PIXELS} pixels in total");
            return Err(Error::media_file(path, what, "make it smaller"));
        }
        (Ok(h), Ok(w)) if h > 0 && w > 0 => (h, w),
        _ => {
            return Err(Error::media_file(
                path,
                format!("its video stream states an invalid frame size, {width} x {height}"),
                "check that the file is complete and plays, or convert it",
            ));
        }
    };
    let matrix = stream.side_data().find(|d| d.kind() == SideDataType::DisplayMatrix).map(|d| d.data().to_vec());
    let matrix = matrix.or_else(|| parameters_matrix(&parameters));
    let rate = stream.avg_frame_rate();
    Ok(VideoFile {
        path: path.to_owned(),
        has_one_layer: has_one_layer(&parameters),
        av1_headers: (parameters.id() == Id::AV1).then(FrameHeaders::default),
        parameters: CodecParameters(parameters),
        time_base: stream.time_base(),
        coded_size,
        rotation: matrix.map_or_else(Rotation::default, |m| Rotation::from_display_matrix(&m)),
        video_fps: f64::from(rate.numerator()) / f64::from(rate.denominator()),
        packets: Vec::new(),
        start: 0,
        left_out_frames: 0,
        data: None,
    })
}

/// The display matrix that FFmpeg 6.1 and later store in the codec parameters; older versions store it in the stream.
fn parameters_matrix(parameters: &ffmpeg::codec::Parameters) -> Option<Vec<u8>> {
    let context = ffmpeg::codec::Context::from_parameters(parameters.clone()).ok()?;
    // SAFETY: the context is alive and holds `nb_coded_side_data` pieces of `size` bytes each.
    unsafe {
        let (pieces, n) = ((*context.as_ptr()).coded_side_data, (*context.as_ptr()).nb_coded_side_data);
        (0..usize::try_from(n).ok()?)
            .map(|i| &*pieces.add(i))
            .find(|piece| piece.type_ == ffi::AVPacketSideDataType::AV_PKT_DATA_DISPLAYMATRIX && !piece.data.is_null())
            .map(|piece| std::slice::from_raw_parts(piece.data, piece.size).to_vec())
    }
}

/// Reads the fields of a [`PacketInfo`] from a packet.
pub(super) fn packet_info(packet: &ffmpeg::Packet, codec: ffmpeg::codec::Id) -> PacketInfo {
    use ffmpeg::codec::packet::Ref;
    // SAFETY: the packet is alive.
    let flags = unsafe { (*packet.as_ptr()).flags };
    // Bit 4 of the first byte of a VP8 frame is set if the frame is displayed (RFC 6386, section 9.1).
    let not_displayed =
        codec == ffmpeg::codec::Id::VP8 && packet.data().is_some_and(|d| d.first().is_some_and(|b| b & 0x10 == 0));
    PacketInfo {
        pts: packet.pts(),
        dts: packet.dts(),
        size: packet.size(),
        key: packet.is_key(),
        hidden: not_displayed || flags & ffi::AV_PKT_FLAG_DISCARD != 0,
    }
}

/// Whether, for this codec, containers set the key-frame flag only on frames at which decoding can start.
pub(super) fn has_reliable_key_flags(codec: Id) -> bool {
    matches!(
        codec,
        Id::H264
            | Id::HEVC
            | Id::VP8
            | Id::VP9
            | Id::AV1
            | Id::MPEG4
            | Id::MPEG1VIDEO
            | Id::MPEG2VIDEO
            | Id::MJPEG
            | Id::PRORES
    )
}

/// Hides the frames of an incomplete group of pictures at the start of a file, such as a recording of a broadcast:
/// those before the first key frame in decoding order, and those of its own group that are displayed before it, because
/// they refer to frames before it. Returns the index of that key frame and the number of hidden frames; 0 and 0 if the
/// file starts with a key frame or has none.
fn hide_incomplete_group(packets: &mut [PacketInfo]) -> (usize, u64) {
    let start = packets.iter().position(|packet| packet.key).unwrap_or(0);
    if packets[..start].iter().all(|packet| packet.hidden) {
        return (0, 0);
    }
    let (time, mut hidden, mut keys) = (packets[start].pts, 0, 0);
    for (i, packet) in packets.iter_mut().enumerate() {
        keys += usize::from(packet.key);
        let is_displayed_before = packet.pts.is_some() && packet.pts < time;
        if keys < 2 && !packet.hidden && (i < start || is_displayed_before) {
            packet.hidden = true;
            hidden += 1;
        }
    }
    (start, hidden)
}

/// Number of frames that the container's index lists for the stream.
fn index_entries(input: &Input, stream: usize) -> usize {
    // SAFETY: the stream belongs to the context, which is alive; the call only reads.
    let n = unsafe { ffi::avformat_index_get_entries_count(*(*input.as_ptr()).streams.add(stream)) };
    usize::try_from(n).unwrap_or(0)
}

/// Whether the video's hvcC record (ISO 14496-15) states one temporal layer. Its field `numTemporalLayers` is in bits 3
/// to 5 of byte 21; 0 means unknown.
fn has_one_layer(parameters: &ffmpeg::codec::Parameters) -> bool {
    // SAFETY: extradata holds `extradata_size` bytes, as FFmpeg guarantees; both are read from a copy that is alive.
    let extra = unsafe {
        let p = parameters.as_ptr();
        match usize::try_from((*p).extradata_size) {
            Ok(n) if n > 0 && !(*p).extradata.is_null() => std::slice::from_raw_parts((*p).extradata, n),
            _ => &[],
        }
    };
    parameters.id() == ffmpeg::codec::Id::HEVC && extra.len() > 22 && extra[0] == 1 && (extra[21] >> 3) & 7 == 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_incomplete_group_at_the_start_is_hidden() {
        let packet = |&(pts, key): &(i64, bool)| PacketInfo { pts: Some(pts), dts: None, size: 1, key, hidden: false };
        let hide = |times: &[(i64, bool)]| {
            let mut packets: Vec<PacketInfo> = times.iter().map(packet).collect();
            let found = hide_incomplete_group(&mut packets);
            let shown: Vec<i64> = packets.iter().filter(|e| !e.hidden).filter_map(|e| e.pts).collect();
            (found, shown)
        };
        // P3 B1 B2 | I6 B4 B5 P9 B7 | I0: the last group belongs to a video that was appended.
        let cut =
            [(3, false), (1, false), (2, false), (6, true), (4, false), (5, false), (9, false), (7, false), (0, true)];
        assert_eq!(hide(&cut), ((3, 5), vec![6, 9, 7, 0]));
        // An open group at the start is complete as far as its key frame goes; a file without key frames stays as it
        // is.
        assert_eq!(hide(&cut[3..]), ((0, 0), vec![6, 4, 5, 9, 7, 0]));
        assert_eq!(hide(&cut[..3]), ((0, 0), vec![3, 1, 2]));
        assert_eq!(hide(&[]), ((0, 0), vec![]));
        let mut edited: Vec<PacketInfo> = cut.iter().map(packet).collect();
        edited[..3].iter_mut().for_each(|e| e.hidden = true);
        assert_eq!(hide_incomplete_group(&mut edited), (0, 0));
    }
}
