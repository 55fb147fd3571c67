//! Packets by their number in decoding order: from memory, or read again from a film too large to keep.

use std::path::Path;

use ffmpeg_next as ffmpeg;

use ffmpeg::ffi;
use ffmpeg::format::context::Input;

use super::demux::{PacketInfo, VideoFile, entry, open};
use crate::{MediaError, Result};

/// How far ahead reading on is taken to be cheaper than seeking, in packets.
const READ_ON: usize = 64;

/// Where packets come from.
pub(super) struct PacketSource<'f> {
    film: &'f VideoFile,
    reader: Option<Reader>,
}

/// A second look at the container.
struct Reader {
    input: Input,
    stream: usize,
    /// Number of the packet that comes next.
    next: usize,
    /// A packet read to find out where a seek led to.
    ahead: Option<ffmpeg::Packet>,
}

/// A packet that is kept, or one just read.
pub(super) enum Fetched<'f> {
    Kept(&'f ffmpeg::Packet),
    Read(ffmpeg::Packet),
}

impl Fetched<'_> {
    pub(super) fn get(&self) -> &ffmpeg::Packet {
        match self {
            Self::Kept(packet) => packet,
            Self::Read(packet) => packet,
        }
    }
}

impl<'f> PacketSource<'f> {
    pub(super) fn new(film: &'f VideoFile) -> Self {
        Self { film, reader: None }
    }

    /// The packet number `place` in decoding order.
    pub(super) fn packet(&mut self, place: usize) -> Result<Fetched<'f>> {
        if let Some(kept) = &self.film.kept {
            return kept.get(place).map(Fetched::Kept).ok_or_else(|| changed(&self.film.path));
        }
        let reader = match self.reader.take() {
            Some(reader) if (reader.next..reader.next + READ_ON).contains(&place) => reader,
            Some(reader) => reader.seek(self.film, place)?,
            None => Reader::open(&self.film.path)?.seek(self.film, place)?,
        };
        self.reader.insert(reader).read_to(self.film, place).map(Fetched::Read)
    }
}

impl Reader {
    fn open(path: &Path) -> Result<Self> {
        let (input, stream) = open(path)?;
        Ok(Self { input, stream, next: 0, ahead: None })
    }

    /// Moves to the key frame at or before packet `place`; to the beginning where seeking does not lead there.
    fn seek(mut self, film: &VideoFile, place: usize) -> Result<Self> {
        let Some(key) = (1..=place).rev().find(|&k| film.entries[k].key) else { return Self::open(&film.path) };
        let target = &film.entries[key];
        let Some(time) = [target.pts, target.dts].into_iter().flatten().min() else { return Self::open(&film.path) };
        let Ok(stream) = i32::try_from(self.stream) else { return Self::open(&film.path) };
        // SAFETY: the context is live and owned; the stream number is one of its own.
        let code = unsafe { ffi::av_seek_frame(self.input.as_mut_ptr(), stream, time, ffi::AVSEEK_FLAG_BACKWARD) };
        if code < 0 {
            return Self::open(&film.path);
        }
        let Some(packet) = self.read() else { return Self::open(&film.path) };
        let found = entry(&packet, film.parameters.id());
        match film.entries[..=place].iter().rposition(|e: &PacketInfo| *e == found) {
            Some(at) => {
                self.next = at;
                self.ahead = Some(packet);
                Ok(self)
            }
            None => Self::open(&film.path),
        }
    }

    /// Reads on to packet `place`, which must be what the first reading found there.
    fn read_to(&mut self, film: &VideoFile, place: usize) -> Result<ffmpeg::Packet> {
        loop {
            let packet = self.ahead.take().or_else(|| self.read()).ok_or_else(|| changed(&film.path))?;
            let at = self.next;
            self.next += 1;
            if at == place {
                if entry(&packet, film.parameters.id()).size != film.entries[place].size {
                    return Err(changed(&film.path));
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

fn changed(path: &Path) -> MediaError {
    MediaError::file(path, "it reads differently the second time", "do not change the file while it is read")
}
