//! Checks that a downloaded file has the size and the checksum that the hub states.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use sha1::Sha1;
use sha2::{Digest, Sha256};

use crate::hub::listing::{Checksum, RemoteFile};

/// Returns how a file differs from the size and checksum that the hub states; `None` if it agrees.
///
/// # Errors
/// The file cannot be read.
pub(crate) fn difference_from_remote(path: &Path, remote: &RemoteFile) -> io::Result<Option<String>> {
    let file = File::open(path)?;
    let length = file.metadata()?.len();
    if let Some(bytes) = remote.bytes.filter(|&bytes| bytes != length) {
        return Ok(Some(format!("has {length} bytes, but the hub's file has {bytes}")));
    }
    let (name, stated, computed) = match &remote.checksum {
        None => return Ok(None),
        Some(Checksum::Sha256(stated)) => ("SHA-256", stated, hash(Sha256::new(), file)?),
        Some(Checksum::GitBlob(stated)) => {
            ("SHA-1", stated, hash(Sha1::new_with_prefix(format!("blob {length}\0")), file)?)
        }
    };
    Ok((computed != *stated).then(|| format!("has a different {name} from that of the hub's file")))
}

fn hash(mut digest: impl Digest, mut file: File) -> io::Result<String> {
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect()),
            n => digest.update(&buffer[..n]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_are_those_of_git_and_sha256() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        std::fs::write(&path, "hello\n").unwrap();
        // The outputs of `git hash-object` and `sha256sum` for this file.
        let blob = Checksum::GitBlob("ce013625030ba8dba906f756967f9e9ca394464a".into());
        let sha = Checksum::Sha256("5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03".into());
        let remote = |bytes, checksum| RemoteFile { path: "x".into(), bytes, checksum };
        for checksum in [None, Some(blob), Some(sha)] {
            assert_eq!(difference_from_remote(&path, &remote(Some(6), checksum.clone())).unwrap(), None);
            assert!(difference_from_remote(&path, &remote(Some(7), checksum)).unwrap().unwrap().contains("6 bytes"));
        }
        for (checksum, name) in
            [(Checksum::GitBlob("0".repeat(40)), "SHA-1"), (Checksum::Sha256("0".repeat(64)), "SHA-256")]
        {
            assert!(difference_from_remote(&path, &remote(None, Some(checksum))).unwrap().unwrap().contains(name));
        }
    }
}
