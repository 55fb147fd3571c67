//! Counts the launches that may run at the same time as sends and receives on another stream.

use super::Op;

#[derive(Default)]
pub(super) struct OverlapCounter {
    /// The sends and receives for which no stream and no host waits yet: the index of their stream, and the first
    /// recording of an event after them.
    transfers: Vec<(usize, Option<u64>)>,
    /// The number of launches and matrix products that were enqueued while another stream had entries in `transfers`.
    pub launches: u64,
}

impl OverlapCounter {
    /// Counts an operation that is enqueued on a stream.
    pub fn count_operation(&mut self, stream: usize, op: &Op) {
        match *op {
            Op::Transfer(_) => self.transfers.push((stream, None)),
            Op::Record(ticket) => {
                let mine = self.transfers.iter_mut().filter(|(of, done)| *of == stream && done.is_none());
                mine.for_each(|(_, done)| *done = Some(ticket));
            }
            Op::Wait(ticket) => self.end_transfers_before(ticket),
            Op::Launch(_) | Op::Product(_) if self.transfers.iter().any(|(of, _)| *of != stream) => self.launches += 1,
            _ => {}
        }
    }

    /// Records that the host or a stream has waited for this recording of an event: later launches run after the
    /// sends and receives that precede the recording.
    pub fn end_transfers_before(&mut self, ticket: u64) {
        self.transfers.retain(|(_, done)| *done != Some(ticket));
    }
}
