//! The number of files that this process may open. Each connection counts as a file.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// File descriptors that are reserved for other uses than connections: the model, media, sockets to workers.
const RESERVED: u64 = 256;

/// Raises the limit of open files as far as this user may. Returns how many of the `wanted` connections the limit
/// allows.
pub(crate) fn usable_connections(wanted: usize) -> usize {
    let limit = getrlimit(Resource::Nofile);
    // If the system refuses to raise the limit, the old limit is read again below.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
    match getrlimit(Resource::Nofile).current {
        Some(files) => wanted.min(usize::try_from(files.saturating_sub(RESERVED).max(1)).unwrap_or(usize::MAX)),
        None => wanted,
    }
}
