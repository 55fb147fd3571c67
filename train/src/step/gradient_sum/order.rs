//! The order in which a backward pass finishes gradients. It determines when the ranks of a job exchange each bucket,
//! for any number of ranks. `reel plan` records this order on device `dry`.

use std::sync::Arc;

use reel_runtime::Tensor;
use reel_runtime::optim::{AdamW, ParameterSize, Partition};

use super::{MAX_WEIGHTS_PER_BUCKET, buckets};

/// The gradients of a backward pass in the order in which they are finished: the number of preceding launches, and
/// the names of the parameters.
pub type FinishedGradients = Vec<(usize, Vec<Arc<str>>)>;

/// For each trained parameter, when a backward pass has finished its gradient.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GradientOrder {
    /// The sizes of the parameters, in the order of their names.
    pub sizes: Vec<ParameterSize>,
    /// Indices of the parameters, in the order in which their gradients are exchanged.
    pub order: Vec<usize>,
    /// For each parameter, the number of launches of the backward pass after which its gradient is finished.
    pub finished_after: Vec<usize>,
}

/// A bucket of gradients that the ranks exchange together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExchangedBucket {
    /// Number of weights whose gradients are exchanged.
    pub weights: u64,
    /// The exchange starts after this number of launches of the backward pass.
    pub after: usize,
}

impl GradientOrder {
    /// Creates the order for a backward pass of `launches` launches. `finished` has the finished gradients; a second
    /// entry for a parameter belongs to a later pass. Parameters without a gradient are exchanged at the end.
    /// `model_order` are all parameters of the model; `optimizer` has the trained ones.
    pub fn new<'a>(
        optimizer: &AdamW,
        model_order: impl DoubleEndedIterator<Item = &'a Tensor>,
        launches: usize,
        finished: &FinishedGradients,
    ) -> Self {
        let (mut names, mut sizes) = (Vec::new(), Vec::new());
        for (name, parameter, _) in optimizer.parameter_states() {
            names.push(name);
            let divisible = parameter.unpadded_shape() == parameter.shape();
            sizes.push(ParameterSize { weights: parameter.count(), divisible });
        }
        let index = |name: Option<&str>| names.binary_search(&name?).ok();
        let order = model_order.rev().filter_map(|parameter| index(parameter.parameter_name())).collect();
        let mut first: Vec<Option<usize>> = vec![None; names.len()];
        for (after, finished_names) in finished {
            for at in finished_names.iter().filter_map(|name| index(Some(name))) {
                first[at].get_or_insert((*after).min(launches));
            }
        }
        let finished_after = first.into_iter().map(|after| after.unwrap_or(launches)).collect();
        Self { sizes, order, finished_after }
    }

    /// Returns the buckets that `ranks` ranks exchange, in order. The exchange of a bucket waits for the bucket's
    /// gradients and for the start of the previous exchange.
    pub fn buckets(&self, ranks: usize) -> Vec<ExchangedBucket> {
        let partition = Partition::new(&self.sizes, 0, ranks);
        let mut latest = 0;
        let buckets = buckets(&partition, &self.order, MAX_WEIGHTS_PER_BUCKET).into_iter().map(|cells| {
            latest = cells.iter().map(|cell| self.finished_after[cell.parameter]).fold(latest, usize::max);
            ExchangedBucket { weights: cells.iter().map(|cell| cell.range.len() as u64).sum(), after: latest }
        });
        buckets.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_starts_when_its_last_gradient_is_finished_and_never_before_an_earlier_bucket() {
        let size = |weights| ParameterSize { weights, divisible: true };
        // Parameters 0, 1 and 2 of the model. Parameter 2 is exchanged first, but parameter 1 is finished before it.
        let order = GradientOrder {
            sizes: vec![size(5 << 20), size(40 << 20), size(3 << 20)],
            order: vec![2, 1, 0],
            finished_after: vec![90, 20, 30],
        };
        let bucket = |weights: u64, after| ExchangedBucket { weights: weights << 20, after };
        // The first bucket is full after 29 of the 40 Mi weights of parameter 1. Its other weights wait for parameter
        // 0.
        assert_eq!(order.buckets(4), [bucket(32, 30), bucket(16, 90)]);
        let weights: u64 = order.buckets(100).iter().map(|bucket| bucket.weights).sum();
        assert_eq!(weights, 48 << 20);
    }
}
