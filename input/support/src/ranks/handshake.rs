//! Connections between the processes of one job, and no others. The process that connects sends the job's token first.
//! Nothing else that it sends is read before the token is right:
//! ```text
//! connecting process                                                              accepting process
//! "reelrnk1" (8 bytes), token (16 bytes),
//! length of the JSON (u32, little-endian), JSON (`HelloMessage`)                    --->
//!                                                                            <--- "reelack1" (8 bytes)
//! ```
//! The accepting process closes a connection that begins differently, is meant for another rank, or takes too long. The
//! token keeps out port scanners, other jobs, and earlier runs of the same job. It is sent in the clear and data are
//! not encrypted, so it gives no protection against those who can read the network.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};
use rustix::rand::{GetRandomFlags, getrandom};
use serde::{Deserialize, Serialize};

use crate::ranks::member::JobMember;

const HELLO: [u8; 8] = *b"reelrnk1";
const ACCEPTED: [u8; 8] = *b"reelack1";

/// The length in bytes of everything before the JSON.
const HEAD_BYTES: usize = HELLO.len() + TOKEN_BYTES + 4;

const TOKEN_BYTES: usize = 16;

/// The maximum length of the JSON of a [`HelloMessage`] in bytes.
const MAX_HELLO_BYTES: usize = 64 << 10;

/// The maximum number of handshakes at a time. Further connections are closed, and a process of the job then connects
/// again.
const MAX_PENDING: usize = 128;

/// The time limit for the connection itself, before the handshake.
const MAX_CONNECT: Duration = Duration::from_secs(5);

/// The interval at which a process that waits for an answer checks whether it should continue.
const CONTINUE_CHECK: Duration = Duration::from_millis(50);

/// The pause after a failed accept, as happens if the process has no free file descriptor. No connection is accepted
/// during the pause.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The secret of a job: 128 random bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct JobToken([u8; TOKEN_BYTES]);

impl JobToken {
    /// Creates a random token.
    ///
    /// # Errors
    /// The kernel returns no random numbers.
    pub fn random() -> io::Result<Self> {
        let mut bytes = [0; TOKEN_BYTES];
        getrandom(&mut bytes[..], GetRandomFlags::empty())?;
        Ok(Self(bytes))
    }

    /// Formats the token as 32 hex digits.
    pub fn to_hex(self) -> String {
        format!("{:032x}", u128::from_be_bytes(self.0))
    }

    /// Parses a token of 32 hex digits.
    pub fn from_hex(text: &str) -> Option<Self> {
        let is_hex = text.len() == 2 * TOKEN_BYTES && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        let bits = u128::from_str_radix(text, 16).ok().filter(|_| is_hex)?;
        Some(Self(bits.to_be_bytes()))
    }

    /// Tells whether these bytes are the token. The comparison takes constant time: its duration does not depend on
    /// how many bytes are right.
    fn equals(self, bytes: &[u8]) -> bool {
        let differing = self.0.iter().zip(bytes).fold(0, |all, (a, b)| all | (a ^ b));
        bytes.len() == TOKEN_BYTES && differing == 0
    }
}

/// The first message of a process that connects.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct HelloMessage {
    /// The rank of the sender.
    pub from: usize,
    /// The rank to which the sender wants to connect. A process with another rank may have the same address: the same
    /// private address, or the address in a stale file.
    pub to: usize,
    /// The number of ranks of the job according to the sender.
    pub size: usize,
    /// The purpose of the connection.
    pub purpose: ConnectionPurpose,
}

/// The purpose of a connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum ConnectionPurpose {
    /// The sender joins the job at rank 0. Control messages follow.
    Join(JobMember),
    /// The sender, which is the higher rank, exchanges data with the receiver.
    Data,
}

/// Connects to a process and does the handshake. The returned connection is blocking. While it waits for the answer,
/// it calls `may_continue` repeatedly.
///
/// # Errors
/// No process listens there, another program listens there, the process does not accept, or the call takes longer
/// than `limit`.
pub(crate) fn connect_to(
    address: SocketAddr,
    token: JobToken,
    hello: &HelloMessage,
    limit: Duration,
    may_continue: impl Fn() -> bool,
) -> io::Result<TcpStream> {
    let deadline = Instant::now() + limit;
    let mut stream = TcpStream::connect_timeout(&address, limit.min(MAX_CONNECT))?;
    stream.set_nodelay(true)?;
    let json = serde_json::to_vec(hello)?;
    let length = (json.len() as u32).to_le_bytes();
    // This write does not block, because the buffer of a new socket has space for these bytes.
    stream.write_all(&[&HELLO[..], &token.0, &length, &json].concat())?;
    let mut answer = [0; ACCEPTED.len()];
    read_exact_until(&mut stream, &mut answer, deadline, may_continue)?;
    if answer != ACCEPTED {
        return Err(io::Error::new(ErrorKind::InvalidData, "another program listens at this address"));
    }
    Ok(stream)
}

