//! The outputs of the policy's matrix products that a rollout keeps, so that the training step on it need not compute
//! them again.
//!
//! On device `cpu` the policy's forward pass of a step computes the products of the rollout before it, bit by bit: the
//! same weights, the same tokens. If the outputs fit into the memory, they are kept ([`ProductKeeper::for_requests`])
//! and the forward pass takes them ([`RolloutProducts::of_micro_batch`]).

use std::sync::{Arc, OnceLock};

use reel_device::{DType, Device};
use reel_engine::{GenerationRequest, KeptRows};
use reel_input::config::TextConfig;
use reel_model::text::products::{KeptProducts, KnownProducts, ProductLayout};
use reel_runtime::Cx;

use super::group::Group;
use crate::Result;
use crate::options::GrpoOptions;
use crate::step::trainer::Trainer;

/// Decides whether the products of a rollout are kept, and allocates their memory.
#[derive(Debug)]
pub struct ProductKeeper {
    device: Device,
    config: TextConfig,
    layout: ProductLayout,
    dtype: DType,
    /// Maximum bytes of the outputs of a rollout: a quarter of the memory that is free at the first one.
    limit: OnceLock<u64>,
}

/// The outputs of the products of a rollout.
#[derive(Debug)]
pub struct RolloutProducts {
    /// The kept outputs.
    pub products: Arc<KeptProducts>,
    /// The rows of each prompt and its completions, in the order of the prompts.
    groups: Vec<KeptRows>,
}

impl ProductKeeper {
    /// A keeper for the rollouts of a run. `None` if training cannot use what it would keep: it computes with other
    /// bits than generation (on a GPU), computes every layer twice, packs its tokens in another way, or chooses groups
    /// by their rewards.
    pub fn new(trainer: &Trainer, options: &GrpoOptions) -> Option<Self> {
        let layout = trainer.model.text.product_layout()?;
        let is_used = !trainer.device.capabilities().fixed_decode_batch
            && trainer.checkpointing.may_keep_activations()
            && options.shared_prefix
            && !options.dynamic_sampling;
        is_used.then(|| Self {
            device: trainer.device.clone(),
            config: trainer.model.config.text.clone(),
            layout,
            dtype: trainer.dtype,
            limit: OnceLock::new(),
        })
    }

    /// Memory for the rollouts of `requests`, which learn their rows; `None` if there is too little.
    pub fn for_requests(&self, requests: &mut [GenerationRequest]) -> Result<Option<RolloutProducts>> {
        let (mut groups, mut end) = (Vec::new(), 0);
        for request in requests.iter() {
            let rows = KeptRows::new(end, request.prompt.input_ids.len(), request.max_new_tokens);
            end = rows.end(request.stop_conditions.len());
            groups.push(rows);
        }
        // Device `dry`, which plans memory, has no limit. Row numbers are i32.
        let limit = *self.limit.get_or_init(|| self.device.free_bytes().map_or(u64::MAX, |free| free / 4));
        if KeptProducts::bytes(&self.config, self.layout, self.dtype, end) > limit || i32::try_from(end).is_err() {
            return Ok(None);
        }
        for (request, rows) in requests.iter_mut().zip(&groups) {
            request.kept = Some(*rows);
        }
        let products = Arc::new(KeptProducts::new(&self.device, &self.config, self.layout, self.dtype, end)?);
        Ok(Some(RolloutProducts { products, groups }))
    }
}

impl RolloutProducts {
    /// The outputs of the products of a micro-batch of groups, of which the first is number `first` of the rollout. The
    /// rows have the order of [`PackedGroups`](crate::step::packing::PackedGroups) with a shared prefix.
    pub fn of_micro_batch(&self, cx: &Cx, first: usize, groups: &[Group]) -> Result<KnownProducts> {
        let (mut tokens, mut learned) = (Vec::new(), Vec::new());
        for (rows, group) in self.groups[first..].iter().zip(groups) {
            tokens.extend(rows.prompt().map(|row| row as i32));
            for (index, completion) in group.completions.iter().enumerate() {
                let of_completion = rows.completion(index, completion.learned_len).map(|row| row as i32);
                tokens.extend(of_completion.clone());
                learned.extend(of_completion);
            }
        }
        Ok(self.products.of_batch(cx, &tokens, &learned)?)
    }
}
