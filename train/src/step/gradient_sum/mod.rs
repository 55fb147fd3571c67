//! The gradient of a step whose micro-batches are computed by several processes (ranks), and the exchanges between
//! the ranks.
//!
//! N micro-batches make a round, in which every rank computes one: micro-batch i of a step, counted from 0, belongs to
//! rank `i mod N`, unless [`GradientSum::assign_micro_batches`] sets another order of the ranks in each round. The
//! optimizer's parameters are cut into cells, each of which belongs to one rank ([`Partition`]). In a round, every rank
//! sends its gradient of each cell to the owner of the cell, and the owner adds them in the order of their
//! micro-batches:
//!
//! ```text
//! rank 0   g0 ─┐ all-to-all        cells of rank 0: sum = ((g0 + g1) + g2) + g3 …
//! rank 1   g1 ─┤ ───────────>      cells of rank 1: the same sum, of other weights
//! rank 2   g2 ─┘ in each round     cells of rank 2: the same sum, of other weights
//! ```
//!
//! The ranks exchange the cells in buckets. A bucket is exchanged as soon as the backward pass has finished the
//! gradients of all its cells; then these gradients are freed. On GPUs the exchange runs in parallel with the
//! backward pass: at most two exchanges are pending, and the start of a further one waits for the oldest. The buckets
//! are in the reverse order of the model, because a backward pass finishes the gradients of the last layers first. So
//! a rank has the gradients of a few buckets in memory, not the gradients of the whole model.
//!
//! The owner clips the sum, updates the weights of its cells ([`AdamW`] has the state of only these cells) and sends
//! the new weights to all ranks. A sum has the same bits as in a single process, which also adds the gradients of
//! whole micro-batches in this order ([`reel_runtime::Grads`]). So the trained weights do not depend on the number of
//! ranks.
//!
//! With a gradient of G bytes and trained weights of W bytes, each rank sends in a step of R rounds, and receives about
//! as many bytes:
//!
//! ```text
//! gradients     R · G · (N - 1) / N     as many as a reduce-scatter in each round
//! new weights       W · (N - 1) / N     as many as an all-gather
//! ```
//!
//! If each rank keeps only its cells of the weights ([`WeightShards`]), new weights are not sent. Then the schedule of
//! the shards says when a bucket is exchanged: as soon as it is complete, but in one order with the gathers of weights
//! on all ranks.

pub(super) mod order;

use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::sync::Arc;

use reel_device::{Addr, DType, Device, MemoryCategory, PendingExchange};
use reel_input::config::ModelConfig;
use reel_kernels::{elementwise, reduce};
use reel_model::units;
use reel_runtime::optim::{AdamW, GradientSource, ParameterCell, Partition};
use reel_runtime::{Grads, RuntimeError, Tensor, WeightUnit};
use reel_support::ranks::Ranks;

use crate::Result;
use crate::step::tensor_exchange::SharedExchange;
use crate::step::weight_shards::{NextExchange, WeightShards};

/// Maximum number of weights in a bucket. A bucket is the cells whose gradients the ranks exchange at a time. A
/// single cell with more weights is a bucket of its own.
pub const MAX_WEIGHTS_PER_BUCKET: usize = 32 << 20;

/// Maximum number of buckets whose exchange is pending. A parameter that is larger than a bucket finishes several
/// buckets at once; the launches after it wait for all but this number of them.
pub const MAX_PENDING_BUCKETS: usize = 2;

/// The sum of the gradients of a step's micro-batches. This rank has the sums of the cells that it owns.
#[derive(Debug)]
pub struct GradientSum {
    ranks: Arc<Ranks>,
    exchange: SharedExchange,
    /// The weights that are gathered between the exchanges of buckets; `None` if each rank has all weights.
    shards: Option<Rc<WeightShards>>,
    partition: Partition,
    /// The trained parameters, by their index in the partition.
    parameters: Vec<(String, Tensor)>,
    /// The cells in buckets, in the order in which the buckets are exchanged.
    buckets: Vec<Vec<ParameterCell>>,
    /// f32 `[n]`: the sums of the owned cells, one after the other.
    sums: Tensor,
    /// Where the sums of each parameter's owned cells begin, by the parameter's name: the parameter's index, and a
    /// map from a cell's first weight to the position of the cell's sum in `sums`.
    starts: BTreeMap<String, (usize, BTreeMap<usize, usize>)>,
    /// For each pending bucket and each other rank, f32: that rank's gradients of the owned cells in the bucket.
    /// Empty for this rank. The buckets use these buffers in turn.
    received: Vec<Vec<Tensor>>,
    /// For each parameter, whether it had a gradient in an earlier round of the step, on any rank.
    reached: Vec<bool>,
    /// The rank of each micro-batch of the step; empty if the ranks take turns.
    assigned: Vec<usize>,
    /// The number of rounds of the step that have ended.
    ended_rounds: usize,
    round: GradientRound,
}

