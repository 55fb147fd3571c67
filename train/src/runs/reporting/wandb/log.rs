//! Writes and reads the framing of records in a `.wandb` file. The framing is LevelDB's log format (`doc/log_format.md`
//! of google/leveldb) with a header of 7 bytes, and with a plain CRC-32 instead of a masked CRC-32C
//! (`wandb/sdk/internal/datastore.py` of wandb 0.19, `core/pkg/leveldb/record.go` later):
//!
//! - the header is `:W&B`, 0xBEE1 and the version 0, and counts as the first bytes of the first block;
//! - a block has 32768 bytes. A chunk lies in one block: the CRC of its type and payload (u32), the length of its
//!   payload (u16), its type (u8: 1 a whole record, 2 the first part of a record, 3 a middle part, 4 the last part) and
//!   the payload;
//! - if less than 7 bytes of a block are left, they are zeros, and the next chunk begins the next block.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use reel_support::diagnostic::input;

use crate::error::{Error, Result};

const HEADER: [u8; 7] = *b":W&B\xe1\xbe\x00";
const BLOCK: usize = 32768;
/// Number of bytes of a chunk's header.
const CHUNK: usize = 7;
const WHOLE: u8 = 1;
const FIRST: u8 = 2;
const MIDDLE: u8 = 3;
const LAST: u8 = 4;

/// An open `.wandb` log file.
#[derive(Debug)]
pub struct WandbLogFile {
    path: PathBuf,
    file: File,
    /// Length in bytes that the file will have after `pending` is written.
    at: usize,
    pending: Vec<u8>,
}

impl WandbLogFile {
    /// Creates the file. It is an error if the file exists.
    pub fn create(path: &Path) -> Result<Self> {
        let file = File::create_new(path).map_err(|e| Error::cannot_write(path, e))?;
        Ok(Self { path: path.to_path_buf(), file, at: HEADER.len(), pending: HEADER.to_vec() })
    }

    /// Adds a record to `pending`; the next [`Self::flush`] writes it to the file.
    pub fn append(&mut self, record: &[u8]) {
        let before = self.pending.len();
        frame(self.at, record, &mut self.pending);
        self.at += self.pending.len() - before;
    }

    /// Writes all pending records with one call.
    pub fn flush(&mut self) -> Result<()> {
        self.file.write_all(&self.pending).map_err(|e| Error::cannot_write(&self.path, e))?;
        self.pending.clear();
        Ok(())
    }

    /// Changes the path that error messages name, after the file was moved.
    pub fn set_path(&mut self, path: PathBuf) {
        self.path = path;
    }
}

/// Splits `record` into chunks and appends the chunks to `out`. `at` is the position of the first chunk in the file,
/// which determines where blocks end.
fn frame(mut at: usize, record: &[u8], out: &mut Vec<u8>) {
    let mut rest = record;
    let mut first = true;
    loop {
        let left = BLOCK - at % BLOCK;
        if left < CHUNK {
            out.resize(out.len() + left, 0);
            at += left;
            continue;
        }
        let (part, after) = rest.split_at(rest.len().min(left - CHUNK));
        let kind = match (first, after.is_empty()) {
            (true, true) => WHOLE,
            (true, false) => FIRST,
            (false, false) => MIDDLE,
            (false, true) => LAST,
        };
        out.extend(checksum(kind, part).to_le_bytes());
        out.extend((part.len() as u16).to_le_bytes());
        out.push(kind);
        out.extend(part);
        if after.is_empty() {
            return;
        }
        (at, rest, first) = (at + CHUNK + part.len(), after, false);
    }
}

fn checksum(kind: u8, payload: &[u8]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(&[kind]);
    crc.update(payload);
    crc.finalize()
}

/// Reads the records of a file up to the first damaged or incomplete record, which a killed run may leave.
pub fn read_records(path: &Path) -> Result<Vec<Vec<u8>>> {
    let bytes = input::read_file(path, input::MAX_ROWS_BYTES).map_err(|e| Error::cannot_read(path, e))?;
    if !bytes.starts_with(&HEADER[..bytes.len().min(HEADER.len())]) {
        return Err(Error::failed(
            path.display().to_string(),
            "is not a W&B log of a known version",
            "move the folder of this log away; the next part of the run will then lack the steps of this log",
        ));
    }
    Ok(records(&bytes))
}

fn records(file: &[u8]) -> Vec<Vec<u8>> {
    let (mut records, mut parts, mut at) = (Vec::new(), None::<Vec<u8>>, HEADER.len());
    loop {
        if BLOCK - at % BLOCK < CHUNK {
            at = at.next_multiple_of(BLOCK);
        }
        let Some((kind, payload)) = chunk(file, at) else { return records };
        at += CHUNK + payload.len();
        parts = match (kind, parts) {
            (WHOLE | FIRST, None) => Some(payload.to_vec()),
            (MIDDLE | LAST, Some(before)) => Some([&before, payload].concat()),
            _ => return records,
        };
        if kind == WHOLE || kind == LAST {
            records.extend(parts.take());
        }
    }
}

