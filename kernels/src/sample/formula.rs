//! The definition of sampling in f64, with a full sort.

/// The sampling settings of one row.
#[derive(Clone, Debug)]
pub struct SamplingSettings {
    pub temperature: f64,
    pub top_p: f64,
    pub top_k: usize,
    pub min_p: f64,
    pub penalty: f64,
    pub frequency_penalty: f64,
    pub presence_penalty: f64,
    pub history: Vec<i32>,
    pub counted_from: usize,
    pub bias_ids: Vec<i32>,
    pub bias: Vec<f32>,
    pub suppressed: Vec<i32>,
    /// Bit set of allowed tokens; empty: all tokens are allowed.
    pub allowed: Vec<u32>,
}

/// Returns the scores after penalties, bias and suppression. They are rounded to f32 at each step, since the
/// roundings decide the order of tokens.
pub fn adjusted_scores(logits: &[f64], settings: &SamplingSettings) -> Vec<f64> {
    let rounded = |x: f64| x as f32 as f64;
    let score = |(id, &l): (usize, &f64)| {
        if settings.suppressed.contains(&(id as i32))
            || settings.allowed.get(id / 32).is_some_and(|bits| bits >> (id % 32) & 1 == 0)
        {
            return f64::NEG_INFINITY;
        }
        let mut score = l;
        if settings.history.contains(&(id as i32)) {
            score = rounded(if l < 0.0 { l * settings.penalty } else { l / settings.penalty });
        }
        let count = settings.history.iter().skip(settings.counted_from).filter(|&&h| h == id as i32).count();
        if count > 0 {
            score = rounded(score - rounded(count as f64 * settings.frequency_penalty));
            score = rounded(score - settings.presence_penalty);
        }
        match settings.bias_ids.iter().position(|&b| b == id as i32) {
            Some(at) => rounded(score + settings.bias[at] as f64),
            None => score,
        }
    };
    logits.iter().enumerate().map(score).collect()
}

/// A token that top-k keeps.
#[derive(Clone, Copy, Debug)]
pub struct RankedToken {
    pub id: usize,
    pub probability: f64,
    /// Sum of the probabilities of all more likely tokens.
    pub probability_before: f64,
}

/// Returns the tokens that top-k keeps, in descending order of probability; of equally likely tokens the one with the
/// lower id comes first. Of these, top-p keeps the first token, and every token whose `probability_before` is below
/// p.
pub fn ranked_tokens(logits: &[f64], settings: &SamplingSettings) -> Vec<RankedToken> {
    let scores = adjusted_scores(logits, settings);
    let mut order: Vec<usize> = (0..scores.len()).collect();
    // Adding zero turns −0 into 0: the two compare as equal scores, but total_cmp would order them.
    order.sort_by(|&a, &b| (scores[b] + 0.0).total_cmp(&(scores[a] + 0.0)).then(a.cmp(&b)));
    let least =
        if settings.top_k == 0 { f64::NEG_INFINITY } else { scores[order[settings.top_k.min(order.len()) - 1]] };
    order.retain(|&id| scores[id] >= least && scores[id] > f64::NEG_INFINITY);
    let weight = |id: usize| ((scores[id] - scores[order[0]]) / settings.temperature).exp();
    let all: f64 = order.iter().map(|&id| weight(id)).sum();
    let mut before = 0.0;
    let entry = |&id: &usize| {
        let p = weight(id) / all;
        before += p;
        RankedToken { id, probability: p, probability_before: before - p }
    };
    order.iter().map(entry).collect()
}

/// Returns the token that the random number `uniform` (0 to 1) selects from the cumulative distribution of the kept
/// tokens, in the order of ids.
pub fn sample_token(ranked: &[RankedToken], top_p: f64, min_p: f64, uniform: f64) -> Option<usize> {
    let top = ranked.first().map_or(0.0, |t| t.probability);
    let stays = |(i, t): &(usize, &RankedToken)| {
        *i == 0 || (t.probability_before < top_p && t.probability >= min_p.min(1.0) * top)
    };
    let mut kept: Vec<_> = ranked.iter().enumerate().filter(stays).map(|(_, t)| *t).collect();
    kept.sort_by_key(|t| t.id);
    let all: f64 = kept.iter().map(|t| t.probability).sum();
    let mut sum = 0.0;
    let beyond = |t: &&RankedToken| {
        sum += t.probability;
        sum > uniform * all
    };
    kept.iter().find(beyond).or(kept.last()).map(|t| t.id)
}

/// Returns the `count` most likely tokens under softmax(logits), as (id, log-probability); of equally likely tokens
/// the one with the lower id comes first.
pub fn likeliest_tokens(logits: &[f64], count: usize) -> Vec<(usize, f64)> {
    let mut order: Vec<usize> = (0..logits.len()).collect();
    order.sort_by(|&a, &b| (logits[b] + 0.0).total_cmp(&(logits[a] + 0.0)).then(a.cmp(&b)));
    let top = logits[order[0]];
    let ln_sum = logits.iter().map(|l| (l - top).exp()).sum::<f64>().ln();
    order.iter().take(count).map(|&id| (id, logits[id] - top - ln_sum)).collect()
}
