//! Exchanges of memory with other ranks as a device implements them, by address ([`Exchanges`]), and their progress.
#![allow(unsafe_code)]

use crate::error::Result;

/// How many exchanges between ranks a rank has started and finished. Each exchange has a number, which is the same on
/// all ranks: 1 for the first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExchangeStatus {
    /// The number of exchanges that the rank has started.
    pub started: u64,
    /// The number of exchanges that the rank knows to be done.
    pub finished: u64,
    /// The name of the oldest exchange that is not done.
    pub unfinished: Option<String>,
}

impl ExchangeStatus {
    /// Returns the ranks that other ranks wait for: the ranks that have not started the oldest exchange that another
    /// rank has started and not finished. `of_ranks` has the status of each rank. If all ranks have started this
    /// exchange, the result is empty: a GPU still computes, or the network is at fault.
    pub fn missing_ranks(of_ranks: &[ExchangeStatus]) -> Vec<usize> {
        let waiting = of_ranks.iter().filter(|status| status.started > status.finished);
        let Some(oldest) = waiting.map(|status| status.finished + 1).min() else { return Vec::new() };
        of_ranks.iter().enumerate().filter(|(_, status)| status.started < oldest).map(|(rank, _)| rank).collect()
    }
}

/// A range of device memory by its address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DeviceSpan {
    pub addr: u64,
    pub bytes: usize,
}

/// A device's exchanges of memory with other ranks. See `Collectives` for what the calls do.
pub(crate) trait Exchanges: Send + Sync {
    fn rank(&self) -> usize;
    fn size(&self) -> usize;
    /// Starts an exchange and returns its ticket.
    ///
    /// # Safety
    /// The ranges are memory of the device that stays allocated until [`Exchanges::wait`].
    unsafe fn start(&self, name: &str, send: &[Vec<DeviceSpan>], receive: &[Vec<DeviceSpan>]) -> Result<u64>;
    /// Makes later launches run after the exchange.
    fn wait(&self, ticket: u64) -> Result<()>;
    fn wait_for_all(&self) -> Result<()>;
    fn check(&self) -> Result<()>;
    fn status(&self) -> ExchangeStatus;
}
