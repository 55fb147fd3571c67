//! Decodes frames: several threads decode separate runs of packets, and each frame is written to its position in the
//! output.
//!
//! ```text
//! plan runs of packets                                   plan.rs
//! several lanes, each a thread with its own decoder (on a GPU: nvdec.rs), take runs from a queue, longest first:
//!     send the packets of the run; write each target frame that comes out
//!     if frames are missing: decode again from an earlier key frame and with later packets, then from the start
//!     if only frames before the first key frame are missing (a cut at an open GOP): write the key frame for them
//! ```

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use ffmpeg_next as ffmpeg;

use ffmpeg::Discard;
use ffmpeg::codec::{Id, decoder, threading};
use ffmpeg::frame::Video as AvFrame;

use super::av1::PacketPart;
use super::convert::RgbConverter;
use super::demux::{VideoFile, has_reliable_key_flags};
use super::error::{ffmpeg_error, out_of_memory};
use super::nvdec::{self, Gpu};
use super::packets::PacketSource;
use super::plan::{PacketRun, has_usable_times, key_packet_index_before, leading_frame_count, plan_packet_runs};
use crate::error::{Error, Result};
use crate::media::frames::MAX_IMAGE_PIXELS;
use crate::media::resize::ResizeTarget;
use crate::media::video::types::DecodeLimits;

/// Minimum number of pixels to decode per thread. With fewer, a further thread costs more time than it saves: its own
/// H.264 decoder takes about a megabyte of memory, with a page fault at the first use of each page.
const MIN_PIXELS_PER_THREAD: u64 = 4 << 20;

/// Upper bound of the frames that a decoder holds in memory at once: 16 reference frames and a few that its threads
/// work on.
const FRAMES_PER_DECODER: u64 = 24;

/// Maximum number of further packets that the decoder needs before it outputs a frame: 16 for reordering, the others
/// for its threads.
const MAX_OUTPUT_DELAY: usize = 64;

/// Maximum number of pixels that are decoded of an animated image (GIF, APNG), all frames together: 4000 frames of 1920 x
/// 1080. Its decoder copies the whole canvas for each frame, however few bytes the frame has.
const MAX_ANIMATION_PIXELS: u64 = 1 << 33;

/// Converting a frame to RGB and resizing it takes about as long as decoding this many.
const DECODED_PER_CONVERTED: u64 = 4;

/// Counts the pixels that all lanes decode, and refuses those above the limit.
struct PixelBudget {
    limit: u64,
    decoded: AtomicU64,
}

impl PixelBudget {
    fn new(video: &VideoFile, limits: DecodeLimits) -> Self {
        let is_animation = matches!(video.parameters.codec_id(), Id::GIF | Id::APNG);
        let limit = if is_animation { limits.pixels.min(MAX_ANIMATION_PIXELS) } else { limits.pixels };
        Self { limit, decoded: AtomicU64::new(0) }
    }

    /// Refuses runs that decode more pixels than the limit, before the first one is decoded.
    fn check_runs(&self, video: &VideoFile, runs: &[PacketRun]) -> Result<()> {
        let frames = |run: &PacketRun| {
            let by_counting = run.targets.last().filter(|last| last.pts.is_none()).map(|last| last.frame + 1);
            let decoded = by_counting.unwrap_or((run.end - run.start) as u64 + 1);
            decoded + run.targets.len() as u64 * DECODED_PER_CONVERTED
        };
        let pixels = runs.iter().map(frames).sum::<u64>().saturating_mul(video.coded_pixels());
        if pixels > self.limit { Err(self.too_many_pixels(video)) } else { Ok(()) }
    }

    /// Counts decoded pixels.
    fn count(&self, video: &VideoFile, pixels: u64) -> Result<()> {
        let before = self.decoded.fetch_add(pixels, Ordering::Relaxed);
        if before.saturating_add(pixels) > self.limit { Err(self.too_many_pixels(video)) } else { Ok(()) }
    }

    fn too_many_pixels(&self, video: &VideoFile) -> Error {
        let ((height, width), frames) = (video.coded_size, video.packets.len());
        let what = format!(
            "is {frames} frames of {height} x {width} pixels, and decoding the selected ones takes more than {} pixels in total",
            self.limit
        );
        let help = match self.limit {
            MAX_ANIMATION_PIXELS => "make it smaller, or convert it to H.264",
            _ => "take fewer frames, or raise the time limit (--media-timeout), from which this limit follows",
        };
        Error::media_file(&video.path, what, help)
    }
}

