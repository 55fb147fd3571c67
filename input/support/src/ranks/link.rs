//! The transport with which a rank exchanges data with the others: the sockets of the [`SocketMesh`], or MPI. The calls of
//! [`Ranks`](crate::ranks::Ranks) are the same for both.

use crate::ranks::call::{Call, CallKind};
use crate::ranks::error::Result;
use crate::ranks::exchange::{ExchangeError, Transfer};
#[cfg(feature = "mpi")]
use crate::ranks::launch::Transport;
use crate::ranks::launch::World;
use crate::ranks::mesh::SocketMesh;
#[cfg(feature = "mpi")]
use crate::ranks::mpi::MpiLink;
use crate::ranks::shared::RankState;

/// The transport of a rank, and the counter that numbers its calls.
#[derive(Debug)]
pub(crate) struct DataLink {
    carrier: Carrier,
    /// The number of calls so far, which is equal on all ranks.
    calls: u64,
}

#[derive(Debug)]
enum Carrier {
    Sockets(SocketMesh),
    #[cfg(feature = "mpi")]
    Mpi(Box<MpiLink>),
}

impl DataLink {
    /// Opens the transport of a job. `mesh` is used if the transport is sockets.
    ///
    /// # Errors
    /// The MPI library reports other ranks than the launcher, or does not support several threads.
    pub fn open(world: &World, mesh: SocketMesh) -> Result<Self> {
        let carrier = match world.transport() {
            #[cfg(feature = "mpi")]
            Transport::Mpi => Carrier::Mpi(Box::new(MpiLink::open(world)?)),
            _ => Carrier::Sockets(mesh),
        };
        Ok(Self { carrier, calls: 0 })
    }

    /// Returns the next call of this kind, with its number.
    pub fn next_call(&mut self, kind: CallKind, name: &str) -> Call {
        self.calls += 1;
        Call::new(kind, name, self.calls - 1)
    }

    /// Runs all transfers of a call at the same time. Returns the data that each transfer has received into a new
    /// buffer.
    pub fn exchange(
        &mut self,
        shared: &RankState,
        call: &Call,
        transfers: Vec<Transfer<'_>>,
    ) -> Result<Vec<Vec<u8>>, ExchangeError> {
        match &mut self.carrier {
            Carrier::Sockets(mesh) => mesh.exchange(shared, call, transfers),
            #[cfg(feature = "mpi")]
            Carrier::Mpi(link) => link.exchange(shared, call, transfers),
        }
    }

    /// Closes this rank's connections. With MPI, returns an action that must run after all ranks have left the job. The
    /// action waits for all ranks.
    pub fn close(self) -> Option<CloseAction> {
        match self.carrier {
            Carrier::Sockets(_) => None,
            #[cfg(feature = "mpi")]
            Carrier::Mpi(link) => Some(Box::new(move || link.finalize())),
        }
    }
}

/// The last action of a rank. It is skipped if the job has failed.
pub(crate) type CloseAction = Box<dyn FnOnce()>;
