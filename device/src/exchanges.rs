//! The trait for a device's exchanges of memory with other ranks ([`ExchangeBackend`]), and their progress.
#![allow(unsafe_code)]

use crate::error::Result;

/// The number of exchanges between ranks that a rank has started and finished. Exchanges are numbered from 1 on, with
/// the same number on all ranks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExchangeStatus {
    /// The number of exchanges that the rank has started.
    pub started: u64,
    /// The number of exchanges that are known to be done on this rank.
    pub finished: u64,
    /// The name of the oldest unfinished exchange.
    pub unfinished: Option<String>,
}

impl ExchangeStatus {
    /// Returns the ranks for which other ranks wait. These are the ranks that have not started exchange N, where N is
    /// the oldest exchange that some rank has started and not finished. `of_ranks` has the status of each rank. If
    /// all ranks have started this exchange, the result is empty: then a GPU is still computing, or the network is at
    /// fault.
    pub fn missing_ranks(of_ranks: &[ExchangeStatus]) -> Vec<usize> {
        let waiting = of_ranks.iter().filter(|status| status.started > status.finished);
        let Some(oldest) = waiting.map(|status| status.finished + 1).min() else { return Vec::new() };
        of_ranks.iter().enumerate().filter(|(_, status)| status.started < oldest).map(|(rank, _)| rank).collect()
    }
}

/// A range of device memory by its address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct AddressRange {
    pub addr: u64,
    pub bytes: usize,
}

/// A device's exchanges of memory with other ranks. `Collectives` documents these calls.
pub(crate) trait ExchangeBackend: Send + Sync {
    fn rank(&self) -> usize;
    fn size(&self) -> usize;
    /// Starts an exchange and returns its ticket.
    ///
    /// # Safety
    /// The ranges are memory of the device that stays allocated until [`ExchangeBackend::wait`].
    unsafe fn start_exchange(
        &self,
        name: &str,
        send: &[Vec<AddressRange>],
        receive: &[Vec<AddressRange>],
    ) -> Result<u64>;
    /// Makes later launches run after the exchange with this ticket.
    fn wait(&self, ticket: u64) -> Result<()>;
    fn wait_for_all(&self) -> Result<()>;
    fn check(&self) -> Result<()>;
    fn status(&self) -> ExchangeStatus;
}
