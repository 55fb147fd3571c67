//! The expected numbers of tokens of rows. By these numbers the prompts of a step are divided among the ranks of a
//! run.

use std::collections::HashMap;

/// The known numbers of tokens of each row of the data file.
#[derive(Debug, Default)]
pub(super) struct ExpectedLengths {
    /// The number of tokens of each row's prompt: from the row's last rollout, else an estimate.
    prompts: HashMap<usize, u64>,
    /// The number of tokens of all completions in each row's last rollout together.
    completions: HashMap<usize, u64>,
    /// The number of tokens of the completions of all rollouts so far, and the number of rollouts.
    total: u64,
    count: u64,
}

impl ExpectedLengths {
    /// The number of tokens of the prompt of `row`, if it is known or has been estimated.
    pub fn prompt_tokens(&self, row: usize) -> Option<u64> {
        self.prompts.get(&row).copied()
    }

    /// Stores the estimated number of tokens of a prompt, so that it is computed only once.
    pub fn set_estimated_prompt_tokens(&mut self, row: usize, tokens: u64) {
        self.prompts.insert(row, tokens);
    }

    /// The expected number of tokens of all completions of `row` together: the number in its last rollout, else the
    /// mean over all rollouts, else 0. In the first step all rows have the same expectation.
    pub fn completion_tokens(&self, row: usize) -> u64 {
        let mean = || self.total.checked_div(self.count).unwrap_or(0);
        self.completions.get(&row).copied().unwrap_or_else(mean)
    }

    /// Records the numbers of tokens of a rollout of `row`: of its prompt, and of all its completions together.
    pub fn record_rollout(&mut self, row: usize, prompt: u64, completions: u64) {
        self.prompts.insert(row, prompt);
        self.completions.insert(row, completions);
        (self.total, self.count) = (self.total + completions, self.count + 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rollout_replaces_the_estimate_of_its_row_and_adds_to_the_mean() {
        let mut lengths = ExpectedLengths::default();
        lengths.set_estimated_prompt_tokens(3, 1000);
        assert_eq!(
            (lengths.prompt_tokens(3), lengths.prompt_tokens(4), lengths.completion_tokens(3)),
            (Some(1000), None, 0)
        );
        lengths.record_rollout(3, 700, 40);
        lengths.record_rollout(5, 10, 20);
        assert_eq!(
            (lengths.prompt_tokens(3), lengths.completion_tokens(3), lengths.completion_tokens(4)),
            (Some(700), 40, 30)
        );
        lengths.record_rollout(3, 700, 60);
        assert_eq!((lengths.completion_tokens(3), lengths.completion_tokens(4)), (60, 40));
    }
}
