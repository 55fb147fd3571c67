//! Random changes of inputs that may be any bytes.

use crate::random::Random;

/// Makes one random change: flips bits, writes an extreme number, removes or repeats a piece, fills a piece with one
/// value, or replaces a piece by a piece of the other seed `other`.
pub fn mutate_bytes(bytes: &mut Vec<u8>, other: &[u8], random: &mut Random) {
    let len = bytes.len();
    if len == 0 {
        bytes.extend((0..random.length_up_to(64)).map(|_| random.next() as u8));
        return;
    }
    match random.below(10) {
        0..=2 => {
            for _ in 0..=random.length_up_to(8) {
                bytes[random.below(len)] ^= 1 << random.below(8);
            }
        }
        3 | 4 => write_number(bytes, random),
        5 => {
            let cut = random.range_within(len);
            bytes.drain(cut);
        }
        6 => bytes.truncate(random.below(len)),
        7 => {
            let piece = bytes[random.range_within(len)].to_vec();
            let times = 1 + random.length_up_to(if piece.len() < 64 { 2000 } else { 4 });
            let at = random.below(len);
            bytes.splice(at..at, piece.repeat(times));
        }
        8 => {
            let piece = other[random.range_within(other.len())].to_vec();
            let at = random.range_within(len);
            bytes.splice(at, piece);
        }
        _ => {
            let value = random.next() as u8;
            bytes[random.range_within(len)].iter_mut().for_each(|byte| *byte = value);
        }
    }
}

/// Overwrites up to 8 bytes with an integer, often one at the limits of its type, little-endian or big-endian.
fn write_number(bytes: &mut [u8], random: &mut Random) {
    let width = [1, 2, 4, 8][random.below(4)].min(bytes.len());
    let at = random.below(bytes.len() - width + 1);
    let bits = 8 * width as u32;
    let value = match random.below(8) {
        0 => 0,
        1 => u64::MAX,
        2 => 1 << (bits - 1),
        3 => (1 << (bits - 1)) - 1,
        4 => 1 << random.below(bits as usize),
        5 => random.next() % 300,
        6 => random.next(),
        _ => {
            let field = bytes[at..at + width].iter().rev().fold(0u64, |value, &byte| value << 8 | u64::from(byte));
            field.wrapping_add(random.next() % 17).wrapping_sub(8)
        }
    };
    let mut field = value.to_le_bytes()[..width].to_vec();
    if random.one_in(2) {
        field.reverse();
    }
    bytes[at..at + width].copy_from_slice(&field);
}

/// Writes the correct checksum into each chunk of a PNG file. Otherwise the decoder would refuse a changed chunk for
/// its checksum and never parse it.
pub fn correct_png_checksums(bytes: &mut [u8]) {
    let mut at = 8;
    while let Some(length) = bytes.get(at..at + 4) {
        let length = length.iter().fold(0, |length, &byte| length << 8 | usize::from(byte));
        let Some(chunk) = bytes.get(at + 4..at + 8 + length) else { return };
        let checksum = crc32fast::hash(chunk);
        let Some(field) = bytes.get_mut(at + 8 + length..at + 12 + length) else { return };
        field.copy_from_slice(&checksum.to_be_bytes());
        at += 12 + length;
    }
}
