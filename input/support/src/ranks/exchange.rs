//! The exchange of data in one call. One thread sends and receives all data on nonblocking sockets, and waits for
//! whichever socket is ready. So no rank must receive before another one can send, however many bytes all ranks send
//! at once.
//!
//! Each message must belong to the current call of this rank. The bytes of a faster rank's next call stay in the
//! socket's buffer until this rank makes that call.

use std::net::TcpStream;
use std::time::Duration;

use crate::diagnostic::Diagnostic;
use rustix::event::{PollFd, PollFlags};

use crate::ranks::call::{Call, SAME_CALLS_HELP, mismatched_calls};
use crate::ranks::control::wait_for;
use crate::ranks::error::RankError;
use crate::ranks::message::{Header, IncomingMessage, OutgoingMessage, SocketError, receive_into};
use crate::ranks::shared::RankState;

/// The longest wait for a socket. A failure of the job ends the wait at once.
const MAX_WAIT: Duration = Duration::from_secs(60);

/// The reason why an exchange did not complete.
#[derive(Debug)]
pub(crate) enum ExchangeError {
    /// The connection to this rank has closed, or cannot be made.
    Unreachable(usize),
    /// A received message is not the expected one.
    Invalid(RankError),
    /// The job has failed.
    JobFailed,
}

/// The connection to another rank.
#[derive(Debug, Default)]
pub(crate) struct DataConnection {
    /// `None` until a call needs the connection.
    pub stream: Option<TcpStream>,
    /// The message of the current call, as far as it has arrived.
    message: IncomingMessage,
}

/// The data that one call exchanges with one rank.
#[derive(Debug)]
pub(crate) struct Transfer<'a> {
    pub peer: usize,
    /// `None` when all data are sent.
    send: Option<OutgoingMessage<'a>>,
    /// `None` when all data are received.
    receive: Option<Target<'a>>,
    received: Vec<u8>,
    /// Whether the header of the received message has been compared with this rank's call.
    is_checked: bool,
}

/// The destination of received data.
#[derive(Debug)]
enum Target<'a> {
    /// A new buffer.
    New,
    /// A given buffer, and the number of bytes filled so far. The message must have the length of the buffer.
    Given(&'a mut [u8], usize),
}

impl<'a> Transfer<'a> {
    /// Creates a transfer that sends and receives nothing.
    pub fn new(peer: usize) -> Self {
        Self { peer, send: None, receive: None, received: Vec::new(), is_checked: false }
    }

    /// Adds data to send.
    pub fn with_send(mut self, call: &Call, data: &'a [u8]) -> Self {
        self.send = Some(OutgoingMessage::new(call, data));
        self
    }

    /// Adds receiving into a new buffer.
    pub fn with_receive(mut self) -> Self {
        self.receive = Some(Target::New);
        self
    }

    /// Adds receiving into this buffer.
    pub fn with_receive_into(mut self, buffer: &'a mut [u8]) -> Self {
        self.receive = Some(Target::Given(buffer, 0));
        self
    }

    /// Returns the data that were received into a new buffer.
    pub fn into_received(self) -> Vec<u8> {
        self.received
    }

    fn is_done(&self) -> bool {
        self.send.is_none() && self.receive.is_none()
    }

    fn poll_flags(&self) -> PollFlags {
        let out = if self.send.is_some() { PollFlags::OUT } else { PollFlags::empty() };
        out | if self.receive.is_some() { PollFlags::IN } else { PollFlags::empty() }
    }

    /// Sends once and receives once. Returns whether any bytes were transferred.
    fn advance(&mut self, connection: &mut DataConnection, here: usize, call: &Call) -> Result<bool, ExchangeError> {
        let has_sent = self.send(connection).or_else(|error| socket_error_result(error, self.peer, here, call))?;
        let has_received = self.receive.is_some() && self.receive(connection, here, call)?;
        Ok(has_sent || has_received)
    }

    fn send(&mut self, connection: &DataConnection) -> Result<bool, SocketError> {
        let Some(outgoing) = &mut self.send else { return Ok(false) };
        outgoing.send(connection.stream.as_ref().ok_or(SocketError::Closed)?)?;
        self.send.take_if(|outgoing| outgoing.is_complete());
        Ok(true)
    }

    fn receive(&mut self, connection: &mut DataConnection, here: usize, call: &Call) -> Result<bool, ExchangeError> {
        let failed = |error| socket_error_result(error, self.peer, here, call);
        let Some(stream) = &connection.stream else { return failed(SocketError::Closed) };
        let message = &mut connection.message;
        let Some(header) = &message.header else {
            return message.receive(stream).map(|()| true).or_else(failed);
        };
        let length = header.length;
        if !self.is_checked {
            self.check(header, here, call).map_err(ExchangeError::Invalid)?;
            self.is_checked = true;
        }
        let received = match &mut self.receive {
            Some(Target::Given(buffer, filled)) if *filled < length => {
                receive_into(stream, &mut buffer[*filled..]).map(|bytes| *filled += bytes)
            }
            _ if message.is_complete() => Ok(()),
            _ => message.receive(stream),
        };
        if let Err(error) = received {
            return failed(error);
        }
        let is_filled = matches!(self.receive, Some(Target::Given(_, filled)) if filled == length);
        if is_filled || message.is_complete() {
            // The data are empty if they were received into a given buffer.
            self.received = std::mem::take(message).into_data();
            self.receive = None;
        }
        Ok(true)
    }

