//! Exchanges of device memory between the ranks of a job, by NCCL ([`NcclCollectives`]).
//!
//! ```text
//! let exchange = ranks.start_exchange("gradients", &send, &receive)?;   runs beside the next launches
//! device.launch(...)                                                   neither writes `send` nor uses `receive`
//! exchange.wait()?;                                                    later launches see what was received
//! ```
#![allow(unsafe_code)]

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::{Buffer, Device};
use crate::cuda::{Communicator, Cuda, device_error};
use crate::error::{DeviceError, Result};
use crate::exchanges::{AddressRange, ExchangeStatus};

/// A range of device memory that a rank sends or receives. The value keeps the memory allocated.
#[derive(Clone, Debug)]
pub struct DeviceRange {
    buffer: Arc<Buffer>,
    offset: usize,
    bytes: usize,
}

impl DeviceRange {
    /// The bytes `offset .. offset + bytes` of a buffer.
    ///
    /// # Panics
    /// The range is beyond the buffer's end.
    pub fn new(buffer: &Arc<Buffer>, offset: usize, bytes: usize) -> DeviceRange {
        let is_inside = offset.checked_add(bytes).is_some_and(|end| end <= buffer.bytes());
        assert!(is_inside, "{bytes} bytes at offset {offset} are not in {buffer:?}");
        DeviceRange { buffer: buffer.clone(), offset, bytes }
    }

    /// The device address of the first byte.
    pub fn addr(&self) -> u64 {
        self.buffer.addr() + self.offset as u64
    }

    /// The size of the range in bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    fn span(&self) -> AddressRange {
        AddressRange { addr: self.addr(), bytes: self.bytes }
    }
}

/// An exchange that may be in progress. Dropping it calls [`PendingExchange::wait`] and ignores the error.
#[must_use = "launches after the exchange need `wait`"]
pub struct PendingExchange(Option<Box<dyn FnOnce() -> Result<()> + Send>>);

impl PendingExchange {
    /// Returns an exchange that has already completed.
    pub fn done() -> PendingExchange {
        PendingExchange(None)
    }

    /// Creates a pending exchange. [`PendingExchange::wait`] calls the function `wait`, which makes later launches
    /// run after the exchange and owns the exchanged ranges.
    pub fn new(wait: impl FnOnce() -> Result<()> + Send + 'static) -> PendingExchange {
        PendingExchange(Some(Box::new(wait)))
    }

    /// Makes the launches after this call run after the exchange, and releases the exchanged ranges. Does not block
    /// the host.
    ///
    /// # Errors
    /// An exchange has failed.
    pub fn wait(mut self) -> Result<()> {
        self.0.take().map_or(Ok(()), |wait| wait())
    }
}

impl fmt::Debug for PendingExchange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "a pending exchange" } else { "an exchange that is done" })
    }
}

impl Drop for PendingExchange {
    fn drop(&mut self) {
        if let Some(wait) = self.0.take() {
            // The communicator keeps the error, so the next call of `NcclCollectives` returns it.
            let _ = wait();
        }
    }
}

/// Exchanges of device memory between the ranks of a job, by NCCL. All ranks make the same calls in the same order.
///
/// The first exchange between two ranks connects them. During this exchange, the host may wait until both ranks have
/// started it. Dropping the value ends this rank's membership. All ranks must drop it at about the same time: the drop
/// waits up to 10 s for the other ranks, and a rank that exchanges after that gets an error.
pub struct NcclCollectives {
    // Dropped before the device, because exchanges use the device's stream.
    exchanges: Arc<Communicator>,
    device: Device,
}

impl Device {
    /// Creates an id for a group of ranks. Rank 0 creates the id and sends it to the other ranks. Each rank may use
    /// an id for only one call of [`Device::join_nccl`].
    ///
    /// # Errors
    /// The device is not a GPU, or NCCL is missing, too old or fails.
    pub fn create_nccl_id(&self) -> Result<[u8; 128]> {
        self.gpu_for_exchanges()?.exchange_id()
    }

    /// Joins the group of `size` ranks that exchange memory under this id, as rank `rank`. Returns when all ranks
    /// have joined. Each rank must have its own GPU. Joining fails after `time_limit`. Exchanges fail if one is in
    /// flight and none completes for `time_limit`.
    ///
    /// # Errors
    /// The device is not a GPU; NCCL is missing, too old or fails; a rank does not join in time.
    ///
    /// # Panics
    /// `rank` is not less than `size`.
    pub fn join_nccl(&self, rank: usize, size: usize, id: &[u8; 128], time_limit: Duration) -> Result<NcclCollectives> {
        assert!(rank < size, "rank {rank} of {size}");
        let exchanges = Arc::new(self.gpu_for_exchanges()?.join_exchanges(rank, size, id, time_limit)?);
        Ok(NcclCollectives { exchanges, device: self.clone() })
    }

    fn gpu_for_exchanges(&self) -> Result<&Cuda> {
        self.0.gpu.as_deref().ok_or_else(|| {
            let device = self.name();
            DeviceError::Failed(format!(
                "NCCL: moves memory between GPUs, but device {device} is not a GPU; use --device cuda"
            ))
        })
    }
}

impl fmt::Debug for NcclCollectives {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rank {} of {} by NCCL", self.rank(), self.size())
    }
}

impl NcclCollectives {
    /// The number of this rank, from 0 on.
    pub fn rank(&self) -> usize {
        self.exchanges.rank()
    }

    /// The number of ranks.
    pub fn size(&self) -> usize {
        self.exchanges.size()
    }

