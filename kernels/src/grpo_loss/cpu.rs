//! The GRPO losses on the CPU: each task computes one completion.
#![allow(unsafe_code)]

use reel_device::Team;
use reel_device::launch::view::{OutputArray, slice_at};

use super::{CORRECTION_MASKS, CORRECTION_PER_SEQUENCE, Params, RatioLevel, STATS_PER_COMPLETION};

/// # Safety
/// Every address in [`Params`] is valid for the documented shape and dtype.
pub unsafe fn loss(p: &Params, team: &Team) {
    let n = p.completions as usize;
    if n == 0 {
        return;
    }
    // SAFETY: `p`'s addresses cover the shapes that [`Params`] documents.
    let (ends, counted) = unsafe { (slice_at::<i32>(p.cu_seqlens, n + 1), slice_at::<i32>(p.counted, n)) };
    let tokens = ends[n] as usize;
    let optional = |a: reel_device::Addr| if a.is_null() { 0 } else { tokens };
    // SAFETY: `p`'s addresses cover the documented shapes; no elements are read at a null address.
    let (log_prob, old) = unsafe { (slice_at::<f32>(p.log_prob, tokens), slice_at::<f32>(p.old, optional(p.old))) };
    // SAFETY: each address is null (then no elements are read) or covers all tokens.
    let [sampled, reference, entropy] =
        [p.sampled, p.reference, p.entropy].map(|a| unsafe { slice_at::<f32>(a, optional(a)) });
    // SAFETY: `p`'s addresses cover the shapes that [`Params`] documents.
    let (advantage, weight) = unsafe { (slice_at::<f32>(p.advantage, n), slice_at::<f32>(p.weight, n)) };
    // SAFETY: `p`'s addresses cover the shapes that [`Params`] documents.
    let (gradient, stats) = unsafe {
        (OutputArray::<f32>::new(p.d_log_prob, tokens), OutputArray::<f32>::new(p.stats, STATS_PER_COMPLETION * n))
    };
    // SAFETY: `p.d_entropy` is null (then nothing is written) or covers all tokens.
    let of_entropy = unsafe { OutputArray::<f32>::new(p.d_entropy, optional(p.d_entropy)) };
    team.run(n, |i| {
        let (start, len) = (ends[i] as usize, (ends[i + 1] - ends[i]) as usize);
        let (counted, a) = (counted[i] as usize, advantage[i] as f64);
        // SAFETY: completions do not overlap.
        let (gradient, stats) =
            unsafe { (gradient.part(start, len), stats.part(STATS_PER_COMPLETION * i, STATS_PER_COMPLETION)) };
        gradient[counted..].fill(0.0);
        let mean_of = |value: &dyn Fn(usize) -> f64| (0..counted).map(value).sum::<f64>() / counted.max(1) as f64;
        let log_ratio = |t: usize| old.get(start + t).map_or(0.0, |&o| log_prob[start + t] as f64 - o as f64);
        let mean = mean_of(&log_ratio);
        let drift = |t: usize| {
            let before = *old.get(start + t).unwrap_or(&log_prob[start + t]);
            sampled.get(start + t).filter(|s| !s.is_nan()).map_or(0.0, |&s| before as f64 - s as f64)
        };
        let sum_of_drifts: f64 = (0..counted).map(drift).sum();
        let correction = |t: usize| {
            let q = if p.correction & CORRECTION_PER_SEQUENCE != 0 { sum_of_drifts } else { drift(t) }.exp();
            let (min, max) = (p.correction_min as f64, p.correction_max as f64);
            let is_outside = !sampled.is_empty() && (q < min || q > max);
            match is_outside {
                false => q,
                true if p.correction & CORRECTION_MASKS != 0 => 0.0,
                true if q < min => min,
                true => max,
            }
        };
        let is_selected = |t: usize| entropy.get(start + t).is_none_or(|&entropy| entropy >= p.min_entropy);
        let factor = |t: usize| if is_selected(t) { correction(t) } else { 0.0 };
        let is_shared = p.level == RatioLevel::Sequence as u32;
        let mean_factor = if is_shared { mean_of(&factor) } else { 0.0 };
        if !p.d_entropy.is_null() {
            // SAFETY: completions do not overlap.
            let of_entropy = unsafe { of_entropy.part(start, len) };
            for (t, of_entropy) in of_entropy.iter_mut().enumerate() {
                *of_entropy = if t < counted && is_selected(t) { -p.entropy_weight } else { 0.0 };
            }
        }
        let (mut sums, mut entropies) = ([0.0f64; 3], 0.0f64);
        for (t, gradient) in gradient[..counted].iter_mut().enumerate() {
            let ratio = if p.level == RatioLevel::Token as u32 { log_ratio(t) } else { mean }.exp();
            let (low, high) = match p.cispo {
                0 => (1.0 - p.epsilon_low as f64, 1.0 + p.epsilon_high as f64),
                _ => (0.0, p.epsilon_high as f64),
            };
            let clipped = ratio < low && a < 0.0 || ratio > high && a > 0.0;
            let held = if ratio < low { low } else { high };
            let factor = factor(t);
            let (mut value, mut slope) = if p.cispo != 0 {
                let slope = -a * if ratio > high { high } else { ratio } * factor;
                (slope * log_prob[start + t] as f64, slope)
            } else if clipped {
                (-a * held * factor, 0.0)
            } else {
                (-a * ratio * factor, -a * ratio * if is_shared { mean_factor } else { factor })
            };
            if let Some(&entropy) = entropy.get(start + t).filter(|_| is_selected(t)) {
                entropies += entropy as f64;
            }
            if let Some(&r) = reference.get(start + t) {
                let (x, limit) = (r as f64 - log_prob[start + t] as f64, p.kl_limit as f64);
                let inside = !(x.abs() >= limit);
                let x = if inside { x } else { limit.copysign(x) };
                let distance = x.exp_m1() - x;
                value += p.beta as f64 * distance;
                slope -= if inside { p.beta as f64 * x.exp_m1() } else { 0.0 };
                sums[1] += distance;
            }
            sums[0] += value;
            sums[2] += clipped as u8 as f64;
            *gradient = (weight[i] as f64 * slope) as f32;
        }
        let [value, distance, clipped] = sums;
        let part = weight[i] as f64 * value - p.entropy_weight as f64 * entropies;
        for (to, from) in stats.iter_mut().zip([part, distance, clipped, counted as f64]) {
            *to = from as f32;
        }
    });
}
