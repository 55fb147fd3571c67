//! The weights of a model that is divided among the ranks (ZeRO-3). A rank keeps the weights of its cells
//! ([`Partition`]). The weights of a unit, such as a layer, are gathered from all ranks before the unit computes, and
//! are freed after it:
//!
//! ```text
//! forward    unit begins: wait for its weights, free those of the unit before, start to gather the next unit
//! backward   the same, last unit first; gradients are exchanged between the gathers
//! optimizer  the owner of a cell updates its weights; the next forward pass gathers them
//! ```
//!
//! So a rank has 1/N of all weights, and the whole weights of two units. It gathers the same units in the same order
//! in every round (`schedule.rs`), even if it has no micro-batch, because the other ranks need its cells.
//!
//! With weights of W bytes, a rank receives about `W (N - 1) / N` bytes in the forward pass of a round and about as
//! many in the backward pass. It sends as many bytes as it receives.

mod schedule;
#[cfg(test)]
mod tests;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ops::Range;
use std::rc::Rc;

use reel_device::{DType, Device, MemoryCategory, PendingExchange};
use reel_input::config::ModelConfig;
use reel_kernels::elementwise;
use reel_model::units;
use reel_model::weights::DeferredWeight;
use reel_runtime::optim::{ParameterCell, ParameterSize, Partition};
use reel_runtime::{GatheredWeights, OnDemandMemory, RuntimeError, Tensor, WeightUnit};
use reel_support::ranks::Ranks;

use crate::error::Result;
use crate::step::tensor_exchange::SharedExchange;
use schedule::{ExchangeEvent, ExchangeSchedule};

/// In the memory of a unit, tensors begin at multiples of this number of bytes, like allocations.
const ALIGNMENT: usize = 256;

/// The weights of this rank's cells, and the schedule by which the weights of whole units are gathered from all
/// ranks.
#[derive(Debug)]
pub struct WeightShards {
    device: Device,
    exchange: SharedExchange,
    ranks: usize,
    /// The units in the order in which a forward pass begins them. A unit may occur twice.
    forward: Vec<WeightUnit>,
    units: BTreeMap<WeightUnit, UnitWeights>,
    /// The weights of this rank's cells, by name and first weight.
    own: BTreeMap<(String, usize), Tensor>,
    round: RefCell<GatherRound>,
}

/// The weights of a unit, such as a layer.
#[derive(Debug, Default)]
struct UnitWeights {
    /// The memory of each tensor of the unit, and the tensor's offset within the memory of the unit.
    memories: Vec<(OnDemandMemory, usize)>,
    /// The total number of bytes of the unit's weights.
    bytes: usize,
    /// All cells of the unit: the cell, its weight, and the memory of the cell if it belongs to this rank.
    cells: Vec<(ParameterCell, Tensor, Option<Tensor>)>,
}

/// The units whose weights are in memory, and the exchanges of the round so far.
#[derive(Debug, Default)]
struct GatherRound {
    schedule: ExchangeSchedule,
    /// The unit that computes now or has computed last.
    current: Option<WeightUnit>,
    /// The unit that is being gathered, and its pending exchange.
    prefetched: Option<(WeightUnit, PendingExchange)>,
    /// Whether the weights of all units are in memory ([`WeightShards::gather_all`]).
    has_all: bool,
    /// The schedule of training, which is put aside while rounds have only forward passes
    /// ([`WeightShards::forward_rounds`]).
    training: Option<ExchangeSchedule>,
}

/// The next exchange that is needed before the weights of a unit can be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NextExchange {
    /// No exchange is needed: the weights of the unit are in memory.
    Ready,
    /// The next bucket of gradients must be exchanged.
    Bucket,
}

impl WeightShards {
    /// Creates the shards of `weights`, which are sorted by name. `read` copies a range of a weight's elements into
    /// the given tensor. [`Self::set_buckets`] must be called before the first round.
    ///
    /// # Errors
    /// The device is out of memory; the errors of `read`.
    pub fn new(
        (device, config): (&Device, &ModelConfig),
        ranks: &Ranks,
        exchange: SharedExchange,
        weights: &[DeferredWeight],
        read: impl Fn(&DeferredWeight, &Range<usize>, &Tensor) -> Result<()>,
    ) -> Result<Self> {
        let mut units = BTreeMap::<WeightUnit, UnitWeights>::new();
        for DeferredWeight { name, tensor, .. } in weights {
            units.entry(units::unit_of_weight(name, config)).or_default().add_memory(tensor);
        }
        let mut own = BTreeMap::new();
        // Frozen weights are divided separately: the optimizer divides only the trained weights, so frozen weights
        // must not change the owners of their cells.
        let is_trained = |weight: &&DeferredWeight| weight.tensor.parameter_name().is_some();
        let (trained, frozen): (Vec<_>, Vec<_>) = weights.iter().partition(is_trained);
        for weights in [trained, frozen] {
            let sizes: Vec<ParameterSize> =
                weights.iter().map(|weight| ParameterSize::of_tensor(&weight.tensor)).collect();
            for cell in Partition::new(&sizes, ranks.rank(), ranks.size()).cells() {
                let weight = weights[cell.parameter];
                let mut memory = None;
                if cell.owner == ranks.rank() {
                    let to = memory_of(device, cell, &weight.tensor)?;
                    read(weight, &cell.range, &to)?;
                    own.insert((weight.name.clone(), cell.range.start), to.clone());
                    memory = Some(to);
                }
                let unit = units.entry(units::unit_of_weight(&weight.name, config)).or_default();
                unit.cells.push((cell.clone(), weight.tensor.clone(), memory));
            }
        }
        let with_vision = units.contains_key(&units::PATCH_EMBEDDING);
        let forward = units::units_in_forward_order(config, with_vision);
        let (device, ranks) = (device.clone(), ranks.size());
        Ok(Self { device, exchange, ranks, forward, units, own, round: RefCell::default() })
    }

