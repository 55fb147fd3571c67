//! The format of data messages on the connection of two ranks: a header, the name of the call, and the bytes.
//! ```text
//! offset  size  contents
//!      0     4  "reel"
//!      4     1  kind of the call
//!      5     1  0
//!      6     2  length of the name in bytes
//!      8     8  sequence number of the call
//!     16     8  length of the data in bytes
//!     24        name, data
//! ```
//! Numbers are little-endian.

use std::io::IoSlice;
use std::net::TcpStream;

use rustix::buffer::spare_capacity;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendAncillaryBuffer, SendFlags, recv, sendmsg};

#[cfg(feature = "mpi")]
use crate::ranks::call::MAX_NAME_BYTES;
use crate::ranks::call::{Call, CallKind};

const MAGIC: [u8; 4] = *b"reel";
const HEADER_BYTES: usize = 24;

/// The maximum length in bytes of a header and the name after it.
#[cfg(feature = "mpi")]
pub(crate) const MAX_HEAD_BYTES: usize = HEADER_BYTES + MAX_NAME_BYTES;

/// A message to send.
#[derive(Debug)]
pub(crate) struct OutgoingMessage<'a> {
    /// The header and the name of the call.
    head: Vec<u8>,
    data: &'a [u8],
    /// The number of bytes of head and data that are sent.
    sent: usize,
}

/// A message that is being received. Its data are in its own buffer, unless the caller receives them from the socket
/// into another buffer.
#[derive(Debug, Default)]
pub(crate) struct IncomingMessage {
    head: Vec<u8>,
    /// `None` until the header and the name have arrived.
    pub header: Option<Header>,
    data: Vec<u8>,
}

/// The contents of a header.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Header {
    /// The call of the sender.
    pub call: Call,
    /// The number of bytes of data.
    pub length: usize,
}

/// The reason why a socket was not read or written.
#[derive(Debug)]
pub(crate) enum SocketError {
    /// The socket is not ready.
    WouldBlock,
    /// The connection has closed.
    Closed,
    /// The header is malformed.
    Malformed,
    /// The allocation of this number of bytes failed.
    NoMemory(usize),
}

impl From<Errno> for SocketError {
    fn from(error: Errno) -> Self {
        if matches!(error, Errno::WOULDBLOCK | Errno::INTR) { Self::WouldBlock } else { Self::Closed }
    }
}

impl<'a> OutgoingMessage<'a> {
    pub fn new(call: &Call, data: &'a [u8]) -> Self {
        Self { head: encode_head(call, data.len()), data, sent: 0 }
    }

    /// Sends as much as the socket takes in one system call.
    pub fn send(&mut self, stream: &TcpStream) -> Result<(), SocketError> {
        let head = &self.head[self.sent.min(self.head.len())..];
        let data = &self.data[self.sent.saturating_sub(self.head.len())..];
        let parts = [IoSlice::new(head), IoSlice::new(data)];
        self.sent += sendmsg(stream, &parts, &mut SendAncillaryBuffer::default(), SendFlags::NOSIGNAL)?;
        Ok(())
    }

    pub fn is_complete(&self) -> bool {
        self.sent == self.head.len() + self.data.len()
    }

    /// Whether some bytes of the message are sent.
    #[cfg(feature = "mpi")]
    pub fn has_begun(&self) -> bool {
        self.sent > 0
    }

    /// Copies the next bytes into `packet`, as many as are left and fit into it. Returns their number.
    #[cfg(feature = "mpi")]
    pub fn copy_next(&mut self, packet: &mut [u8]) -> usize {
        let head = &self.head[self.sent.min(self.head.len())..];
        let data = &self.data[self.sent.saturating_sub(self.head.len())..];
        let (of_head, room) = packet.split_at_mut(head.len().min(packet.len()));
        of_head.copy_from_slice(&head[..of_head.len()]);
        let of_data = data.len().min(room.len());
        room[..of_data].copy_from_slice(&data[..of_data]);
        self.sent += of_head.len() + of_data;
        of_head.len() + of_data
    }
}

impl IncomingMessage {
    pub fn is_complete(&self) -> bool {
        self.header.as_ref().is_some_and(|header| self.data.len() == header.length)
    }

    pub fn into_data(self) -> Vec<u8> {
        self.data
    }

    /// Receives a part of the head or of the data with one system call.
    pub fn receive(&mut self, stream: &TcpStream) -> Result<(), SocketError> {
        let Some(header) = &self.header else { return self.receive_head(stream) };
        let left = header.length - self.data.len();
        if self.data.capacity() == 0 && left > 0 {
            self.data.try_reserve_exact(left).map_err(|_| SocketError::NoMemory(left))?;
        }
        if self.data.capacity() - self.data.len() == left {
            not_closed(recv(stream, spare_capacity(&mut self.data), RecvFlags::empty())?.1)?;
            return Ok(());
        }
        // The allocator has returned more memory than requested. The excess must not be filled with the next message.
        let mut buffer = [0; 16 << 10];
        let wanted = left.min(buffer.len());
        let received = receive_into(stream, &mut buffer[..wanted])?;
        self.data.extend(&buffer[..received]);
        Ok(())
    }

