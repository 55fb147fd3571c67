//! Keeps the outputs of the policy's matrix products during a rollout, so that the training step on this rollout does
//! not have to compute them again.
//!
//! On device `cpu`, the policy's forward pass in a training step computes the same products as the preceding rollout,
//! with the same bits, because weights and tokens are the same. If the outputs fit into memory, the rollout keeps them
//! ([`RolloutOutputStore::allocate_for_requests`]) and the forward pass reuses them
//! ([`StoredRolloutOutputs::outputs_of_micro_batch`]).

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, OnceLock};

use reel_device::{DType, Device};
use reel_engine::{GenerationRequest, StoredRequestRows};
use reel_input::config::TextConfig;
use reel_model::text::products::{MatmulGrouping, ReusedOutputs, StoredOutputs};
use reel_runtime::Cx;

use super::group::RolloutGroup;
use crate::Result;
use crate::options::GrpoOptions;
use crate::step::trainer::Trainer;

/// Decides whether the outputs of a rollout's matrix products are kept, and allocates memory for them.
#[derive(Debug)]
pub struct RolloutOutputStore {
    device: Device,
    config: TextConfig,
    grouping: MatmulGrouping,
    dtype: DType,
    /// Number of processes of the run on this machine, which share its memory.
    processes: u64,
    /// Maximum number of bytes for the outputs of one rollout: a quarter of the memory that is free at the first
    /// rollout, divided by the number of processes on the machine.
    limit: OnceLock<u64>,
}

/// The kept outputs of a rollout's matrix products.
#[derive(Debug)]
pub struct StoredRolloutOutputs {
    /// The memory with the kept outputs of all groups.
    pub products: Arc<StoredOutputs>,
    /// The rows of `products` that each group uses, by the index of its prompt among all prompts of the rollout.
    /// Prompts that another process samples have no rows.
    groups: BTreeMap<usize, GroupRows>,
}

/// The rows for the tokens of a prompt (without its last token) and of each of its completions.
#[derive(Clone, Debug, PartialEq, Eq)]
struct GroupRows {
    prompt: Range<usize>,
    completions: Vec<Range<usize>>,
}

impl GroupRows {
    /// Returns the rows that sampling fills if no completion ends early.
    fn of_request(rows: &StoredRequestRows, completions: usize, max_new_tokens: usize) -> GroupRows {
        let completions = (0..completions).map(|index| rows.completion_rows(index, max_new_tokens)).collect();
        GroupRows { prompt: rows.prompt_rows(), completions }
    }

    /// Returns the used rows: those of the prompt, and those of the first `lengths[i]` tokens of each completion i.
    fn used_rows(&self, lengths: &[usize]) -> impl Iterator<Item = usize> {
        let of_completions = self.completions.iter().zip(lengths).flat_map(|(rows, n)| rows.start..rows.start + n);
        self.prompt.clone().chain(of_completions)
    }

    /// Returns consecutive rows from `first` on, as many as [`Self::used_rows`] returns.
    fn moved_to(&self, first: usize, lengths: &[usize]) -> GroupRows {
        let prompt = first..first + self.prompt.len();
        let mut end = prompt.end;
        let completions = lengths.iter().map(|n| {
            end += n;
            end - n..end
        });
        GroupRows { completions: completions.collect(), prompt }
    }
}

impl RolloutOutputStore {
    /// Creates a store for the rollouts of a run. Returns `None` if the training step cannot use kept outputs: on a
    /// GPU, where training and generation do not give the same bits; with full recompute; without a shared prefix; or
    /// with dynamic sampling.
    pub fn new(trainer: &Trainer, options: &GrpoOptions) -> Option<Self> {
        let grouping = trainer.model.text.matmul_grouping()?;
        let is_used = !trainer.device.capabilities().fixed_decode_batch
            && trainer.checkpointing.may_keep_activations()
            && options.shared_prefix
            && !options.dynamic_sampling;
        let processes = trainer.ranks().map_or(1, |ranks| ranks.world().local_size as u64);
        is_used.then(|| Self {
            device: trainer.device.clone(),
            config: trainer.model.config.text.clone(),
            grouping,
            dtype: trainer.dtype,
            processes: processes.max(1),
            limit: OnceLock::new(),
        })
    }

