//! Files that were cut short and do not show it while they are read: containers that say at their beginning how long they
//! are, and GIF, which says when it ends. (mp4 says it in its index, which `demux` counts.)

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

/// How much of the beginning is read.
const HEAD: u64 = 4096;

/// Sides of an AVI may be off by padding; some writers are careless about it.
const CARELESS: u64 = 64;

/// Whether the file at `path` ends before the end that its container names.
pub(super) fn cut_short(path: &Path) -> bool {
    // A file that cannot be read is another error's business.
    ends_early(path).unwrap_or(false)
}

fn ends_early(path: &Path) -> std::io::Result<bool> {
    let mut file = File::open(path)?;
    let data = file.metadata()?;
    if !data.is_file() {
        return Ok(false);
    }
    let mut head = Vec::new();
    file.by_ref().take(HEAD).read_to_end(&mut head)?;
    if !head.starts_with(b"GIF8") {
        return Ok(said_by(&head).is_some_and(|said| said > data.len()));
    }
    let mut tail = Vec::new();
    file.seek(SeekFrom::Start(data.len().saturating_sub(HEAD)))?;
    file.take(HEAD).read_to_end(&mut tail)?;
    // The trailer of a GIF; some writers pad it with zeros.
    Ok(tail.iter().rfind(|&&b| b != 0) != Some(&b';'))
}

/// The length that the beginning of a file names.
fn said_by(head: &[u8]) -> Option<u64> {
    match head.get(..4)? {
        [0x1A, 0x45, 0xDF, 0xA3] => matroska(head),
        b"RIFF" => riff(head),
        _ => None,
    }
}

/// RIFF: the size of all that follows its first 8 bytes, unless a writer left it open. A first part that others follow is
/// only ever shorter than the file.
fn riff(head: &[u8]) -> Option<u64> {
    let size = u32::from_le_bytes(head.get(4..8)?.try_into().ok()?);
    (size != 0 && size != u32::MAX).then(|| (u64::from(size) + 8).saturating_sub(CARELESS))
}

/// Matroska and WebM (RFC 8794, RFC 9559): the end of the Segment element.
fn matroska(head: &[u8]) -> Option<u64> {
    const SEGMENT: u64 = 0x1853_8067;
    let mut at = 0usize;
    loop {
        let (id, id_len) = number(head.get(at..)?, false)?;
        let (size, size_len) = number(head.get(at + id_len..)?, true)?;
        let unknown = size == (1 << (7 * size_len)) - 1;
        let begin = at + id_len + size_len;
        if id == SEGMENT {
            return if unknown { None } else { (begin as u64).checked_add(size) };
        }
        at = begin.checked_add(usize::try_from(size).ok()?)?;
    }
}

/// An EBML number of one to eight bytes and its length; the marker bit is kept in ids and dropped from sizes.
fn number(bytes: &[u8], drop_marker: bool) -> Option<(u64, usize)> {
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
    fn lengths_named_in_headers() {
        assert_eq!(said_by(b"RIFF\x00\x01\x00\x00AVI "), Some(256 + 8 - CARELESS));
        assert_eq!(said_by(b"RIFF\x00\x00\x00\x00AVI "), None);
        // EBML header of 2 bytes, a Void of 1, then a Segment of 0x1234 bytes.
        let mkv = [0x1A, 0x45, 0xDF, 0xA3, 0x82, 9, 9, 0xEC, 0x81, 0, 0x18, 0x53, 0x80, 0x67, 0x52, 0x34];
        assert_eq!(said_by(&mkv), Some(16 + 0x1234));
        let live = [0x1A, 0x45, 0xDF, 0xA3, 0x80, 0x18, 0x53, 0x80, 0x67, 0x01, 255, 255, 255, 255, 255, 255, 255];
        assert_eq!(said_by(&live), None);
        assert_eq!(said_by(b"GIF89a"), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(tail in proptest::collection::vec(any::<u8>(), 0..64)) {
            for head in [&b"RIFF"[..], &[0x1A, 0x45, 0xDF, 0xA3], &[]] {
                let _ = said_by(&[head, &tail].concat());
            }
        }
    }
}
