//! Fetches packets by their index in decoding order: from memory, or again from the file if the video is too large to
//! keep.

use std::path::Path;

use ffmpeg_next as ffmpeg;

use ffmpeg::ffi;
use ffmpeg::format::context::Input;
use reel_support::diagnostic::Diagnostic;

use super::demux::{PacketInfo, VideoFile, open_container_and_stream, packet_info};
use crate::error::{Error, Kind, MediaFailure, Result};

/// If the wanted packet is at most this many packets ahead, the packets up to it are read in sequence, which is assumed
/// to be cheaper than seeking.
const MAX_READ_AHEAD: usize = 64;

/// A source of the packets of one video.
pub(super) struct PacketSource<'f> {
    video: &'f VideoFile,
    reader: Option<Reader>,
}

/// A container that is open for reading packets a second time.
struct Reader {
    input: Input,
    stream: usize,
    /// Index of the packet that is read next.
    next: usize,
    /// The packet that was read after a seek to find out where the seek ended; the next read returns it.
    peeked: Option<ffmpeg::Packet>,
}

/// A packet that was kept in memory, or that was read from the file again.
pub(super) enum FetchedPacket<'f> {
    Kept(&'f ffmpeg::Packet),
    Read(ffmpeg::Packet),
}

impl FetchedPacket<'_> {
    pub(super) fn as_packet(&self) -> &ffmpeg::Packet {
        match self {
            Self::Kept(packet) => packet,
            Self::Read(packet) => packet,
        }
    }
}

impl<'f> PacketSource<'f> {
    pub(super) fn new(video: &'f VideoFile) -> Self {
        Self { video, reader: None }
    }

    /// The packet with this index in decoding order.
    pub(super) fn fetch_packet(&mut self, index: usize) -> Result<FetchedPacket<'f>> {
        if let Some(data) = &self.video.data {
            return data.get(index).map(FetchedPacket::Kept).ok_or_else(|| file_changed(&self.video.path));
        }
        let reader = match self.reader.take() {
            Some(reader) if (reader.next..reader.next + MAX_READ_AHEAD).contains(&index) => reader,
            Some(reader) => reader.seek(self.video, index)?,
            None => Reader::open(&self.video.path)?.seek(self.video, index)?,
        };
        self.reader.insert(reader).read_to(self.video, index).map(FetchedPacket::Read)
    }
}

impl Reader {
    fn open(path: &Path) -> Result<Self> {
        let (input, stream) = open_container_and_stream(path)?;
        Ok(Self { input, stream, next: 0, peeked: None })
    }

    /// Moves to the last key frame at or before packet `index`; if seeking fails, opens the file again and starts at
    /// the first packet.
    fn seek(mut self, video: &VideoFile, index: usize) -> Result<Self> {
        let Some(key) = (1..=index).rev().find(|&k| video.packets[k].key) else { return Self::open(&video.path) };
        let target = &video.packets[key];
        let Some(time) = [target.pts, target.dts].into_iter().flatten().min() else { return Self::open(&video.path) };
        let Ok(stream) = i32::try_from(self.stream) else { return Self::open(&video.path) };
        // SAFETY: the context is alive and owned, and the stream index is one of its own.
        let code = unsafe { ffi::av_seek_frame(self.input.as_mut_ptr(), stream, time, ffi::AVSEEK_FLAG_BACKWARD) };
        if code < 0 {
            return Self::open(&video.path);
        }
        let Some(packet) = self.read() else { return Self::open(&video.path) };
        let found = packet_info(&packet, video.parameters.codec_id());
        match video.packets[..=index].iter().rposition(|e: &PacketInfo| *e == found) {
            Some(position) => {
                self.next = position;
                self.peeked = Some(packet);
                Ok(self)
            }
            None => Self::open(&video.path),
        }
    }

    /// Reads and discards the packets before `index`, and returns the packet at `index`. If its size differs from the
    /// size at the first reading of the container, the file has changed.
    fn read_to(&mut self, video: &VideoFile, index: usize) -> Result<ffmpeg::Packet> {
        loop {
            let packet = self.peeked.take().or_else(|| self.read()).ok_or_else(|| file_changed(&video.path))?;
            let position = self.next;
            self.next += 1;
            if position == index {
                if packet.size() != video.packets[index].size {
                    return Err(file_changed(&video.path));
                }
                return Ok(packet);
            }
        }
    }

    fn read(&mut self) -> Option<ffmpeg::Packet> {
        loop {
            let mut packet = ffmpeg::Packet::empty();
            packet.read(&mut self.input).ok()?;
            if packet.stream() == self.stream {
                return Some(packet);
            }
        }
    }
}

fn file_changed(path: &Path) -> Error {
    let (what, help) = ("changed while it was read", "try again, and do not change the file meanwhile");
    Kind::Media(MediaFailure::Unreadable).error(Diagnostic::new(path.display().to_string(), what, help))
}