    /// Allocates memory for the outputs of a rollout of `requests`, and sets in each request the rows to which they
    /// are written. `indices` are the indices of the requests' prompts in the rollout. Returns `None` if there is too
    /// little memory.
    pub fn allocate_for_requests(
        &self,
        requests: &mut [GenerationRequest],
        indices: impl Iterator<Item = usize>,
    ) -> Result<Option<StoredRolloutOutputs>> {
        let (mut groups, mut end) = (Vec::new(), 0);
        for request in requests.iter() {
            let rows = StoredRequestRows::new(end, request.prompt.input_ids.len(), request.max_new_tokens);
            end = rows.end_row(request.stop_conditions.len());
            groups.push(rows);
        }
        // Device `dry`, which only counts memory, has no limit. The number of rows must fit an i32, because row numbers
        // are i32.
        let part = 4 * self.processes;
        let limit = *self.limit.get_or_init(|| self.device.free_bytes().map_or(u64::MAX, |free| free / part));
        if StoredOutputs::bytes(&self.config, self.grouping, self.dtype, end) > limit || i32::try_from(end).is_err() {
            return Ok(None);
        }
        for (request, rows) in requests.iter_mut().zip(&groups) {
            request.kept = Some(*rows);
        }
        let products = Arc::new(StoredOutputs::new(&self.device, &self.config, self.grouping, self.dtype, end)?);
        let of_request = |(rows, request): (&StoredRequestRows, &GenerationRequest)| {
            GroupRows::of_request(rows, request.stop_conditions.len(), request.max_new_tokens)
        };
        let groups = indices.zip(groups.iter().zip(&*requests).map(of_request)).collect();
        Ok(Some(StoredRolloutOutputs { products, groups }))
    }
}

impl StoredRolloutOutputs {
    /// Moves the rows of all `groups` of the rollout together. A completion that ends before the maximum length
    /// leaves unused rows. Without the move, a micro-batch would have to copy its rows because of these gaps, which
    /// takes more memory than a plan counts.
    ///
    /// # Errors
    /// Out of memory.
    pub fn close_gaps(mut self, cx: &Cx, groups: &[RolloutGroup]) -> Result<Self> {
        let mut from = Vec::new();
        for (&index, rows) in &mut self.groups {
            let Some(group) = groups.get(index) else { continue };
            let lengths: Vec<usize> = group.completions.iter().map(|completion| completion.learned_len).collect();
            let moved = rows.moved_to(from.len(), &lengths);
            from.extend(rows.used_rows(&lengths).map(|row| row as i32));
            *rows = moved;
        }
        self.products.compact_rows(cx, &from)?;
        Ok(self)
    }

    /// Returns the outputs for a micro-batch of `groups`; `first` is the index of its first group in the rollout. The
    /// rows are in the order of [`PackedGroups`](crate::step::packing::PackedGroups) with a shared prefix. Returns
    /// `None` if this process has not sampled the groups.
    pub fn outputs_of_micro_batch(
        &self,
        cx: &Cx,
        first: usize,
        groups: &[RolloutGroup],
    ) -> Result<Option<ReusedOutputs>> {
        let (mut tokens, mut learned) = (Vec::new(), Vec::new());
        for (index, group) in (first..).zip(groups) {
            let Some(rows) = self.groups.get(&index) else { return Ok(None) };
            tokens.extend(rows.prompt.clone().map(|row| row as i32));
            for (rows, completion) in rows.completions.iter().zip(&group.completions) {
                let of_completion = (rows.start..rows.start + completion.learned_len).map(|row| row as i32);
                tokens.extend(of_completion.clone());
                learned.extend(of_completion);
            }
        }
        Ok(Some(self.products.outputs_of_batch(cx, &tokens, &learned)?))
    }
}
