//! How the next token of each completion is chosen, and the arrays that the sampling kernel reads.

use reel_kernels::sample as kernel;
use reel_runtime::{Addr, Category, Cx, DType, Tensor};

use crate::error::{Error, Result};

/// Choice of tokens for one completion; the names and meanings are those of transformers' generation_config.json.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// 0: always the likeliest token.
    pub temperature: f32,
    /// Keeps the likeliest tokens up to this share of the probability; 1: all.
    pub top_p: f32,
    /// Keeps this many of the likeliest tokens; 0: all.
    pub top_k: u32,
    /// Above 1: makes tokens that already occurred (in the prompt too) less likely.
    pub repetition_penalty: f32,
    /// With the place of the token, decides every draw: the same seed gives the same completion in any batch.
    pub seed: u64,
}

impl Default for Sampling {
    fn default() -> Sampling {
        Sampling { temperature: 0.0, top_p: 1.0, top_k: 0, repetition_penalty: 1.0, seed: 0 }
    }
}

impl Sampling {
    /// Refuses numbers without a meaning.
    ///
    /// # Errors
    /// Names the option.
    pub fn check(&self) -> Result<()> {
        let bad = |field, what: String| Err(Error::Request { field, what });
        if !(self.temperature >= 0.0 && self.temperature.is_finite()) {
            return bad(
                "temperature",
                format!("{} is not a number from 0 up; 0 takes the likeliest token", self.temperature),
            );
        }
        if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            return bad("top-p", format!("{} is not in (0, 1]; 1 keeps all tokens", self.top_p));
        }
        if !(self.repetition_penalty > 0.0 && self.repetition_penalty.is_finite()) {
            return bad("repetition-penalty", format!("{} is not above 0; 1 has no effect", self.repetition_penalty));
        }
        Ok(())
    }
}

/// One row to choose a token for.
#[derive(Debug)]
pub(crate) struct Row<'a> {
    pub(crate) sampling: Sampling,
    /// Which token of its sequence is chosen: the counter of the draw.
    pub(crate) position: usize,
    /// Every id so far, the prompt's too.
    pub(crate) history: &'a [i32],
}

/// Chooses a token for each row of `logits` (f32 `[R, V]`): ids (-1 where the logits are no numbers) and log-probabilities.
pub(crate) fn choose(cx: &Cx, logits: &Tensor, rows: &[Row], suppressed: &Tensor) -> Result<(Vec<i32>, Vec<f32>)> {
    let (n, device) = (rows.len(), cx.device());
    let f32s = |f: &dyn Fn(&Row) -> f32| {
        let v: Vec<f32> = rows.iter().map(f).collect();
        Tensor::from_f32(device, &[n], DType::F32, &v, Category::Inputs)
    };
    let i32s = |f: &dyn Fn(&Row) -> i32| Tensor::from_i32(device, &[n], &rows.iter().map(f).collect::<Vec<_>>());
    // Histories travel only where a penalty needs them.
    let seen = |r: &Row| if r.sampling.repetition_penalty == 1.0 { 0 } else { r.history.len() };
    let width = rows.iter().map(seen).max().unwrap_or(0);
    let mut history = vec![0i32; n * width];
    for (to, r) in history.chunks_exact_mut(width.max(1)).zip(rows) {
        to[..seen(r)].copy_from_slice(&r.history[..seen(r)]);
    }
    let seeds: Vec<u32> = rows.iter().flat_map(|r| [r.sampling.seed as u32, (r.sampling.seed >> 32) as u32]).collect();
    let seed = Tensor::from_slice(device, &[n, 2], DType::I32, &seeds, Category::Inputs)?;
    let (temperature, top_p) = (f32s(&|r| r.sampling.temperature)?, f32s(&|r| r.sampling.top_p)?);
    let (penalty, top_k) = (f32s(&|r| r.sampling.repetition_penalty)?, i32s(&|r| r.sampling.top_k as i32)?);
    let (position, history_len) = (i32s(&|r| r.position as i32)?, i32s(&|r| seen(r) as i32)?);
    let history = Tensor::from_i32(device, &[n, width], &history)?;
    let (ids, log_prob) = (cx.empty(&[n], DType::I32)?, cx.empty(&[n], DType::F32)?);
    let params = kernel::Params {
        logits: logits.addr(),
        temperature: temperature.addr(),
        top_p: top_p.addr(),
        top_k: top_k.addr(),
        penalty: penalty.addr(),
        seed: seed.addr(),
        position: position.addr(),
        history: if width == 0 { Addr::NULL } else { history.addr() },
        history_len: history_len.addr(),
        suppressed: if suppressed.count() == 0 { Addr::NULL } else { suppressed.addr() },
        ids: ids.addr(),
        log_prob: log_prob.addr(),
        rows: n as u32,
        vocab: logits.shape().last().copied().unwrap_or(0) as u32,
        history_cols: width as u32,
        suppressed_count: suppressed.count() as u32,
        ..kernel::Params::default()
    };
    // The cpu kernel keeps its working copy to itself.
    let bytes = if device.name() == "cpu" { 0 } else { kernel::workspace(&params) };
    let workspace = match bytes {
        0 => None,
        bytes => Some(Tensor::empty(device, &[bytes / 4], DType::F32, Category::Workspace)?),
    };
    let params = kernel::Params { workspace: workspace.as_ref().map_or(Addr::NULL, Tensor::addr), ..params };
    cx.launch(&kernel::sample(&params))?;
    Ok((ids.to_i32()?, log_prob.to_f32()?))
}