    /// Starts an exchange with all ranks, this one included: sends the ranges `send[to]` to rank `to`, and writes the
    /// data from rank `from` to the ranges `receive[from]`. The k-th non-empty range of `send[to]` is received in the
    /// k-th non-empty range of rank `to`'s list `receive` for this rank. The two ranges have the same size. Ranges that
    /// are sent may overlap. `name` appears in messages.
    ///
    /// The exchange sends the values that launches before this call have written. It may run concurrently with the
    /// launches between this call and [`PendingExchange::wait`]. These launches must neither write the sent ranges
    /// nor use the received ranges.
    ///
    /// # Errors
    /// A received range overlaps another range (except that a rank may receive its own ranges in place); an exchange
    /// has failed before; the device is capturing a graph.
    pub fn start_exchange(
        &self,
        name: &str,
        send: &[Vec<DeviceRange>],
        receive: &[Vec<DeviceRange>],
    ) -> Result<PendingExchange> {
        self.device.check_not_capturing("an exchange between ranks")?;
        if let Some(why) = self.invalid_buffer(send, receive) {
            return Err(DeviceError::Failed(format!("exchange '{name}': {why}")));
        }
        let spans = |of_ranks: &[Vec<DeviceRange>]| {
            of_ranks.iter().map(|ranges| ranges.iter().map(DeviceRange::span).collect()).collect::<Vec<_>>()
        };
        // SAFETY: the pending exchange owns the ranges, which keep their buffers allocated.
        let ticket =
            unsafe { self.exchanges.start_exchange(name, &spans(send), &spans(receive)) }.map_err(device_error)?;
        let (exchanges, device) = (self.exchanges.clone(), self.device.clone());
        let ranges: Vec<DeviceRange> = send.iter().chain(receive).flatten().cloned().collect();
        Ok(PendingExchange::new(move || {
            let waited = exchanges.wait(ticket).map_err(device_error);
            // The ranges are dropped after the wait, because their memory may be reused from then on. The device is
            // dropped last.
            drop((ranges, exchanges, device));
            waited
        }))
    }

    /// Exchanges ranges in the order of the launches: calls [`NcclCollectives::start_exchange`] and
    /// [`PendingExchange::wait`].
    ///
    /// # Errors
    /// The errors of [`NcclCollectives::start_exchange`].
    pub fn exchange(&self, name: &str, send: &[Vec<DeviceRange>], receive: &[Vec<DeviceRange>]) -> Result<()> {
        self.start_exchange(name, send, receive)?.wait()
    }

    /// Waits until all exchanges so far are done on this rank. Call this function before the host waits for the
    /// device in another way, because such a wait never ends if another rank has ended.
    ///
    /// # Errors
    /// The errors of [`NcclCollectives::check`].
    pub fn wait_for_all(&self) -> Result<()> {
        self.exchanges.wait_for_all().map_err(device_error)
    }

    /// Checks the exchanges without waiting, so a watchdog thread may call this function once a second.
    ///
    /// # Errors
    /// An exchange has failed, a rank has ended, or an exchange has taken longer than the time limit. The message
    /// names the exchange. All later calls return the same error.
    pub fn check(&self) -> Result<()> {
        self.exchanges.check().map_err(device_error)
    }

    /// Returns the number of exchanges that this rank has started and finished. From the numbers of all ranks,
    /// [`ExchangeStatus::missing_ranks`] computes which ranks the others wait for.
    pub fn status(&self) -> ExchangeStatus {
        self.exchanges.status()
    }

    /// Returns why these ranges cannot be exchanged; `None` if they can.
    fn invalid_buffer(&self, send: &[Vec<DeviceRange>], receive: &[Vec<DeviceRange>]) -> Option<String> {
        let buffers = |of_ranks: &[Vec<DeviceRange>]| {
            let ranges = of_ranks.iter().flatten().filter(|range| range.bytes > 0);
            ranges.map(|range| range.buffer.clone()).collect::<Vec<_>>()
        };
        let (sent, received) = (buffers(send), buffers(receive));
        let is_foreign = |buffer: &&Arc<Buffer>| !Arc::ptr_eq(&buffer.device().0, &self.device.0);
        if let Some(foreign) = sent.iter().chain(&received).find(is_foreign) {
            return Some(format!("{foreign:?} belong to another device"));
        }
        received.iter().find(|buffer| !buffer.is_writable()).map(|buffer| format!("{buffer:?} cannot be written"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(started: u64, finished: u64) -> ExchangeStatus {
        ExchangeStatus { started, finished, unfinished: (started > finished).then(|| "weights".into()) }
    }

    #[test]
    fn ranks_that_have_not_started_an_unfinished_exchange_are_missing() {
        let missing = |of_ranks: &[(u64, u64)]| {
            let of_ranks: Vec<_> = of_ranks.iter().map(|(started, finished)| status(*started, *finished)).collect();
            ExchangeStatus::missing_ranks(&of_ranks)
        };
        assert_eq!(missing(&[(42, 41), (41, 41), (43, 41), (40, 40)]), [1, 3]);
        assert_eq!(missing(&[(42, 41), (42, 41)]), [0; 0]);
        assert_eq!(missing(&[(42, 42), (41, 41)]), [0; 0]);
        // Rank 1 has finished fewer exchanges than rank 2, and both wait for rank 3.
        assert_eq!(missing(&[(7, 6), (6, 4), (6, 5), (4, 4)]), [3]);
    }

    #[test]
    fn devices_without_nccl_say_so() {
        let device = Device::cpu(1);
        let e = device.join_nccl(0, 1, &[0; 128], Duration::ZERO).unwrap_err().to_string();
        assert_eq!(e, "NCCL: moves memory between GPUs, but device cpu is not a GPU; use --device cuda");
        assert_eq!(device.create_nccl_id().unwrap_err().to_string(), e);
    }
}
