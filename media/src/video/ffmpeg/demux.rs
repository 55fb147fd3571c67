//! Reading a container without decoding: every packet's time and place, and the packets themselves while they fit.

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::ptr;

use ffmpeg_next as ffmpeg;

use ffmpeg::codec::packet::side_data::Type as SideDataType;
use ffmpeg::ffi;
use ffmpeg::format::context::Input;

use super::convert::Rotation;
use super::whole::cut_short;
use super::{VideoInfo, failed};
use crate::{MediaError, Result};

/// Containers that may be opened. Playlists and the like, which make FFmpeg open other files, are not among them.
const CONTAINERS: &str = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,gif,mpegts,mpeg,mpegvideo,flv,asf,ogg,h264,hevc,ivf,obu,m4v,\
                          mjpeg,nut,mxf,wtv,rm,y4m,yuv4mpegpipe,apng";

/// What is known of one packet (one frame, in decoding order) without decoding it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PacketInfo {
    /// Presentation time in the stream's time base.
    pub pts: Option<i64>,
    /// Decoding time in the stream's time base.
    pub dts: Option<i64>,
    /// Bytes.
    pub size: usize,
    /// Decoding may start here.
    pub key: bool,
    /// Decoded but never shown: cut off by an edit list, or a hidden reference frame.
    pub hidden: bool,
}

/// A stream's codec parameters: a deep copy that is only read.
pub(super) struct Parameters(ffmpeg::codec::Parameters);

// SAFETY: the wrapped parameters own their memory and nothing writes to it after `describe`, so that threads may read it.
unsafe impl Sync for Parameters {}

impl Parameters {
    pub(super) fn id(&self) -> ffmpeg::codec::Id {
        self.0.id()
    }

    /// A decoder for such a stream, not yet open.
    pub(super) fn decoder(&self) -> std::result::Result<ffmpeg::codec::Context, ffmpeg::Error> {
        ffmpeg::codec::Context::from_parameters(self.0.clone())
    }
}

/// A film as its container describes it.
pub(super) struct VideoFile {
    pub path: PathBuf,
    pub parameters: Parameters,
    pub time_base: ffmpeg::Rational,
    /// Coded size: before any rotation.
    pub coded: (usize, usize),
    pub turn: Rotation,
    pub video_fps: f64,
    /// One a packet, in decoding order.
    pub entries: Vec<PacketInfo>,
    /// The packets, where all of them fitted into the memory given for that.
    pub kept: Option<Vec<ffmpeg::Packet>>,
    /// HEVC that says it has one temporal layer: "not referenced" then means by nobody.
    pub one_layer: bool,
}

impl VideoFile {
    /// Reads the whole container, keeping the compressed packets if they take at most `keep` bytes.
    pub(super) fn read(path: &Path, keep: u64) -> Result<Self> {
        let (mut input, stream) = open(path)?;
        let mut film = describe(path, &input, stream)?;
        let mut kept = Some(Vec::new());
        let mut bytes = 0u64;
        let mut cut = false;
        loop {
            let mut packet = ffmpeg::Packet::empty();
            match packet.read(&mut input) {
                Ok(()) if packet.stream() != stream => continue,
                Ok(()) => {}
                Err(ffmpeg::Error::Eof) => break,
                Err(_) => {
                    cut = true;
                    break;
                }
            }
            film.entries.push(entry(&packet, film.parameters.id()));
            cut = packet.is_corrupt();
            bytes += packet.size() as u64;
            match kept.as_mut() {
                Some(all) if bytes <= keep => all.push(packet),
                _ => kept = None,
            }
        }
        film.kept = kept;
        // The index of a complete file names no frame that is not there.
        cut |= film.entries.len() < index_entries(&input, stream) || cut_short(path);
        if cut {
            return Err(MediaError::file(
                path,
                format!(
                    "the film breaks off after {} frames, before the end that its header or index names",
                    film.entries.len()
                ),
                "the file is cut short or damaged: copy or download it again",
            ));
        }
        if film.total_frames() == 0 {
            return Err(MediaError::file(path, "its video stream has no frames", "use a film with at least one frame"));
        }
        film.settle_rate(&input, stream)?;
        Ok(film)
    }

