//! Exchanges tensors between the ranks of a job: by NCCL if the tensors are in GPU memory, else through host memory
//! and sockets.

use std::cell::RefCell;
use std::fmt::Debug;
use std::rc::Rc;
use std::sync::Arc;

use reel_device::{Device, DeviceRange, NcclCollectives, PendingExchange};
use reel_runtime::Tensor;
use reel_support::ranks::Ranks;

use crate::Result;

/// Exchanges tensors between the ranks of a job. All ranks call the same functions with the same names in the same
/// order. The sender's list of tensors and the receiver's list have the same sizes. In
/// [`TensorExchange::start_all_to_all`] a rank sends nothing to itself: the lists at its own index are empty.
pub trait TensorExchange: Debug + Send {
    /// Starts to send the tensors `send[to]` to rank `to`, and to receive the tensors of rank `from` in
    /// `receive[from]`. Until [`PendingExchange::wait`], launches must neither write the sent tensors nor use the
    /// received ones.
    ///
    /// # Errors
    /// Another rank has failed; a device error.
    fn start_all_to_all(
        &mut self,
        name: &str,
        send: &[Vec<Tensor>],
        receive: &[Vec<Tensor>],
    ) -> Result<PendingExchange>;

    /// Starts to send the tensors `send` to every other rank, and to receive the tensors of rank `from` in
    /// `receive[from]`, as [`TensorExchange::start_all_to_all`] does. The list at the rank's own index may be empty;
    /// otherwise it is also filled.
    ///
    /// # Errors
    /// Another rank has failed; a device error.
    fn start_all_gather(&mut self, name: &str, send: &[Tensor], receive: &[Vec<Tensor>]) -> Result<PendingExchange>;

    /// Waits until all exchanges are done. An exchange that hangs becomes an error that names the exchange.
    ///
    /// # Errors
    /// An exchange has failed or takes too long.
    fn wait_for_all(&self) -> Result<()>;
}

/// The exchange of a rank, which is used for both gradients and weights. All ranks must start their exchanges in the
/// same order.
pub type SharedExchange = Rc<RefCell<Box<dyn TensorExchange>>>;

/// Connects the ranks. All ranks call it together.
///
/// # Errors
/// NCCL is missing, or a rank does not join in time; another rank has failed.
pub fn connect(ranks: &Arc<Ranks>, device: &Device) -> Result<Box<dyn TensorExchange>> {
    if !device.capabilities().own_memory {
        return Ok(Box::new(HostExchange::new(ranks.clone())));
    }
    let (rank, size) = (ranks.rank(), ranks.size());
    let id = if rank == 0 { Some(device.create_nccl_id()?.to_vec()) } else { None };
    let id = ranks.broadcast("id of NCCL", 0, id)?;
    // All ranks must have loaded their models before, because NCCL waits for less time than a rank may take to load
    // its model.
    ranks.barrier("start of NCCL")?;
    let mut bytes = [0; 128];
    bytes.iter_mut().zip(id).for_each(|(to, from)| *to = from);
    Ok(Box::new(NcclExchange(device.join_nccl(rank, size, &bytes, ranks.timeouts().device_exchange)?)))
}

/// Wraps a rank's exchange, so that the exchanges of gradients and of weights can share it.
pub fn share_exchange(exchange: Box<dyn TensorExchange>) -> SharedExchange {
    Rc::new(RefCell::new(exchange))
}

/// Exchanges tensors in the memory of GPUs by NCCL.
#[derive(Debug)]
struct NcclExchange(NcclCollectives);

fn ranges(tensors: &[Tensor]) -> Vec<DeviceRange> {
    tensors.iter().map(Tensor::device_range).collect()
}

fn ranges_of_ranks(of_ranks: &[Vec<Tensor>]) -> Vec<Vec<DeviceRange>> {
    of_ranks.iter().map(|tensors| ranges(tensors)).collect()
}

