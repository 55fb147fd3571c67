//! Detects truncated files that FFmpeg reads without an error: RIFF (AVI) and Matroska headers state the length of
//! the file, and a GIF ends with a trailer. (For mp4, `demux` compares the number of packets with the index.)

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

/// Number of bytes that are read at each end of a file.
const WINDOW_BYTES: u64 = 4096;

/// A RIFF header may state a size this many bytes beyond the end of the file, because some writers count padding
/// wrongly.
const RIFF_TOLERANCE_BYTES: u64 = 64;

/// Whether the file at `path` ends before the end that its container states.
pub(super) fn is_truncated(path: &Path) -> bool {
    // A file that cannot be read counts as complete here; opening it reports the error.
    ends_early(path).unwrap_or(false)
}

fn ends_early(path: &Path) -> std::io::Result<bool> {
    let mut file = File::open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Ok(false);
    }
    let mut head = Vec::new();
    file.by_ref().take(WINDOW_BYTES).read_to_end(&mut head)?;
    if !head.starts_with(b"GIF8") {
        return Ok(stated_length(&head).is_some_and(|length| length > metadata.len()));
    }
    let mut tail = Vec::new();
    file.seek(SeekFrom::Start(metadata.len().saturating_sub(WINDOW_BYTES)))?;
    file.take(WINDOW_BYTES).read_to_end(&mut tail)?;
    // A GIF ends with the trailer byte `;`; some writers append zeros to it.
    Ok(tail.iter().rfind(|&&b| b != 0) != Some(&b';'))
}

/// Returns the length of the whole file in bytes that its header states; `None` if the header states none.
fn stated_length(head: &[u8]) -> Option<u64> {
    match head.get(..4)? {
        [0x1A, 0x45, 0xDF, 0xA3] => matroska(head),
        b"RIFF" => riff(head),
        _ => None,
    }
}

/// The file length that a RIFF header states: bytes 4 to 8 hold the size of everything after the first 8 bytes, where
/// 0 and u32::MAX mean unknown. In a file of several RIFF chunks, the header states only the end of the first chunk.
fn riff(head: &[u8]) -> Option<u64> {
    let size = u32::from_le_bytes(head.get(4..8)?.try_into().ok()?);
    (size != 0 && size != u32::MAX).then(|| (u64::from(size) + 8).saturating_sub(RIFF_TOLERANCE_BYTES))
}

/// The file length of Matroska and WebM (RFC 8794, RFC 9559): the end of the Segment element. `None` if the size of
/// that element is unknown.
fn matroska(head: &[u8]) -> Option<u64> {
    const SEGMENT: u64 = 0x1853_8067;
    let mut position = 0usize;
    loop {
        let (id, id_len) = ebml_number(head.get(position..)?, false)?;
        let (size, size_len) = ebml_number(head.get(position + id_len..)?, true)?;
        let unknown = size == (1 << (7 * size_len)) - 1;
        let content = position + id_len + size_len;
        if id == SEGMENT {
            return if unknown { None } else { (content as u64).checked_add(size) };
        }
        position = content.checked_add(usize::try_from(size).ok()?)?;
    }
}

/// Parses an EBML number; returns its value and its length of 1 to 8 bytes. The first set bit marks the length.
/// `drop_marker` clears this bit, as is required for element sizes but not for element ids.
fn ebml_number(bytes: &[u8], drop_marker: bool) -> Option<(u64, usize)> {
    let first = *bytes.first()?;
    let len = first.leading_zeros() as usize + 1;
    let body = bytes.get(..len).filter(|_| len <= 8)?;
    let value = body.iter().fold(0u64, |n, &b| n << 8 | u64::from(b));
    Some((if drop_marker { value & !(1 << (7 * len)) } else { value }, len))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn reads_length_stated_in_headers() {
        assert_eq!(stated_length(b"RIFF\x00\x01\x00\x00AVI "), Some(256 + 8 - RIFF_TOLERANCE_BYTES));
        assert_eq!(stated_length(b"RIFF\x00\x00\x00\x00AVI "), None);
        // An EBML header of 2 bytes, a Void element of 1 byte, then a Segment of 0x1234 bytes.
        let mkv = [0x1A, 0x45, 0xDF, 0xA3, 0x82, 9, 9, 0xEC, 0x81, 0, 0x18, 0x53, 0x80, 0x67, 0x52, 0x34];
        assert_eq!(stated_length(&mkv), Some(16 + 0x1234));
        let live = [0x1A, 0x45, 0xDF, 0xA3, 0x80, 0x18, 0x53, 0x80, 0x67, 0x01, 255, 255, 255, 255, 255, 255, 255];
        assert_eq!(stated_length(&live), None);
        assert_eq!(stated_length(b"GIF89a"), None);
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_do_not_panic(tail in proptest::collection::vec(any::<u8>(), 0..64)) {
            for head in [&b"RIFF"[..], &[0x1A, 0x45, 0xDF, 0xA3], &[]] {
                let _ = stated_length(&[head, &tail].concat());
            }
        }
    }
}