/// Maps the index of a frame to the output memory for its pixels. An entry is removed when its frame is written.
type Slots<'m> = HashMap<u64, &'m mut [u8]>;

/// A run of packets with the output memory of its frames.
struct Job<'m> {
    run: PacketRun,
    slots: Slots<'m>,
}

/// Decodes the frames `indices` (ascending, repeats allowed) of `video` into `out`, u8 `[T, h, w, 3]`. Returns the
/// seconds of converting frames to RGB and resizing them, added over all threads.
pub(super) fn decode_frames(
    video: &VideoFile,
    indices: &[u64],
    target_size: Option<ResizeTarget>,
    limits: DecodeLimits,
    out: &mut [u8],
) -> Result<f64> {
    let gpu = limits.gpu.map(|index| nvdec::gpu_for(video, index)).transpose()?;
    let frame_len = out.len() / indices.len().max(1);
    let mut unique = indices.to_vec();
    unique.dedup();
    let seekable = has_usable_times(&video.packets) && has_reliable_key_flags(video.parameters.codec_id());
    let runs = plan_packet_runs(&video.packets, &unique, seekable);
    let budget = PixelBudget::new(video, limits);
    budget.check_runs(video, &runs)?;

    let mut slots = Slots::new();
    for (&frame, slot) in indices.iter().zip(out.chunks_exact_mut(frame_len)) {
        slots.entry(frame).or_insert(slot);
    }
    let mut jobs: Vec<Job<'_>> = runs
        .into_iter()
        .map(|run| {
            let slots = run.targets.iter().filter_map(|target| slots.remove_entry(&target.frame)).collect();
            Job { run, slots }
        })
        .collect();
    // Sorted with the longest run last, because lanes take jobs from the end with `pop`. Starting with the longest
    // runs makes all lanes end at about the same time.
    jobs.sort_by_key(|job| job.run.end - job.run.start);
    nvdec::HAS_LOGGED_ERROR.store(false, Ordering::Relaxed);
    let resize_time = run_jobs(video, target_size, limits, gpu, &budget, jobs)?;
    if gpu.is_some() && nvdec::HAS_LOGGED_ERROR.load(Ordering::Relaxed) {
        return Err(nvdec::failed_on_gpu(&video.path));
    }

    for i in 1..indices.len() {
        if indices[i] == indices[i - 1] {
            out.copy_within((i - 1) * frame_len..i * frame_len, i * frame_len);
        }
    }
    Ok(resize_time.as_secs_f64())
}

/// Distributes the jobs, last one first, over lanes (decoding threads). The thread limit, the memory limit and
/// [`MIN_PIXELS_PER_THREAD`] bound the number of lanes. Returns the time of converting and resizing, added over all lanes.
fn run_jobs(
    video: &VideoFile,
    target_size: Option<ResizeTarget>,
    limits: DecodeLimits,
    gpu: Option<&Gpu>,
    budget: &PixelBudget,
    jobs: Vec<Job<'_>>,
) -> Result<Duration> {
    let frame_pixels = video.coded_pixels();
    let packets: usize = jobs.iter().map(|job| job.run.end.saturating_sub(job.run.start)).sum();
    let useful_threads = 1 + frame_pixels.saturating_mul(packets as u64) / MIN_PIXELS_PER_THREAD;
    let frame_bytes = frame_pixels.saturating_mul(2);
    let lanes_in_memory = limits.memory_bytes / 4 / frame_bytes.saturating_mul(FRAMES_PER_DECODER).max(1);
    let most = usize::try_from(lanes_in_memory.min(useful_threads)).unwrap_or(usize::MAX);
    let max_lanes = limits.threads.min(most).max(1);
    let lane_count = max_lanes.min(jobs.len()).max(1);
    // With few jobs per lane, some lanes end before others. Each decoder then gets twice its share of threads, to use
    // the cores of lanes that have ended. Where lanes fill the threads, each decoder has one: further ones cost processor
    // time for each frame, while other videos can use the cores.
    let share = if jobs.len() < 3 * lane_count { 2 * max_lanes / lane_count } else { max_lanes / lane_count };
    let threads = if lane_count == max_lanes || gpu.is_some() { 1 } else { share.clamp(1, max_lanes) };
    let mut lanes = Vec::new();
    for _ in 0..lane_count {
        lanes.push(DecodeLane::new(video, target_size, threads, gpu, budget)?);
    }
    let queue = Mutex::new(jobs);
    let next = || queue.lock().ok().and_then(|mut jobs| jobs.pop());
    let run_lane = |mut lane: DecodeLane<'_>| -> Result<Duration> {
        while let Some(mut job) = next() {
            lane.run_job(&mut job)?;
        }
        Ok(lane.resize_time)
    };
    let Some(own_lane) = lanes.pop() else { return Ok(Duration::ZERO) };
    std::thread::scope(|scope| {
        let mut handles = Vec::new();
        for lane in lanes {
            // If a lane's thread cannot be created, the other lanes take its jobs from the queue.
            if let Ok(handle) = std::thread::Builder::new().spawn_scoped(scope, || run_lane(lane)) {
                handles.push(handle);
            }
        }
        let mut result = run_lane(own_lane);
        for handle in handles {
            let lane_result = handle.join().unwrap_or_else(|_| {
                Err(Error::media_file(&video.path, "a decoding thread panicked", "report this file as a bug"))
            });
            result = result.and_then(|time| Ok(time + lane_result?));
        }
        result
    })
}

