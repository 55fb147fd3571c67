//! The mesh: the connections on which pairs of ranks exchange data. Each connection is made by the first call that
//! needs it. The higher rank of a pair connects to the lower rank.

use std::net::TcpStream;
use std::time::{Duration, Instant};

use crate::ranks::call::Call;
use crate::ranks::exchange::{DataConnection, ExchangeError, Transfer, exchange};
use crate::ranks::handshake::{ConnectionPurpose, HelloMessage, JobToken, connect_to};
use crate::ranks::member::JobMember;
use crate::ranks::shared::RankState;
use crate::ranks::timeouts::Timeouts;

/// The time for which a rank retries a refused connection. A rank can refuse for a moment when very many ranks
/// connect at once.
const RETRY_TIME: Duration = Duration::from_secs(1);

/// The pause between two attempts to connect.
const RETRY_PAUSE: Duration = Duration::from_millis(50);

/// The data connections of a rank.
#[derive(Debug)]
pub(crate) struct SocketMesh {
    rank: usize,
    members: Vec<JobMember>,
    token: JobToken,
    timeouts: Timeouts,
    /// The connections to the other ranks, by rank.
    connections: Vec<DataConnection>,
}

impl SocketMesh {
    pub fn new(rank: usize, members: Vec<JobMember>, token: JobToken, timeouts: Timeouts) -> Self {
        let connections = members.iter().map(|_| DataConnection::default()).collect();
        Self { rank, members, token, timeouts, connections }
    }

    /// Runs all transfers of a call at the same time. Returns the data that each transfer has received into a new
    /// buffer.
    pub fn exchange(
        &mut self,
        shared: &RankState,
        call: &Call,
        mut transfers: Vec<Transfer<'_>>,
    ) -> Result<Vec<Vec<u8>>, ExchangeError> {
        self.connect(shared, &transfers)?;
        exchange(self.rank, call, &mut self.connections, &mut transfers, shared)?;
        Ok(transfers.into_iter().map(Transfer::into_received).collect())
    }

    /// Makes the missing connections. This rank first connects to lower ranks, whose watching threads accept
    /// connections at any time. Then it waits for the connections of higher ranks. So no two ranks wait for each
    /// other.
    fn connect(&mut self, shared: &RankState, transfers: &[Transfer<'_>]) -> Result<(), ExchangeError> {
        let peers = || transfers.iter().map(|transfer| transfer.peer);
        for peer in peers().filter(|peer| *peer < self.rank) {
            if self.connections[peer].stream.is_none() {
                self.connections[peer].stream = Some(self.connect_to_peer(shared, peer)?);
            }
        }
        for peer in peers().filter(|peer| *peer > self.rank) {
            if self.connections[peer].stream.is_none() {
                let stream = shared.take_connection(peer).ok_or(ExchangeError::JobFailed)?;
                self.connections[peer].stream = Some(stream);
            }
        }
        Ok(())
    }

    fn connect_to_peer(&self, shared: &RankState, peer: usize) -> Result<TcpStream, ExchangeError> {
        let hello =
            HelloMessage { from: self.rank, to: peer, size: self.members.len(), purpose: ConnectionPurpose::Data };
        let may_continue = || !shared.has_failed();
        let start = Instant::now();
        loop {
            for address in self.members[peer].socket_addresses(None) {
                // A stopped process does not answer. The watching thread then notices that its heartbeats stop.
                let connected = connect_to(address, self.token, &hello, self.timeouts.silence, may_continue);
                if let Ok(stream) = connected.and_then(|stream| stream.set_nonblocking(true).map(|()| stream)) {
                    return Ok(stream);
                }
            }
            if shared.has_failed() {
                return Err(ExchangeError::JobFailed);
            }
            if start.elapsed() >= RETRY_TIME {
                return Err(ExchangeError::Unreachable(peer));
            }
            std::thread::sleep(RETRY_PAUSE);
        }
    }
}
