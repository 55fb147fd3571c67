//! Predicts a training job of several GPUs from the plan of one process: the memory of each rank, the bytes that it
//! exchanges, and the time of a step.
//!
//! The ranks split gradients and optimizer state as in ZeRO-2. With N ranks, A micro-batches in a step, P trained
//! parameters, gradients of G = 4 P bytes, and trained weights of W bytes:
//!
//! ```text
//! R = ceil(A / N) rounds: every rank computes one micro-batch       forward and backward pass of one process
//!     in each round: gradients go to the owners of their cells      G (N - 1) / N bytes sent by each rank
//! owners update the weights of their cells                          optimizer step of one process / N
//! updated weights go to all ranks (all-gather)                      W (N - 1) / N bytes sent by each rank
//! ```
//!
//! With ZeRO-3 ([`DividedWeightBytes`]), a rank keeps 1/N of the divided weights and those of two units, such as
//! layers. In each round, it gathers the units for the forward and for the backward pass; trained weights are then
//! not sent after the optimizer step. It gathers all weights at once for rollouts, for evaluations, and for a
//! reference model that is the policy without its adapter. The predicted memory is that of the part that needs most.
//!
//! Without ZeRO-3, every rank keeps all weights, and 1/N of the optimizer state and of the sums of gradients.
//! Gradients are exchanged in buckets and freed during the backward pass, so a rank has at most the gradients of
//! three buckets and of the largest parameter at a time, and buffers for the gradients of two buckets that it
//! receives.
//!
//! On GPUs the exchange of a bucket runs beside the launches after the last gradient of the bucket, in the order that
//! the run on `dry` has recorded ([`BackwardTimes`]). The exposed time is the time in which the backward pass waits
//! for exchanges, plus the whole exchange of weights. The prediction ignores the latency of messages, the memory
//! bandwidth that exchanges take from concurrent launches, and the wait for ranks with a longer micro-batch.

use std::collections::VecDeque;
use std::ops::Range;

use reel_device::{MemoryCategory, MemoryUse};
use reel_train::step::{ExchangedBucket, GradientOrder, MAX_PENDING_BUCKETS, MAX_WEIGHTS_PER_BUCKET};

use crate::measure::links::JobLinks;

/// The memory category of a rank's share of the summed gradients. A run of one process has no separate sums, because
/// it accumulates micro-batches in the gradients themselves.
pub const GRADIENT_SUMS_CATEGORY: &str = "gradient_sums";

/// Bytes of an element of a gradient: f32.
const GRADIENT_ELEMENT: u64 = 4;

/// What one process needs for the micro-batches of one rank, from a run on device `dry`.
#[derive(Clone, Debug, PartialEq)]
pub struct ProcessCosts {
    /// Peak memory.
    pub memory: MemoryUse,
    /// Number of trained parameters.
    pub parameters: u64,
    /// Bytes of the trained parameters.
    pub weight_bytes: u64,
    /// Number of elements of the largest trained parameter.
    pub largest_parameter: u64,
    /// The weights that the ranks divide; `None` if each rank keeps all weights (ZeRO-2).
    pub divided: Option<DividedWeightBytes>,
    /// Seconds of a step without the optimizer.
    pub compute_seconds: f64,
    /// Seconds of the backward passes of a step, a part of `compute_seconds`.
    pub backward_seconds: f64,
    /// One of these backward passes.
    pub backward: BackwardTimes,
    /// Seconds of the optimizer in a step.
    pub optimizer_seconds: f64,
    /// Tokens of a step.
    pub tokens: f64,
}

/// The weights that the ranks divide with ZeRO-3, in bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DividedWeightBytes {
    /// All divided weights.
    pub all: u64,
    /// Bytes of the two largest units (such as layers), the maximum that the passes of a step gather at a time.
    pub two_units: u64,
    /// Bytes that are gathered in a round.
    pub gathered: u64,
    /// Bytes that are gathered in a step outside its rounds.
    pub gathered_beside_rounds: u64,
    /// Whether the run has evaluations, which gather all weights.
    pub are_evaluated: bool,
    /// Memory of one process at the peak of the passes that gather weights unit by unit.
    pub memory_by_units: MemoryUse,
    /// Memory of one process at the peak of the parts of the run that need all weights at once.
    pub memory_with_all: Option<MemoryUse>,
    /// Whether the divided weights are trained. If false, they are frozen and an adapter is trained.
    pub are_trained: bool,
}

