//! The options of `grpo` that choose the formula of the loss. `reel_kernels::grpo_loss` has the formulas.

use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};

use super::{check, range};
use crate::Result;

/// How the losses of single tokens are averaged, and for CISPO also the loss of a token.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[value(rename_all = "snake_case")]
pub enum LossType {
    /// Mean over the tokens of each completion, then over completions.
    #[default]
    Grpo,
    /// Mean over all tokens of a micro-batch.
    Bnpo,
    /// Sum over the tokens of each completion divided by --max-completion-length, then mean over completions.
    DrGrpo,
    /// Mean over all tokens of a step.
    Dapo,
    /// Like dapo, but of the log-probability times the importance ratio as a constant of at most --epsilon-high
    Cispo,
}

/// Whether importance ratios are computed per token or per sequence.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[value(rename_all = "snake_case")]
pub enum ImportanceSamplingLevel {
    /// One importance ratio for each token.
    #[default]
    Token,
    /// One importance ratio for each completion: the geometric mean of those of its tokens (GSPO).
    Sequence,
    /// The value of the ratio of the completion, with the gradient of each token (GSPO-token).
    SequenceToken,
}

/// What the correction does with ratios beyond its bounds, and whether all tokens of a completion share a ratio.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[value(rename_all = "snake_case")]
pub enum CorrectionMode {
    /// The ratio of each token, at most the bound.
    TokenTruncate,
    /// The ratio of each token, 0 beyond the bounds.
    TokenMask,
    /// The product of the ratios of a completion, at most the bound.
    SequenceTruncate,
    /// The product of the ratios of a completion, 0 beyond the bounds.
    #[default]
    SequenceMask,
}

/// Options of the loss besides its type, with TRL's names. The sampler of TRL is vLLM, hence their prefix.
#[derive(Args, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct LossVariants {
    /// Share of the tokens in the policy loss: those of each micro-batch with the highest entropies; 0: only the
    /// highest
    #[arg(long, value_name = "SHARE", default_value_t = 1.0)]
    pub top_entropy_quantile: f64,
    /// Entropy bonus: the loss has the mean entropy of the tokens times -C
    #[arg(long, value_name = "C", default_value_t = 0.0, allow_negative_numbers = true)]
    pub entropy_coef: f64,
    /// Multiply the policy loss by the ratio of the probabilities in training and in sampling, which may differ on GPUs
    /// [default: true with an option of the ratio, else false]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
    pub vllm_importance_sampling_correction: Option<bool>,
    /// Whether this ratio is of each token or of the whole completion, and whether a ratio beyond the bounds becomes
    /// the bound or 0 [default: sequence_mask]
    #[arg(long, value_enum)]
    pub vllm_importance_sampling_mode: Option<CorrectionMode>,
    /// Upper bound of this ratio [default: 3]
    #[arg(long, value_name = "C", alias = "vllm-importance-sampling-cap")]
    pub vllm_importance_sampling_clip_max: Option<f64>,
    /// Lower bound of this ratio [default: none]
    #[arg(long, value_name = "C")]
    pub vllm_importance_sampling_clip_min: Option<f64>,
}

impl Default for LossVariants {
    fn default() -> Self {
        super::default_options()
    }
}

impl LossVariants {
    /// The mode of the correction of the difference between sampling and training, and the lower and upper bound of a
    /// ratio; `None` without the correction.
    pub fn correction(&self) -> Option<(CorrectionMode, [f64; 2])> {
        let min = self.vllm_importance_sampling_clip_min.unwrap_or(0.0);
        let max = self.vllm_importance_sampling_clip_max.unwrap_or(3.0);
        let is_on = self.vllm_importance_sampling_correction.unwrap_or_else(|| self.option_of_ratio().is_some());
        is_on.then_some((self.vllm_importance_sampling_mode.unwrap_or_default(), [min, max]))
    }

    /// The first given option of the correction's ratio.
    fn option_of_ratio(&self) -> Option<&'static str> {
        let mode = self.vllm_importance_sampling_mode.map(|_| "--vllm-importance-sampling-mode");
        let max = self.vllm_importance_sampling_clip_max.map(|_| "--vllm-importance-sampling-clip-max");
        mode.or(max).or(self.vllm_importance_sampling_clip_min.map(|_| "--vllm-importance-sampling-clip-min"))
    }

    /// Checks the values of all options.
    ///
    /// # Errors
    /// The error names the option.
    pub fn validate(&self) -> Result<()> {
        let share = self.top_entropy_quantile;
        range("--top-entropy-quantile", share, (0.0..=1.0).contains(&share), "give a share from 0 to 1")?;
        range("--entropy-coef", self.entropy_coef, true, "give a finite number")?;
        let unused = self.option_of_ratio().filter(|_| self.vllm_importance_sampling_correction == Some(false));
        check(
            unused.is_none(),
            unused.unwrap_or_default(),
            "is for --vllm-importance-sampling-correction, which is false".into(),
            "leave one of the two out",
        )?;
        let Some((_, [min, max])) = self.correction() else { return Ok(()) };
        let help = "give a finite number above 0; a large one stands for no bound";
        range("--vllm-importance-sampling-clip-max", max, max > 0.0, help)?;
        let help = "give a number from 0 to --vllm-importance-sampling-clip-max";
        range("--vllm-importance-sampling-clip-min", min, min >= 0.0 && min < max, help)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_correction_is_on_with_an_option_of_its_ratio() {
        let off = LossVariants::default();
        assert_eq!(off.correction(), None);
        let on = LossVariants { vllm_importance_sampling_correction: Some(true), ..off.clone() };
        assert_eq!(on.correction(), Some((CorrectionMode::SequenceMask, [0.0, 3.0])));
        let capped = LossVariants { vllm_importance_sampling_clip_max: Some(2.0), ..off };
        assert_eq!(capped.correction(), Some((CorrectionMode::SequenceMask, [0.0, 2.0])));
        capped.validate().unwrap();
        let unused = LossVariants { vllm_importance_sampling_correction: Some(false), ..capped };
        assert_eq!(unused.correction(), None);
        assert!(unused.validate().unwrap_err().to_string().starts_with("--vllm-importance-sampling-clip-max: is for"));
    }
}