/// The state of the exchanges in the current round.
#[derive(Debug, Default)]
struct GradientRound {
    /// The number of buckets whose exchange was started.
    exchanged: usize,
    /// The buckets whose exchange was started last, until their gradients are added to the sums. On GPUs their
    /// exchange runs in parallel with the backward pass.
    pending: VecDeque<PendingBucket>,
    /// For each parameter, whether this rank's gradient is finished.
    finished: Vec<bool>,
    /// For each parameter, whether it had a gradient in this round, on any rank.
    reached: Vec<bool>,
}

/// A bucket whose exchange was started.
#[derive(Debug)]
struct PendingBucket {
    exchange: PendingExchange,
    /// The gradients of the owned cells from all ranks, in the order of their micro-batches: (gradient, sum to which
    /// it is added, whether the sum already has a value).
    added: Vec<(Tensor, Tensor, bool)>,
}

impl PendingBucket {
    fn add(self) -> Result<()> {
        self.exchange.wait()?;
        self.added.iter().try_for_each(|(gradient, sum, has_sum)| add(gradient, sum, *has_sum))
    }
}

impl GradientRound {
    fn new(parameters: usize) -> Self {
        Self {
            exchanged: 0,
            pending: VecDeque::new(),
            finished: vec![false; parameters],
            reached: vec![false; parameters],
        }
    }
}

impl GradientSum {
    /// Creates the sum for the parameters of `optimizer`, the optimizer of this rank. `model_order` has all trained
    /// parameters of the model, roughly in the order in which a forward pass uses them. `config` is the config of the
    /// model.
    ///
    /// # Errors
    /// The device is out of memory.
    pub fn new(
        ranks: Arc<Ranks>,
        (exchange, shards): (SharedExchange, Option<Rc<WeightShards>>),
        (device, config): (&Device, &ModelConfig),
        optimizer: &AdamW,
        model_order: &[Tensor],
    ) -> Result<Self> {
        Self::with_buckets_of(
            MAX_WEIGHTS_PER_BUCKET,
            ranks,
            (exchange, shards),
            (device, config),
            optimizer,
            model_order,
        )
    }

    fn with_buckets_of(
        weights: usize,
        ranks: Arc<Ranks>,
        (exchange, shards): (SharedExchange, Option<Rc<WeightShards>>),
        (device, config): (&Device, &ModelConfig),
        optimizer: &AdamW,
        model_order: &[Tensor],
    ) -> Result<Self> {
        let partition = optimizer.partition().clone();
        let parameters: Vec<(String, Tensor)> =
            optimizer.parameter_states().map(|(name, parameter, _)| (name.to_string(), parameter.clone())).collect();
        let (mut starts, mut total) = (BTreeMap::<String, (usize, BTreeMap<usize, usize>)>::new(), 0);
        for cell in partition.owned_cells() {
            let name = parameters[cell.parameter].0.clone();
            starts.entry(name).or_insert((cell.parameter, BTreeMap::new())).1.insert(cell.range.start, total);
            total += cell.range.len();
        }
        let index = |t: &Tensor| parameters.binary_search_by_key(&t.parameter_name(), |(name, _)| Some(name)).ok();
        let order: Vec<usize> = model_order.iter().rev().filter_map(index).collect();
        let buckets = buckets(&partition, &order, weights);
        if let Some(shards) = &shards {
            let unit = |cell: &ParameterCell| units::unit_of_weight(&parameters[cell.parameter].0, config);
            shards.set_buckets(buckets.iter().map(|bucket| bucket.iter().map(unit).collect()));
        }
        let owned = |bucket: &Vec<ParameterCell>| {
            bucket.iter().filter(|c| c.owner == ranks.rank()).map(|c| c.range.len()).sum()
        };
        let largest: usize = buckets.iter().map(owned).max().unwrap_or(0);
        let f32s = |count: usize| Tensor::empty(device, &[count], DType::F32, MemoryCategory::Gradients);
        let received = |from: usize| f32s(if from == ranks.rank() { 0 } else { largest });
        let of_bucket = |_| (0..ranks.size()).map(received).collect();
        Ok(Self {
            sums: f32s(total)?,
            received: (0..MAX_PENDING_BUCKETS.min(buckets.len()))
                .map(of_bucket)
                .collect::<reel_runtime::Result<_>>()?,
            reached: vec![false; parameters.len()],
            assigned: Vec::new(),
            ended_rounds: 0,
            round: GradientRound::new(parameters.len()),
            exchange,
            shards,
            ranks,
            partition,
            parameters,
            buckets,
            starts,
        })
    }