fn chunk(file: &[u8], at: usize) -> Option<(u8, &[u8])> {
    let head = file.get(at..at + CHUNK)?;
    let length = usize::from(u16::from_le_bytes([head[4], head[5]]));
    let payload = file.get(at + CHUNK..at + CHUNK + length)?;
    (checksum(head[6], payload).to_le_bytes() == head[..4]).then_some((head[6], payload))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Computes CRC-32 by its definition, bit by bit.
    fn crc(bytes: &[u8]) -> u32 {
        let bit = |c: u32| if c & 1 == 1 { c >> 1 ^ 0xedb8_8320 } else { c >> 1 };
        !bytes.iter().fold(!0u32, |crc, &b| (0..8).fold(crc ^ u32::from(b), |c, _| bit(c)))
    }

    /// Reads a log independently of [`read_records`]: block by block, with an assertion for each rule of the format.
    fn strictly(file: &[u8]) -> Vec<Vec<u8>> {
        assert_eq!(&file[..4], b":W&B");
        assert_eq!(file[4..7], [0xe1, 0xbe, 0]);
        let (mut found, mut open) = (Vec::new(), false);
        for (i, block) in file.chunks(32768).enumerate() {
            let mut rest = if i == 0 { &block[7..] } else { block };
            while rest.len() >= 7 {
                let length = u16::from_le_bytes([rest[4], rest[5]]) as usize;
                assert!(7 + length <= rest.len(), "a chunk crosses the end of its block");
                assert_eq!(rest[..4], crc(&rest[6..7 + length]).to_le_bytes());
                let kind = rest[6];
                assert!(
                    (1..=4).contains(&kind) && open == (kind > 2),
                    "a chunk of type {kind} is not allowed here (inside a record: {open})"
                );
                if !open {
                    found.push(Vec::new());
                }
                found.last_mut().unwrap().extend(&rest[7..7 + length]);
                open = kind == 2 || kind == 3;
                rest = &rest[7 + length..];
            }
            assert!(rest.iter().all(|&b| b == 0), "the rest of a block is not zeros");
        }
        assert!(!open);
        found
    }

    fn file_of(records: &[Vec<u8>]) -> Vec<u8> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.wandb");
        let mut log = WandbLogFile::create(&path).unwrap();
        for record in records {
            log.append(record);
            log.flush().unwrap();
        }
        log.flush().unwrap();
        let bytes = std::fs::read(&path).unwrap();
        assert_eq!(bytes.len(), log.at);
        assert_eq!(read_records(&path).unwrap(), records);
        bytes
    }

    fn some(n: usize) -> Vec<u8> {
        (0..n).map(|i| (i * 31 % 251) as u8).collect()
    }

    #[test]
    fn records_at_block_boundaries_are_read_back() {
        // After the first record, 0 to 16 bytes of the block are left. The second record is empty, short, or spans
        // several blocks.
        for left in 0..=16 {
            for next in [0, 1, 10, 32761, 32762, 3 * 32768] {
                let records = [some(32768 - 7 - 7 - left), some(next), some(3)];
                assert_eq!(strictly(&file_of(&records)), records, "{left} left, {next} next");
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn any_records_are_read_back(lengths in prop::collection::vec(prop_oneof![0usize..300, 32700usize..32800, 0usize..140_000], 0..12)) {
            let records: Vec<Vec<u8>> = lengths.into_iter().map(some).collect();
            prop_assert_eq!(strictly(&file_of(&records)), records);
        }

        /// If a file is truncated or damaged at any byte, the records before that byte can still be read.
        #[test]
        fn a_prefix_is_readable(lengths in prop::collection::vec(0usize..40_000, 1..6), share in 0.0..1.0f64, damage in 1u8..=255) {
            let records: Vec<Vec<u8>> = lengths.into_iter().map(some).collect();
            let mut file = file_of(&records);
            let at = 7 + ((file.len() - 7) as f64 * share) as usize;
            let cut = super::records(&file[..at]);
            prop_assert!(cut.len() < records.len() && records.starts_with(&cut));
            let whole: usize = records.len();
            let mut ends = Vec::new();
            for n in 1..=whole {
                ends.push(file_of(&records[..n]).len());
            }
            prop_assert_eq!(cut.len(), ends.iter().filter(|&&end| end <= at).count());
            file[at] ^= damage;
            prop_assert!(records.starts_with(&super::records(&file)));
        }
    }

    #[test]
    fn refuses_files_of_other_formats() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.wandb");
        for (bytes, fine) in [(&b""[..], true), (b":W&", true), (b"PK34", false), (b":W&B\xe1\xbe\x01", false)] {
            std::fs::write(&path, bytes).unwrap();
            match read_records(&path) {
                Ok(records) => assert!(fine && records.is_empty()),
                Err(e) => assert!(!fine && e.to_string().contains("x.wandb: is not a W&B log"), "{e}"),
            }
        }
        assert!(WandbLogFile::create(&path).unwrap_err().to_string().contains("x.wandb: cannot be written"));
    }
}
