//! Log-probabilities of a prompt's own tokens, from the hidden states of its prefill.

use reel_input::TokenId;
use reel_model::qwen_vl::QwenVl;
use reel_runtime::{Cx, Tensor};

use crate::error::{Error, Result};

/// Number of rows of logits that one pass computes.
pub(crate) const LOGIT_ROWS_PER_PASS: usize = 64;

/// The log-probabilities of a prompt's token and of the most likely tokens at its position, under softmax(logits)
/// given the preceding tokens.
#[derive(Clone, Debug, PartialEq)]
pub struct PromptTokenLogProbs {
    /// The id of the prompt's token.
    pub id: TokenId,
    /// The log-probability of the token.
    pub log_prob: f32,
    /// The token's rank in the vocabulary: one more than the number of tokens with larger logits.
    pub rank: usize,
    /// The most likely tokens in descending order of log-probability; among equal tokens the lowest id comes first.
    pub top: Vec<(TokenId, f32)>,
}

/// Returns the log-probabilities of `tokens`. Row i of `hidden` `[S, H]` is the hidden state that predicts
/// `tokens[i]`; `hidden` may have further rows. Each result also lists the `top` most likely tokens.
///
/// # Errors
/// Logits that are NaN; out of memory.
pub(crate) fn prompt_log_probs(
    cx: &Cx,
    model: &QwenVl,
    hidden: &Tensor,
    tokens: &[i32],
    top: usize,
) -> Result<Vec<PromptTokenLogProbs>> {
    let mut all = Vec::with_capacity(tokens.len());
    for (part, ids) in tokens.chunks(LOGIT_ROWS_PER_PASS).enumerate() {
        let logits = model.logits(cx, &hidden.rows(part * LOGIT_ROWS_PER_PASS, ids.len())?)?.to_f32()?;
        let rows = logits.chunks_exact(logits.len() / ids.len());
        for (logits, &id) in rows.zip(ids) {
            let of_token =
                of_row(logits, id as usize, top).ok_or_else(|| Error::logits_not_a_number("within the prompt"))?;
            all.push(of_token);
        }
    }
    Ok(all)
}

/// Returns the log-probabilities of token `id` and of the `top` most likely tokens, from one row of logits. `None` if
/// a logit is NaN.
fn of_row(logits: &[f32], id: usize, top: usize) -> Option<PromptTokenLogProbs> {
    if logits.iter().any(|logit| logit.is_nan()) {
        return None;
    }
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max) as f64;
    let sum: f64 = logits.iter().map(|&logit| (logit as f64 - largest).exp()).sum();
    let log_prob = |logit: f32| (logit as f64 - largest - sum.ln()) as f32;
    let candidates = if top == 0 { 0 } else { logits.len() };
    let mut order: Vec<usize> = (0..candidates).collect();
    let by_logit = |a: &usize, b: &usize| logits[*b].total_cmp(&logits[*a]).then(a.cmp(b));
    if (1..order.len()).contains(&top) {
        order.select_nth_unstable_by(top - 1, by_logit);
    }
    order.truncate(top);
    order.sort_unstable_by(by_logit);
    Some(PromptTokenLogProbs {
        id: id as TokenId,
        log_prob: log_prob(logits[id]),
        rank: 1 + logits.iter().filter(|&&logit| logit > logits[id]).count(),
        top: order.into_iter().map(|token| (token as TokenId, log_prob(logits[token]))).collect(),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Checks that the probabilities of all tokens add up to 1, that the tokens are in the order of their logits,
        /// and that ranks count from 1.
        #[test]
        fn probabilities_follow_the_logits(logits in prop::collection::vec(-30.0f32..30.0, 1..60), id: prop::sample::Index) {
            let id = id.index(logits.len());
            let all = of_row(&logits, id, logits.len()).unwrap();
            let sum: f64 = all.top.iter().map(|(_, log_prob)| (*log_prob as f64).exp()).sum();
            prop_assert!((sum - 1.0).abs() < 1e-5, "{sum}");
            let place = all.top.iter().position(|(token, _)| *token as usize == id).unwrap();
            prop_assert_eq!(all.top[place].1, all.log_prob);
            prop_assert!(place + 1 >= all.rank && logits[all.top[all.rank - 1].0 as usize] == logits[id]);
            for top in 0..=logits.len() {
                let some = of_row(&logits, id, top).unwrap();
                prop_assert_eq!(&some.top[..], &all.top[..top]);
            }
        }
    }

    #[test]
    fn of_equal_tokens_the_lowest_id_comes_first() {
        let row = of_row(&[1.0, 3.0, 3.0, 2.0], 2, 3).unwrap();
        assert_eq!((row.rank, row.top.iter().map(|(id, _)| *id).collect::<Vec<_>>()), (1, vec![1, 2, 3]));
        assert_eq!(of_row(&[1.0, f32::NAN], 0, 1), None);
    }
}
