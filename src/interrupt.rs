//! Signals. Ctrl-C: the first one asks the work to stop at the next safe point, a second one ends the process at once. A file
//! that outgrows the limit on file sizes is an error of writing.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Result;

use crate::output;

/// A flag that turns true at the first Ctrl-C (or termination request). Call at most once a process.
pub fn flag() -> Result<Arc<AtomicBool>> {
    let flag = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&flag);
    ctrlc::set_handler(move || {
        if seen.swap(true, Ordering::SeqCst) {
            std::process::exit(130);
        }
        if output::watched() {
            eprintln!("\nstopping at the next safe point; Ctrl-C again ends at once");
        }
    })?;
    Ok(flag)
}

/// Makes a write beyond the limit on file sizes (`ulimit -f`) fail, as on a full disk, instead of ending the process half-way.
pub fn survive_file_size_limit() {
    // Where it cannot be had, the limit ends the process as it always did.
    let _ = signal_hook::flag::register(signal_hook::consts::SIGXFSZ, Arc::new(AtomicBool::new(false)));
}
