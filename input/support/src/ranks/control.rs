//! The control connection between rank 0 and another rank, on a nonblocking socket. A message is the length of its
//! JSON in bytes (`u32`, little-endian), followed by the JSON.

use std::io::{self, ErrorKind};
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};
use serde::{Deserialize, Serialize};

use crate::ranks::call::{Call, RankActivity};
use crate::ranks::error::RankError;
use crate::ranks::member::JobMember;

/// The maximum length of a message in bytes. The list of members of a job with 10 000 ranks is shorter.
const MAX_MESSAGE_BYTES: usize = 16 << 20;

/// A control message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum ControlMessage {
    /// From rank 0: all ranks have joined.
    Welcome(Vec<JobMember>),
    /// From rank 0: the job has failed.
    Failed(RankError),
    /// From and to rank 0: the sender is alive. The activity of rank 0 is empty.
    Heartbeat(RankActivity),
    /// To rank 0: the connection to rank `about` has closed or cannot be made, and `call` needs it.
    Suspicion { about: usize, call: Call },
    /// To rank 0: the sender has failed, or has found an error of another rank.
    Report(RankError),
    /// To rank 0: the sender will make no more calls.
    Leave(RankActivity),
    /// From rank 0: the [`ControlMessage::Leave`] of the receiving rank has arrived.
    LeaveConfirmed,
    /// From rank 0: all ranks have left.
    AllHaveLeft,
}

/// A control connection.
#[derive(Debug)]
pub(crate) struct ControlConnection {
    stream: TcpStream,
    received: Vec<u8>,
    unsent: Vec<u8>,
    /// The time at which bytes last arrived.
    pub last_received: Instant,
}

impl ControlConnection {
    /// Wraps a connection whose handshake is done.
    ///
    /// # Errors
    /// The socket cannot be made nonblocking.
    pub fn new(stream: TcpStream) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        Ok(Self { stream, received: Vec::new(), unsent: Vec::new(), last_received: Instant::now() })
    }

    pub fn stream(&self) -> &TcpStream {
        &self.stream
    }

    /// Queues a message and sends as much as the socket takes now. If the connection has closed, the message is lost,
    /// and [`ControlConnection::receive`] reports the closed connection.
    pub fn send(&mut self, message: &ControlMessage) {
        let json = serde_json::to_vec(message).unwrap_or_default();
        self.unsent.extend((json.len() as u32).to_le_bytes());
        self.unsent.extend(json);
        self.flush();
    }

    /// Sends as much as the socket takes now. Returns whether nothing is left to send.
    pub fn flush(&mut self) -> bool {
        while !self.unsent.is_empty() {
            match send(&self.stream, &self.unsent, SendFlags::NOSIGNAL) {
                Ok(bytes) => drop(self.unsent.drain(..bytes)),
                Err(Errno::INTR) => {}
                Err(Errno::WOULDBLOCK) => return false,
                Err(_) => self.unsent.clear(),
            }
        }
        true
    }

    /// Returns all messages that have arrived, and whether the connection has closed.
    pub fn receive(&mut self) -> (Vec<ControlMessage>, bool) {
        let mut is_closed = self.receive_bytes();
        let mut messages = Vec::new();
        while let Some(message) = self.next_message() {
            match message {
                Ok(message) => messages.push(message),
                Err(_) => {
                    is_closed = true;
                    break;
                }
            }
        }
        (messages, is_closed)
    }

    /// Returns the oldest received message that no earlier call has returned, and `false`. Without such a message,
    /// returns `None`, and `true` if the connection is closed.
    pub fn receive_one(&mut self) -> (Option<ControlMessage>, bool) {
        let is_closed = self.receive_bytes();
        match self.next_message() {
            Some(Ok(message)) => (Some(message), false),
            Some(Err(_)) => (None, true),
            None => (None, is_closed),
        }
    }

    /// Receives all bytes that have arrived. Returns whether the connection has closed.
    fn receive_bytes(&mut self) -> bool {
        let mut buffer = [0; 16 << 10];
        loop {
            match recv(&self.stream, &mut buffer[..], RecvFlags::empty()) {
                Ok((bytes, _)) if bytes > 0 => {
                    self.received.extend(&buffer[..bytes]);
                    self.last_received = Instant::now();
                }
                Err(Errno::INTR) => {}
                Err(Errno::WOULDBLOCK) => return false,
                Ok(_) | Err(_) => return true,
            }
        }
    }

    fn next_message(&mut self) -> Option<io::Result<ControlMessage>> {
        let length = u32::from_le_bytes(*self.received.first_chunk()?) as usize;
        if length > MAX_MESSAGE_BYTES {
            return Some(Err(ErrorKind::InvalidData.into()));
        }
        let message = serde_json::from_slice(self.received.get(4..4 + length)?);
        self.received.drain(..4 + length);
        Some(message.map_err(io::Error::from))
    }

    pub fn poll_event(&self) -> PollFd<'_> {
        let out = if self.unsent.is_empty() { PollFlags::empty() } else { PollFlags::OUT };
        PollFd::new(&self.stream, PollFlags::IN | out)
    }

    /// Sends the queued messages and closes the connection. Waits until the peer has closed it too, at most until
    /// `deadline`. If unread bytes were in the socket, closing it would reset the connection, and the peer could lose
    /// the last messages.
    pub fn close(mut self, deadline: Instant) {
        while !self.flush() && wait_until(&mut [self.poll_event()], deadline) {}
        let _ = self.stream.shutdown(Shutdown::Write);
        while !self.receive().1 && wait_until(&mut [PollFd::new(&self.stream, PollFlags::IN)], deadline) {}
    }
}

