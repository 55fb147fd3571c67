//! The gradient of a step whose micro-batches are computed by several processes (ranks).
//!
//! Micro-batch i of a step, counted from 0, belongs to rank `i mod N`. N micro-batches make a round. After a round, every
//! rank sends each part of its gradient to the rank that owns the part, and the owner adds the parts in the order of
//! their micro-batches:
//!
//! ```text
//! rank 0   g0 ─┐ all to all        part 0: sum = ((g0 + g1) + g2) + g3 …
//! rank 1   g1 ─┤ ───────────>      part 1: the same sums of other elements
//! rank 2   g2 ─┘ after a round     part 2
//! ```
//!
//! After the last round every rank gets all parts. The sum has the bits that one process computes, because that adds
//! whole gradients of micro-batches in the same order ([`reel_runtime::Grads`]); so the trained weights do not depend on
//! the number of ranks.
//!
//! Bytes that a rank sends and receives in a step of R rounds, for a gradient of G bytes: `R · G · (N - 1) / N` for the
//! sums (those of a reduce-scatter in each round), and `G · (N - 1) / N` for their distribution.

use std::ops::Range;
use std::sync::Arc;

use reel_ranks::Ranks;
use reel_runtime::optim::AdamW;
use reel_runtime::{Grads, Tensor};

use crate::Result;

/// Elements of a chunk. Chunk c belongs to rank `c mod N`.
const CHUNK: usize = 1 << 20;

/// Where the gradient of a parameter is among all gradients, one after the other in the order of the parameters' names.
#[derive(Debug)]
struct Part {
    name: String,
    range: Range<usize>,
}

/// The sum of the gradients of a step's micro-batches, of which this rank has the chunks that it owns.
#[derive(Debug)]
pub struct GradientSum {
    ranks: Arc<Ranks>,
    parts: Vec<Part>,
    /// Elements of all gradients.
    total: usize,
    /// The sums of the owned chunks, one after the other.
    sums: Vec<f32>,
    /// For each parameter, whether a micro-batch of this step had a gradient.
    reached: Vec<bool>,
    /// Buffers of one chunk for each rank: those that this rank sends, and those that it receives.
    sent: Vec<Vec<f32>>,
    received: Vec<Vec<f32>>,
}

impl GradientSum {
    /// The sum for the parameters of an optimizer.
    pub fn new(ranks: Arc<Ranks>, optimizer: &AdamW) -> Self {
        let mut total = 0;
        let part = |(name, parameter, _): (&str, &Tensor, _)| {
            let range = total..total + parameter.count();
            total = range.end;
            Part { name: name.to_string(), range }
        };
        let parts: Vec<Part> = optimizer.parameter_states().map(part).collect();
        let owned = chunks(total).skip(ranks.rank()).step_by(ranks.size()).map(|chunk| chunk.len()).sum();
        let buffers = || vec![vec![0.0; CHUNK.min(total)]; ranks.size()];
        Self {
            reached: vec![false; parts.len()],
            sums: vec![0.0; owned],
            sent: buffers(),
            received: buffers(),
            parts,
            total,
            ranks,
        }
    }

    /// The ranks that compute the micro-batches.
    pub fn ranks(&self) -> &Ranks {
        &self.ranks
    }

    /// Whether this rank computes micro-batch `index` of a step.
    pub fn computes_micro_batch(&self, index: usize) -> bool {
        index % self.ranks.size() == self.ranks.rank()
    }

    /// Begins a step: no micro-batch has been added.
    pub fn clear(&mut self) {
        self.reached.fill(false);
    }

