//! EMA-GRPO's advantages (K. Feng et al., "OneThinker", 2025; `compute_ema_grpo_outcome_advantage` of
//! github.com/tulerfeng/OneThinker at 768b20f): rewards are divided by a standard deviation of their kind of problem,
//! which moves slowly from step to step.

use std::collections::BTreeMap;

use clap::Args;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::rewards::ProblemType;

/// Added to each standard deviation.
const EPSILON: f64 = 1e-6;

/// The options of `--scale-rewards ema`.
#[derive(Args, Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct EmaRules {
    /// For --scale-rewards ema: share of the earlier moments that a step keeps, from 0 to below 1
    #[arg(long, value_name = "D", default_value_t = 0.99)]
    pub ema_decay: f64,
    /// For --scale-rewards ema: minimum standard deviation of a kind of problem
    #[arg(long, value_name = "S", default_value_t = 0.001)]
    pub ema_min_std: f64,
    /// For --scale-rewards ema: a group with an advantage above G in magnitude is divided by its own standard deviation
    #[arg(long, value_name = "G", default_value_t = 5.0)]
    pub ema_guard: f64,
}

impl Default for EmaRules {
    fn default() -> Self {
        Self { ema_decay: 0.99, ema_min_std: 0.001, ema_guard: 5.0 }
    }
}

impl EmaRules {
    /// Checks the ranges of the values, and that they are given only with `--scale-rewards ema` (`is_used`).
    ///
    /// # Errors
    /// A value is out of range, or has no effect.
    pub fn validate(&self, is_used: bool) -> Result<()> {
        let finite_above_0 = |x: f64| x.is_finite() && x > 0.0;
        for (flag, value, is_valid, default, help) in [
            ("--ema-decay", self.ema_decay, (0.0..1.0).contains(&self.ema_decay), 0.99, "give 0 or more, below 1"),
            ("--ema-min-std", self.ema_min_std, finite_above_0(self.ema_min_std), 0.001, "give a number above 0"),
            ("--ema-guard", self.ema_guard, finite_above_0(self.ema_guard), 5.0, "give a number above 0"),
        ] {
            if !is_valid {
                return Err(Error::usage(flag, format!("is {value}"), help));
            }
            if !is_used && value != default {
                let help = "give --scale-rewards ema too, or leave it out";
                return Err(Error::usage(flag, "is for --scale-rewards ema, which is not given", help));
            }
        }
        Ok(())
    }
}

/// The moving first and second moments of the rewards of each kind of problem.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct EmaMoments(BTreeMap<String, [f64; 2]>);

/// The key of a kind of problem in [`EmaMoments`]: its name, for segmentation with the kind of its data.
pub fn ema_task(kind: Option<ProblemType>, is_video: Option<bool>) -> String {
    let name = kind.map_or("unknown", ProblemType::name);
    match is_video.filter(|_| kind == Some(ProblemType::Segmentation)) {
        Some(is_video) => format!("{name}/{}", if is_video { "video" } else { "image" }),
        None => name.to_string(),
    }
}

impl EmaMoments {
    /// Updates the moments with the rewards of a step, then returns the advantages of its groups, each given with the
    /// key of its kind of problem. A reward that is NaN does not count and has the advantage 0.
    ///
    /// ```text
    /// m1, m2    = d m1 + (1 - d) mean(r), d m2 + (1 - d) mean(r²)      by kind; the first step sets them
    /// advantage = (r - mean of its group) / (sqrt(max(m2 - m1², min_std²)) + 1e-6)
    /// ```
    /// A group with an advantage above the guard in magnitude is divided by its own deviation (divisor n) + 1e-6.
    pub fn step(&mut self, groups: &[(String, &[f32])], rules: &EmaRules) -> Vec<Vec<f32>> {
        let known =
            |rewards: &[f32]| -> Vec<f64> { rewards.iter().filter(|r| !r.is_nan()).map(|&r| f64::from(r)).collect() };
        let mut by_task: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
        for (task, rewards) in groups {
            by_task.entry(task).or_default().extend(known(rewards));
        }
        for (task, rewards) in by_task.iter().filter(|(_, rewards)| !rewards.is_empty()) {
            let batch = moments(rewards);
            let kept = rules.ema_decay;
            self.0
                .entry((*task).to_string())
                .and_modify(|m| *m = [0, 1].map(|i| kept * m[i] + (1.0 - kept) * batch[i]))
                .or_insert(batch);
        }
        let advantages = groups.iter().map(|(task, rewards)| {
            let own = moments(&known(rewards));
            let all = self.0.get(task).copied().unwrap_or(own);
            let divided = |divisor: f64| -> Vec<f32> {
                let of = |&r: &f32| if r.is_nan() { 0.0 } else { ((f64::from(r) - own[0]) / divisor) as f32 };
                rewards.iter().map(of).collect()
            };
            let scaled = divided(deviation(all, rules.ema_min_std) + EPSILON);
            match scaled.iter().any(|a| f64::from(a.abs()) > rules.ema_guard) {
                true => divided(deviation(own, 0.0) + EPSILON),
                false => scaled,
            }
        });
        advantages.collect()
    }
}

/// The mean and the mean of the squares; 0 for no values.
fn moments(values: &[f64]) -> [f64; 2] {
    let mean = |f: &dyn Fn(&f64) -> f64| values.iter().map(f).sum::<f64>() / values.len().max(1) as f64;
    [mean(&|x| *x), mean(&|x| x * x)]
}

fn deviation([mean, square]: [f64; 2], minimum: f64) -> f64 {
    (square - mean * mean).max(minimum * minimum).sqrt()
}