fn read_exact_until(
    stream: &mut TcpStream,
    mut bytes: &mut [u8],
    deadline: Instant,
    may_continue: impl Fn() -> bool,
) -> io::Result<()> {
    stream.set_read_timeout(Some(CONTINUE_CHECK))?;
    while !bytes.is_empty() {
        match stream.read(bytes) {
            Ok(0) => return Err(io::Error::new(ErrorKind::UnexpectedEof, "the connection was closed")),
            Ok(read) => bytes = &mut bytes[read..],
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            Err(e) => return Err(e),
        }
        if !bytes.is_empty() && (Instant::now() >= deadline || !may_continue()) {
            return Err(ErrorKind::TimedOut.into());
        }
    }
    Ok(())
}

/// Accepts connections from processes of the job, without blocking.
#[derive(Debug)]
pub(crate) struct ConnectionAcceptor {
    listener: TcpListener,
    token: JobToken,
    rank: usize,
    /// The time limit for a handshake.
    limit: Duration,
    pending: Vec<PendingHandshake>,
    paused_until: Option<Instant>,
}

/// A connection whose handshake is not complete.
#[derive(Debug)]
struct PendingHandshake {
    stream: TcpStream,
    received: Vec<u8>,
    deadline: Instant,
}

/// The state of a handshake.
enum Progress {
    Incomplete,
    Invalid,
    Complete(HelloMessage),
}

impl ConnectionAcceptor {
    /// Listens at a free port, which is one of `ports` (the first and the last one) if they are given. `is_local`:
    /// accepts connections only from this machine.
    ///
    /// # Errors
    /// No port or file descriptor is free, or the machine has no network.
    pub fn open(rank: usize, is_local: bool, ports: Option<(u16, u16)>, limit: Duration) -> io::Result<Self> {
        let listen = |port| match is_local {
            true => TcpListener::bind((Ipv4Addr::LOCALHOST, port)),
            // An IPv6 socket also accepts IPv4 connections.
            false => TcpListener::bind((Ipv6Addr::UNSPECIFIED, port))
                .or_else(|_| TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))),
        };
        let (first, last) = ports.unwrap_or_default();
        let mut listener = listen(first);
        for port in first.saturating_add(1)..=last {
            listener = listener.or_else(|_| listen(port));
        }
        let listener = listener?;
        listener.set_nonblocking(true)?;
        Ok(Self { listener, token: JobToken::random()?, rank, limit, pending: Vec::new(), paused_until: None })
    }

    /// The port of the listening socket.
    ///
    /// # Errors
    /// The operating system does not return the port.
    pub fn port(&self) -> io::Result<u16> {
        Ok(self.listener.local_addr()?.port())
    }

    pub fn token(&self) -> JobToken {
        self.token
    }

    /// Sets the token that new connections must send.
    pub fn set_token(&mut self, token: JobToken) {
        self.token = token;
    }

    /// Adds the events to wait for before the next call of [`ConnectionAcceptor::accept_ready`].
    pub fn add_poll_events<'a>(&'a self, events: &mut Vec<PollFd<'a>>) {
        if self.paused_until.is_none() {
            events.push(PollFd::new(&self.listener, PollFlags::IN));
        }
        events.extend(self.pending.iter().map(|handshake| PollFd::new(&handshake.stream, PollFlags::IN)));
    }

    /// Continues all handshakes. Returns the connections whose handshake is now complete. These connections are
    /// nonblocking.
    pub fn accept_ready(&mut self) -> Vec<(HelloMessage, TcpStream)> {
        self.accept();
        let now = Instant::now();
        let mut done = Vec::new();
        for mut handshake in std::mem::take(&mut self.pending) {
            match handshake.progress(self.token, self.rank) {
                Progress::Incomplete if now < handshake.deadline => self.pending.push(handshake),
                Progress::Incomplete | Progress::Invalid => {}
                // If the connection has closed in the meantime, its first use fails.
                Progress::Complete(hello) => {
                    let _ = (&handshake.stream).write(&ACCEPTED);
                    done.push((hello, handshake.stream));
                }
            }
        }
        done
    }

    fn accept(&mut self) {
        self.paused_until = self.paused_until.filter(|until| Instant::now() < *until);
        while self.paused_until.is_none() {
            match self.listener.accept() {
                Ok((stream, _)) => {
                    let is_ready = stream.set_nonblocking(true).and_then(|()| stream.set_nodelay(true)).is_ok();
                    if is_ready && self.pending.len() < MAX_PENDING {
                        let deadline = Instant::now() + self.limit;
                        self.pending.push(PendingHandshake { stream, received: Vec::new(), deadline });
                    }
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => return,
                // The connection has closed in the meantime.
                Err(e) if matches!(e.kind(), ErrorKind::ConnectionAborted | ErrorKind::Interrupted) => {}
                Err(_) => self.paused_until = Some(Instant::now() + ACCEPT_PAUSE),
            }
        }
    }
}