    /// Compares the header of a message with the call of this rank.
    fn check(&self, header: &Header, here: usize, call: &Call) -> Result<(), RankError> {
        let Header { call: theirs, length } = header;
        if theirs != call {
            return Err(mismatched_calls((self.peer, theirs), (here, call)));
        }
        match &self.receive {
            Some(Target::Given(buffer, _)) if buffer.len() != *length => {
                let what = format!("sends {length} bytes to rank {here}, which expects {} in {call}", buffer.len());
                Err(invalid_message(self.peer, what, SAME_CALLS_HELP))
            }
            _ => Ok(()),
        }
    }
}

/// Methods for packet transports, which have no socket that accepts or returns any number of bytes.
#[cfg(feature = "mpi")]
impl Transfer<'_> {
    /// Copies the next bytes to send into `packet`. Returns their number, which is 0 if all bytes are sent.
    pub fn fill_packet(&mut self, packet: &mut [u8]) -> usize {
        let length = self.send.as_mut().map_or(0, |outgoing| outgoing.copy_next(packet));
        self.send.take_if(|outgoing| outgoing.is_complete());
        length
    }

    /// Tells whether a packet of the message was taken with [`Self::fill_packet`].
    pub fn has_begun_sending(&self) -> bool {
        self.send.as_ref().is_none_or(OutgoingMessage::has_begun)
    }

    /// Tells whether there is more to send.
    pub fn has_to_send(&self) -> bool {
        self.send.is_some()
    }

    /// Tells whether there is more to receive.
    pub fn has_to_receive(&self) -> bool {
        self.receive.is_some()
    }

    /// Prepares for receiving the message with this header. Later calls for the same message have no effect.
    ///
    /// # Errors
    /// The message does not belong to the call, has another length than the buffer, or there is no memory for it.
    pub fn begin_message(&mut self, header: &Header, here: usize, call: &Call) -> Result<(), ExchangeError> {
        if self.is_checked {
            return Ok(());
        }
        self.check(header, here, call).map_err(ExchangeError::Invalid)?;
        if matches!(self.receive, Some(Target::New)) && self.received.try_reserve_exact(header.length).is_err() {
            socket_error_result(SocketError::NoMemory(header.length), self.peer, here, call)?;
        }
        self.is_checked = true;
        Ok(())
    }

    /// Adds received data. All parts together must not be longer than the length in the header.
    pub fn add_received(&mut self, part: &[u8]) {
        match &mut self.receive {
            Some(Target::New) => self.received.extend_from_slice(part),
            Some(Target::Given(buffer, filled)) => {
                buffer[*filled..*filled + part.len()].copy_from_slice(part);
                *filled += part.len();
            }
            None => {}
        }
    }

    /// Records that the whole message has arrived.
    pub fn end_message(&mut self) {
        self.receive = None;
    }
}

/// Returns false if the socket is not ready. Converts every other error of a socket to the error of this call.
pub(crate) fn socket_error_result(
    error: SocketError,
    peer: usize,
    here: usize,
    call: &Call,
) -> Result<bool, ExchangeError> {
    let (what, help) = match error {
        SocketError::WouldBlock => return Ok(false),
        SocketError::Closed => return Err(ExchangeError::Unreachable(peer)),
        SocketError::Malformed => {
            ("sends a malformed message".to_string(), "start all ranks with the same version of the program")
        }
        SocketError::NoMemory(bytes) => {
            (format!("sends {bytes} bytes, for which there is no memory,"), "free memory on the receiving machine")
        }
    };
    Err(ExchangeError::Invalid(invalid_message(peer, format!("{what} to rank {here}, which is in {call}"), help)))
}

fn invalid_message(sender: usize, what: String, help: &str) -> RankError {
    RankError { diagnostic: Diagnostic::new(format!("rank {sender}"), what, help), rank: None }
}

/// Runs all transfers of a call on rank `here`. `connections` has one entry per rank.
///
/// # Errors
/// A connection closes, a message does not belong to the call, or the job fails.
pub(crate) fn exchange(
    here: usize,
    call: &Call,
    connections: &mut [DataConnection],
    transfers: &mut [Transfer<'_>],
    shared: &RankState,
) -> Result<(), ExchangeError> {
    loop {
        let mut has_progress = false;
        for transfer in transfers.iter_mut().filter(|transfer| !transfer.is_done()) {
            has_progress |= transfer.advance(&mut connections[transfer.peer], here, call)?;
        }
        if transfers.iter().all(Transfer::is_done) {
            return Ok(());
        }
        if has_progress {
            shared.record_progress();
        } else {
            wait(connections, transfers, shared);
        }
        if shared.has_failed() {
            return Err(ExchangeError::JobFailed);
        }
    }
}

/// Waits until a socket is ready or the job fails.
fn wait(connections: &[DataConnection], transfers: &[Transfer<'_>], shared: &RankState) {
    let mut events = vec![PollFd::from_borrowed_fd(shared.failure_event(), PollFlags::IN)];
    for transfer in transfers.iter().filter(|transfer| !transfer.is_done()) {
        let stream = connections[transfer.peer].stream.as_ref();
        events.extend(stream.map(|stream| PollFd::new(stream, transfer.poll_flags())));
    }
    wait_for(&mut events, MAX_WAIT);
}
