//! Logs the lines that reward programs (`--reward-command`, `--reward-funcs`) write to standard error: in
//! `OUT/reward.log`, and with `-v` also on the terminal.

use std::fs::{File, OpenOptions};
use std::io::{IsTerminal, Write};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use reel_samples::rewards::ProgramLog;
use reel_support::diagnostic::escape_controls;

use crate::file_names::REWARD_LOG_FILE;
use crate::setup::GrpoSetup;

/// Clears the line of a progress bar on a terminal, which is drawn again at the next step.
const CLEAR_LINE: &str = "\r\x1b[K";

/// Returns the reward log of a run. The first line creates the file. If a run fails in its first step, the file stays
/// in OUT, because it may contain the reason; a later run appends to it. All ranks append to the file of rank 0, and
/// each line names its rank. A line that cannot be written is dropped, because a full disk ends the run at its next
/// checkpoint anyway.
pub fn reward_log(setup: &GrpoSetup) -> ProgramLog {
    let (out, rank) = match setup.control.ranks {
        None => (&*setup.options.out, None),
        Some(run) => (run.out, Some(run.ranks.rank())),
    };
    program_log(out, rank, setup.reports.verbose && !setup.reports.quiet)
}

/// The log in the folder `out` of what programs of the user write to standard error.
pub fn program_log(out: &Path, rank: Option<usize>, verbose: bool) -> ProgramLog {
    let path = out.join(REWARD_LOG_FILE);
    let file: Mutex<Option<File>> = Mutex::new(None);
    ProgramLog::new(move |text| {
        let line = rank.map_or_else(|| text.to_string(), |rank| format!("[rank {rank}] {text}"));
        let mut file = file.lock().unwrap_or_else(PoisonError::into_inner);
        if file.is_none() {
            *file = OpenOptions::new().create(true).append(true).open(&path).ok();
        }
        // The whole line is written with one call, so that lines of several ranks do not mix.
        let _ = file.iter_mut().try_for_each(|file| file.write_all(format!("{line}\n").as_bytes()));
        if verbose {
            let clear = if std::io::stderr().is_terminal() { CLEAR_LINE } else { "" };
            reel_support::diagnostic::note!("{clear}reward: {}", escape_controls(text));
        }
    })
}