/// Whether memory for 6 more frames of the video can be allocated. The check distinguishes lack of memory from a
/// damaged file, because decoders do not always report a lack of memory as such.
fn has_memory_for_frames(video: &VideoFile) -> bool {
    const FRAMES: usize = 6;
    let bytes = video.coded_size.0.saturating_mul(video.coded_size.1).saturating_mul(2 * FRAMES);
    let mut buffer = Vec::<u8>::new();
    // Without black_box the compiler may remove the allocation.
    buffer.try_reserve_exact(bytes).is_ok() && std::hint::black_box(&buffer).capacity() >= bytes
}

/// A decoder with its own packet source and RGB converter, used by one thread.
struct DecodeLane<'f> {
    video: &'f VideoFile,
    budget: &'f PixelBudget,
    source: PacketSource<'f>,
    decoder: decoder::Video,
    converter: RgbConverter,
    /// Whether the decoder may skip frames that no other frame refers to. For AV1, packets are cut instead.
    can_skip_unreferenced: bool,
    /// Whether the decoder outputs frames in the memory of a GPU.
    is_on_gpu: bool,
    /// The time of converting frames to RGB and resizing them.
    resize_time: Duration,
}

impl<'f> DecodeLane<'f> {
    fn new(
        video: &'f VideoFile,
        target_size: Option<ResizeTarget>,
        threads: usize,
        gpu: Option<&Gpu>,
        budget: &'f PixelBudget,
    ) -> Result<Self> {
        let cannot_open = |e| ffmpeg_error(&video.path, "opening its decoder", e);
        let mut context = video.parameters.unopened_decoder().map_err(cannot_open)?;
        let mut config = threading::Config::kind(threading::Type::Frame);
        config.count = threads;
        context.set_threading(config);
        // SAFETY: the context is not open yet and has no other owner.
        unsafe {
            (*context.as_mut_ptr()).pkt_timebase = video.time_base.into();
            // A frame may be larger than the container states.
            (*context.as_mut_ptr()).max_pixels = MAX_IMAGE_PIXELS as i64;
        }
        gpu.map_or(Ok(()), |gpu| gpu.attach(&mut context)).map_err(cannot_open)?;
        let codec = video.parameters.codec_id();
        Ok(Self {
            video,
            budget,
            source: PacketSource::new(video),
            decoder: context.decoder().video().map_err(cannot_open)?,
            converter: RgbConverter::new(video.coded_size, video.rotation, target_size)?,
            can_skip_unreferenced: matches!(codec, Id::H264 | Id::MPEG4 | Id::AV1)
                || (codec == Id::HEVC && video.has_one_layer),
            is_on_gpu: gpu.is_some(),
            resize_time: Duration::ZERO,
        })
    }

