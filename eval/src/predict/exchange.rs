//! A prediction run of several processes (ranks). Each rank generates the lines of its own rows. Rank 0 writes the
//! lines of all ranks soon after they are finished, so that few answers are lost if a process is killed.
//!
//! ```text
//! main thread of each rank:       generate the rank's own rows, put their lines into the outbox
//! second thread of each rank:     every 0.1 s, until no rank has a row left:
//!                                     send the lines of the outbox to all ranks
//!                                     rank 0: write the lines of all ranks to the file
//!                                     if a rank was interrupted, stop the main thread
//! ```
//!
//! Only the second threads call the other ranks during generation. So all ranks make these calls in the same order, and
//! no decode step waits for another rank.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, Builder};
use std::time::Duration;

use reel_train::setup::RunRanks;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::predict::run::PredictionRun;
use crate::predict::sink::{FileWithProgress, LineSink, PredictionSummary, is_interruption};

/// The time between two exchanges.
const INTERVAL: Duration = Duration::from_millis(100);

/// The message that a rank sends to all other ranks in an exchange.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Message {
    /// The lines that the rank has finished since its last message.
    lines: Vec<FinishedLine>,
    /// Number of tokens that the rank has generated so far.
    tokens: u64,
    /// Whether the rank was interrupted (Ctrl-C).
    is_interrupted: bool,
    /// Why the rank's main thread has ended, after which no line follows. `None` while the thread generates.
    end: Option<End>,
}

#[derive(Debug, Serialize, Deserialize)]
struct FinishedLine {
    row: usize,
    line: String,
    error: Option<String>,
}

/// Why the main thread of a rank has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum End {
    /// All rows of the rank have lines.
    Complete,
    /// An interruption stopped the thread.
    Stopped,
}

/// The finished lines and the state that the main thread of a rank passes to the thread that makes the exchanges.
#[derive(Debug, Default)]
struct Outbox {
    state: Mutex<OutboxState>,
    /// Notified when the main thread ends.
    ended: Condvar,
}

#[derive(Debug, Default)]
struct OutboxState {
    next: Message,
    /// Set if the main thread has ended with an error. This rank then makes no further exchange.
    is_abandoned: bool,
}

impl Outbox {
    fn lock(&self) -> MutexGuard<'_, OutboxState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn end(&self, end: End) {
        self.lock().next.end = Some(end);
        self.ended.notify_all();
    }

    fn take_lines(&self) -> Vec<FinishedLine> {
        std::mem::take(&mut self.lock().next.lines)
    }

    /// Waits for [`INTERVAL`], or until the main thread has ended. Returns the next message; `None` if the main thread
    /// has ended with an error.
    fn next_message(&self) -> Option<Message> {
        let is_running = |state: &mut OutboxState| state.next.end.is_none() && !state.is_abandoned;
        let waited = self.ended.wait_timeout_while(self.lock(), INTERVAL, is_running);
        let (mut state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        let lines = std::mem::take(&mut state.next.lines);
        let Message { tokens, end, .. } = state.next;
        (!state.is_abandoned).then_some(Message { lines, tokens, is_interrupted: false, end })
    }
}

impl LineSink for &Outbox {
    fn write_line(&mut self, row: usize, line: Vec<u8>, error: Option<String>) -> Result<()> {
        let line = String::from_utf8_lossy(&line).into_owned();
        self.lock().next.lines.push(FinishedLine { row, line, error });
        Ok(())
    }

    fn step_done(&mut self, tokens: u64) {
        self.lock().next.tokens = tokens;
    }
}

/// Ends the exchange thread if the main thread ends without a call of [`Outbox::end`], for example by a panic.
struct AbandonOnDrop<'o>(&'o Outbox);

impl Drop for AbandonOnDrop<'_> {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.is_abandoned = state.next.end.is_none();
        drop(state);
        self.0.ended.notify_all();
    }
}

/// How the exchanges of a run have ended.
enum Outcome {
    /// The lines of all rows are written. Holds the number of tokens of all ranks.
    Complete(u64),
    /// A rank was interrupted, so all ranks have stopped.
    Stopped,
    /// The main thread of this rank has ended with an error.
    Abandoned,
}

/// The second thread of a rank.
struct Exchange<'e> {
    run: RunRanks<'e>,
    outbox: &'e Outbox,
    /// Stops the main thread.
    stop: &'e AtomicBool,
}

