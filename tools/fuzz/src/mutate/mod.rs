//! Makes inputs: takes a valid input (a seed) and changes it at random. Most changes are small, because an input that
//! a parser refuses at its first byte tests nothing.
//!
//! The parts of an input, one for each of its files, are joined by [`PART_SEPARATOR`].

mod bytes;
mod json;
mod text;

use crate::random::Random;

/// Separates the parts of an input.
pub const PART_SEPARATOR: &[u8] = b"\n%%%%\n";

/// The size limit of an input in bytes.
const MAX_BYTES: usize = 1 << 20;

/// The format of a part of an input, which decides how the part is changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PartFormat {
    /// A part that is never changed.
    Fixed,
    /// Any bytes.
    Bytes,
    /// Text in lines.
    Text,
    /// One JSON value.
    Json,
    /// One JSON value per line.
    JsonLines,
    /// A safetensors file: its header is changed as JSON.
    Safetensors,
    /// A PNG file: after most changes, its checksums are corrected.
    Png,
}

/// A valid input: one or more parts.
#[derive(Clone, Debug)]
pub struct Seed(pub Vec<(PartFormat, Vec<u8>)>);

impl Seed {
    /// An input of one part.
    pub fn new(kind: PartFormat, bytes: impl Into<Vec<u8>>) -> Self {
        Self(vec![(kind, bytes.into())])
    }

    /// Appends one more part to this seed.
    pub fn with_part(mut self, kind: PartFormat, bytes: impl Into<Vec<u8>>) -> Self {
        self.0.push((kind, bytes.into()));
        self
    }
}

/// Makes an input from one of the seeds. `words` are texts that the tested parser knows, such as field names.
pub fn make_input(seeds: &[Seed], words: &[&str], random: &mut Random) -> Vec<u8> {
    let mut parts = seeds[random.below(seeds.len())].0.clone();
    let changeable: Vec<usize> = (0..parts.len()).filter(|&i| parts[i].0 != PartFormat::Fixed).collect();
    // One input in 16 is an unchanged seed. Of the other inputs, half have one change, a quarter have two changes, and
    // so on.
    let changes = if random.one_in(16) { 0 } else { 1 + (random.next().trailing_ones() as usize).min(7) };
    for _ in 0..changes {
        let Some(&part) = changeable.get(random.below(changeable.len())) else { break };
        let other = &seeds[random.below(seeds.len())].0;
        let other = other.get(part).map_or(&[][..], |part| &part.1).to_vec();
        let (kind, bytes) = &mut parts[part];
        change(*kind, bytes, &other, words, random);
        bytes.truncate(MAX_BYTES);
    }
    join_parts(&parts)
}

/// Joins parts to an input.
pub fn join_parts(parts: &[(PartFormat, Vec<u8>)]) -> Vec<u8> {
    let parts: Vec<&[u8]> = parts.iter().map(|part| &part.1[..]).collect();
    parts.join(PART_SEPARATOR)
}

/// Splits an input into its parts.
pub fn split_into_parts(input: &[u8]) -> Vec<&[u8]> {
    let mut parts = Vec::new();
    let mut rest = input;
    while let Some(at) = rest.windows(PART_SEPARATOR.len()).position(|window| window == PART_SEPARATOR) {
        parts.push(&rest[..at]);
        rest = &rest[at + PART_SEPARATOR.len()..];
    }
    parts.push(rest);
    parts
}

/// Makes one random change to a part of an input. `other` is the part with the same index in another seed.
fn change(kind: PartFormat, bytes: &mut Vec<u8>, other: &[u8], words: &[&str], random: &mut Random) {
    match kind {
        PartFormat::Fixed => {}
        PartFormat::Bytes => bytes::mutate_bytes(bytes, other, random),
        PartFormat::Text if random.one_in(6) => bytes::mutate_bytes(bytes, other, random),
        PartFormat::Text => text::mutate_text(bytes, other, words, random),
        // A part that is no longer valid JSON after earlier changes can only be changed as text.
        PartFormat::Json if random.one_in(8) || !json::mutate_json(bytes, words, random) => {
            text::mutate_text(bytes, other, words, random);
        }
        PartFormat::Json => {}
        PartFormat::JsonLines => {
            let mut lines: Vec<Vec<u8>> = bytes.split(|&b| b == b'\n').map(<[u8]>::to_vec).collect();
            let at = random.below(lines.len());
            if random.one_in(8) || !json::mutate_json(&mut lines[at], words, random) {
                text::mutate_text(&mut lines[at], other, words, random);
            }
            *bytes = lines.join(&b'\n');
        }
        PartFormat::Safetensors if random.one_in(5) || !change_header(bytes, words, random) => {
            bytes::mutate_bytes(bytes, other, random);
        }
        PartFormat::Safetensors => {}
        PartFormat::Png => {
            bytes::mutate_bytes(bytes, other, random);
            if !random.one_in(6) {
                bytes::correct_png_checksums(bytes);
            }
        }
    }
}

/// Changes the header of a safetensors file and, in nine of ten cases, corrects the header's length field. Returns
/// false if the file has no header that is JSON.
fn change_header(bytes: &mut Vec<u8>, words: &[&str], random: &mut Random) -> bool {
    let Some(length) = bytes.first_chunk::<8>().map(|length| u64::from_le_bytes(*length) as usize) else {
        return false;
    };
    let Some(header) = bytes.get(8..).and_then(|rest| rest.get(..length)) else { return false };
    let mut header = header.to_vec();
    if !json::mutate_json(&mut header, words, random) {
        return false;
    }
    let data = bytes[8 + length..].to_vec();
    if !random.one_in(10) {
        // The data of a safetensors file must begin at a multiple of 8 bytes.
        header.resize(header.len().next_multiple_of(8), b' ');
        bytes[..8].copy_from_slice(&(header.len() as u64).to_le_bytes());
    }
    bytes.truncate(8);
    bytes.extend(header);
    bytes.extend(data);
    true
}