    fn receive_head(&mut self, stream: &TcpStream) -> Result<(), SocketError> {
        let mut buffer = [0; HEADER_BYTES];
        let wanted = (head_length(&self.head) - self.head.len()).min(buffer.len());
        let received = receive_into(stream, &mut buffer[..wanted])?;
        self.head.extend(&buffer[..received]);
        if self.head.len() == head_length(&self.head) {
            self.header = Some(decode_head(&self.head).ok_or(SocketError::Malformed)?);
        }
        Ok(())
    }
}

/// Receives into a non-empty buffer with one system call. Returns the number of received bytes.
pub(crate) fn receive_into(stream: &TcpStream, buffer: &mut [u8]) -> Result<usize, SocketError> {
    not_closed(recv(stream, buffer, RecvFlags::empty())?.1)
}

/// Returns an error if 0 bytes were received, which means that the peer has closed the connection.
fn not_closed(received: usize) -> Result<usize, SocketError> {
    if received == 0 { Err(SocketError::Closed) } else { Ok(received) }
}

fn encode_head(call: &Call, length: usize) -> Vec<u8> {
    let mut head = Vec::with_capacity(HEADER_BYTES + call.name.len());
    head.extend(MAGIC);
    head.extend([call.kind.code(), 0]);
    head.extend((call.name.len() as u16).to_le_bytes());
    head.extend(call.sequence.to_le_bytes());
    head.extend((length as u64).to_le_bytes());
    head.extend(call.name.as_bytes());
    head
}

/// Returns the length of header and name in bytes. Until the header has arrived, returns the length of the header.
fn head_length(head: &[u8]) -> usize {
    let name = if head.len() < HEADER_BYTES { 0 } else { u16::from_le_bytes([head[6], head[7]]) };
    HEADER_BYTES + usize::from(name)
}

/// Decodes the head (header and name) at the start of a message. Returns the header and the length of the head in
/// bytes, or `None` if the head is malformed or incomplete.
#[cfg(feature = "mpi")]
pub(crate) fn decode_start(bytes: &[u8]) -> Option<(Header, usize)> {
    let length = head_length(bytes);
    Some((decode_head(bytes.get(..length)?)?, length))
}

/// Decodes the head. Returns `None` if it is malformed.
fn decode_head(head: &[u8]) -> Option<Header> {
    let (header, name) = head.split_first_chunk::<HEADER_BYTES>()?;
    let number = |at: usize| Some(u64::from_le_bytes(*header[at..].first_chunk()?));
    if header[..4] != MAGIC {
        return None;
    }
    let kind = CallKind::ALL.into_iter().find(|kind| kind.code() == header[4])?;
    let call = Call { kind, name: String::from_utf8(name.to_vec()).ok()?, sequence: number(8)? };
    Some(Header { call, length: usize::try_from(number(16)?).ok()? })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn heads_round_trip_and_damaged_ones_do_not_panic(
            kind in 0..4usize, name in ".{0,40}", sequence: u64, length: u32,
            at in any::<prop::sample::Index>(), value: u8,
        ) {
            let call = Call::new(CallKind::ALL[kind], &name, sequence);
            let mut bytes = encode_head(&call, length as usize);
            prop_assert_eq!(head_length(&bytes), bytes.len());
            prop_assert_eq!(decode_head(&bytes), Some(Header { call, length: length as usize }));
            *at.get_mut(&mut bytes) = value;
            let _ = (head_length(&bytes), decode_head(&bytes));
        }
    }

    #[cfg(feature = "mpi")]
    #[test]
    fn packets_of_any_size_are_together_the_head_and_the_data() {
        let call = Call::new(CallKind::AllToAll, "gradients 17 of step 5", 3);
        let data: Vec<u8> = (0..=255).cycle().take(1000).collect();
        let whole = [encode_head(&call, data.len()), data.clone()].concat();
        for size in [1, 7, 24, 46, 47, 100, 999, 5000] {
            let mut outgoing = OutgoingMessage::new(&call, &data);
            let (mut all, mut packet) = (Vec::<u8>::new(), vec![0; size]);
            while !outgoing.is_complete() {
                let length = outgoing.copy_next(&mut packet);
                assert!(length == size || outgoing.is_complete());
                all.extend(&packet[..length]);
            }
            assert_eq!(all, whole, "{size}");
        }
        assert_eq!(decode_start(&whole), Some((Header { call, length: 1000 }, whole.len() - 1000)));
        assert_eq!(decode_start(&whole[..40]), None);
    }

    #[test]
    fn long_names_are_cut_between_characters() {
        let call = Call::new(CallKind::Barrier, &"é".repeat(1000), 0);
        assert_eq!(call.name, "é".repeat(128));
        assert_eq!(Call::new(CallKind::Barrier, &format!("x{}", "é".repeat(1000)), 0).name.len(), 255);
    }
}
