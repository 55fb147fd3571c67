//! Handles signals. Ctrl-C ends the process and removes incomplete files. Training and generation have safe points:
//! they continue to the next safe point and stop there; a second Ctrl-C, or a SIGTERM at least 10 s after the first
//! signal, ends the process at once. The exit code is 128 plus the signal's number, as in a shell: 130 for SIGINT, 143
//! for SIGTERM. Exceeding the file size limit (`ulimit -f`) is a write error.
//!
//! An earlier second SIGTERM has no effect. At a job's time limit and at a preemption, Slurm sends SIGTERM, SIGCONT and
//! SIGTERM to each process within 15 ms, and a launcher may pass its own SIGTERM on; the checkpoint that the first one
//! asks for must be written.
//!
//! SIGUSR1, with which Slurm announces the end of a job's time (`--signal=USR1@120`), ends no command: a training run
//! writes a checkpoint after its current step and goes on.

use std::io::Write;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use reel_support::diagnostic::remove_unfinished_files;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1, SIGXFSZ};
use signal_hook::iterator::Signals;

/// The flag by which a signal asks training or generation to stop at the next safe point. Empty until the first call
/// of [`stop_flag`].
static STOP: OnceLock<Arc<AtomicBool>> = OnceLock::new();
/// The number of the first signal that asked this process to end; 0 if there was none.
static SIGNAL: AtomicU8 = AtomicU8::new(0);
/// True once a signal has begun to end the process.
static ENDING: AtomicBool = AtomicBool::new(false);

/// The time from the first signal to a SIGTERM or SIGHUP that ends the process at once.
const REPETITION_TIME: Duration = Duration::from_secs(10);

/// The signals that have asked this process to end.
#[derive(Default)]
struct ReceivedSignals {
    first: Option<Instant>,
    interrupts: u32,
}

impl ReceivedSignals {
    /// Records a signal. Returns true if it ends the process at once, even before the next safe point.
    fn ends_at_once(&mut self, signal: i32, now: Instant) -> bool {
        let first = *self.first.get_or_insert(now);
        self.interrupts += u32::from(signal == SIGINT);
        match signal {
            SIGINT => self.interrupts > 1,
            _ => now.duration_since(first) >= REPETITION_TIME,
        }
    }
}

/// Starts a thread that handles SIGINT (Ctrl-C), SIGTERM and SIGHUP. Signals that were ignored when the process
/// started stay ignored, as is usual on Unix: `nohup` ignores SIGHUP, and a shell ignores SIGINT in the background
/// jobs of a script, so that Ctrl-C ends only the foreground job. If no handler can be installed, the signals end the
/// process at once.
pub fn watch_signals() {
    let ignored = ignored_signals();
    let wanted = [SIGINT, SIGTERM, SIGHUP].into_iter().filter(|signal| ignored >> (signal - 1) & 1 == 0);
    if let Ok(mut signals) = Signals::new(wanted) {
        let mut received = ReceivedSignals::default();
        let handle = move || signals.forever().for_each(|signal| on_signal(signal, &mut received));
        let _ = std::thread::Builder::new().name("signals".into()).spawn(handle);
    }
}

fn on_signal(signal: i32, received: &mut ReceivedSignals) {
    let ends_at_once = received.ends_at_once(signal, Instant::now());
    let number = u8::try_from(signal).unwrap_or(0);
    let _ = SIGNAL.compare_exchange(0, number, Ordering::SeqCst, Ordering::SeqCst);
    let begun = STOP.get();
    if begun.is_some_and(|stop| !stop.swap(true, Ordering::SeqCst) || !ends_at_once) {
        return;
    }
    ENDING.store(true, Ordering::SeqCst);
    remove_unfinished_files();
    if begun.is_none() {
        // `eprintln!` would panic if stderr is closed, which would end this thread before the process.
        let _ =
            writeln!(std::io::stderr(), "error: interrupted: the command was stopped before it finished; run it again");
    }
    // Exits without running exit handlers, because those of C libraries would free memory that other threads still
    // use.
    signal_hook::low_level::exit(signal_exit_code().map_or(1, i32::from));
}

/// Returns the exit code of a command that a signal stopped; `None` if there was no signal.
pub fn signal_exit_code() -> Option<u8> {
    match SIGNAL.load(Ordering::SeqCst) {
        0 => None,
        signal => Some(128 | signal),
    }
}

/// Makes this process end with the exit code of another process of its job, which a signal has stopped. A signal that
/// this process has received itself takes precedence.
pub fn set_exit_code_of_other_process(code: u8) {
    let _ = SIGNAL.compare_exchange(0, code & 127, Ordering::SeqCst, Ordering::SeqCst);
}

/// Bit mask of the signals that were ignored when this process started, bit 0 for signal 1; 0 if /proc cannot be
/// read.
fn ignored_signals() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0)
}

/// Returns the flag that the first signal sets. From this call on, the first signal only sets the flag; a later one may
/// end the process (see the top of this file).
pub fn stop_flag() -> Arc<AtomicBool> {
    Arc::clone(STOP.get_or_init(Arc::default))
}

/// Returns the flag that SIGUSR1 sets. From the first call on, the signal no longer ends this process.
pub fn save_flag() -> Arc<AtomicBool> {
    static SAVE: OnceLock<Arc<AtomicBool>> = OnceLock::new();
    let register = || {
        let flag = Arc::new(AtomicBool::new(false));
        let _ = signal_hook::flag::register(SIGUSR1, flag.clone());
        flag
    };
    Arc::clone(SAVE.get_or_init(register))
}

/// Blocks forever if a signal is ending the process, so that errors that the ending causes are not printed.
pub fn block_if_process_is_ending() {
    while ENDING.load(Ordering::SeqCst) {
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
}

/// Makes a write beyond the file size limit (`ulimit -f`) return an error, as a full disk does, instead of ending the
/// process.
pub fn make_file_size_limit_an_error() {
    // Without a handler, the signal SIGXFSZ would end the process at such a write.
    let _ = signal_hook::flag::register(SIGXFSZ, Arc::new(AtomicBool::new(false)));
}

#[cfg(test)]
mod tests {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

    use super::*;

    /// Slurm's second SIGTERM comes within 15 ms; a person's second Ctrl-C at any time.
    #[test]
    fn only_a_second_sigint_or_a_late_sigterm_ends_the_process_at_once() {
        let start = Instant::now();
        let of = |signals: &[(i32, u64)]| {
            let mut received = ReceivedSignals::default();
            let at = |(signal, ms): &(i32, u64)| received.ends_at_once(*signal, start + Duration::from_millis(*ms));
            signals.iter().map(at).collect::<Vec<_>>()
        };
        assert_eq!(
            of(&[(SIGTERM, 0), (SIGTERM, 15), (SIGTERM, 9_999), (SIGTERM, 10_000)]),
            [false, false, false, true]
        );
        assert_eq!(of(&[(SIGINT, 0), (SIGTERM, 5), (SIGHUP, 6), (SIGINT, 7)]), [false, false, false, true]);
        assert_eq!(of(&[(SIGTERM, 0), (SIGINT, 9), (SIGHUP, 12_000)]), [false, false, true]);
    }
}