    /// The ranks that compute the micro-batches.
    pub fn ranks(&self) -> &Ranks {
        &self.ranks
    }

    /// The largest number of bytes of finished gradients that a backward pass has in memory: the gradients of an
    /// incomplete bucket, and the whole gradients of all parameters in the buckets whose exchange is pending.
    pub fn max_finished_gradient_bytes(&self) -> u64 {
        let weights = |bucket: &Vec<ParameterCell>| bucket.iter().map(|cell| cell.range.len()).sum::<usize>();
        let bucket = self.buckets.iter().map(weights).max().unwrap_or(0);
        let counts = || self.parameters.iter().map(|(_, parameter)| parameter.count());
        let most = counts().sum::<usize>().min((1 + MAX_PENDING_BUCKETS) * bucket + counts().max().unwrap_or(0));
        (most * DType::F32.size()) as u64
    }

    /// The rank that computes micro-batch `index` of the step.
    pub fn rank_of_micro_batch(&self, index: usize) -> usize {
        self.assigned.get(index).copied().unwrap_or(index % self.ranks.size())
    }

    /// Begins a step: no micro-batch has been added, and the ranks compute micro-batches in turn.
    pub fn clear(&mut self) {
        self.reached.fill(false);
        self.assigned.clear();
        self.ended_rounds = 0;
    }

    /// Sets the rank of each micro-batch of the step. Every rank has at most one micro-batch of a round. All ranks pass
    /// the same list.
    pub fn assign_micro_batches(&mut self, ranks: &[usize]) {
        self.assigned = ranks.to_vec();
    }

    /// The ranks in the order of their micro-batches in the current round.
    fn ranks_of_round(&self) -> Vec<usize> {
        let size = self.ranks.size();
        match self.assigned.is_empty() {
            true => (0..size).collect(),
            false => self.assigned.iter().skip(self.ended_rounds * size).take(size).copied().collect(),
        }
    }

    /// Records that this rank's backward pass has finished the gradients of the parameters `names`. Exchanges the
    /// buckets that are complete now, and frees their gradients in `own`. All ranks exchange the same buckets in the
    /// same order.
    ///
    /// # Errors
    /// A parameter is finished twice in a round; another rank has failed; the device fails.
    pub fn add_finished_gradients(&mut self, names: &[Arc<str>], own: &mut Grads) -> Result<()> {
        for name in names {
            let found = self.parameters.binary_search_by_key(&&**name, |(name, _)| name);
            let Ok(index) = found else { continue };
            if std::mem::replace(&mut self.round.finished[index], true) {
                let what = format!("{name} got a gradient after the exchange of its gradient");
                return Err(RuntimeError::Shape { op: "backward", what }.into());
            }
        }
        while self.may_exchange_bucket() {
            self.exchange_bucket(own)?;
        }
        Ok(())
    }

    /// Whether the gradients of the next bucket are finished, and the round's next exchange is that of the bucket.
    fn may_exchange_bucket(&self) -> bool {
        let is_complete = |bucket: &Vec<ParameterCell>| bucket.iter().all(|cell| self.round.finished[cell.parameter]);
        self.buckets.get(self.round.exchanged).is_some_and(is_complete)
            && self.shards.as_ref().is_none_or(|shards| shards.is_bucket_next())
    }

    /// Gathers the weights of `unit`, which the backward pass reaches next. First exchanges the buckets that come
    /// earlier in the round, even if the micro-batch has no gradient for some of their parameters.
    ///
    /// # Errors
    /// Another rank has failed; the device fails.
    pub fn begin_unit(&mut self, unit: WeightUnit, own: &mut Grads) -> Result<()> {
        let Some(shards) = self.shards.clone() else { return Ok(()) };
        while shards.advance_to(unit)? == NextExchange::Bucket {
            self.exchange_bucket(own)?;
        }
        Ok(())
    }

