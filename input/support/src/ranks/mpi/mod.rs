//! Data exchange over MPI: the second transport of [`DataLink`](crate::ranks::link::DataLink), with the feature `mpi`.
//!
//! A message has the same bytes as on a socket: header, name of the call, data. It is divided into packets for two
//! reasons. The counts of MPI are `int`, so one MPI message has at most 2^31 - 1 bytes; and packets let copies and
//! transfers overlap. The first packet has the header and the first 2 KiB of data, so that most calls with few bytes
//! are one MPI message.
//!
//! All sends and receives are nonblocking, and a loop tests them. The same loop checks whether the job has failed: an
//! MPI library does not report the end of another process, but the watching thread does, as with sockets.
//!
//! MPI is called only while this rank is in a call. The library needs no progress thread, because the other rank of a
//! pair makes progress in its own call.

mod channel;
mod idle;
mod library;

use crate::ranks::call::Call;
use crate::ranks::error::Result;
use crate::ranks::exchange::{ExchangeError, Transfer};
use crate::ranks::launch::World;
use crate::ranks::shared::RankState;

use channel::PacketChannel;
use idle::IdleWait;
use library::{MpiLibrary, PacketSizes};

/// The data exchange of a rank over MPI.
#[derive(Debug)]
pub(crate) struct MpiLink {
    rank: usize,
    library: MpiLibrary,
    /// The channels to the other ranks, by rank.
    channels: Vec<PacketChannel>,
}

impl MpiLink {
    /// Initializes MPI. All ranks of the job call this function at the same time.
    ///
    /// # Errors
    /// An earlier job of this process has used MPI; the library reports other ranks than the launcher, or does not
    /// support several threads.
    pub fn open(world: &World) -> Result<Self> {
        let library = MpiLibrary::open(world, PacketSizes::for_job(world.size))?;
        Ok(Self { rank: world.rank, library, channels: (0..world.size).map(PacketChannel::new).collect() })
    }

    /// Runs all transfers of a call at the same time. Returns the data that each transfer has received into a new
    /// buffer.
    pub fn exchange(
        &mut self,
        shared: &RankState,
        call: &Call,
        mut transfers: Vec<Transfer<'_>>,
    ) -> Result<Vec<Vec<u8>>, ExchangeError> {
        let mut idle = IdleWait::default();
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
            if has_progress {
                shared.record_progress();
                idle.record_progress();
            } else {
                idle.pause();
            }
            if shared.has_failed() {
                return Err(ExchangeError::JobFailed);
            }
        }
    }

    /// Finalizes MPI after all ranks have left the job. Waits for all ranks.
    ///
    /// A link that is dropped does not finalize MPI, because `MPI_Finalize` waits for all processes. After a failure
    /// of the job, it would wait forever for a process that has ended.
    pub fn finalize(self) {
        self.library.finalize();
    }
}
