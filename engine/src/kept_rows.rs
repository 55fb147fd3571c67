//! Which rows of [`StoredOutputs`](reel_model::text::products::StoredOutputs) the tokens of a request fill.
//!
//! Example: a prompt `a b c` with two completions of at most 3 tokens, `x y z` and `u`, from row 10 on. Each token is
//! the input that predicts the next one, so the last token of a completion has no row, and the last token of the
//! prompt has one for each completion:
//!
//! ```text
//! row     10  11   12  13  14   15  16  17
//! token   a   b    c   x   y    c   -   -
//! ```

use std::ops::Range;

/// The rows of [`StoredOutputs`](reel_model::text::products::StoredOutputs) that belong to one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoredRequestRows {
    first: usize,
    prompt_tokens: usize,
    max_new_tokens: usize,
}

impl StoredRequestRows {
    /// Creates the rows from `first` on, for a prompt of `prompt_tokens` tokens and completions of at most
    /// `max_new_tokens` tokens.
    pub fn new(first: usize, prompt_tokens: usize, max_new_tokens: usize) -> StoredRequestRows {
        StoredRequestRows { first, prompt_tokens, max_new_tokens }
    }

    /// The index of the row after the rows of the first `completions` completions.
    pub fn end_row(&self, completions: usize) -> usize {
        self.prompt_rows().end + completions * self.max_new_tokens
    }

    /// The rows of the prompt's tokens, without its last token.
    pub fn prompt_rows(&self) -> Range<usize> {
        self.first..self.first + self.prompt_tokens.saturating_sub(1)
    }

    /// The rows of the tokens that predict the tokens of completion `index`, which has `tokens` tokens.
    pub fn completion_rows(&self, index: usize, tokens: usize) -> Range<usize> {
        let first = self.end_row(index);
        first..first + tokens.min(self.max_new_tokens)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_of_the_module() {
        let rows = StoredRequestRows::new(10, 3, 3);
        assert_eq!(
            (rows.prompt_rows(), rows.completion_rows(0, 3), rows.completion_rows(1, 1)),
            (10..12, 12..15, 15..16)
        );
        assert_eq!(rows.end_row(2), 18);
    }
}
