//! Standard input and output of the command, both non-blocking. While one pipe is full, the other one is read, so a
//! command that answers before it has read its whole batch cannot cause a deadlock. Threads are not used: a batch is
//! answered within 100 to 200 microseconds, and waking a few threads would take as long.

use std::process::{ChildStdin, ChildStdout};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, ioctl_fionbio, read, write};

use super::super::wait::{NoMessageReason, STOP_CHECK_INTERVAL};

/// Maximum length of an output line in bytes.
const MAX_LINE_BYTES: usize = 1 << 20;

/// Maximum number of bytes of one read.
const READ_BYTES: usize = 1 << 16;

/// The pipes to the command's standard input and from its standard output.
#[derive(Debug)]
pub(super) struct CommandPipes {
    /// The pipe to the command's standard input; `None` once either side has closed it.
    input: Option<ChildStdin>,
    /// Bytes for the command; the bytes before index `sent` have been written to the pipe.
    batch: Vec<u8>,
    sent: usize,
    /// The pipe from the command's standard output; `None` once the command has closed it.
    output: Option<ChildStdout>,
    /// Bytes read from the command. Bytes before index `taken` were returned as lines; bytes from index `taken` to
    /// `searched` contain no line end.
    received: Vec<u8>,
    taken: usize,
    searched: usize,
}

impl CommandPipes {
    pub(super) fn new(input: Option<ChildStdin>, output: Option<ChildStdout>) -> std::io::Result<Self> {
        input.as_ref().map_or(Ok(()), |pipe| ioctl_fionbio(pipe, true))?;
        output.as_ref().map_or(Ok(()), |pipe| ioctl_fionbio(pipe, true))?;
        let (batch, received) = (Vec::new(), Vec::new());
        Ok(Self { input, batch, sent: 0, output, received, taken: 0, searched: 0 })
    }

    /// Sends lines to the command. If the pipe has no room for all lines, [`Self::next_line`] writes the rest later.
    /// If the command has closed its input, nothing is sent; its output then also ends, which [`Self::next_line`]
    /// reports.
    pub(super) fn send(&mut self, lines: &[u8]) {
        self.batch.drain(..self.sent);
        self.sent = 0;
        self.batch.extend_from_slice(lines);
        self.write_some();
    }

    /// Closes the command's input.
    pub(super) fn close_input(&mut self) {
        self.input = None;
    }

    /// Waits for the next complete line of output and returns it, or the reason why the line cannot be used. Returns
    /// a `NoMessageReason` if the output ends, `until` passes or `stop` is set first.
    pub(super) fn next_line(
        &mut self,
        until: Instant,
        stop: &AtomicBool,
    ) -> Result<Result<String, String>, NoMessageReason> {
        loop {
            if let Some(line) = self.take_line() {
                return Ok(line);
            }
            if self.output.is_none() {
                return Err(NoMessageReason::Disconnected);
            }
            let left = until.saturating_duration_since(Instant::now());
            let moved = self.wait_for_pipes(left.min(STOP_CHECK_INTERVAL));
            if !moved && left.is_zero() {
                return Err(NoMessageReason::Timeout);
            }
            if !moved && stop.load(Ordering::Relaxed) {
                return Err(NoMessageReason::Stopped);
            }
        }
    }

    /// Waits at most `most` until a pipe can be written or read, then writes and reads. Returns false if neither was
    /// possible in this time.
    fn wait_for_pipes(&mut self, most: Duration) -> bool {
        let Some(output) = &self.output else { return false };
        let mut pipes = vec![PollFd::new(output, PollFlags::IN)];
        let input = self.input.as_ref().filter(|_| self.sent < self.batch.len());
        pipes.extend(input.map(|input| PollFd::new(input, PollFlags::OUT)));
        let most = Timespec { tv_sec: most.as_secs() as _, tv_nsec: most.subsec_nanos().into() };
        if !poll(&mut pipes, Some(&most)).is_ok_and(|ready| ready > 0) {
            return false;
        }
        let [readable, writable] = [0, 1].map(|i| pipes.get(i).is_some_and(|pipe| !pipe.revents().is_empty()));
        if writable {
            self.write_some();
        }
        if readable {
            self.read_some();
        }
        true
    }

    fn write_some(&mut self) {
        while let Some(input) = self.input.as_ref().filter(|_| self.sent < self.batch.len()) {
            match write(input, &self.batch[self.sent..]) {
                Ok(count) => self.sent += count,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return,
                Err(_) => self.input = None,
            }
        }
    }

    fn read_some(&mut self) {
        let Some(output) = &self.output else { return };
        self.received.drain(..self.taken);
        self.searched -= self.taken;
        self.taken = 0;
        let end = self.received.len();
        self.received.resize(end + READ_BYTES, 0);
        let count = match read(output, &mut self.received[end..]) {
            Ok(count) if count > 0 => count,
            Err(Errno::INTR | Errno::AGAIN) => 0,
            _ => {
                self.output = None;
                0
            }
        };
        self.received.truncate(end + count);
    }

    /// Removes and returns the next complete line of the received bytes. Once the output has ended, a last line
    /// without a line end is also complete.
    fn take_line(&mut self) -> Option<Result<String, String>> {
        let found = self.received[self.searched..].iter().position(|&b| b == b'\n').map(|i| self.searched + i + 1);
        let rest = (self.output.is_none() && self.taken < self.received.len()).then_some(self.received.len());
        let too_long = self.received.len() - self.taken >= MAX_LINE_BYTES;
        let Some(end) = found.or(rest) else {
            self.searched = self.received.len();
            return too_long.then(|| Err(format!("is longer than {MAX_LINE_BYTES} bytes")));
        };
        let line = &self.received[self.taken..end];
        (self.taken, self.searched) = (end, end);
        Some(match line.len() > MAX_LINE_BYTES {
            true => Err(format!("is longer than {MAX_LINE_BYTES} bytes")),
            false => std::str::from_utf8(line).map(String::from).map_err(|_| "is not UTF-8".to_string()),
        })
    }
}
