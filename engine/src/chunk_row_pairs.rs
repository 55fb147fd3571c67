//! Finds the rows of `StoredOutputs` in which a forward pass over chunks of prompts stores the outputs for its tokens.

use std::ops::Range;

use reel_device::Device;
use reel_model::text::products::RowDestinations;

use crate::error::Result;
use crate::prefill::PrefillJob;
use crate::scheduler::Scheduler;
use crate::sequence::SequenceState;

/// Pairs of a row of a forward pass over chunks of prompts and the row of `StoredOutputs` that stores its outputs.
#[derive(Debug, Default)]
pub(crate) struct ChunkRowPairs {
    tokens: Vec<(usize, usize)>,
    needed: Vec<(usize, usize)>,
}

impl ChunkRowPairs {
    /// Adds a chunk: the tokens `range` of a prefill job. In the forward pass, the chunk begins at token `at`. If the
    /// hidden state of the chunk's last token is needed, `needed` is its row among the needed hidden states. A job of
    /// a preempted sequence is skipped, because its outputs were stored before the preemption.
    pub(crate) fn add_chunk(
        &mut self,
        (job, sequence): (&PrefillJob, &SequenceState),
        range: Range<usize>,
        (at, needed): (usize, Option<usize>),
        scheduler: &Scheduler,
    ) {
        let Some(kept) = sequence.request.kept.filter(|_| sequence.generated_token_count() == 0) else { return };
        let prompt = kept.prompt_rows();
        for (token, at) in range.zip(at..) {
            if token < prompt.len() {
                self.tokens.push((at, prompt.start + token));
                continue;
            }
            let indices = job.keys.iter().filter_map(|&key| Some(scheduler.sequence(key)?.completion_index()));
            for row in indices.map(|index| kept.completion_rows(index, 0).start) {
                self.tokens.push((at, row));
                self.needed.extend(needed.map(|needed| (needed, row)));
            }
        }
    }

    /// Copies the row pairs to the device: one list for all tokens, and one for the tokens whose hidden states are
    /// needed.
    pub(crate) fn copy_to_device(&self, device: &Device) -> Result<[RowDestinations; 2]> {
        Ok([RowDestinations::from_pairs(device, &self.tokens)?, RowDestinations::from_pairs(device, &self.needed)?])
    }
}