impl PendingHandshake {
    fn progress(&mut self, token: JobToken, rank: usize) -> Progress {
        loop {
            let Some(wanted) = self.wanted(token) else { return Progress::Invalid };
            let missing = wanted - self.received.len();
            if missing == 0 {
                return self.hello(rank).map_or(Progress::Invalid, Progress::Complete);
            }
            match (&self.stream).take(missing as u64).read_to_end(&mut self.received) {
                Ok(read) if read == missing => {}
                Err(e) if e.kind() == ErrorKind::WouldBlock => {
                    // The bytes received so far may already be wrong.
                    return if self.wanted(token).is_some() { Progress::Incomplete } else { Progress::Invalid };
                }
                Ok(_) | Err(_) => return Progress::Invalid,
            }
        }
    }

    /// Returns how many bytes of the hello message may be read so far. Its JSON is read only if the token before it is
    /// right. `None` if the bytes so far are wrong.
    fn wanted(&self, token: JobToken) -> Option<usize> {
        let first = self.received.len().min(HELLO.len());
        if self.received[..first] != HELLO[..first] {
            return None;
        }
        let Some(head) = self.received.first_chunk::<HEAD_BYTES>() else { return Some(HEAD_BYTES) };
        if !token.equals(&head[HELLO.len()..HELLO.len() + TOKEN_BYTES]) {
            return None;
        }
        let length = u32::from_le_bytes(*head.last_chunk()?) as usize;
        (length <= MAX_HELLO_BYTES).then_some(HEAD_BYTES + length)
    }

    fn hello(&self, rank: usize) -> Option<HelloMessage> {
        let hello: HelloMessage = serde_json::from_slice(self.received.get(HEAD_BYTES..)?).ok()?;
        (hello.to == rank).then_some(hello)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ranks::launch::World;

    /// A listener that is open to other machines is reachable at each IPv4 address of this machine.
    #[test]
    fn other_machines_connect_at_any_address_of_this_one() {
        let mut acceptor = ConnectionAcceptor::open(0, false, None, Duration::from_secs(5)).unwrap();
        let token = acceptor.token();
        let world = World { size: 2, ..World::default() };
        let mut member = JobMember::of_this_process(&world, acceptor.port().unwrap()).unwrap();
        member.machine = "another machine".into();
        member.addresses.retain(|address| address.is_ipv4());
        member.addresses.push(Ipv4Addr::LOCALHOST.into());
        let hello = HelloMessage { from: 1, to: 0, size: 2, purpose: ConnectionPurpose::Data };
        for address in member.socket_addresses(None) {
            std::thread::scope(|scope| {
                let connecting = scope.spawn(|| connect_to(address, token, &hello, Duration::from_secs(5), || true));
                let accepted = loop {
                    if let Some(accepted) = acceptor.accept_ready().pop() {
                        break accepted;
                    }
                };
                assert_eq!(accepted.0, hello);
                let stream = connecting.join().unwrap().unwrap_or_else(|e| panic!("{address}: {e}"));
                assert_eq!(stream.local_addr().unwrap().port(), accepted.1.peer_addr().unwrap().port());
            });
        }
    }

    #[test]
    fn the_first_free_port_of_a_range_is_taken() {
        let open = |first, last| ConnectionAcceptor::open(0, true, Some((first, last)), Duration::from_secs(5));
        let held = ConnectionAcceptor::open(0, true, None, Duration::from_secs(5)).unwrap();
        let port = held.port().unwrap();
        assert!(open(port, port).is_err_and(|e| e.kind() == ErrorKind::AddrInUse));
        let next = open(port, port.saturating_add(20)).unwrap().port().unwrap();
        assert!(next > port && next <= port + 20, "{next}");
    }

    #[test]
    fn tokens_are_written_in_32_hex_digits() {
        let token = JobToken::random().unwrap();
        assert_ne!(token, JobToken::random().unwrap());
        assert_eq!(JobToken::from_hex(&token.to_hex()), Some(token));
        assert!(token.equals(&token.0) && !token.equals(&token.0[..15]) && !token.equals(&[]));
        for wrong in ["", "0", "+0000000000000000000000000000000", "000000000000000000000000000000000"] {
            assert_eq!(JobToken::from_hex(wrong), None, "{wrong}");
        }
    }
}
