//! The definition, in f64, with a full sort.

/// One row's settings.
#[derive(Clone, Debug)]
pub struct Settings {
    pub temperature: f64,
    pub top_p: f64,
    pub top_k: usize,
    pub penalty: f64,
    pub history: Vec<i32>,
    pub suppressed: Vec<i32>,
}

/// Scores after the repetition penalty, rounded to f32 since the order of scores hangs on it, and suppression.
pub fn scores(logits: &[f64], s: &Settings) -> Vec<f64> {
    let score = |(id, &l): (usize, &f64)| match id as i32 {
        id if s.suppressed.contains(&id) => f64::NEG_INFINITY,
        id if s.history.contains(&id) && l < 0.0 => (l * s.penalty) as f32 as f64,
        id if s.history.contains(&id) => (l / s.penalty) as f32 as f64,
        _ => l,
    };
    logits.iter().enumerate().map(score).collect()
}

/// Of every token that top-k leaves: its id, its probability among those, and the probability of all before it in falling
/// order (equals: the lower id first). Top-p keeps those of which the last is below p, and the first.
pub fn ranked(logits: &[f64], s: &Settings) -> Vec<(usize, f64, f64)> {
    let scores = scores(logits, s);
    let mut order: Vec<usize> = (0..scores.len()).collect();
    // The zero added makes −0 and 0 equal, as they are as scores.
    order.sort_by(|&a, &b| (scores[b] + 0.0).total_cmp(&(scores[a] + 0.0)).then(a.cmp(&b)));
    let least = if s.top_k == 0 { f64::NEG_INFINITY } else { scores[order[s.top_k.min(order.len()) - 1]] };
    order.retain(|&id| scores[id] >= least && scores[id] > f64::NEG_INFINITY);
    let weight = |id: usize| ((scores[id] - scores[order[0]]) / s.temperature).exp();
    let all: f64 = order.iter().map(|&id| weight(id)).sum();
    let mut before = 0.0;
    let entry = |&id: &usize| {
        let p = weight(id) / all;
        before += p;
        (id, p, before - p)
    };
    order.iter().map(entry).collect()
}

/// The token at `u` of the distribution function over the kept tokens in the order of ids.
pub fn draw(ranked: &[(usize, f64, f64)], top_p: f64, u: f64) -> Option<usize> {
    let mut kept: Vec<_> = ranked.iter().enumerate().filter(|(i, t)| *i == 0 || t.2 < top_p).map(|(_, t)| *t).collect();
    kept.sort_by_key(|t| t.0);
    let all: f64 = kept.iter().map(|t| t.1).sum();
    let mut sum = 0.0;
    let beyond = |t: &&(usize, f64, f64)| {
        sum += t.1;
        sum > u * all
    };
    kept.iter().find(beyond).or(kept.last()).map(|t| t.0)
}