/// A part of a run, by the weights that a rank holds in it.
#[derive(Clone, Copy, Debug)]
enum RunPart<'a> {
    /// The whole run, if each rank has all weights.
    Whole,
    /// Passes of a step that gather the divided weights by units.
    Passes(&'a DividedWeightBytes),
    /// Rollouts, evaluations and passes for which all divided weights are gathered.
    WithAllWeights(&'a DividedWeightBytes),
}

/// The times of a backward pass: its launches, and when each gradient is finished. From them, the overlap with the
/// exchanges of gradients is predicted.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct BackwardTimes {
    /// Seconds of each launch, in order.
    pub launches: Vec<f64>,
    /// The launches after which the gradients are finished.
    pub gradients: GradientOrder,
}

impl BackwardTimes {
    /// The seconds by which the exchanges of `buckets` make the pass longer. `seconds_of(weights)` is the time of an
    /// exchange. As in a run, an exchange begins when its gradients are finished and the previous exchange has ended.
    /// At most [`MAX_PENDING_BUCKETS`] exchanges are pending, because each needs a buffer for received gradients: the
    /// launches wait until a buffer is free. The pass ends with the last exchange.
    pub fn exposed_seconds(&self, buckets: &[ExchangedBucket], seconds_of: impl Fn(u64) -> f64) -> f64 {
        let (mut now, mut launched, mut exchanged) = (0.0f64, 0, 0.0f64);
        let mut pending = VecDeque::new();
        for bucket in buckets {
            let after = bucket.after.min(self.launches.len());
            now += self.launches[launched..after].iter().sum::<f64>();
            launched = after;
            if pending.len() == MAX_PENDING_BUCKETS {
                now = now.max(pending.pop_front().unwrap_or_default());
            }
            exchanged = now.max(exchanged) + seconds_of(bucket.weights);
            pending.push_back(exchanged);
        }
        now += self.launches[launched..].iter().sum::<f64>();
        now.max(exchanged) - self.launches.iter().sum::<f64>()
    }

    /// The pass with its launches scaled so that it takes `seconds`.
    fn scaled_to(&self, seconds: f64) -> Self {
        let all: f64 = self.launches.iter().sum();
        let factor = if all > 0.0 { seconds / all } else { 0.0 };
        let launches = self.launches.iter().map(|launch| launch * factor).collect();
        Self { launches, gradients: self.gradients.clone() }
    }
}

/// How many ranks a job has, on which machines they are, and how much they compute in a step. A rank is a process with
/// a GPU of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JobShape {
    /// Number of ranks, at least 1.
    pub ranks: usize,
    /// Number of GPUs in a machine (a node), at least 1; the last machine may have fewer.
    pub gpus_per_node: usize,
    /// Number of micro-batches of a step, of all ranks together; at least `ranks`.
    pub micro_batches: usize,
}

/// Bytes that a rank sends and receives over one link.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LinkBytes {
    /// Bytes to other ranks.
    pub sent: u64,
    /// Bytes from other ranks.
    pub received: u64,
}

/// Bytes that a rank exchanges with the other ranks on its machine and with the ranks on other machines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RankTraffic {
    /// With ranks of the same machine.
    pub within_node: LinkBytes,
    /// With ranks of other machines.
    pub between_nodes: LinkBytes,
}

/// Predicted seconds of a step of a job.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepTime {
    /// Forward and backward passes, and the rollouts of GRPO.
    pub compute: f64,
    /// The optimizer step on the weights that one rank owns.
    pub optimizer: f64,
    /// The exchange of gradients of all rounds.
    pub gradients: f64,
    /// The exchange of updated weights.
    pub weights: f64,
    /// The part of `gradients` during which the backward pass has no launch to run.
    pub exposed_gradients: f64,
}