impl TensorExchange for NcclExchange {
    fn start_all_to_all(
        &mut self,
        name: &str,
        send: &[Vec<Tensor>],
        receive: &[Vec<Tensor>],
    ) -> Result<PendingExchange> {
        Ok(self.0.start_exchange(name, &ranges_of_ranks(send), &ranges_of_ranks(receive))?)
    }

    fn start_all_gather(&mut self, name: &str, send: &[Tensor], receive: &[Vec<Tensor>]) -> Result<PendingExchange> {
        let own = self.0.rank();
        let to = |rank: usize| if rank == own && receive[own].is_empty() { Vec::new() } else { ranges(send) };
        let send: Vec<Vec<DeviceRange>> = (0..self.0.size()).map(to).collect();
        Ok(self.0.start_exchange(name, &send, &ranges_of_ranks(receive))?)
    }

    fn wait_for_all(&self) -> Result<()> {
        Ok(self.0.wait_for_all()?)
    }
}

/// Exchanges tensors through host memory and the sockets of [`Ranks`].
#[derive(Debug)]
struct HostExchange {
    ranks: Arc<Ranks>,
    /// The bytes for each rank and from each rank. The buffers keep their memory between calls.
    sent: Vec<Vec<u8>>,
    received: Vec<Vec<u8>>,
}

impl HostExchange {
    fn new(ranks: Arc<Ranks>) -> Self {
        let buffers = || vec![Vec::new(); ranks.size()];
        Self { sent: buffers(), received: buffers(), ranks }
    }

    /// Sends the bytes `sent[of(to)]` to each other rank `to`, and writes the received bytes to the tensors `receive`.
    fn exchange(&mut self, name: &str, of: impl Fn(usize) -> usize, receive: &[Vec<Tensor>]) -> Result<()> {
        for (buffer, tensors) in self.received.iter_mut().zip(receive) {
            buffer.resize(tensors.iter().map(|t| t.bytes()).sum(), 0);
        }
        let here = self.ranks.rank();
        let sent: Vec<&[u8]> = (0..self.ranks.size())
            .map(|to| if receive[to].is_empty() && to == here { &[][..] } else { &self.sent[of(to)] })
            .collect();
        let mut received: Vec<&mut [u8]> = self.received.iter_mut().map(Vec::as_mut_slice).collect();
        self.ranks.all_to_all_into(name, &sent, &mut received)?;
        for (buffer, tensors) in self.received.iter().zip(receive) {
            let mut rest = &buffer[..];
            for tensor in tensors {
                let (bytes, others) = rest.split_at(tensor.bytes());
                tensor.write(bytes)?;
                rest = others;
            }
        }
        Ok(())
    }
}

impl TensorExchange for HostExchange {
    fn start_all_to_all(
        &mut self,
        name: &str,
        send: &[Vec<Tensor>],
        receive: &[Vec<Tensor>],
    ) -> Result<PendingExchange> {
        for (buffer, tensors) in self.sent.iter_mut().zip(send) {
            read_into(tensors, buffer)?;
        }
        self.exchange(name, |to| to, receive)?;
        Ok(PendingExchange::done())
    }

    fn start_all_gather(&mut self, name: &str, send: &[Tensor], receive: &[Vec<Tensor>]) -> Result<PendingExchange> {
        let here = self.ranks.rank();
        read_into(send, &mut self.sent[here])?;
        self.exchange(name, |_| here, receive)?;
        Ok(PendingExchange::done())
    }

    fn wait_for_all(&self) -> Result<()> {
        Ok(())
    }
}

/// Replaces the contents of `buffer` by the bytes of `tensors`.
fn read_into(tensors: &[Tensor], buffer: &mut Vec<u8>) -> Result<()> {
    buffer.resize(tensors.iter().map(|t| t.bytes()).sum(), 0);
    let mut rest = &mut buffer[..];
    for tensor in tensors {
        let (bytes, others) = rest.split_at_mut(tensor.bytes());
        tensor.read_bytes_into(bytes)?;
        rest = others;
    }
    Ok(())
}