    /// Ends a round: exchanges the remaining buckets and removes all gradients from `own`. All ranks call it together,
    /// also ranks without a micro-batch in the round.
    ///
    /// # Errors
    /// Another rank has failed; the device fails.
    pub fn end_round(&mut self, own: &mut Grads) -> Result<()> {
        if let Some(shards) = self.shards.clone() {
            while shards.advance_to_end()? == NextExchange::Bucket {
                self.exchange_bucket(own)?;
            }
        }
        while self.round.exchanged < self.buckets.len() {
            self.exchange_bucket(own)?;
        }
        self.round.pending.drain(..).try_for_each(PendingBucket::add)?;
        self.exchange.borrow().wait_for_all()?;
        let round = std::mem::replace(&mut self.round, GradientRound::new(self.parameters.len()));
        self.reached.iter_mut().zip(round.reached).for_each(|(reached, now)| *reached |= now);
        self.ended_rounds += 1;
        own.clear();
        Ok(())
    }

    /// Starts to exchange the next bucket. If [`MAX_PENDING_BUCKETS`] are already pending, first adds the gradients
    /// of the oldest one to the sums. Removes the bucket's gradients from `own`; their memory is freed after they are
    /// sent and added.
    fn exchange_bucket(&mut self, own: &mut Grads) -> Result<()> {
        if self.round.pending.len() == MAX_PENDING_BUCKETS {
            // The next bucket reuses the receive buffers of the oldest pending bucket.
            self.round.pending.pop_front().map_or(Ok(()), PendingBucket::add)?;
        }
        let received = &self.received[self.round.exchanged % self.received.len()];
        let (rank, size, in_order) = (self.ranks.rank(), self.ranks.size(), self.ranks_of_round());
        let bucket = &self.buckets[self.round.exchanged];
        let gradient = |cell: &ParameterCell| own.get(&self.parameters[cell.parameter].0);
        let flags: Vec<u8> = bucket.iter().map(|cell| u8::from(gradient(cell).is_some())).collect();
        let flags = self.ranks.all_gather("cells with a gradient", &flags)?;
        let mut send = vec![Vec::new(); size];
        let mut receive = vec![Vec::new(); size];
        let mut added = Vec::new();
        let mut start = 0;
        for (index, cell) in bucket.iter().enumerate() {
            let own = gradient(cell).map(|gradient| cell.slice_of(gradient)).transpose()?;
            if cell.owner != rank {
                send[cell.owner].extend(own);
                continue;
            }
            let sum = self.sum_of(cell)?;
            let mut has_sum = self.reached[cell.parameter];
            for from in in_order.iter().copied().filter(|&from| flags[from][index] != 0) {
                let gradient = match &own {
                    Some(own) if from == rank => own.clone(),
                    _ => {
                        let received = received[from].rows(start, cell.range.len())?;
                        receive[from].push(received.clone());
                        received
                    }
                };
                added.push((gradient, sum.clone(), has_sum));
                has_sum = true;
            }
            start += cell.range.len();
        }
        let exchange = self.exchange.borrow_mut().start_all_to_all("gradients", &send, &receive)?;
        self.shards.iter().for_each(|shards| shards.record_bucket_start());
        self.round.pending.push_back(PendingBucket { exchange, added });
        for (index, cell) in bucket.iter().enumerate() {
            let (name, parameter) = &self.parameters[cell.parameter];
            self.round.reached[cell.parameter] |= flags.iter().any(|flags| flags[index] != 0);
            if cell.range.end == parameter.count() {
                own.release(name);
            }
        }
        self.round.exchanged += 1;
        Ok(())
    }

    /// Returns the sum of the gradients of an owned cell.
    fn sum_of(&self, cell: &ParameterCell) -> Result<Tensor> {
        let starts = self.starts.get(&self.parameters[cell.parameter].0);
        let start = starts.and_then(|(_, starts)| starts.get(&cell.range.start)).copied().unwrap_or(0);
        Ok(self.sums.rows(start, cell.range.len())?)
    }