impl StepTime {
    /// Seconds of the exchange that are exposed: no computation runs at the same time.
    pub fn exposed_seconds(&self) -> f64 {
        self.exposed_gradients + self.weights
    }

    /// Seconds of the exchange of gradients that overlap with the backward passes.
    pub fn hidden_seconds(&self) -> f64 {
        self.gradients - self.exposed_gradients
    }

    /// Seconds of a step.
    pub fn total_seconds(&self) -> f64 {
        self.compute + self.optimizer + self.exposed_seconds()
    }
}

/// One row of a table of weak scaling: the predictions for one number of GPUs.
#[derive(Clone, Debug, PartialEq)]
pub struct ScalingPoint {
    /// The job.
    pub shape: JobShape,
    /// Predicted seconds of a step.
    pub time: StepTime,
    /// The step time of one GPU divided by the step time of this number of GPUs. It is above 1 if the exchange takes
    /// less time than the ranks save by sharing the optimizer step.
    pub efficiency: f64,
    /// Peak bytes of a rank.
    pub peak_bytes: u64,
    /// Tokens per second of all GPUs.
    pub tokens_per_second: f64,
}

impl JobShape {
    /// Number of machines.
    pub fn node_count(&self) -> usize {
        self.ranks.div_ceil(self.gpus_per_node)
    }

    /// Number of rounds of a step: the maximum number of micro-batches that any rank computes.
    pub fn round_count(&self) -> usize {
        self.micro_batches.div_ceil(self.ranks)
    }

    /// Number of micro-batches that a rank computes. Micro-batch `i` belongs to rank `i` modulo the number of ranks.
    fn micro_batches_of(&self, rank: usize) -> u64 {
        (self.micro_batches.saturating_sub(rank)).div_ceil(self.ranks) as u64
    }

    /// The ranks on the machine of a rank.
    fn node_of(&self, rank: usize) -> Range<usize> {
        let first = rank / self.gpus_per_node * self.gpus_per_node;
        first..(first + self.gpus_per_node).min(self.ranks)
    }

    /// The part of `total` bytes that these ranks own together. The parts of all ranks differ by at most the bytes of
    /// one element and have the sum `total`.
    fn owned(&self, ranks: Range<usize>, total: u64, parameters: u64) -> u64 {
        let share = |of: u64, part: u64, all: u64| {
            u64::try_from(u128::from(of) * u128::from(part) / u128::from(all.max(1))).unwrap_or(u64::MAX)
        };
        let until = |rank: usize| {
            let element = share(parameters, rank as u64, self.ranks as u64);
            share(total, element, parameters)
        };
        until(ranks.end) - until(ranks.start)
    }

