//! Decoding wanted frames: runs of packets, several at a time, each frame written where it belongs.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Mutex;

use ffmpeg_next as ffmpeg;

use ffmpeg::Discard;
use ffmpeg::codec::{Id, decoder, threading};
use ffmpeg::frame::Video as AvFrame;

use super::convert::Converter;
use super::demux::VideoFile;
use super::failed;
use super::plan::{Run, Wanted, has_times, key_before, runs};
use super::source::PacketSource;
use crate::video::DecodeLimits;
use crate::{MediaError, Result};

/// FrameConverter a decoder holds at once, at most: 16 references and a few in flight.
const PICTURES_HELD: u64 = 24;

/// A picture leaves the decoder after at most this many more packets: 16 to reorder, and those in flight in its threads.
const PUSHED_OUT_WITHIN: usize = 64;

/// A run and the places in memory of its frames, by frame number.
struct Job<'m> {
    run: Run,
    slots: HashMap<u64, &'m mut [u8]>,
}

/// Decodes the frames `indices` (ascending, repeats allowed) of `film` into `out`, [T, h, w, 3].
pub(super) fn frames(
    film: &VideoFile,
    indices: &[u64],
    target: Option<(usize, usize)>,
    limits: DecodeLimits,
    out: &mut [u8],
) -> Result<()> {
    let frame_len = out.len() / indices.len().max(1);
    let mut unique = indices.to_vec();
    unique.dedup();
    let by_time = has_times(&film.entries);
    let plan = runs(&film.entries, &unique, by_time && trusts_key_flags(film.parameters.id()));

    let mut slots: HashMap<u64, &mut [u8]> = HashMap::new();
    for (&frame, slot) in indices.iter().zip(out.chunks_exact_mut(frame_len)) {
        slots.entry(frame).or_insert(slot);
    }
    let mut jobs: Vec<Job<'_>> = plan
        .into_iter()
        .map(|run| {
            let slots = run.wanted.iter().filter_map(|w| slots.remove_entry(&w.frame)).collect();
            Job { run, slots }
        })
        .collect();
    // Longest first: the lanes then end at about the same time.
    jobs.sort_by_key(|job| job.run.end - job.run.start);
    work(film, target, limits, jobs)?;

    for i in 1..indices.len() {
        if indices[i] == indices[i - 1] {
            out.copy_within((i - 1) * frame_len..i * frame_len, i * frame_len);
        }
    }
    Ok(())
}

/// Shares the jobs (the last first) out among as many lanes as threads and memory allow.
fn work(film: &VideoFile, target: Option<(usize, usize)>, limits: DecodeLimits, jobs: Vec<Job<'_>>) -> Result<()> {
    let picture = (film.coded.0 as u64).saturating_mul(film.coded.1 as u64).saturating_mul(2);
    let by_memory = limits.memory / 4 / picture.saturating_mul(PICTURES_HELD).max(1);
    let most = limits.threads.min(usize::try_from(by_memory).unwrap_or(usize::MAX)).max(1);
    let lanes = most.min(jobs.len()).max(1);
    // Whole groups side by side cost no waiting. With few of them some lanes end early: threads inside each decoder then
    // use what they leave.
    let share = if jobs.len() < 3 * lanes { 2 * most / lanes } else { most / lanes };
    let threads = share.clamp(1, most);
    let mut ready = Vec::new();
    for _ in 0..lanes {
        ready.push(DecodeLane::new(film, target, threads)?);
    }
    let queue = Mutex::new(jobs);
    let next = || queue.lock().ok().and_then(|mut jobs| jobs.pop());
    let run_lane = |mut lane: DecodeLane<'_>| -> Result<()> {
        while let Some(mut job) = next() {
            lane.finish(&mut job)?;
        }
        Ok(())
    };
    let Some(own) = ready.pop() else { return Ok(()) };
    std::thread::scope(|scope| {
        let mut others = Vec::new();
        for lane in ready {
            // A lane that gets no thread leaves its work to the others.
            if let Ok(handle) = std::thread::Builder::new().spawn_scoped(scope, || run_lane(lane)) {
                others.push(handle);
            }
        }
        let mut result = run_lane(own);
        for handle in others {
            let done = handle.join().unwrap_or_else(|_| {
                Err(MediaError::file(&film.path, "decoding it failed in a thread", "report this file as a bug"))
            });
            result = result.and(done);
        }
        result
    })
}

/// Whether memory for a few more pictures could be had. Decoders do not always say that they failed for want of it.
fn has_room(film: &VideoFile) -> bool {
    const PICTURES: usize = 6;
    let bytes = film.coded.0.saturating_mul(film.coded.1).saturating_mul(2 * PICTURES);
    let mut room = Vec::<u8>::new();
    // The compiler may leave out memory that nobody looks at.
    room.try_reserve_exact(bytes).is_ok() && std::hint::black_box(&room).capacity() >= bytes
}

/// Codecs whose containers flag as key frames only those at which decoding may start.
fn trusts_key_flags(codec: Id) -> bool {
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

/// One decoder with all that it needs.
struct DecodeLane<'f> {
    film: &'f VideoFile,
    source: PacketSource<'f>,
    decoder: decoder::Video,
    converter: Converter,
    /// FrameConverter that nobody refers to may be left out before the decoder works on them.
    may_skip: bool,
}