    /// Decodes the frames of a job. If some frames do not come out of the planned packets, decoding is repeated from
    /// an earlier key frame and with later packets. This is needed because key flags can be wrong, because intra
    /// refresh needs earlier packets, and because a decoder that starts in an open GOP of H.264 outputs its first
    /// frames only after it has got later ones.
    fn run_job(&mut self, job: &mut Job<'_>) -> Result<()> {
        let Some(first) = job.run.targets.first().copied() else { return Ok(()) };
        if first.pts.is_none() {
            self.decode_by_counting(job)?;
        } else {
            let (start, end) = (job.run.start, job.run.end);
            let packets = &self.video.packets;
            let earlier = start.checked_sub(1).map_or(0, |p| key_packet_index_before(packets, p, packets[p].pts));
            let later = (end + MAX_OUTPUT_DELAY).min(packets.len().saturating_sub(1));
            let attempts =
                [(start, end, self.can_skip_unreferenced), (earlier, later, false), (self.video.start, later, false)];
            for (start, end, skip_unreferenced) in attempts {
                self.decode_by_time(job, start, end, skip_unreferenced)?;
                if job.slots.is_empty() {
                    break;
                }
            }
        }
        let Some(&missing) = job.slots.keys().min() else { return Ok(()) };
        if !has_memory_for_frames(self.video) {
            return Err(out_of_memory(&self.video.path, "decoding"));
        }
        let leading = leading_frame_count(&self.video.packets);
        if job.slots.keys().all(|&frame| frame < leading) {
            self.repeat_first_picture(&mut job.slots)?;
        }
        if job.slots.is_empty() {
            return Ok(());
        }
        Err(Error::media_file(
            &self.video.path,
            format!("frame {missing} of {} cannot be decoded", self.video.total_frames()),
            "the file is damaged there: copy or download it again, or convert it",
        ))
    }

    /// Decodes packets `start..=end` and identifies frames by their presentation time.
    fn decode_by_time(&mut self, job: &mut Job<'_>, start: usize, end: usize, skip_unreferenced: bool) -> Result<()> {
        let frame_at: HashMap<i64, u64> = job.run.targets.iter().filter_map(|t| Some((t.pts?, t.frame))).collect();
        let target_packets: Vec<usize> = job.run.targets.iter().map(|t| t.packet).collect();
        let frame_index = |frame: &AvFrame| frame.pts().and_then(|pts| frame_at.get(&pts).copied());
        let av1 = self.video.av1_headers.as_ref().filter(|_| skip_unreferenced);
        let parts = av1.and_then(|headers| headers.needed_parts(start..end + 1, &target_packets));
        self.decoder.flush();
        for packet in start..=end {
            let skip = skip_unreferenced && av1.is_none() && !target_packets.contains(&packet);
            self.decoder.skip_frame(if skip { Discard::NonReference } else { Discard::Default });
            match parts.as_ref().map_or(&PacketPart::Whole, |parts| &parts[packet - start]) {
                PacketPart::Nothing => continue,
                part => self.send(packet, part)?,
            }
            self.receive(frame_index, &mut job.slots)?;
            if job.slots.is_empty() {
                return Ok(());
            }
        }
        self.drain(frame_index, &mut job.slots)
    }

    /// Decodes from the first usable packet and counts the frames that come out, for videos without usable times.
    fn decode_by_counting(&mut self, job: &mut Job<'_>) -> Result<()> {
        let leading = leading_frame_count(&self.video.packets);
        let first_time = self.video.packets.iter().find(|e| !e.hidden).and_then(|e| e.pts);
        let mut count = 0u64;
        let mut frame_index = |frame: &AvFrame| {
            // If the decoder outputs the first key frame first, it will output nothing for the frames displayed before
            // it.
            if count == 0 && leading > 0 && frame.pts() == first_time {
                count = leading;
            }
            count += 1;
            Some(count - 1)
        };
        self.decoder.flush();
        self.decoder.skip_frame(Discard::Default);
        for packet in self.video.start..self.video.packets.len() {
            self.send(packet, &PacketPart::Whole)?;
            self.receive(&mut frame_index, &mut job.slots)?;
            if job.slots.is_empty() {
                return Ok(());
            }
        }
        self.drain(frame_index, &mut job.slots)
    }

