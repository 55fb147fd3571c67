//! The data exchange of a rank with one other rank: packets in flight, and the message that is being received.

use std::collections::VecDeque;

use crate::diagnostic::note;

use crate::ranks::call::Call;
use crate::ranks::exchange::{ExchangeError, Transfer, socket_error_result};
use crate::ranks::message::{Header, SocketError, decode_start};

use super::library::{MpiError, MpiLibrary, PacketTag, PendingPacket};

/// The maximum number of packets in flight to or from one rank. With two, one packet is copied while the other is
/// transferred.
const MAX_IN_FLIGHT: usize = 2;

/// The packets between this rank and one other rank.
#[derive(Debug)]
pub(super) struct PacketChannel {
    peer: usize,
    /// The sends in flight, in the order in which they were started.
    sends: VecDeque<PendingPacket>,
    /// The receive in flight for the first packet of a message.
    first: Option<PendingPacket>,
    /// The receives in flight for further packets of the message, in the order of its bytes.
    receives: VecDeque<PendingPacket>,
    /// The bytes of the message that have arrived or whose receives were started.
    begun: usize,
    /// The message of the current call, from its first packet until all have arrived.
    message: Option<Incoming>,
}

/// A message that is being received.
#[derive(Debug)]
struct Incoming {
    header: Header,
    /// The number of data bytes that have arrived.
    arrived: usize,
    /// The data bytes of the first packet, until the call reads them.
    data: Vec<u8>,
}

impl PacketChannel {
    /// Creates a channel without packets in flight.
    pub fn new(peer: usize) -> Self {
        Self { peer, sends: VecDeque::new(), first: None, receives: VecDeque::new(), begun: 0, message: None }
    }

    /// Tells whether no packet to the other rank is in flight. MPI transfers data only inside its own functions. So a
    /// call waits until its last packet is sent, because the packet could otherwise stay here until the next call.
    pub fn is_idle(&self) -> bool {
        self.sends.is_empty()
    }

    /// Starts sends and finishes complete ones. Returns whether any packet made progress.
    pub fn send(&mut self, library: &mut MpiLibrary, transfer: &mut Transfer<'_>) -> Result<bool, ExchangeError> {
        let mut has_progress = false;
        while let Some(mut oldest) = self.sends.pop_front() {
            if !library.is_complete(&mut oldest).map_err(|e| self.unreachable(&e))? {
                self.sends.push_front(oldest);
                break;
            }
            library.recycle(oldest);
            has_progress = true;
        }
        while transfer.has_to_send() && self.sends.len() < MAX_IN_FLIGHT {
            let tag = if transfer.has_begun_sending() { PacketTag::Further } else { PacketTag::First };
            let mut packet = library.new_packet();
            let limit = library.packet_sizes().max_bytes(tag);
            let length = transfer.fill_packet(&mut packet[..limit]);
            let send = library.send(self.peer, tag, packet, length).map_err(|e| self.unreachable(&e))?;
            self.sends.push_back(send);
            has_progress = true;
        }
        Ok(has_progress)
    }

    /// Receives the packets of this call's message that have arrived. Returns whether any have arrived.
    pub fn receive(
        &mut self,
        library: &mut MpiLibrary,
        transfer: &mut Transfer<'_>,
        here: usize,
        call: &Call,
    ) -> Result<bool, ExchangeError> {
        if !transfer.has_to_receive() {
            return Ok(false);
        }
        let mut has_progress = false;
        if self.message.is_none() {
            has_progress |= self.receive_first(library, here, call)?;
        }
        let Some(message) = &mut self.message else { return Ok(has_progress) };
        transfer.begin_message(&message.header, here, call)?;
        transfer.add_received(&std::mem::take(&mut message.data));
        has_progress |= self.receive_further(library, transfer, here, call)?;
        if self.message.take_if(|message| message.arrived == message.header.length).is_some() {
            transfer.end_message();
            has_progress = true;
        }
        Ok(has_progress)
    }

    /// Receives the first packet of a message, if one has arrived.
    fn receive_first(&mut self, library: &mut MpiLibrary, here: usize, call: &Call) -> Result<bool, ExchangeError> {
        if self.first.is_none() {
            self.first = library.receive_first(self.peer).map_err(|e| self.unreachable(&e))?;
        }
        let Some(mut first) = self.first.take() else { return Ok(false) };
        if !library.is_complete(&mut first).map_err(|e| self.unreachable(&e))? {
            self.first = Some(first);
            return Ok(false);
        }
        let start = first.received().and_then(|bytes| {
            let (header, at) = decode_start(bytes)?;
            let data = bytes[at..].to_vec();
            (data.len() <= header.length).then_some(Incoming { header, arrived: data.len(), data })
        });
        let Some(message) = start else { return socket_error_result(SocketError::Malformed, self.peer, here, call) };
        self.begun = message.arrived;
        self.message = Some(message);
        library.recycle(first);
        Ok(true)
    }

    /// Receives further packets of the message into the transfer. Returns whether any have arrived.
    fn receive_further(
        &mut self,
        library: &mut MpiLibrary,
        transfer: &mut Transfer<'_>,
        here: usize,
        call: &Call,
    ) -> Result<bool, ExchangeError> {
        let mut has_progress = false;
        loop {
            let Some(message) = &mut self.message else { return Ok(has_progress) };
            while self.begun < message.header.length && self.receives.len() < MAX_IN_FLIGHT {
                let length =
                    library.packet_sizes().max_bytes(PacketTag::Further).min(message.header.length - self.begun);
                let receive = library.receive(self.peer, length);
                self.receives.push_back(receive.map_err(|e| unreachable_by(self.peer, &e))?);
                self.begun += length;
            }
            let Some(mut oldest) = self.receives.pop_front() else { return Ok(has_progress) };
            if !library.is_complete(&mut oldest).map_err(|e| unreachable_by(self.peer, &e))? {
                self.receives.push_front(oldest);
                return Ok(has_progress);
            }
            let Some(bytes) = oldest.received() else {
                return socket_error_result(SocketError::Malformed, self.peer, here, call);
            };
            message.arrived += bytes.len();
            transfer.add_received(bytes);
            library.recycle(oldest);
            has_progress = true;
        }
    }

    fn unreachable(&self, error: &MpiError) -> ExchangeError {
        unreachable_by(self.peer, error)
    }
}

/// Converts an MPI error about a rank. If that rank has ended, the watching thread learns it soon, and the end of the
/// rank is the better explanation.
fn unreachable_by(peer: usize, error: &MpiError) -> ExchangeError {
    note!("{error} (rank {peer})");
    ExchangeError::Unreachable(peer)
}