impl<'f> DecodeLane<'f> {
    fn new(film: &'f VideoFile, target: Option<(usize, usize)>, threads: usize) -> Result<Self> {
        let cannot = |e| failed(&film.path, "opening its decoder", e);
        let mut context = film.parameters.decoder().map_err(cannot)?;
        let mut config = threading::Config::kind(threading::Type::Frame);
        config.count = threads;
        context.set_threading(config);
        // SAFETY: the context is not open yet and has no other owner.
        unsafe { (*context.as_mut_ptr()).pkt_timebase = film.time_base.into() };
        let codec = film.parameters.id();
        Ok(Self {
            film,
            source: PacketSource::new(film),
            decoder: context.decoder().video().map_err(cannot)?,
            converter: Converter::new(film.coded, film.turn, target),
            may_skip: codec == Id::H264 || (codec == Id::HEVC && film.one_layer),
        })
    }

    /// Decodes a job's frames, from further back and with more of what follows if they do not come at once: key flags can
    /// lie, some films (intra refresh) need a run-up, and H.264 that begins in an open group gives its first frames only when
    /// later ones push them out, not when the decoder is drained.
    fn finish(&mut self, job: &mut Job<'_>) -> Result<()> {
        let Some(first) = job.run.wanted.first().copied() else { return Ok(()) };
        if first.pts.is_none() {
            self.count(job)?;
        } else {
            let start = job.run.start;
            let earlier =
                start.checked_sub(1).map_or(0, |p| key_before(&self.film.entries, p, self.film.entries[p].pts));
            let end = job.run.end;
            let beyond = (end + PUSHED_OUT_WITHIN).min(self.film.entries.len().saturating_sub(1));
            for (start, end, skip) in [(start, end, self.may_skip), (earlier, beyond, false), (0, beyond, false)] {
                self.run(job, start, end, skip)?;
                if job.slots.is_empty() {
                    break;
                }
            }
        }
        let Some(missing) = job.slots.keys().min() else { return Ok(()) };
        if !has_room(self.film) {
            return Err(failed(&self.film.path, "decoding", ffmpeg::Error::Other { errno: ffmpeg::error::ENOMEM }));
        }
        Err(MediaError::file(
            &self.film.path,
            format!("frame {missing} of {} cannot be decoded", self.film.total_frames()),
            "the file is damaged there: copy or download it again, or convert it",
        ))
    }

    /// Decodes packets `start..=end`, knowing frames by their presentation time.
    fn run(&mut self, job: &mut Job<'_>, start: usize, end: usize, skip: bool) -> Result<()> {
        let wanted: HashMap<i64, u64> = job.run.wanted.iter().filter_map(|w| Some((w.pts?, w.frame))).collect();
        let places: Vec<usize> = job.run.wanted.iter().map(|w: &Wanted| w.place).collect();
        self.decoder.flush();
        for place in start..=end {
            let leave_out = skip && !places.contains(&place);
            self.decoder.skip_frame(if leave_out { Discard::NonReference } else { Discard::Default });
            self.send(place)?;
            self.receive(|frame| frame.pts().and_then(|t| wanted.get(&t).copied()), &mut job.slots)?;
            if job.slots.is_empty() {
                return Ok(());
            }
        }
        self.drain(|frame| frame.pts().and_then(|t| wanted.get(&t).copied()), &mut job.slots)
    }

    /// Decodes everything from the first packet, counting the frames that come out.
    fn count(&mut self, job: &mut Job<'_>) -> Result<()> {
        let mut seen = 0u64;
        let mut number = |_: &AvFrame| {
            seen += 1;
            Some(seen - 1)
        };
        self.decoder.flush();
        self.decoder.skip_frame(Discard::Default);
        for place in 0..self.film.entries.len() {
            self.send(place)?;
            self.receive(&mut number, &mut job.slots)?;
            if job.slots.is_empty() {
                return Ok(());
            }
        }
        self.drain(number, &mut job.slots)
    }

    /// Hands one packet to the decoder. Damaged data are no error here: the frame is missed later if it was wanted.
    fn send(&mut self, place: usize) -> Result<()> {
        let packet = self.source.packet(place)?;
        match self.decoder.send_packet(packet.get()) {
            Err(e @ ffmpeg::Error::Other { errno }) if errno == ffmpeg::error::ENOMEM => {
                Err(failed(&self.film.path, "decoding", e))
            }
            _ => Ok(()),
        }
    }

    fn drain(
        &mut self,
        number: impl FnMut(&AvFrame) -> Option<u64>,
        slots: &mut HashMap<u64, &mut [u8]>,
    ) -> Result<()> {
        // An error here means that nothing is left to come.
        let _ = self.decoder.send_eof();
        self.receive(number, slots)
    }

    /// Takes all frames that are ready and writes the wanted ones. `number` says which frame a picture is.
    fn receive(
        &mut self,
        mut number: impl FnMut(&AvFrame) -> Option<u64>,
        slots: &mut HashMap<u64, &mut [u8]>,
    ) -> Result<()> {
        let mut picture = AvFrame::empty();
        loop {
            match self.decoder.receive_frame(&mut picture) {
                Ok(()) => {}
                Err(e @ ffmpeg::Error::Other { errno }) if errno == ffmpeg::error::ENOMEM => {
                    return Err(failed(&self.film.path, "decoding", e));
                }
                // A damaged picture: the next one may be whole.
                Err(ffmpeg::Error::InvalidData) => continue,
                Err(_) => return Ok(()),
            }
            if let Some(slot) = number(&picture).and_then(|n| slots.remove(&n)) {
                write(&mut self.converter, &self.film.path, &picture, slot)?;
            }
        }
    }
}

fn write(converter: &mut Converter, path: &Path, picture: &AvFrame, slot: &mut [u8]) -> Result<()> {
    converter.write(path, picture, slot)
}