impl Exchange<'_> {
    /// Exchanges lines until the main threads of all ranks have ended. `file` is the predictions file, on rank 0 only.
    /// After an error, stops the main thread of this rank.
    fn until_all_have_ended(&self, file: Option<&mut FileWithProgress>) -> Result<Outcome> {
        let done = self.exchange(file);
        if done.is_err() {
            self.stop.store(true, Ordering::Relaxed);
        }
        done
    }

    fn exchange(&self, mut file: Option<&mut FileWithProgress>) -> Result<Outcome> {
        loop {
            let Some(mut message) = self.outbox.next_message() else { return Ok(Outcome::Abandoned) };
            message.is_interrupted = self.run.interrupted.load(Ordering::Relaxed);
            let messages = self.all_messages(message)?;
            if messages.iter().any(|message| message.is_interrupted) {
                self.stop.store(true, Ordering::Relaxed);
            }
            let tokens = messages.iter().map(|message| message.tokens).sum();
            let ends: Vec<Option<End>> = messages.iter().map(|message| message.end).collect();
            if let Some(file) = &mut file {
                put_all(file, messages.into_iter().flat_map(|message| message.lines))?;
                file.step_done(tokens);
            }
            if ends.contains(&None) {
                continue;
            }
            return Ok(if ends.contains(&Some(End::Stopped)) { Outcome::Stopped } else { Outcome::Complete(tokens) });
        }
    }

    /// Sends this rank's message to all ranks. Returns the messages of all, by rank.
    fn all_messages(&self, mine: Message) -> Result<Vec<Message>> {
        // Serialization cannot fail: all fields are strings, numbers or flags.
        let bytes = serde_json::to_vec(&mine).unwrap_or_default();
        let all = self.run.ranks.all_gather("answers", &bytes)?;
        all.iter().enumerate().map(|(rank, bytes)| RunRanks::parse_message_of_rank(rank, bytes)).collect()
    }
}

fn put_all(file: &mut FileWithProgress, lines: impl IntoIterator<Item = FinishedLine>) -> Result<()> {
    lines.into_iter().try_for_each(|FinishedLine { row, line, error }| file.write_line(row, line.into_bytes(), error))
}

impl PredictionRun<'_> {
    /// Generates the rows `own` of this rank while the other ranks generate their rows. `file` is the predictions file,
    /// on rank 0 only. Returns the summary on rank 0.
    pub(super) fn run_with_ranks(
        &self,
        run: RunRanks<'_>,
        mut file: Option<FileWithProgress>,
        own: Vec<usize>,
    ) -> Result<Option<PredictionSummary>> {
        let outbox = Outbox::default();
        let exchange = Exchange { run, outbox: &outbox, stop: self.stop };
        let (generated, exchanged) = thread::scope(|scope| {
            let abandon = AbandonOnDrop(&outbox);
            let written = file.as_mut();
            let second = Builder::new()
                .name("answers".into())
                .spawn_scoped(scope, move || exchange.until_all_have_ended(written))
                .map_err(|e| Error::cannot_start_thread("answers", &e))?;
            let generated = self.generate_rows(own, run.ranks.world().local_size, &mut &outbox);
            match &generated {
                Ok(_) => outbox.end(End::Complete),
                Err(e) if is_interruption(e) => outbox.end(End::Stopped),
                Err(_) => {}
            }
            drop(abandon);
            let exchanged = second.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            Ok::<_, Error>((generated, exchanged))
        })?;
        // Writes the lines that were finished before another rank failed, so that they are not lost.
        let rest = file.as_mut().map_or(Ok(()), |file| put_all(file, outbox.take_lines()));
        match (generated, exchanged) {
            (Err(e), _) if !is_interruption(&e) => Err(e),
            (_, Err(e)) => Err(e),
            (_, Ok(Outcome::Complete(tokens))) => {
                rest?;
                file.map(|file| file.finish(tokens)).transpose()
            }
            (_, Ok(Outcome::Stopped | Outcome::Abandoned)) => Err(match file {
                Some(file) => file.file.stopped_error(),
                None => {
                    let (what, help) = ("was stopped before every row had a prediction", "continue with --resume");
                    Error::stopped(format!("rank {}", run.ranks.rank()), what, help)
                }
            }),
        }
    }
}
