//! Splits the tokens of a row into runs of text for showing them: learned text, other text, and folded vision tokens.

use reel_input::{ModelFolder, TokenId};
use serde::Serialize;

/// Consecutive tokens of one kind.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TokenRun {
    /// The decoded text with special tokens; `<|video_pad|> x 1234` for vision tokens.
    pub text: String,
    /// The number of tokens.
    pub tokens: usize,
    /// Whether the tokens count in the loss.
    pub learned: bool,
    /// Whether the tokens stand for an image or a video.
    pub is_media: bool,
}

/// The runs of `ids`, whose texts are the rendered row. `learned` tells for each token whether it counts in the loss.
pub fn token_runs(bundle: &ModelFolder, ids: &[TokenId], learned: &[bool]) -> Vec<TokenRun> {
    let pads = [bundle.config.tokens.image, bundle.config.tokens.video];
    split_runs(ids, learned, |id| pads.contains(&id), |ids| bundle.tokenizer.decode(ids, false))
}

/// For each token, whether it counts in the loss. `targets` are the next-token targets of a
/// [`Sample`](crate::sample::Sample).
pub fn learned_tokens(targets: &[i32]) -> Vec<bool> {
    std::iter::once(false).chain(targets.iter().map(|&target| target >= 0)).take(targets.len()).collect()
}

fn split_runs(
    ids: &[TokenId],
    learned: &[bool],
    is_pad: impl Fn(TokenId) -> bool,
    decode: impl Fn(&[TokenId]) -> String,
) -> Vec<TokenRun> {
    let tokens: Vec<(TokenId, bool)> = ids.iter().copied().zip(learned.iter().copied()).collect();
    let is_same_run =
        |a: &(TokenId, bool), b: &(TokenId, bool)| a.1 == b.1 && (a.0 == b.0 || !is_pad(a.0) && !is_pad(b.0));
    let run = |tokens: &[(TokenId, bool)]| {
        let ids: Vec<TokenId> = tokens.iter().map(|token| token.0).collect();
        let (is_media, count) = (is_pad(ids[0]), ids.len());
        let text = match is_media && count > 1 {
            true => format!("{} x {count}", decode(&ids[..1])),
            false => decode(&ids),
        };
        TokenRun { text, tokens: count, learned: tokens[0].1, is_media }
    };
    tokens.chunk_by(is_same_run).map(run).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vision_tokens_are_folded_and_learned_text_is_apart() {
        let decode =
            |ids: &[TokenId]| ids.iter().map(|id| if *id == 9 { "P".into() } else { id.to_string() }).collect();
        let runs = |ids: &[TokenId], learned: &[bool]| -> Vec<(String, usize, bool)> {
            let runs = split_runs(ids, learned, |id| id == 9, decode);
            runs.into_iter().map(|run| (run.text, run.tokens, run.learned)).collect()
        };
        let (no, yes) = (false, true);
        let got = runs(&[1, 9, 9, 9, 2, 9, 3, 4, 4], &[no, no, no, no, no, no, no, yes, yes]);
        let want = [("1", 1, no), ("P x 3", 3, no), ("2", 1, no), ("P", 1, no), ("3", 1, no), ("44", 2, yes)];
        assert_eq!(got, want.map(|(text, tokens, learned)| (text.to_string(), tokens, learned)));
        assert_eq!(runs(&[], &[]), []);
    }

    #[test]
    fn a_token_is_learned_if_it_is_the_target_before_it() {
        assert_eq!(learned_tokens(&[-1, 7, 8, -1]), [false, false, true, true]);
        assert_eq!(learned_tokens(&[]), [false; 0]);
    }
}
