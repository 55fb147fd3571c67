//! The process-wide switch of `--offline`: after it is set, no models and no media are downloaded.

use std::sync::atomic::{AtomicBool, Ordering};

static FORBIDDEN: AtomicBool = AtomicBool::new(false);

/// Forbids all downloads of this process, for models and for media. Downloads cannot be allowed again, so that the
/// result does not depend on the order of calls.
pub fn forbid_downloads() {
    FORBIDDEN.store(true, Ordering::Relaxed);
}

/// Whether downloads are forbidden.
pub fn are_downloads_forbidden() -> bool {
    FORBIDDEN.load(Ordering::Relaxed)
}
