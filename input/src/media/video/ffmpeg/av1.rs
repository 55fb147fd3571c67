//! Finds the frames of an AV1 video that the selected frames need, from the headers of frames, without decoding.
//!
//! A decoder keeps 8 frames for reference. The header of a frame names the slots that it refers to (`ref_frame_idx`) and
//! those in which it is kept (`refresh_frame_flags`). All that a frame takes from others - pixels, motion vectors,
//! probabilities, segmentation, film grain - comes from the slots that it names.
//!
//! ```text
//! packet 0  key frame, kept in all slots          needed by 1
//! packet 1  hidden frame in slot 1, from slot 0   needed by 3
//!           frame in slot 2, from slots 0 and 1   dropped
//! packet 2  frame in no slot, from slots 1 and 2  dropped
//! packet 3  shows slot 1                          selected
//! ```
//! A header that is not understood, or that refers to other slots than the ones it names, makes its packet unreadable;
//! then all frames of the run are decoded. Source: AV1 Bitstream & Decoding Process Specification, version 1.0.0 with
//! errata 1, sections 5.3 to 5.9 and 7.20.

use std::ops::Range;

/// Number of slots for reference frames.
const SLOTS: usize = 8;
/// Number of references of a frame.
const REFERENCES: usize = 7;

/// Types of OBU, the units of a packet (section 6.2.2).
const SEQUENCE_HEADER: u8 = 1;
const TEMPORAL_DELIMITER: u8 = 2;
const FRAME_HEADER: u8 = 3;
const TILE_GROUP: u8 = 4;
const METADATA: u8 = 5;
const FRAME: u8 = 6;
const REDUNDANT_FRAME_HEADER: u8 = 7;
const PADDING: u8 = 15;

/// Types of frame (section 6.8.2).
const KEY_FRAME: u32 = 0;
const INTER_FRAME: u32 = 1;
const INTRA_ONLY_FRAME: u32 = 2;

/// What a frame header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Header {
    Coded {
        is_key: bool,
        is_shown: bool,
        /// The slots in which the frame is kept, one bit each.
        refreshed: u8,
        /// The slots that the frame refers to; `None` for a frame without references.
        references: Option<[u8; REFERENCES]>,
    },
    /// A kept frame is shown. If it is a key frame, it is then kept in all slots.
    ShowKept { slot: u8 },
}

/// A frame of a packet: its header, and the bytes of the packet that belong to it.
#[derive(Clone, Debug)]
struct FrameUnit {
    header: Header,
    bytes: Range<usize>,
}

/// The frames of a packet.
#[derive(Clone, Debug)]
struct PacketFrames {
    frames: Vec<FrameUnit>,
    /// Counts the different sequence headers up to this packet.
    sequence: usize,
}

/// The headers of all packets of a video in decoding order.
#[derive(Debug, Default)]
pub(super) struct FrameHeaders {
    packets: Vec<Option<PacketFrames>>,
    /// The bytes of the last sequence header, and its fields; without fields, it is not understood.
    sequence: Option<(Vec<u8>, Option<Sequence>)>,
    sequence_count: usize,
}

/// The part of a packet that is decoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum PacketPart {
    Whole,
    Nothing,
    /// The bytes without these ranges, which are in ascending order.
    Without(Vec<Range<usize>>),
}

impl PacketPart {
    /// Returns the bytes of this part of `packet`.
    pub(super) fn bytes(&self, packet: &[u8]) -> Vec<u8> {
        let Self::Without(dropped) = self else { return packet.to_vec() };
        let ends = dropped.iter().map(|range| range.start).chain([packet.len()]);
        let starts = [0].into_iter().chain(dropped.iter().map(|range| range.end));
        starts.zip(ends).filter_map(|(start, end)| packet.get(start..end)).flatten().copied().collect()
    }
}

impl FrameHeaders {
    /// Reads the headers of the next packet.
    pub(super) fn read_packet(&mut self, data: &[u8]) {
        let packet = self.packet_frames(data);
        self.packets.push(packet);
    }

    fn packet_frames(&mut self, data: &[u8]) -> Option<PacketFrames> {
        let mut frames: Vec<FrameUnit> = Vec::new();
        let mut start = 0;
        while start < data.len() {
            let (kind, payload) = obu(data, start)?;
            let end = payload.end;
            match kind {
                SEQUENCE_HEADER => self.read_sequence(&data[payload]),
                FRAME_HEADER | FRAME => {
                    let header = self.sequence.as_ref()?.1?.frame_header(&data[payload])?;
                    frames.push(FrameUnit { header, bytes: start..end });
                }
                TILE_GROUP | REDUNDANT_FRAME_HEADER => frames.last_mut()?.bytes.end = end,
                TEMPORAL_DELIMITER | METADATA | PADDING => {}
                _ => return None,
            }
            start = end;
        }
        Some(PacketFrames { frames, sequence: self.sequence_count })
    }

