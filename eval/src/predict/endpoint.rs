//! The loop of a prediction run with a server: sends a chat request for each row, keeps several requests in flight,
//! and writes a line for each answered row.

use std::collections::BTreeSet;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use reel_samples::error_if_stopped;
use reel_samples::feed::{Prefetcher, SampleSource, decoding_threads, is_row_error};
use reel_samples::order::RowOrder;
use reel_support::client::{ChatAnswer, ChatClient, ChatFailure, ChatRequest, FailureKind};
use reel_train::runs::reporting::progress::Progress;
use serde::Serialize;

use crate::error::{Error, Result};
use crate::predict::file::PredictionFile;
use crate::predict::line::{answer_line, error_line};
use crate::predict::requests::ChatRequests;

/// Maximum time that the loop waits for the media of a row before it checks for an answer, and the reverse.
const POLL_INTERVAL: Duration = Duration::from_millis(50);
/// Maximum number of consecutive rows without an answer. After this number, the run sends no more requests.
const MAX_UNANSWERED_IN_A_ROW: usize = 20;

/// A run in which a server answers the rows of a data file.
pub struct EndpointRun<'a> {
    /// The requests of the rows.
    pub requests: Arc<ChatRequests>,
    /// The client of the server.
    pub client: &'a ChatClient,
    /// Maximum number of requests in flight.
    pub concurrency: usize,
    /// Whether the first row that cannot be used ends the run with an error.
    pub strict: bool,
    /// Whether the run prints no progress.
    pub quiet: bool,
    /// Set to true to stop the run (Ctrl-C).
    pub stop: &'a AtomicBool,
}

/// The tokens, attempts, time and cost of a run's requests.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct EndpointSummary {
    /// Number of rows with a line in the predictions file, including rows of an earlier run that this run continued.
    pub rows: usize,
    /// Number of rows that this process sent to the server and that have an answer.
    pub answered: usize,
    /// Number of attempts of all requests, including attempts that got no answer.
    pub attempts: u64,
    /// Tokens of the prompts of answered requests, as the server counts them.
    pub prompt_tokens: u64,
    /// Tokens of the answers.
    pub completion_tokens: u64,
    /// Cost in dollars of all attempts.
    pub cost: f64,
    /// Seconds from the start of this process's loop to its last line.
    pub seconds: f64,
}

impl std::fmt::Debug for EndpointRun<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EndpointRun").field("concurrency", &self.concurrency).finish_non_exhaustive()
    }
}

type Answered = (usize, Result<ChatAnswer, ChatFailure>);

impl EndpointRun<'_> {
    /// Sends the server a request for each row that has no line in `file` yet, and writes the rows' lines. A row that
    /// the server refuses, or whose media cannot be loaded, gets a line with its error.
    ///
    /// # Errors
    /// [`Kind::Stopped`](crate::error::Kind::Stopped) if the run is interrupted. Rows are left without an
    /// answer, because the server fails or refuses everything, or the cap on cost is reached. A run that continues the
    /// file requests these rows again. With `strict`, a row cannot be used. The file cannot be written.
    pub fn run(&self, mut file: PredictionFile) -> Result<EndpointSummary> {
        let begun = Instant::now();
        file.create_or_continue()?;
        let (to_send, queued) = channel();
        let (answered, answers) = channel();
        let queued = Mutex::new(queued);
        let result = thread::scope(|scope| {
            let mut started = 0;
            for _ in 0..self.concurrency.max(1) {
                let (queued, answered) = (&queued, answered.clone());
                let work = move || self.answer_requests(queued, &answered);
                match thread::Builder::new().name("requests".into()).spawn_scoped(scope, work) {
                    Ok(_) => started += 1,
                    // Fewer requests are in flight.
                    Err(_) if started > 0 => break,
                    Err(e) => return Err(Error::cannot_start_thread("requests", &e)),
                }
            }
            drop(answered);
            let mut loop_ = AskingLoop::new(self, to_send, &answers, &file);
            let asked = loop_.ask_all(&mut file);
            // The pattern drops the loop's other fields. One of them is the sender of requests, so the threads end.
            let AskingLoop { summary, unanswered, first_failure, .. } = loop_;
            asked.map(|()| (summary, unanswered, first_failure))
        });
        let (mut summary, unanswered, first_failure) = result?;
        (summary.rows, summary.seconds) = (file.line_count(), begun.elapsed().as_secs_f64());
        match first_failure {
            None => {
                file.finish()?;
                Ok(summary)
            }
            Some(failure) if failure.kind == FailureKind::Stopped => Err(file.stopped_error()),
            Some(failure) => Err(file.unanswered_rows_error(unanswered, &failure.message)),
        }
    }

    /// The loop of one thread: sends queued requests to the server, one at a time, and passes on the answers.
    fn answer_requests(&self, queued: &Mutex<Receiver<(usize, ChatRequest)>>, answered: &Sender<Answered>) {
        loop {
            let next = queued.lock().unwrap_or_else(PoisonError::into_inner).recv();
            let Ok((row, request)) = next else { return };
            if answered.send((row, self.client.chat(&request, self.stop))).is_err() {
                return;
            }
        }
    }
}