    /// Peak bytes of a rank by category, in the order of reports. A job of one rank has the memory of the process
    /// itself. If the ranks divide the weights, the bytes are those of the part of the run that needs most memory.
    pub fn memory_of_rank(&self, rank: usize, process: &ProcessCosts) -> Vec<(&'static str, u64)> {
        let Some(divided) = process.divided.as_ref().filter(|_| self.ranks > 1) else {
            return self.memory_at_peak(rank, process, &process.memory, RunPart::Whole);
        };
        let by_units = self.memory_at_peak(rank, process, &divided.memory_by_units, RunPart::Passes(divided));
        let with_all = divided.memory_with_all.as_ref();
        let with_all = with_all.map(|peak| self.memory_at_peak(rank, process, peak, RunPart::WithAllWeights(divided)));
        let total = |memory: &Vec<(&'static str, u64)>| memory.iter().map(|(_, bytes)| bytes).sum::<u64>();
        with_all.filter(|with_all| total(with_all) > total(&by_units)).unwrap_or(by_units)
    }

    /// Bytes of a rank by category in one part of the run. `peak` is the memory of a single process at the peak of
    /// this part.
    fn memory_at_peak(
        &self,
        rank: usize,
        process: &ProcessCosts,
        peak: &MemoryUse,
        part: RunPart<'_>,
    ) -> Vec<(&'static str, u64)> {
        let mut memory: Vec<(&'static str, u64)> =
            peak.at_peak.iter().map(|(name, bytes)| (*name, *bytes as u64)).collect();
        if self.ranks == 1 {
            return memory;
        }
        let parameters = process.parameters;
        let optimizer = MemoryCategory::Optimizer.name();
        for (_, bytes) in memory.iter_mut().filter(|(name, _)| *name == optimizer) {
            *bytes = self.owned(rank..rank + 1, *bytes, parameters);
        }
        let weights = MemoryCategory::Weights.name();
        let (divided, gathered) = match part {
            RunPart::Whole => (0, 0),
            RunPart::Passes(divided) => (divided.all, divided.two_units),
            RunPart::WithAllWeights(divided) => (divided.all, divided.all),
        };
        for (_, bytes) in memory.iter_mut().filter(|(name, _)| *name == weights) {
            *bytes = bytes.saturating_sub(divided) + self.owned(rank..rank + 1, divided, parameters) + gathered;
        }
        let gradients = MemoryCategory::Gradients.name();
        let (bucket, pending) = (MAX_WEIGHTS_PER_BUCKET as u64, MAX_PENDING_BUCKETS as u64);
        let in_flight = match part {
            // Gradients are freed at the end of a round, but one process keeps them until the next step.
            RunPart::WithAllWeights(_) => 0,
            RunPart::Whole | RunPart::Passes(_) => parameters.min((1 + pending) * bucket + process.largest_parameter),
        };
        let received = pending.min(parameters.div_ceil(bucket)) * parameters.min(bucket);
        let of_others = received / self.ranks as u64 * (self.ranks as u64 - 1);
        for (_, bytes) in memory.iter_mut().filter(|(name, _)| *name == gradients) {
            *bytes = (*bytes).min(GRADIENT_ELEMENT * in_flight) + GRADIENT_ELEMENT * of_others;
        }
        let sums = self.owned(rank..rank + 1, GRADIENT_ELEMENT * parameters, parameters);
        let at = memory.iter().position(|(name, _)| *name == gradients).map_or(memory.len(), |at| at + 1);
        memory.insert(at, (GRADIENT_SUMS_CATEGORY, sums));
        memory
    }

    /// Peak bytes of the rank that needs most memory.
    pub fn peak_bytes(&self, process: &ProcessCosts) -> u64 {
        let peak = |rank| self.memory_of_rank(rank, process).iter().map(|(_, bytes)| bytes).sum();
        (0..self.ranks).map(peak).max().unwrap_or(0)
    }

    /// Bytes of gradients that a rank exchanges in a step.
    pub fn gradient_traffic(&self, rank: usize, parameters: u64) -> RankTraffic {
        let gradient = GRADIENT_ELEMENT * parameters;
        let node = self.node_of(rank);
        let own = self.owned(rank..rank + 1, gradient, parameters);
        let of_node = self.owned(node.clone(), gradient, parameters);
        let computed = self.micro_batches_of(rank);
        let computed_in_node: u64 = node.map(|rank| self.micro_batches_of(rank)).sum();
        RankTraffic {
            within_node: LinkBytes { sent: computed * (of_node - own), received: (computed_in_node - computed) * own },
            between_nodes: LinkBytes {
                sent: computed * (gradient - of_node),
                received: (self.micro_batches as u64 - computed_in_node) * own,
            },
        }
    }

    /// Bytes of weights that a rank exchanges in a step: updated weights and, with ZeRO-3, the weights that are
    /// gathered in each round and outside of the rounds.
    pub fn weight_traffic(&self, rank: usize, process: &ProcessCosts) -> RankTraffic {
        let divided = process.divided.as_ref();
        let updated = if divided.is_some_and(|divided| divided.are_trained) { 0 } else { process.weight_bytes };
        let of_rounds = |divided: &DividedWeightBytes| self.round_count() as u64 * divided.gathered;
        let gathered = divided.map_or(0, |divided| of_rounds(divided) + divided.gathered_beside_rounds);
        self.all_gather_traffic(rank, updated + gathered, process.parameters)
    }

    /// Bytes of weights that a rank exchanges before an evaluation, which needs all weights; 0 without ZeRO-3 or
    /// without evaluations.
    pub fn evaluation_traffic(&self, rank: usize, process: &ProcessCosts) -> RankTraffic {
        let divided = process.divided.as_ref().filter(|divided| divided.are_evaluated);
        self.all_gather_traffic(rank, divided.map_or(0, |divided| divided.all), process.parameters)
    }

    /// Bytes that a rank exchanges in an all-gather of weights. Each rank has a part of the `all` bytes.
    fn all_gather_traffic(&self, rank: usize, all: u64, parameters: u64) -> RankTraffic {
        let node = self.node_of(rank);
        let own = self.owned(rank..rank + 1, all, parameters);
        let of_node = self.owned(node.clone(), all, parameters);
        RankTraffic {
            within_node: LinkBytes { sent: (node.len() as u64 - 1) * own, received: of_node - own },
            between_nodes: LinkBytes { sent: (self.ranks - node.len()) as u64 * own, received: all - of_node },
        }
    }

    /// Predicted seconds of a step. `process` has the costs of [`Self::rounds`] micro-batches.
    pub fn step_time(&self, process: &ProcessCosts, links: &JobLinks) -> StepTime {
        let rounds = self.round_count() as f64;
        // In a round each rank computes one micro-batch. The last round may have fewer micro-batches. A rank with a
        // micro-batch sends as many bytes in the last round as in any other round.
        let round = JobShape { micro_batches: self.ranks, ..*self };
        let slowest = |traffic: &dyn Fn(usize) -> RankTraffic| {
            (0..self.ranks).map(|rank| traffic(rank).exchange_seconds(links)).fold(0.0, f64::max)
        };
        let round_seconds = slowest(&|rank| round.gradient_traffic(rank, process.parameters));
        let exposed_in_round = if round_seconds > 0.0 {
            let pass = process.backward.scaled_to(process.backward_seconds / rounds);
            let seconds_per_weight = round_seconds / process.parameters.max(1) as f64;
            pass.exposed_seconds(&pass.gradients.buckets(self.ranks), |weights| seconds_per_weight * weights as f64)
        } else {
            0.0
        };
        StepTime {
            compute: process.compute_seconds,
            optimizer: process.optimizer_seconds / self.ranks as f64,
            gradients: rounds * round_seconds,
            weights: slowest(&|rank| self.weight_traffic(rank, process)),
            exposed_gradients: rounds * exposed_in_round,
        }
    }
}

impl RankTraffic {
    /// Seconds of the exchange. Both links work at the same time, so the longer time of the two counts.
    pub fn exchange_seconds(&self, links: &JobLinks) -> f64 {
        let of = |bytes: LinkBytes| bytes.sent.max(bytes.received);
        links
            .within_node
            .transfer_seconds(of(self.within_node))
            .max(links.between_nodes.transfer_seconds(of(self.between_nodes)))
    }
}

/// Predicts weak scaling: step time and efficiency for 1, 2, 4, … 1024 GPUs. Each GPU computes `rounds` micro-batches
/// in a step, so the global batch grows with the number of GPUs. `process` has the costs of `rounds` micro-batches.
pub fn weak_scaling(
    process: &ProcessCosts,
    rounds: usize,
    gpus_per_node: usize,
    links: &JobLinks,
) -> Vec<ScalingPoint> {
    let shape = |ranks: usize| JobShape { ranks, gpus_per_node, micro_batches: rounds * ranks };
    let alone = shape(1).step_time(process, links).total_seconds();
    let point = |power: u32| {
        let shape = shape(1 << power);
        let time = shape.step_time(process, links);
        ScalingPoint {
            shape,
            time,
            efficiency: alone / time.total_seconds(),
            peak_bytes: shape.peak_bytes(process),
            tokens_per_second: process.tokens * shape.ranks as f64 / time.total_seconds(),
        }
    };
    (0..=10).map(point).collect()
}

#[cfg(test)]
mod tests;