    fn read_sequence(&mut self, payload: &[u8]) {
        if self.sequence.as_ref().is_none_or(|(bytes, _)| bytes != payload) {
            self.sequence_count += 1;
            self.sequence = Some((payload.to_vec(), Sequence::parse(payload)));
        }
    }

    /// Returns, for each of the packets `run`, the part that must be decoded for the frames that `targets` (packets of the
    /// run) show. `None` if the headers do not tell, so that the whole run must be decoded.
    pub(super) fn needed_parts(&self, run: Range<usize>, targets: &[usize]) -> Option<Vec<PacketPart>> {
        let packets = self.packets.get(run.clone())?.iter().map(Option::as_ref).collect::<Option<Vec<_>>>()?;
        let first = packets.first()?;
        // Decoding starts with a key frame that fills all slots.
        let Header::Coded { is_key: true, is_shown: true, .. } = first.frames.first()?.header else { return None };
        if packets.iter().any(|packet| packet.sequence != first.sequence) {
            return None;
        }

        // The frames that each frame needs, and whether they are needed, in decoding order.
        let mut needs: Vec<Vec<usize>> = Vec::new();
        let mut is_needed = Vec::new();
        let mut is_key = Vec::new();
        let mut slots = [None; SLOTS];
        for (packet, at) in packets.iter().zip(run.clone()) {
            let is_target = targets.contains(&at);
            let mut shown = 0;
            for unit in &packet.frames {
                let frame = needs.len();
                let (needed, key, refreshed, is_shown) = match unit.header {
                    Header::Coded { is_key, is_shown, refreshed, references } => {
                        let slots = references.iter().flatten().map(|&slot| slots[usize::from(slot)]);
                        (slots.collect::<Option<Vec<usize>>>()?, is_key, refreshed, is_shown)
                    }
                    Header::ShowKept { slot } => {
                        let kept = slots[usize::from(slot)]?;
                        (vec![kept], false, if is_key[kept] { u8::MAX } else { 0 }, true)
                    }
                };
                for (slot, kept) in slots.iter_mut().enumerate() {
                    if refreshed >> slot & 1 == 1 {
                        *kept = Some(frame);
                    }
                }
                needs.push(needed);
                is_key.push(key);
                is_needed.push(is_target && is_shown);
                shown += usize::from(is_shown);
            }
            if is_target && shown != 1 {
                return None;
            }
        }
        for frame in (0..needs.len()).rev() {
            if is_needed[frame] {
                needs[frame].iter().for_each(|&other| is_needed[other] = true);
            }
        }

        let mut is_needed = is_needed.into_iter();
        let parts = packets.iter().map(|packet| {
            let dropped: Vec<Range<usize>> = packet
                .frames
                .iter()
                .filter(|_| is_needed.next() == Some(false))
                .map(|unit| unit.bytes.clone())
                .collect();
            match dropped.len() {
                0 => PacketPart::Whole,
                n if n == packet.frames.len() => PacketPart::Nothing,
                _ => PacketPart::Without(dropped),
            }
        });
        Some(parts.collect())
    }
}

/// Returns the type of the OBU at `start` and the position of its payload. `None` if it is damaged or belongs to a layer
/// of a scalable video.
fn obu(data: &[u8], start: usize) -> Option<(u8, Range<usize>)> {
    let header = *data.get(start)?;
    let (kind, has_extension, has_size) = (header >> 3 & 15, header & 4 != 0, header & 2 != 0);
    if header & 0x80 != 0 || has_extension {
        return None;
    }
    let mut at = start + 1;
    if !has_size {
        return Some((kind, at..data.len()));
    }
    // The size is a number of 7 bits a byte, the lowest first (leb128).
    let mut size = 0usize;
    for shift in (0..56).step_by(7) {
        let byte = *data.get(at)?;
        at += 1;
        size |= usize::from(byte & 0x7F) << shift;
        if byte & 0x80 == 0 {
            let end = at.checked_add(size).filter(|&end| end <= data.len())?;
            return Some((kind, at..end));
        }
    }
    None
}

/// The fields of a sequence header that the parser of frame headers needs.
#[derive(Clone, Copy, Debug)]
struct Sequence {
    /// Bits of `order_hint` in a frame header; 0 without order hints.
    order_hint_bits: u32,
    /// Whether frames use the tools for screen content, and whole motion vectors; `None` if each frame says so.
    screen_content: Option<bool>,
    integer_mv: Option<bool>,
}