    /// Gathers the sums of squares of all cells, in the order of the cells: f64 `[chunks]`, stored as f32 `[chunks,
    /// 2]`. `own` has the sums of this rank's cells ([`AdamW::sums_of_squares`]). All ranks call it together.
    ///
    /// # Errors
    /// Another rank has failed; the device fails.
    pub fn sums_of_squares(&self, own: &Tensor) -> Result<Tensor> {
        let gathered = self.ranks.all_gather("sums of squares", &own.read_bytes()?)?;
        let mut of_ranks: Vec<&[u8]> = gathered.iter().map(Vec::as_slice).collect();
        let mut all = Vec::with_capacity(gathered.iter().map(Vec::len).sum());
        for cell in self.partition.cells() {
            let chunks = cell.range.len().div_ceil(reduce::ELEMENTS_PER_CHUNK);
            let (sums, rest) = of_ranks[cell.owner].split_at(chunks * size_of::<f64>());
            of_ranks[cell.owner] = rest;
            all.extend_from_slice(sums);
        }
        let shape = [all.len() / size_of::<f64>(), 2];
        Ok(Tensor::from_slice(own.device(), &shape, DType::F32, &all, MemoryCategory::Workspace)?)
    }

    /// Sends the weights of this rank's cells to all ranks, and receives the weights of their cells. Skips parameters
    /// of which each rank keeps only its own cells. All ranks call it together after a step of the optimizer.
    ///
    /// # Errors
    /// Another rank has failed; the device fails.
    pub fn gather_weights(&mut self) -> Result<()> {
        let (rank, size) = (self.ranks.rank(), self.ranks.size());
        for bucket in &self.buckets {
            let mut of_ranks = vec![Vec::new(); size];
            let is_sent = |cell: &&ParameterCell| {
                self.reached[cell.parameter] && self.parameters[cell.parameter].1.on_demand_memory().is_none()
            };
            for cell in bucket.iter().filter(is_sent) {
                of_ranks[cell.owner].push(cell.slice_of(&self.parameters[cell.parameter].1)?);
            }
            if of_ranks.iter().all(Vec::is_empty) {
                continue;
            }
            let own = std::mem::take(&mut of_ranks[rank]);
            self.exchange.borrow_mut().start_all_gather("weights", &own, &of_ranks)?.wait()?;
        }
        self.exchange.borrow().wait_for_all()
    }
}

impl GradientSource for GradientSum {
    fn names(&self) -> impl Iterator<Item = &str> {
        let reached = self.parameters.iter().zip(&self.reached).filter(|(_, reached)| **reached);
        reached.map(|((name, _), _)| name.as_str())
    }

    fn address(&self, parameter: &str, start: usize) -> Addr {
        let reached = self.starts.get(parameter).filter(|(index, _)| self.reached[*index]);
        let sum = reached.and_then(|(_, starts)| starts.get(&start));
        sum.map_or(Addr::NULL, |sum| self.sums.addr().offset(sum * DType::F32.size()))
    }
}

/// Divides the cells into buckets of at most `weights` weights. `order` is a list of parameter indices; the buckets
/// follow this order. They are the same on every rank.
fn buckets(partition: &Partition, order: &[usize], weights: usize) -> Vec<Vec<ParameterCell>> {
    let (mut buckets, mut in_last) = (Vec::<Vec<ParameterCell>>::new(), 0);
    for cell in order.iter().flat_map(|&parameter| partition.cells_of(parameter)) {
        in_last += cell.range.len();
        match buckets.last_mut().filter(|_| in_last <= weights) {
            Some(bucket) => bucket.push(cell.clone()),
            None => {
                buckets.push(vec![cell.clone()]);
                in_last = cell.range.len();
            }
        }
    }
    buckets
}

/// Adds a gradient to a sum. If the sum has no value yet, copies the gradient instead, because `0.0 + -0.0` would
/// change its sign.
fn add(gradient: &Tensor, sum: &Tensor, has_sum: bool) -> Result<()> {
    let (src, dst, count) = (gradient.addr(), sum.addr(), sum.count() as u64);
    let launch = match has_sum {
        true => elementwise::accumulate(DType::F32, DType::F32, &elementwise::AccumulateParams { src, dst, count }),
        false => elementwise::copy(&elementwise::CopyParams { src, dst, bytes: sum.bytes() as u64 }),
    };
    Ok(sum.device().launch(&launch)?)
}

#[cfg(test)]
mod tests;
