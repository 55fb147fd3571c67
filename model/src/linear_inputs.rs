//! Records the inputs of the decoder's linear layers in forward passes, for quantisation with calibration.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

/// The linear layers of a decoder layer that have the same input, the first of which records it, and the tensor whose
/// elements or rows scale the channels of this input. o_proj is not among them, because query heads share value heads.
pub(crate) const SAME_INPUT: [(&[&str], &str); 3] = [
    (&["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"], "input_layernorm.weight"),
    (&["mlp.gate_proj", "mlp.up_proj"], "post_attention_layernorm.weight"),
    (&["mlp.down_proj"], "mlp.up_proj.weight"),
];

/// The recorded inputs by classic name of the layer, without `.weight`.
pub type LinearInputs = BTreeMap<String, Arc<InputMoments>>;

/// The number of tokens, and for each input channel the sums of |x| and of x².
#[derive(Debug, Default)]
pub struct InputMoments(Mutex<(usize, Vec<[f64; 2]>)>);

impl InputMoments {
    /// Adds inputs `[tokens, width]`.
    pub(crate) fn add(&self, x: &[f32], width: usize) {
        let mut sums = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (tokens, channels) = &mut *sums;
        channels.resize(width, [0.0; 2]);
        for row in x.chunks_exact(width.max(1)) {
            *tokens += 1;
            for ([sizes, squares], x) in channels.iter_mut().zip(row.iter().map(|&x| f64::from(x))) {
                (*sizes, *squares) = (*sizes + x.abs(), *squares + x * x);
            }
        }
    }

    /// The number of recorded tokens, and the means of |x| and of x² of each channel.
    pub fn means(&self) -> (usize, Vec<[f64; 2]>) {
        let (tokens, channels) = &*self.0.lock().unwrap_or_else(PoisonError::into_inner);
        (*tokens, channels.iter().map(|sums| sums.map(|sum| sum / *tokens as f64)).collect())
    }
}