impl Sequence {
    /// Parses a sequence header (section 5.5.1). `None` for still pictures, scalable videos, and videos with a decoder model
    /// or with frame numbers, whose frame headers have further fields.
    fn parse(payload: &[u8]) -> Option<Self> {
        let mut bits = Bits { data: payload, position: 0 };
        bits.read(3)?;
        let [_still, is_reduced] = [bits.flag()?, bits.flag()?];
        if is_reduced {
            return None;
        }
        if bits.flag()? {
            // timing_info; an equal picture interval adds a number of variable length.
            bits.read(32)?;
            bits.read(32)?;
            if bits.flag()? {
                bits.skip_uvlc()?;
            }
            let has_decoder_model = bits.flag()?;
            if has_decoder_model {
                return None;
            }
        }
        let has_display_delay = bits.flag()?;
        for _ in 0..=bits.read(5)? {
            let layers = bits.read(12)?;
            if layers != 0 {
                return None;
            }
            let level = bits.read(5)?;
            if level > 7 {
                bits.flag()?;
            }
            if has_display_delay && bits.flag()? {
                bits.read(4)?;
            }
        }
        let [width_bits, height_bits] = [bits.read(4)? + 1, bits.read(4)? + 1];
        bits.read(width_bits)?;
        bits.read(height_bits)?;
        let has_frame_numbers = bits.flag()?;
        if has_frame_numbers {
            return None;
        }
        // Superblock size, filter intra, intra edge filter; inter-intra and masked compound, warped motion, dual filter.
        bits.read(3 + 4)?;
        let has_order_hint = bits.flag()?;
        if has_order_hint {
            bits.read(2)?;
        }
        let screen_content = bits.choice()?;
        let integer_mv = if screen_content == Some(false) { None } else { bits.choice()? };
        let order_hint_bits = if has_order_hint { bits.read(3)? + 1 } else { 0 };
        Some(Self { order_hint_bits, screen_content, integer_mv })
    }

    /// Parses a frame header up to its references (section 5.9.2). `None` for a frame that depends on more than the slots
    /// that it names: its references follow from the order of all kept frames, or it checks them.
    fn frame_header(self, payload: &[u8]) -> Option<Header> {
        let mut bits = Bits { data: payload, position: 0 };
        if bits.flag()? {
            return Some(Header::ShowKept { slot: bits.read(3)? as u8 });
        }
        let (kind, is_shown) = (bits.read(2)?, bits.flag()?);
        let (is_key, is_inter) = (kind == KEY_FRAME, kind == INTER_FRAME);
        if !is_key && !is_inter && kind != INTRA_ONLY_FRAME {
            return None;
        }
        if !is_shown {
            let _is_showable = bits.flag()?;
        }
        let is_start = is_key && is_shown;
        let is_error_resilient = is_start || bits.flag()?;
        if is_error_resilient && !is_start {
            return None;
        }
        let _disable_cdf_update = bits.flag()?;
        let uses_screen_content = bits.chosen(self.screen_content)?;
        if uses_screen_content {
            bits.chosen(self.integer_mv)?;
        }
        let _frame_size_override = bits.flag()?;
        bits.read(self.order_hint_bits)?;
        if is_inter {
            let _primary_ref_frame = bits.read(3)?;
        }
        let refreshed = if is_start { u8::MAX } else { bits.read(8)? as u8 };
        let mut references = None;
        if is_inter {
            let are_references_short = self.order_hint_bits > 0 && bits.flag()?;
            if are_references_short {
                return None;
            }
            let slots = references.insert([0; REFERENCES]);
            for slot in slots {
                *slot = bits.read(3)? as u8;
            }
        }
        Some(Header::Coded { is_key, is_shown, refreshed, references })
    }
}

/// Reads bits, the highest of each byte first.
struct Bits<'d> {
    data: &'d [u8],
    position: usize,
}

impl Bits<'_> {
    /// Reads a number of up to 32 bits; `None` at the end of the data.
    fn read(&mut self, count: u32) -> Option<u32> {
        let mut number = 0;
        for _ in 0..count {
            let byte = *self.data.get(self.position / 8)?;
            number = number << 1 | u32::from(byte >> (7 - self.position % 8) & 1);
            self.position += 1;
        }
        Some(number)
    }

    fn flag(&mut self) -> Option<bool> {
        self.read(1).map(|bit| bit == 1)
    }

    /// Skips a number of variable length: as many zeros as the number has bits after its first 1 (section 4.10.3).
    fn skip_uvlc(&mut self) -> Option<()> {
        let mut zeros = 0;
        while !self.flag()? {
            zeros += 1;
        }
        if zeros < 32 { self.read(zeros).map(drop) } else { None }
    }

    /// Reads a setting of a sequence header; `Some(None)` if it is left to each frame.
    fn choice(&mut self) -> Option<Option<bool>> {
        if self.flag()? { Some(None) } else { self.flag().map(Some) }
    }

    /// Reads a setting in a frame header, unless the sequence header has fixed it.
    fn chosen(&mut self, fixed: Option<bool>) -> Option<bool> {
        fixed.or_else(|| self.flag())
    }
}
