//! The number of files that this process may open, of which each connection is one.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Descriptors that are kept for everything but connections: the model, media, sockets to workers.
const RESERVED: u64 = 256;

/// Raises the limit of open files as far as this user may, and returns how many of `wanted` connections it allows.
pub(crate) fn usable_connections(wanted: usize) -> usize {
    let limit = getrlimit(Resource::Nofile);
    // If the system refuses, the present limit stays, which is read again below.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
    match getrlimit(Resource::Nofile).current {
        Some(files) => wanted.min(usize::try_from(files.saturating_sub(RESERVED).max(1)).unwrap_or(usize::MAX)),
        None => wanted,
    }
}
