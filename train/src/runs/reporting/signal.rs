//! Notices that the rewards of a GRPO run teach nothing: all completions of every group have the same reward, so every
//! advantage is 0.

/// Counts the steps since the last step whose rewards differ within a group.
#[derive(Debug)]
pub struct RewardSignalWatch {
    /// Number of steps of a window: `--logging-steps`.
    window: u64,
    /// Number of steps since the last one with a signal.
    without: u64,
    /// `without` at the last note about these steps; 0 before it.
    noted: u64,
}

impl RewardSignalWatch {
    /// Creates a watch that looks at windows of `window` steps.
    pub fn new(window: u64) -> Self {
        Self { window: window.max(1), without: 0, noted: 0 }
    }

    /// Takes the share of the groups of equal rewards in the finished step `step`; `None` in SFT. Returns a note at the
    /// end of a window without any signal. While the signal stays away, the next note comes after twice as many steps.
    pub fn note_of_step(&mut self, step: u64, share: Option<f64>) -> Option<String> {
        if share? < 1.0 {
            (self.without, self.noted) = (0, 0);
            return None;
        }
        self.without += 1;
        let is_due = self.without >= self.window.max(2 * self.noted);
        if !is_due || !step.is_multiple_of(self.window) {
            return None;
        }
        self.noted = self.without;
        let steps = match self.without {
            1 => format!("step {step}"),
            n => format!("steps {} to {step}", step + 1 - n),
        };
        Some(format!(
            "note: {steps}: the rewards within each group are all equal, so every advantage is 0 (metric \
             frac_reward_zero_std); see the rewards of single completions in OUT/rollouts"
        ))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn notes(window: u64, shares: &[f64]) -> Vec<(u64, String)> {
        let mut watch = RewardSignalWatch::new(window);
        let steps = (1..).zip(shares).filter_map(|(step, &share)| Some((step, watch.note_of_step(step, Some(share))?)));
        steps.collect()
    }

    #[test]
    fn windows_without_signal_are_noted_less_often_the_longer_they_last() {
        let steps: Vec<u64> = notes(10, &[1.0; 100]).into_iter().map(|(step, _)| step).collect();
        assert_eq!(steps, [10, 20, 40, 80]);
        let mut shares = [1.0; 20];
        shares[9] = 0.5;
        let all = notes(5, &shares);
        assert_eq!(all.iter().map(|(step, _)| *step).collect::<Vec<_>>(), [5, 15, 20]);
        assert!(all[1].1.starts_with("note: steps 11 to 15: the rewards"), "{}", all[1].1);
        // SFT has no groups.
        assert_eq!(RewardSignalWatch::new(1).note_of_step(1, None), None);
    }

    proptest! {
        /// A note names only steps without signal, and at least a window of them; any first window without signal is
        /// noted.
        #[test]
        fn notes_are_true(window in 1u64..6, signals in proptest::collection::vec(any::<bool>(), 1..60)) {
            let shares: Vec<f64> = signals.iter().map(|&signal| if signal { 0.5 } else { 1.0 }).collect();
            let all = notes(window, &shares);
            for (step, text) in &all {
                let first: u64 = text.split([' ', ':']).nth(3).unwrap().parse().unwrap();
                prop_assert!(step + 1 - first >= window, "{text}");
                prop_assert!(signals[first as usize - 1..*step as usize].iter().all(|&signal| !signal), "{text}");
            }
            let silent = |end: u64| (end - window..end).all(|step| !signals[step as usize]);
            let first = (1..=signals.len() as u64).find(|&end| end % window == 0 && silent(end));
            prop_assert_eq!(first, all.first().map(|(step, _)| *step));
        }
    }
}
