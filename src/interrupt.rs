//! Signals. Ctrl-C ends the process without leaving half a file; work that has safe points to stop at goes on to the next one,
//! and a second Ctrl-C ends it at once. A file that outgrows the limit on file sizes is an error of writing.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use reel_model::save::remove_unfinished;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGXFSZ};
use signal_hook::iterator::Signals;

/// Of work that has points to stop at.
static STOP: OnceLock<Arc<AtomicBool>> = OnceLock::new();
/// Whether the process is about to end.
static ENDING: AtomicBool = AtomicBool::new(false);

/// Watches for Ctrl-C, and for requests to terminate, from here on. What the caller had ignored (as `nohup` does) stays so.
/// Where they cannot be watched they end the process as they always did.
pub fn watch() {
    let ignored = ignored();
    let wanted = [SIGINT, SIGTERM, SIGHUP].into_iter().filter(|signal| ignored >> (signal - 1) & 1 == 0);
    if let Ok(mut signals) = Signals::new(wanted) {
        let _ =
            std::thread::Builder::new().name("signals".into()).spawn(move || signals.forever().for_each(|_| asked()));
    }
}

fn asked() {
    let begun = STOP.get();
    if begun.is_some_and(|stop| !stop.swap(true, Ordering::SeqCst)) {
        return;
    }
    ENDING.store(true, Ordering::SeqCst);
    remove_unfinished();
    if begun.is_none() {
        eprintln!("error: interrupted: the work was stopped before it was done; run it again to finish it");
    }
    // At once: C libraries' own clean-up would run under the feet of threads that still use them.
    signal_hook::low_level::exit(if begun.is_none() { 1 } else { 130 });
}

/// Signals that this process was started to ignore, the lowest bit for number 1; none where the system does not say.
fn ignored() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0)
}

/// A flag that turns true at the first Ctrl-C, which from here on does not end the process.
pub fn flag() -> Arc<AtomicBool> {
    Arc::clone(STOP.get_or_init(Arc::default))
}

/// Waits for the end where Ctrl-C is ending the process: what fails because of that is not worth a second message.
pub fn give_way() {
    while ENDING.load(Ordering::SeqCst) {
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
}

/// Makes a write beyond the limit on file sizes (`ulimit -f`) fail, as on a full disk, instead of ending the process half-way.
pub fn survive_file_size_limit() {
    // Where it cannot be had, the limit ends the process as it always did.
    let _ = signal_hook::flag::register(SIGXFSZ, Arc::new(AtomicBool::new(false)));
}
