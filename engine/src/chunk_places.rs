//! The places of the tokens of a forward pass over chunks of prompts in the rows that are kept.

use std::ops::Range;

use reel_device::Device;
use reel_model::text::products::RowPlaces;

use crate::error::Result;
use crate::prefill::PrefillJob;
use crate::scheduler::Scheduler;
use crate::sequence::SequenceState;

/// The places of the rows of a forward pass over chunks of prompts.
#[derive(Debug, Default)]
pub(crate) struct ChunkPlaces {
    tokens: Vec<(usize, usize)>,
    needed: Vec<(usize, usize)>,
}

impl ChunkPlaces {
    /// Adds a chunk with the tokens `range` of a job, the first of which is token `at` of the pass. If the hidden state
    /// of the last one is needed, it is row `needed` of those that are. A job after a preemption has kept its rows
    /// before.
    pub(crate) fn add_chunk(
        &mut self,
        (job, sequence): (&PrefillJob, &SequenceState),
        range: Range<usize>,
        (at, needed): (usize, Option<usize>),
        scheduler: &Scheduler,
    ) {
        let Some(kept) = sequence.request.kept.filter(|_| sequence.generated() == 0) else { return };
        let prompt = kept.prompt();
        for (token, at) in range.zip(at..) {
            if token < prompt.len() {
                self.tokens.push((at, prompt.start + token));
                continue;
            }
            let indices = job.keys.iter().filter_map(|&key| Some(scheduler.sequence(key)?.index()));
            for row in indices.map(|index| kept.completion(index, 0).start) {
                self.tokens.push((at, row));
                self.needed.extend(needed.map(|needed| (needed, row)));
            }
        }
    }

    /// The places of all tokens and of the needed ones, on the device.
    pub(crate) fn on_device(&self, device: &Device) -> Result<[RowPlaces; 2]> {
        Ok([RowPlaces::of_pairs(device, &self.tokens)?, RowPlaces::of_pairs(device, &self.needed)?])
    }
}
