//! Records the inputs of the decoder's linear layers in forward passes, for quantisation with calibration.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

/// The recorded inputs by classic name of the layer, without `.weight`. Of the layers with the same input one has it:
/// those in [`RECORDED_LAYERS`].
pub type LinearInputs = BTreeMap<String, Arc<InputMoments>>;

/// The ends of the names of the layers that record their inputs: q for q, k and v, and gate for gate and up.
pub(crate) const RECORDED_LAYERS: [&str; 4] =
    ["self_attn.q_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.down_proj"];

/// Sums over the inputs of a linear layer, for each input channel.
#[derive(Debug, Default)]
pub struct InputMoments(Mutex<Sums>);

#[derive(Debug, Default)]
struct Sums {
    tokens: usize,
    /// The sums of |x| and of x² of each channel.
    channels: Vec<[f64; 2]>,
}

impl InputMoments {
    /// Adds inputs `[tokens, width]`.
    pub(crate) fn add(&self, x: &[f32], width: usize) {
        let mut sums = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        sums.tokens += x.len() / width.max(1);
        sums.channels.resize(width, [0.0; 2]);
        for row in x.chunks_exact(width.max(1)) {
            for ([sizes, squares], &x) in sums.channels.iter_mut().zip(row) {
                *sizes += f64::from(x.abs());
                *squares += f64::from(x) * f64::from(x);
            }
        }
    }

    /// The number of recorded tokens.
    pub fn tokens(&self) -> usize {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).tokens
    }

    /// The means of |x| and of x² of each channel; empty if no input was recorded.
    pub(crate) fn means(&self) -> Vec<[f64; 2]> {
        let sums = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        sums.channels.iter().map(|sums_of_channel| sums_of_channel.map(|sum| sum / sums.tokens as f64)).collect()
    }
}
