//! Exchanges tensors between the ranks of a job.

use std::fmt::Debug;
use std::sync::Arc;

use reel_ranks::Ranks;
use reel_runtime::Tensor;

use crate::Result;

/// Exchanges tensors between the ranks of a job. All ranks call the same functions with the same names in the same
/// order. What one rank sends to another has as many bytes as that one receives from it.
pub trait Exchange: Debug {
    /// Sends the tensors `send[to]` to rank `to`, and fills the tensors `receive[from]` with those that rank `from` sends.
    /// Nothing is exchanged with the rank itself: its own lists are empty.
    ///
    /// # Errors
    /// Another rank has failed; a device error.
    fn all_to_all(&mut self, name: &str, send: &[Vec<Tensor>], receive: &[Vec<Tensor>]) -> Result<()>;

    /// Sends the tensors `send` to every other rank, and fills the tensors `receive[from]` with those that rank `from`
    /// sends. The rank's own list in `receive` is empty.
    ///
    /// # Errors
    /// Another rank has failed; a device error.
    fn all_gather(&mut self, name: &str, send: &[Tensor], receive: &[Vec<Tensor>]) -> Result<()>;
}

/// Exchanges tensors through host memory and the sockets of [`Ranks`].
#[derive(Debug)]
pub struct HostExchange {
    ranks: Arc<Ranks>,
    /// The bytes for and from each rank. The buffers keep their memory between calls.
    sent: Vec<Vec<u8>>,
    received: Vec<Vec<u8>>,
}

impl HostExchange {
    /// Exchanges between these ranks.
    pub fn new(ranks: Arc<Ranks>) -> Self {
        let buffers = || vec![Vec::new(); ranks.size()];
        Self { sent: buffers(), received: buffers(), ranks }
    }

    /// Exchanges `sent[of(to)]` for each rank `to`.
    fn exchange(&mut self, name: &str, of: impl Fn(usize) -> usize, receive: &[Vec<Tensor>]) -> Result<()> {
        for (buffer, tensors) in self.received.iter_mut().zip(receive) {
            buffer.resize(tensors.iter().map(|t| t.bytes()).sum(), 0);
        }
        let here = self.ranks.rank();
        let sent: Vec<&[u8]> =
            (0..self.ranks.size()).map(|to| if to == here { &[][..] } else { &self.sent[of(to)] }).collect();
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

impl Exchange for HostExchange {
    fn all_to_all(&mut self, name: &str, send: &[Vec<Tensor>], receive: &[Vec<Tensor>]) -> Result<()> {
        for (buffer, tensors) in self.sent.iter_mut().zip(send) {
            read_into(tensors, buffer)?;
        }
        self.exchange(name, |to| to, receive)
    }

    fn all_gather(&mut self, name: &str, send: &[Tensor], receive: &[Vec<Tensor>]) -> Result<()> {
        let here = self.ranks.rank();
        read_into(send, &mut self.sent[here])?;
        self.exchange(name, |_| here, receive)
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