    /// Adds the gradients of a round to the sums. The first `micro_batches` ranks have computed one each; `own` has that
    /// of this rank. All ranks call it together.
    ///
    /// # Errors
    /// Another rank has failed; the device fails.
    pub fn add_round(&mut self, own: &Grads, micro_batches: usize) -> Result<()> {
        let (rank, size) = (self.ranks.rank(), self.ranks.size());
        let has_own = rank < micro_batches;
        let flags: Vec<u8> = self.parts.iter().map(|part| u8::from(has_own && own.get(&part.name).is_some())).collect();
        let flags = self.ranks.all_gather("parameters with a gradient", &flags)?;
        let mut owned = 0;
        let all: Vec<Range<usize>> = chunks(self.total).collect();
        for group in all.chunks(size) {
            for (buffer, chunk) in self.sent.iter_mut().zip(group).filter(|_| has_own) {
                read_chunk(&self.parts, own, chunk, &mut buffer[..chunk.len()])?;
            }
            let none: &[f32] = &[];
            let sent =
                (0..size).map(|to| group.get(to).filter(|_| has_own).map_or(none, |c| &self.sent[to][..c.len()]));
            let sent: Vec<&[u8]> = sent.map(bytemuck::cast_slice).collect();
            let mine = group.get(rank).cloned().unwrap_or(0..0);
            let expected = |from: usize| if from < micro_batches { mine.len() } else { 0 };
            let received = self.received.iter_mut().enumerate().map(|(from, buffer)| &mut buffer[..expected(from)]);
            let mut received: Vec<&mut [u8]> = received.map(bytemuck::cast_slice_mut).collect();
            self.ranks.all_to_all_into("gradients", &sent, &mut received)?;
            let sums = &mut self.sums[owned..owned + mine.len()];
            owned += mine.len();
            for (index, part) in self.parts.iter().enumerate() {
                let Some((at, _)) = overlap(part, &mine) else { continue };
                let mut has_sum = self.reached[index];
                for from in (0..micro_batches).filter(|&from| flags[from][index] != 0) {
                    let gradient = &self.received[from][at.clone()];
                    match has_sum {
                        true => sums[at.clone()].iter_mut().zip(gradient).for_each(|(sum, next)| *sum += next),
                        false => sums[at.clone()].copy_from_slice(gradient),
                    }
                    has_sum = true;
                }
            }
        }
        for (index, reached) in self.reached.iter_mut().enumerate() {
            *reached |= flags.iter().any(|flags| flags[index] != 0);
        }
        Ok(())
    }

    /// Replaces the gradients in `grads` by the sums of the step. All ranks call it together.
    ///
    /// # Errors
    /// Another rank has failed; the device fails.
    pub fn write_to(&self, grads: &mut Grads) -> Result<()> {
        grads.clear();
        let mut owned = 0;
        let all: Vec<Range<usize>> = chunks(self.total).collect();
        for group in all.chunks(self.ranks.size()) {
            let own = group.get(self.ranks.rank()).map_or(0, Range::len);
            let sums = &self.sums[owned..owned + own];
            owned += own;
            let gathered = self.ranks.all_gather("sums of gradients", bytemuck::cast_slice(sums))?;
            for (chunk, bytes) in group.iter().zip(&gathered) {
                self.write_chunk(grads, chunk, &bytemuck::pod_collect_to_vec(bytes))?;
            }
        }
        let reached = self.parts.iter().zip(&self.reached).filter(|(_, reached)| **reached);
        reached.for_each(|(part, _)| grads.mark_as_reached(&part.name));
        Ok(())
    }

    fn write_chunk(&self, grads: &Grads, chunk: &Range<usize>, sums: &[f32]) -> Result<()> {
        for (part, _) in self.parts.iter().zip(&self.reached).filter(|(_, reached)| **reached) {
            let Some((at, from)) = overlap(part, chunk) else { continue };
            let buffer = grads.buffer_of(&part.name);
            buffer.map_or(Ok(()), |buffer| buffer.write_elements(from, &sums[at]))?;
        }
        Ok(())
    }
}

/// The chunks of `total` elements.
fn chunks(total: usize) -> impl Iterator<Item = Range<usize>> {
    (0..total).step_by(CHUNK).map(move |start| start..(start + CHUNK).min(total))
}

/// The elements of a chunk that belong to a parameter, and the index of the first of them in the parameter.
fn overlap(part: &Part, chunk: &Range<usize>) -> Option<(Range<usize>, usize)> {
    let (start, end) = (part.range.start.max(chunk.start), part.range.end.min(chunk.end));
    (start < end).then(|| (start - chunk.start..end - chunk.start, start - part.range.start))
}

/// Copies the gradients of a chunk to `to`. Elements of parameters without a gradient keep their values.
fn read_chunk(parts: &[Part], grads: &Grads, chunk: &Range<usize>, to: &mut [f32]) -> Result<()> {
    for part in parts {
        if let Some((at, from)) = overlap(part, chunk)
            && let Some(gradient) = grads.get(&part.name)
        {
            gradient.read_elements(from, &mut to[at])?;
        }
    }
    Ok(())
}
