//! Short fingerprints of files: XXH3 in 16 hex digits. They detect changes, but do not protect against manipulation.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use rayon::prelude::*;
use twox_hash::XxHash3_64;

/// Files are hashed in parallel, in pieces of this many bytes (8 MiB).
pub const HASH_PIECE_BYTES: usize = 8 << 20;

/// Returns the fingerprint of some bytes.
pub fn bytes_fingerprint(data: &[u8]) -> String {
    hash_to_hex(combine_hashes(&data.par_chunks(HASH_PIECE_BYTES).map(XxHash3_64::oneshot).collect::<Vec<_>>()))
}

/// Returns the fingerprint of an open file, which equals [`bytes_fingerprint`] of its contents.
///
/// # Errors
/// The file cannot be read.
pub fn file_fingerprint(file: &File) -> io::Result<String> {
    let length = file.metadata()?.len();
    let pieces = (0..length.div_ceil(HASH_PIECE_BYTES as u64)).into_par_iter().map(|i| {
        let start = i * HASH_PIECE_BYTES as u64;
        let mut piece = vec![0; (length - start).min(HASH_PIECE_BYTES as u64) as usize];
        file.read_exact_at(&mut piece, start)?;
        Ok(XxHash3_64::oneshot(&piece))
    });
    Ok(hash_to_hex(combine_hashes(&pieces.collect::<io::Result<Vec<_>>>()?)))
}

/// Combines the hashes of pieces into one hash.
pub fn combine_hashes(pieces: &[u64]) -> u64 {
    XxHash3_64::oneshot(bytemuck::cast_slice(pieces))
}

/// Formats a hash as hex digits, the written form of fingerprints.
pub fn hash_to_hex(hash: u64) -> String {
    format!("{hash:016x}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_hash_equals_hash_of_its_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.json");
        for size in [0, 1, HASH_PIECE_BYTES, HASH_PIECE_BYTES + 17] {
            let data: Vec<u8> = (0..size).map(|i| (i * 31 + i / 999) as u8).collect();
            std::fs::write(&path, &data).unwrap();
            assert_eq!(file_fingerprint(&File::open(&path).unwrap()).unwrap(), bytes_fingerprint(&data));
        }
    }
}
