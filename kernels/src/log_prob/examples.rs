//! Example calls of this folder's kernels. `reel kernels list`, `show` and `bench` use them.

#[cfg(test)]
use crate::checks::traffic::{TrafficArrays, TrafficLaunches, allow_one_tenth_more};
use crate::folder::{FLOAT_DTYPES, LabeledLaunches, Sizes, VOCAB_SIZE, placeholder_params};
use crate::log_prob;
use reel_device::Addr;

pub(crate) fn example_calls(s: &Sizes) -> LabeledLaunches {
    // Chunks of 64 MiB of logits.
    let vocab = s.get("vocab", VOCAB_SIZE);
    let (rows, inv_temperature) = (s.get("rows", (64 << 20) / (4 * VOCAB_SIZE)), 1.0);
    let fwd = log_prob::FwdParams {
        entropy: Addr::NULL,
        state: Addr::NULL,
        rows,
        vocab,
        columns: vocab,
        inv_temperature,
        ..placeholder_params()
    };
    let bwd = log_prob::BwdParams {
        entropy: Addr::NULL,
        d_entropy: Addr::NULL,
        rows,
        vocab,
        columns: vocab,
        inv_temperature,
        ..placeholder_params()
    };
    let size = "110 rows of 152064 logits";
    let bwd = FLOAT_DTYPES.map(|t| (size, log_prob::bwd(t, &bwd)));
    [(size, log_prob::fwd(&fwd))].into_iter().chain(bwd).collect()
}

/// Returns launches on allocated arrays. A test compares the memory traffic that the simulator counts with the traffic
/// in the `Cost` of each launch.
#[cfg(test)]
pub(crate) fn traffic_launches(arrays: &mut TrafficArrays) -> TrafficLaunches {
    use bytemuck::Zeroable;
    use reel_device::DType::{BF16, F32};
    let (rows, vocab) = (2u32, VOCAB_SIZE);
    let n = (rows * vocab) as usize;
    let [logits, d_logits] = [(); 2].map(|()| arrays.alloc_f32(n));
    let targets = arrays.alloc_i32([5, 100_000]);
    let [log_prob, lse, grad] = [(); 3].map(|()| arrays.alloc_f32(8usize));
    let (entropy, d_entropy) = (arrays.alloc_f32(8usize), arrays.alloc_f32(8usize));
    let state = arrays.alloc_elements(log_prob::STATE_BYTES_PER_ROW / 8 * rows as usize, 8);
    let fwd = log_prob::FwdParams {
        logits,
        targets,
        log_prob,
        lse,
        rows,
        vocab,
        columns: vocab,
        inv_temperature: 1.0,
        ..Zeroable::zeroed()
    };
    let bwd = log_prob::BwdParams {
        logits,
        targets,
        lse,
        grad,
        d_logits,
        rows,
        vocab,
        columns: vocab,
        inv_temperature: 1.0,
        ..Zeroable::zeroed()
    };
    // The first and the second of three launches that compute a row in three chunks.
    let begins = log_prob::FwdParams { state, vocab: 3 * vocab, entropy, ..fwd };
    let between = log_prob::FwdParams { first: vocab, ..begins };
    let through_both = log_prob::BwdParams { entropy, d_entropy, first: vocab, vocab: 3 * vocab, ..bwd };
    allow_one_tenth_more([
        log_prob::fwd(&fwd),
        log_prob::fwd(&log_prob::FwdParams { entropy, ..fwd }),
        log_prob::fwd(&begins),
        log_prob::fwd(&between),
        log_prob::bwd(F32, &bwd),
        log_prob::bwd(BF16, &bwd),
        log_prob::bwd(BF16, &through_both),
    ])
}