/// The state of the loop that keeps requests in flight.
struct AskingLoop<'r, 'a> {
    run: &'r EndpointRun<'a>,
    ahead: Prefetcher<ChatRequests>,
    to_send: Sender<(usize, ChatRequest)>,
    answers: &'r Receiver<Answered>,
    /// The next row to ask.
    next: usize,
    in_flight: usize,
    /// Number of requested rows that got no answer.
    unanswered: usize,
    unanswered_in_a_row: usize,
    first_failure: Option<ChatFailure>,
    /// Set when no more requests may be sent. Requests in flight are still awaited.
    is_ending: bool,
    summary: EndpointSummary,
}

impl<'r, 'a> AskingLoop<'r, 'a> {
    fn new(
        run: &'r EndpointRun<'a>,
        to_send: Sender<(usize, ChatRequest)>,
        answers: &'r Receiver<Answered>,
        file: &PredictionFile,
    ) -> Self {
        let rows = run.requests.row_count();
        let (order, threads) = (RowOrder::file_order(rows), decoding_threads(1));
        let done: BTreeSet<usize> = (file.line_count()..rows).filter(|&row| file.has_line(row)).collect();
        let positions = file.line_count() as u64..rows as u64;
        let window = run.concurrency.clamp(1, 2 * threads + 2);
        Self {
            run,
            ahead: Prefetcher::new(run.requests.clone(), order, &done, positions, threads, window),
            to_send,
            answers,
            next: file.line_count(),
            in_flight: 0,
            unanswered: 0,
            unanswered_in_a_row: 0,
            first_failure: None,
            is_ending: false,
            summary: EndpointSummary::default(),
        }
    }

    fn ask_all(&mut self, file: &mut PredictionFile) -> Result<()> {
        let all = self.run.requests.row_count();
        let (begun, progress) =
            (Instant::now(), Progress::for_rows(self.run.quiet, all as u64, file.line_count() as u64));
        while self.in_flight > 0 || (self.next < all && !self.is_ending) {
            error_if_stopped(self.run.stop).map_err(|_| file.stopped_error())?;
            self.send_requests(file)?;
            match self.answers.recv_timeout(if self.in_flight > 0 { POLL_INTERVAL } else { Duration::ZERO }) {
                Ok((row, result)) => self.accept(row, result, file)?,
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {}
            }
            let rate = self.summary.completion_tokens as f64 / begun.elapsed().as_secs_f64().max(1e-9);
            progress.show_rows(file.line_count() as u64, rate, file.error_count_and_first_error().0);
        }
        progress.finish();
        Ok(())
    }

    /// Sends requests while fewer than the maximum are in flight. Waits for the media of a row only if nothing is in
    /// flight.
    fn send_requests(&mut self, file: &mut PredictionFile) -> Result<()> {
        while !self.is_ending
            && self.in_flight < self.run.concurrency.max(1)
            && self.next < self.run.requests.row_count()
        {
            let row = self.next;
            if !file.has_line(row) {
                let patience = if self.in_flight == 0 { POLL_INTERVAL } else { Duration::ZERO };
                match self.ahead.get_sample_within(row as u64, patience) {
                    None => return Ok(()),
                    Some(Ok(request)) => {
                        self.in_flight += usize::from(self.to_send.send((row, request)).is_ok());
                    }
                    Some(Err(e)) if is_row_error(&e) && !self.run.strict => self.fail_row(row, &e.to_string(), file)?,
                    Some(Err(e)) => return Err(e),
                }
            }
            self.next += 1;
        }
        Ok(())
    }

    fn accept(&mut self, row: usize, result: Result<ChatAnswer, ChatFailure>, file: &mut PredictionFile) -> Result<()> {
        self.in_flight -= 1;
        match result {
            Ok(answer) => {
                self.unanswered_in_a_row = 0;
                self.summary.answered += 1;
                self.summary.attempts += u64::from(answer.attempts);
                self.summary.prompt_tokens += answer.prompt_tokens;
                self.summary.completion_tokens += answer.completion_tokens;
                self.summary.cost += answer.cost;
                let rows = self.run.requests.rows();
                file.write_line(row, answer_line(rows.columns(row), &answer, rows.seed(row)), None).map(drop)
            }
            Err(failure) => {
                self.summary.attempts += u64::from(failure.attempts);
                self.summary.cost += failure.cost;
                if failure.kind == FailureKind::Refused {
                    self.unanswered_in_a_row = 0;
                    return self.fail_row(row, &failure.message, file);
                }
                self.unanswered += 1;
                self.unanswered_in_a_row += 1;
                let is_run_over =
                    matches!(failure.kind, FailureKind::Unusable | FailureKind::Budget | FailureKind::Stopped);
                self.is_ending |= is_run_over || self.unanswered_in_a_row >= MAX_UNANSWERED_IN_A_ROW;
                // A failure that ends the run replaces the failure of a single row, because it explains more.
                if is_run_over || self.first_failure.is_none() {
                    self.first_failure = Some(failure);
                }
                Ok(())
            }
        }
    }

    fn fail_row(&self, row: usize, error: &str, file: &mut PredictionFile) -> Result<()> {
        if self.run.strict {
            return Err(Error::row(self.run.requests.location(row).0, error, ""));
        }
        let line = error_line(self.run.requests.rows().columns(row), error);
        file.write_line(row, line, Some(error.to_string())).map(drop)
    }
}