/// Waits for one of these events. Returns false if none occurs before the deadline.
pub(crate) fn wait_until(events: &mut [PollFd<'_>], deadline: Instant) -> bool {
    let left = deadline.saturating_duration_since(Instant::now());
    left > Duration::ZERO && wait_for(events, left)
}

/// Waits for one of these events. Returns false if none occurs within `time`, or if a signal interrupts the wait.
pub(crate) fn wait_for(events: &mut [PollFd<'_>], time: Duration) -> bool {
    let time = Timespec { tv_sec: time.as_secs() as i64, tv_nsec: time.subsec_nanos().into() };
    poll(events, Some(&time)).is_ok_and(|ready| ready > 0)
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    /// Creates the two ends of a connection.
    fn pair() -> [ControlConnection; 2] {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let one = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        [one, listener.accept().unwrap().0].map(|stream| ControlConnection::new(stream).unwrap())
    }

    /// Rank 0 may fail as soon as it has welcomed the other ranks.
    #[test]
    fn messages_after_the_first_are_kept_until_they_are_asked_for() {
        let [mut sender, mut receiver] = pair();
        let sent =
            [ControlMessage::Welcome(Vec::new()), ControlMessage::LeaveConfirmed, ControlMessage::LeaveConfirmed];
        sent.iter().for_each(|message| sender.send(message));
        sender.close(Instant::now());
        assert_eq!(receiver.receive_one(), (Some(sent[0].clone()), false));
        assert_eq!(receiver.receive(), (sent[1..].to_vec(), true));
        assert_eq!(receiver.receive_one(), (None, true));
    }

    #[test]
    fn malformed_messages_count_as_a_closed_connection() {
        for bytes in [&[255; 4][..], b"\x02\0\0\0{}", b"\x04\0\0\0\xff\xff\xff\xff"] {
            let [sender, mut receiver] = pair();
            send(&sender.stream, bytes, SendFlags::empty()).unwrap();
            assert_eq!(receiver.receive(), (Vec::new(), true), "{bytes:?}");
        }
        let [sender, mut receiver] = pair();
        send(&sender.stream, b"\x02\0\0", SendFlags::empty()).unwrap();
        assert_eq!(receiver.receive(), (Vec::new(), false));
    }
}
