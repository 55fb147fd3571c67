//! The GRPO losses on the CPU: each task computes one completion.
#![allow(unsafe_code)]

use reel_device::Team;
use reel_device::launch::view::{OutputArray, slice_at};

use super::{Params, STATS_PER_COMPLETION};

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
    // SAFETY: `p.reference` is null (then no elements are read) or covers all tokens.
    let reference = unsafe { slice_at::<f32>(p.reference, optional(p.reference)) };
    // SAFETY: `p`'s addresses cover the shapes that [`Params`] documents.
    let (advantage, weight) = unsafe { (slice_at::<f32>(p.advantage, n), slice_at::<f32>(p.weight, n)) };
    // SAFETY: `p`'s addresses cover the shapes that [`Params`] documents.
    let (gradient, stats) = unsafe {
        (OutputArray::<f32>::new(p.d_log_prob, tokens), OutputArray::<f32>::new(p.stats, STATS_PER_COMPLETION * n))
    };
    team.run(n, |i| {
        let (start, len) = (ends[i] as usize, (ends[i + 1] - ends[i]) as usize);
        let (counted, a) = (counted[i] as usize, advantage[i] as f64);
        // SAFETY: completions do not overlap.
        let (gradient, stats) =
            unsafe { (gradient.part(start, len), stats.part(STATS_PER_COMPLETION * i, STATS_PER_COMPLETION)) };
        gradient[counted..].fill(0.0);
        let log_ratio = |t: usize| old.get(start + t).map_or(0.0, |&o| log_prob[start + t] as f64 - o as f64);
        let mean = (0..counted).map(log_ratio).sum::<f64>() / counted.max(1) as f64;
        let mut sums = [0.0f64; 3];
        for (t, gradient) in gradient[..counted].iter_mut().enumerate() {
            let ratio = if p.sequence_level != 0 { mean } else { log_ratio(t) }.exp();
            let (low, high) = (1.0 - p.epsilon_low as f64, 1.0 + p.epsilon_high as f64);
            let clipped = ratio < low && a < 0.0 || ratio > high && a > 0.0;
            let held = if ratio < low { low } else { high };
            let mut value = -a * if clipped { held } else { ratio };
            let mut slope = if clipped { 0.0 } else { -a * ratio };
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
        for (to, from) in stats.iter_mut().zip([weight[i] as f64 * value, distance, clipped, counted as f64]) {
            *to = from as f32;
        }
    });
}
