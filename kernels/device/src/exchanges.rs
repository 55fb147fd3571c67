//! The memory ranges and the progress of exchanges between ranks.

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