    pub(super) fn total_frames(&self) -> u64 {
        self.entries.iter().filter(|e| !e.hidden).count() as u64
    }

    /// `(height, width)` as shown.
    pub(super) fn shown_size(&self) -> (usize, usize) {
        self.turn.size(self.coded)
    }

    pub(super) fn probe(&self) -> VideoInfo {
        let (height, width) = self.shown_size();
        let codec = self.parameters.id().name().to_owned();
        VideoInfo { codec, height, width, total_frames: self.total_frames(), video_fps: self.video_fps }
    }

    /// Containers that name no average rate get frames over duration.
    fn settle_rate(&mut self, input: &Input, stream: usize) -> Result<()> {
        if self.video_fps.is_finite() && self.video_fps > 0.0 {
            return Ok(());
        }
        let rate = |r: ffmpeg::Rational| f64::from(r.numerator()) / f64::from(r.denominator());
        let seconds = input.duration() as f64 / f64::from(ffi::AV_TIME_BASE);
        let guesses = [input.stream(stream).map_or(f64::NAN, |s| rate(s.rate())), self.total_frames() as f64 / seconds];
        match guesses.into_iter().find(|r| r.is_finite() && *r > 0.0) {
            Some(found) => self.video_fps = found,
            None => {
                return Err(MediaError::file(
                    &self.path,
                    "it names neither a frame rate nor a duration",
                    "put it into an mp4 with a frame rate (ffmpeg -r)",
                ));
            }
        }
        Ok(())
    }
}