    /// Sets the buckets of gradients that are exchanged between the gathers. A bucket is given as the units of its
    /// parameters.
    pub(super) fn set_buckets(&self, buckets: impl Iterator<Item = Vec<WeightUnit>>) {
        self.round.borrow_mut().schedule = ExchangeSchedule::new(&self.forward, units::is_used_in_backward, buckets);
    }

    /// The weights of a cell that belongs to this rank, by the weight's name and the cell's first element.
    pub fn own_weight_cell(&self, name: &str, start: usize) -> Option<Tensor> {
        self.own.get(&(name.to_string(), start)).cloned()
    }

    /// The maximum number of bytes of gathered weights that a step has in memory, which is the size of two units.
    pub fn max_gathered_bytes(&self) -> u64 {
        let mut bytes: Vec<usize> = self.units.values().map(|unit| unit.bytes).collect();
        bytes.sort_unstable();
        bytes.iter().rev().take(2).sum::<usize>() as u64
    }

    /// Gathers the weights of all units. They are freed when the result is dropped. All ranks call it together,
    /// between steps.
    ///
    /// # Errors
    /// The device has no memory for all weights; another rank has failed.
    pub fn gather_all(self: &Rc<Self>) -> Result<AllWeightsGuard> {
        let all = AllWeightsGuard(self.clone());
        self.round.borrow_mut().has_all = true;
        for unit in self.units.keys() {
            self.start_gather(*unit)?.wait()?;
        }
        self.exchange.borrow().wait_for_all()?;
        Ok(all)
    }

    /// Makes each round a forward pass without a backward pass, until the result is dropped. All ranks call it
    /// together, between steps. They end each round with [`ForwardRoundsGuard::end_round`].
    pub fn forward_rounds(self: &Rc<Self>) -> ForwardRoundsGuard {
        let mut round = self.round.borrow_mut();
        let forward = ExchangeSchedule::new(&self.forward, |_| false, std::iter::empty());
        round.training = Some(std::mem::replace(&mut round.schedule, forward));
        ForwardRoundsGuard(self.clone())
    }

    /// Does the exchanges that come before `unit` in the round, gathers the unit's weights, and starts to gather the
    /// weights of the next unit. Frees the weights of other units.
    ///
    /// # Errors
    /// The rest of the round does not gather the unit; the device is out of memory; another rank has failed.
    pub(super) fn advance_to(&self, unit: WeightUnit) -> Result<NextExchange> {
        let mut round = self.round.borrow_mut();
        if round.has_all || round.current == Some(unit) {
            return Ok(NextExchange::Ready);
        }
        let is_coming = round.prefetched.as_ref().is_some_and(|(prefetched, _)| *prefetched == unit);
        if !is_coming && !round.schedule.will_gather(unit) {
            let what = format!("the weights of {unit:?} are used when it is not their turn");
            return Err(RuntimeError::Shape { op: "gather", what }.into());
        }
        while round.current != Some(unit) {
            if self.gather_next(&mut round)? == Some(ExchangeEvent::Bucket) {
                return Ok(NextExchange::Bucket);
            }
        }
        if let Some(ExchangeEvent::Gather(next)) = round.schedule.next() {
            round.schedule.advance();
            round.prefetched = Some((next, self.start_gather(next)?));
        }
        Ok(NextExchange::Ready)
    }

    /// Does the remaining exchanges of the round. After [`NextExchange::Ready`], no weights are gathered and the next
    /// round begins.
    ///
    /// # Errors
    /// The device is out of memory; another rank has failed.
    pub(super) fn advance_to_end(&self) -> Result<NextExchange> {
        let mut round = self.round.borrow_mut();
        loop {
            match self.gather_next(&mut round)? {
                Some(ExchangeEvent::Bucket) => return Ok(NextExchange::Bucket),
                Some(ExchangeEvent::Gather(_)) => {}
                None => {
                    round.schedule.restart();
                    return Ok(NextExchange::Ready);
                }
            }
        }
    }

    /// Whether the next exchange of the round is the exchange of a bucket.
    pub(super) fn is_bucket_next(&self) -> bool {
        self.round.borrow().schedule.next() == Some(ExchangeEvent::Bucket)
    }

    /// Records that the exchange of the next bucket was started.
    pub(super) fn record_bucket_start(&self) {
        self.round.borrow_mut().schedule.advance();
    }