    /// Writes the first decoded picture of the video, its key frame, to all `slots`. The slots belong to frames that
    /// are displayed before this key frame in a video cut at an open group of pictures ([`leading_frame_count`]). No
    /// decoder can decode these frames, but they count as frames, as in decord.
    fn repeat_first_picture(&mut self, slots: &mut Slots<'_>) -> Result<()> {
        let Some(frame) = slots.keys().next().copied() else { return Ok(()) };
        let Some(slot) = slots.remove(&frame) else { return Ok(()) };
        let mut first = Slots::from([(frame, &mut *slot)]);
        self.decoder.flush();
        self.decoder.skip_frame(Discard::Default);
        let start = self.video.start;
        let last = (start + MAX_OUTPUT_DELAY).min(self.video.packets.len().saturating_sub(1));
        for packet in start..=last {
            self.send(packet, &PacketPart::Whole)?;
            self.receive(|_| Some(frame), &mut first)?;
            if first.is_empty() {
                break;
            }
        }
        if !first.is_empty() {
            self.drain(|_| Some(frame), &mut first)?;
        }
        if first.is_empty() {
            slots.drain().for_each(|(_, other)| other.copy_from_slice(slot));
        } else {
            drop(first);
            slots.insert(frame, slot);
        }
        Ok(())
    }

    /// Sends a part of one packet to the decoder. Damaged data is not an error here: if a target frame is lost, `run_job`
    /// reports it. On a GPU it is an error, because NVDEC may replace lost parts in another way than the software.
    fn send(&mut self, packet: usize, part: &PacketPart) -> Result<()> {
        self.budget.count(self.video, self.video.coded_pixels())?;
        let packet = self.source.fetch_packet(packet)?;
        let whole = packet.as_packet();
        let cut = match part {
            PacketPart::Without(_) => {
                let mut cut = ffmpeg::Packet::copy(&part.bytes(whole.data().unwrap_or_default()));
                cut.set_pts(whole.pts());
                cut.set_dts(whole.dts());
                cut.set_duration(whole.duration());
                Some(cut)
            }
            _ => None,
        };
        match self.decoder.send_packet(cut.as_ref().unwrap_or(whole)) {
            Err(e @ ffmpeg::Error::Other { errno }) if errno == ffmpeg::error::ENOMEM => {
                Err(ffmpeg_error(&self.video.path, "decoding", e))
            }
            Err(_) if self.is_on_gpu => Err(nvdec::failed_on_gpu(&self.video.path)),
            _ => Ok(()),
        }
    }

    /// Receives the frames that the decoder still holds after the last packet.
    fn drain(&mut self, frame_index: impl FnMut(&AvFrame) -> Option<u64>, slots: &mut Slots<'_>) -> Result<()> {
        // If sending fails, the decoder holds no more frames.
        let _ = self.decoder.send_eof();
        self.receive(frame_index, slots)
    }

    /// Receives all frames that are ready, and writes those whose index (from `frame_index`) has output memory in
    /// `slots`.
    fn receive(&mut self, mut frame_index: impl FnMut(&AvFrame) -> Option<u64>, slots: &mut Slots<'_>) -> Result<()> {
        let mut frame = AvFrame::empty();
        loop {
            match self.decoder.receive_frame(&mut frame) {
                Ok(()) => {}
                Err(e @ ffmpeg::Error::Other { errno }) if errno == ffmpeg::error::ENOMEM => {
                    return Err(ffmpeg_error(&self.video.path, "decoding", e));
                }
                Err(ffmpeg::Error::Eof | ffmpeg::Error::Other { errno: ffmpeg::error::EAGAIN }) => return Ok(()),
                Err(_) if self.is_on_gpu => return Err(nvdec::failed_on_gpu(&self.video.path)),
                // Only this frame is damaged; later frames may be intact.
                Err(ffmpeg::Error::InvalidData) => continue,
                Err(_) => return Ok(()),
            }
            if self.is_on_gpu {
                nvdec::check_frame(&self.video.path, &frame)?;
            }
            // `send` has counted a frame of the size that the container states.
            let pixels = u64::from(frame.width()) * u64::from(frame.height());
            self.budget.count(self.video, pixels.saturating_sub(self.video.coded_pixels()))?;
            if let Some(slot) = frame_index(&frame).and_then(|index| slots.remove(&index)) {
                let begun = Instant::now();
                let path = &self.video.path;
                let copied = self.is_on_gpu.then(|| nvdec::software_frame(path, &self.decoder, &frame)).transpose()?;
                self.converter.write_as_rgb(path, copied.as_ref().unwrap_or(&frame), slot)?;
                self.resize_time += begun.elapsed();
            }
        }
    }
}