/// Opens a container and finds its video stream.
pub(super) fn open(path: &Path) -> Result<(Input, usize)> {
    ffmpeg::log::set_level(ffmpeg::log::Level::Quiet);
    let io = |source| MediaError::Io { path: path.to_owned(), source };
    let data = std::fs::metadata(path).map_err(io)?;
    if data.is_dir() {
        return Err(MediaError::file(path, "is a folder, not a film", "give the path of a video file"));
    }
    if data.is_file() && data.len() == 0 {
        return Err(MediaError::file(path, "is empty (0 bytes)", "copy or download it again"));
    }
    let mut url = b"file:".to_vec();
    url.extend_from_slice(path.as_os_str().as_bytes());
    let url = CString::new(url).map_err(|_| MediaError::file(path, "its name holds a zero byte", "rename the file"))?;
    let options: ffmpeg::Dictionary =
        [("protocol_whitelist", "file"), ("format_whitelist", CONTAINERS)].into_iter().collect();
    let mut context = ptr::null_mut();
    // SAFETY: `url` outlives the call; FFmpeg allocates the context and, on failure, frees it and leaves null; the
    // dictionary goes in and what is left of it is owned (and freed) again.
    let opened = unsafe {
        let mut options = options.disown();
        let code = ffi::avformat_open_input(&mut context, url.as_ptr(), ptr::null(), &mut options);
        drop(ffmpeg::Dictionary::own(options));
        code
    };
    if opened < 0 {
        return Err(failed(path, "opening it as a film", ffmpeg::Error::from(opened)));
    }
    // SAFETY: the context was opened above and has no other owner.
    let mut input = unsafe { Input::wrap(context) };
    // SAFETY: the context is valid and no per-stream options are given.
    let found = unsafe { ffi::avformat_find_stream_info(input.as_mut_ptr(), ptr::null_mut()) };
    if found < 0 {
        return Err(failed(path, "reading its streams", ffmpeg::Error::from(found)));
    }
    let best = input.streams().best(ffmpeg::media::Type::Video).map(|s| s.index());
    let Some(stream) = best else {
        return Err(MediaError::file(path, "has no video stream", "give a file with pictures in it"));
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
        input.stream(index).ok_or_else(|| MediaError::file(path, "has no video stream", "use another file"))?;
    let parameters = stream.parameters().clone();
    // SAFETY: the parameters are a live copy.
    let (height, width) = unsafe { ((*parameters.as_ptr()).height, (*parameters.as_ptr()).width) };
    let coded = match (usize::try_from(height), usize::try_from(width)) {
        (Ok(h), Ok(w)) if h > 0 && w > 0 => (h, w),
        _ => {
            return Err(MediaError::file(
                path,
                format!("its video stream has the size {width} x {height}"),
                "check that it is a whole video file that plays, or convert it",
            ));
        }
    };
    let matrix = stream.side_data().find(|d| d.kind() == SideDataType::DisplayMatrix).map(|d| d.data().to_vec());
    let matrix = matrix.or_else(|| parameters_matrix(&parameters));
    let rate = stream.avg_frame_rate();
    Ok(VideoFile {
        path: path.to_owned(),
        one_layer: has_one_layer(&parameters),
        parameters: Parameters(parameters),
        time_base: stream.time_base(),
        coded,
        turn: matrix.map_or_else(Rotation::default, |m| Rotation::from_matrix(&m)),
        video_fps: f64::from(rate.numerator()) / f64::from(rate.denominator()),
        entries: Vec::new(),
        kept: None,
    })
}

/// The display matrix where it is with the codec's parameters instead of the stream (FFmpeg 6.1 and later).
fn parameters_matrix(parameters: &ffmpeg::codec::Parameters) -> Option<Vec<u8>> {
    let context = ffmpeg::codec::Context::from_parameters(parameters.clone()).ok()?;
    // SAFETY: the context is live; it has as many pieces of side data as it says, each with as many bytes as it says.
    unsafe {
        let (pieces, n) = ((*context.as_ptr()).coded_side_data, (*context.as_ptr()).nb_coded_side_data);
        (0..usize::try_from(n).ok()?)
            .map(|i| &*pieces.add(i))
            .find(|piece| piece.type_ == ffi::AVPacketSideDataType::AV_PKT_DATA_DISPLAYMATRIX && !piece.data.is_null())
            .map(|piece| std::slice::from_raw_parts(piece.data, piece.size).to_vec())
    }
}

/// What `PacketInfo` keeps of a packet.
pub(super) fn entry(packet: &ffmpeg::Packet, codec: ffmpeg::codec::Id) -> PacketInfo {
    use ffmpeg::codec::packet::Ref;
    // SAFETY: the packet is live.
    let flags = unsafe { (*packet.as_ptr()).flags };
    // A VP8 frame says in bit 4 of its first byte whether it is shown (RFC 6386, section 9.1).
    let unseen =
        codec == ffmpeg::codec::Id::VP8 && packet.data().is_some_and(|d| d.first().is_some_and(|b| b & 0x10 == 0));
    PacketInfo {
        pts: packet.pts(),
        dts: packet.dts(),
        size: packet.size(),
        key: packet.is_key(),
        hidden: unseen || flags & ffi::AV_PKT_FLAG_DISCARD != 0,
    }
}

fn index_entries(input: &Input, stream: usize) -> usize {
    // SAFETY: the stream belongs to the live context; the call only reads.
    let n = unsafe { ffi::avformat_index_get_entries_count(*(*input.as_ptr()).streams.add(stream)) };
    usize::try_from(n).unwrap_or(0)
}

/// `numTemporalLayers` of an hvcC record (ISO 14496-15): byte 21, bits 3 to 5; 1 says "one layer", 0 "unknown".
fn has_one_layer(parameters: &ffmpeg::codec::Parameters) -> bool {
    // SAFETY: extradata holds `extradata_size` bytes, as FFmpeg promises; both are read from a live copy.
    let extra = unsafe {
        let p = parameters.as_ptr();
        match usize::try_from((*p).extradata_size) {
            Ok(n) if n > 0 && !(*p).extradata.is_null() => std::slice::from_raw_parts((*p).extradata, n),
            _ => &[],
        }
    };
    parameters.id() == ffmpeg::codec::Id::HEVC && extra.len() > 22 && extra[0] == 1 && (extra[21] >> 3) & 7 == 1
}