    /// Frees the weights of the current unit and makes the next unit the current one. Returns the following event of
    /// the round; `None` at the end of the round. If the event is a bucket, no unit is current.
    fn gather_next(&self, round: &mut GatherRound) -> Result<Option<ExchangeEvent>> {
        if let Some(last) = round.current.take() {
            self.release(last);
        }
        let next = match round.prefetched.take() {
            Some((unit, pending)) => {
                pending.wait()?;
                unit
            }
            None => match round.schedule.next() {
                Some(ExchangeEvent::Gather(unit)) => {
                    round.schedule.advance();
                    self.start_gather(unit)?.wait()?;
                    unit
                }
                other => return Ok(other),
            },
        };
        round.current = Some(next);
        Ok(Some(ExchangeEvent::Gather(next)))
    }

    /// Allocates memory for the weights of a unit and starts to gather them.
    fn start_gather(&self, unit: WeightUnit) -> Result<PendingExchange> {
        let Some(weights) = self.units.get(&unit) else { return Ok(PendingExchange::done()) };
        let memory = Tensor::empty(&self.device, &[weights.bytes], DType::U8, MemoryCategory::Weights)?;
        for (part, start) in &weights.memories {
            part.provide(memory.rows(*start, part.bytes())?);
        }
        let (mut sent, mut of_ranks) = (Vec::new(), vec![Vec::new(); self.ranks]);
        for (cell, weight, own) in &weights.cells {
            let part = cell.slice_of(weight)?;
            let Some(own) = own else {
                of_ranks[cell.owner].push(part);
                continue;
            };
            let params = elementwise::CopyParams { src: own.addr(), dst: part.addr(), bytes: own.bytes() as u64 };
            self.device.launch(&elementwise::copy(&params))?;
            sent.push(own.clone());
        }
        self.exchange.borrow_mut().start_all_gather("weights of a layer", &sent, &of_ranks)
    }

    fn release(&self, unit: WeightUnit) {
        let memories = self.units.get(&unit).into_iter().flat_map(|unit| &unit.memories);
        memories.for_each(|(memory, _)| memory.release());
    }
}

impl GatheredWeights for WeightShards {
    fn gather(&self, unit: WeightUnit) -> reel_runtime::Result<()> {
        match self.advance_to(unit) {
            Ok(NextExchange::Ready) => Ok(()),
            Ok(NextExchange::Bucket) => {
                let what = format!("the weights of {unit:?} are used after the backward pass has begun");
                Err(RuntimeError::Shape { op: "gather", what })
            }
            Err(e) => Err(e.into()),
        }
    }
}

impl UnitWeights {
    /// Adds the memory of a weight. Other weights may share this memory.
    fn add_memory(&mut self, weight: &Tensor) {
        let Some(memory) = weight.on_demand_memory() else { return };
        if self.memories.iter().any(|(other, _)| other.shares_memory_with(memory)) {
            return;
        }
        let start = self.bytes.next_multiple_of(ALIGNMENT);
        self.memories.push((memory.clone(), start));
        self.bytes = start + memory.bytes();
    }
}

/// Allocates memory for a cell of a weight. A cell that covers a whole weight has the weight's shape and padding.
fn memory_of(device: &Device, cell: &ParameterCell, weight: &Tensor) -> Result<Tensor> {
    let is_whole = cell.range == (0..weight.count());
    let shape = if is_whole { weight.shape().to_vec() } else { vec![cell.range.len()] };
    let memory = Tensor::empty(device, &shape, weight.dtype(), MemoryCategory::Weights)?;
    Ok(if is_whole { memory.with_unpadded_shape(weight.unpadded_shape())? } else { memory })
}

/// The gathered weights of all units. Dropping this value frees them.
#[must_use = "the weights are freed when this value is dropped"]
#[derive(Debug)]
pub struct AllWeightsGuard(Rc<WeightShards>);

impl Drop for AllWeightsGuard {
    fn drop(&mut self) {
        self.0.units.keys().for_each(|unit| self.0.release(*unit));
        self.0.round.borrow_mut().has_all = false;
    }
}

/// Rounds of forward passes without backward passes. Dropping this value frees gathered weights, and rounds have
/// backward passes again.
#[must_use = "rounds have backward passes again when this value is dropped"]
#[derive(Debug)]
pub struct ForwardRoundsGuard(Rc<WeightShards>);

impl ForwardRoundsGuard {
    /// Gathers the remaining units of the round, even on a rank without a micro-batch, because the other ranks need
    /// its cells.
    ///
    /// # Errors
    /// The device is out of memory; another rank has failed.
    pub fn end_round(&self) -> Result<()> {
        while self.0.advance_to_end()? == NextExchange::Bucket {}
        self.0.exchange.borrow().wait_for_all()
    }
}

impl Drop for ForwardRoundsGuard {
    fn drop(&mut self) {
        let mut round = self.0.round.borrow_mut();
        // After an error, the weights of some units may still be in memory.
        round.prefetched = None;
        round.current = None;
        self.0.units.keys().for_each(|unit| self.0.release(*unit));
        round.schedule = round.training.take().unwrap_or_default();
    }
}
