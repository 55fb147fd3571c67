//! Data by MPI: the second transport of [`Link`](crate::link::Link), with the feature `mpi`.
//!
//! A message has the same bytes as on a socket: header, name of the call, data. It is divided into packets, because the
//! counts of MPI are `int`, so that one MPI message has at most 2^31 - 1 bytes, and because packets in flight let
//! copies and transfers overlap. The first packet has the header and the first 2 KiB of data, so that most calls of few
//! bytes are one MPI message.
//!
//! All sends and receives are non-blocking, and a loop tests them. The same loop looks whether the job has failed: an
//! MPI library does not tell whether another process has ended, but the watching thread does, as with sockets.
//!
//! Calls MPI only while this rank is in a call. No thread of the library is needed: the other rank of a pair makes
//! progress in its own call.

mod channel;
mod idle;
mod library;

use crate::call::{Call, CallKind};
use crate::error::Result;
use crate::exchange::{ExchangeError, Transfer};
use crate::launch::World;
use crate::shared::RankState;

use channel::Channel;
use idle::Idle;
use library::{Library, PacketSizes};

/// A rank's exchange of data by MPI.
#[derive(Debug)]
pub(crate) struct MpiLink {
    rank: usize,
    library: Library,
    /// By rank.
    channels: Vec<Channel>,
}

impl MpiLink {
    /// Initializes MPI. All ranks of the job do this at the same time.
    ///
    /// # Errors
    /// An earlier job of this process has used MPI; the library counts other processes than the launcher, or cannot be
    /// called by several threads.
    pub fn open(world: &World) -> Result<Self> {
        let library = Library::open(world, PacketSizes::of_job(world.size))?;
        Ok(Self { rank: world.rank, library, channels: (0..world.size).map(Channel::new).collect() })
    }

    /// Does all transfers of a call at the same time. Returns what each one has received into a new buffer.
    pub fn exchange(
        &mut self,
        shared: &RankState,
        call: &Call,
        mut transfers: Vec<Transfer<'_>>,
    ) -> Result<Vec<Vec<u8>>, ExchangeError> {
        let mut idle = Idle::default();
        loop {
            let (mut has_progress, mut is_done) = (false, true);
            for transfer in &mut transfers {
                let channel = &mut self.channels[transfer.peer];
                has_progress |= channel.send(&mut self.library, transfer)?;
                has_progress |= channel.receive(&mut self.library, transfer, self.rank, call)?;
                is_done &= channel.is_idle() && !transfer.has_to_send() && !transfer.has_to_receive();
            }
            if is_done {
                return Ok(transfers.into_iter().map(Transfer::into_received).collect());
            }
            has_progress = has_progress || self.receive_early(call)?;
            if has_progress {
                shared.record_progress();
                idle.end();
            } else {
                idle.wait();
            }
            if shared.has_failed() {
                return Err(ExchangeError::JobFailed);
            }
        }
    }

    /// In a send or receive, receives messages that other ranks send, for later calls. Otherwise ranks that each send
    /// to the next one, in a circle, would wait for ever. Returns whether anything has arrived.
    fn receive_early(&mut self, call: &Call) -> Result<bool, ExchangeError> {
        let Some(needed) = call.peer else { return Ok(false) };
        let mut has_progress = false;
        for peer in (0..self.channels.len()).filter(|peer| *peer != self.rank) {
            // In a receive, the transfer itself receives from the needed rank.
            if peer != needed || call.kind == CallKind::Send {
                has_progress |= self.channels[peer].receive_early(&mut self.library, self.rank, call)?;
            }
        }
        Ok(has_progress)
    }

    /// Finalizes MPI, after all ranks have left the job. Waits for them.
    ///
    /// A link that is dropped instead leaves MPI as it is, because `MPI_Finalize` waits for all processes: after the
    /// failure of a job it would wait for ever for one that has ended.
    pub fn finalize(self) {
        self.library.finalize();
    }
}
