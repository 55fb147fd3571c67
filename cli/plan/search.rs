//! Searches for changes of a command's settings with which it fits into memory: the fewest changes, then the least
//! loss of speed.
//!
//! Each way to save memory is a [`SearchDimension`] with levels from the weakest to the strongest, such as gradient
//! checkpointing with `selective` and `full`. A choice sets some dimensions to a level:
//!
//! ```text
//! for k in 1, 2, 3 changes, until there are three choices
//!     for each set of k dimensions that contains no set that fits already
//!         plan the strongest level of each                               does it fit? if not, next set
//!         for each dimension of the set, the last first: plan milder levels; bisection finds the mildest that fits
//! ```
//!
//! Every plan is a run of the command on device `dry`. That takes 0.1 to 3 seconds of a CPU for a step of training, and
//! longer for a generation of many tokens. So the search ends after [`MAX_RUNS`] runs; a limit of time would make its
//! result depend on the load of the machine.

use std::collections::HashMap;

use anyhow::Result;

/// Maximum number of runs on device `dry`.
const MAX_RUNS: usize = 40;
/// Maximum number of results. If there are so many, no larger sets of changes are tried.
pub const MAX_CHOICES: usize = 3;
/// Maximum number of changed settings of a result.
const MAX_CHANGES: u32 = 3;

/// The predicted memory and speed of a command with some settings.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PlanOutcome {
    /// Peak bytes of a GPU (or of the CPU).
    pub peak: u64,
    /// Seconds of a step or call.
    pub seconds: f64,
    /// Tokens per second of all GPUs.
    pub tokens_per_second: f64,
    pub gpus: u64,
    /// Whether the peak is within the usable memory.
    pub fits: bool,
}

impl PlanOutcome {
    /// Tokens per second of each GPU.
    pub fn tokens_per_second_per_gpu(&self) -> f64 {
        self.tokens_per_second / self.gpus as f64
    }
}

/// A change of a command's settings `S`.
pub type SettingsChange<S> = Box<dyn Fn(&mut S)>;

/// A way to save memory, such as gradient checkpointing, with one or more levels.
pub struct SearchDimension<S> {
    /// A description for messages, such as `gradient checkpointing`.
    pub name: &'static str,
    /// At most one dimension of a group is changed.
    pub group: &'static str,
    /// Changes of the settings, from the weakest to the strongest; at least one.
    pub levels: Vec<SettingsChange<S>>,
}

/// A set of changes with which the command fits into memory.
#[derive(Clone, Debug)]
pub struct FittingSettings<S> {
    /// The changed settings.
    pub settings: S,
    pub changes: u32,
    pub outcome: PlanOutcome,
}

/// The result of a search.
#[derive(Debug)]
pub struct SearchResult<S> {
    /// At most [`MAX_CHOICES`] results, the one with the fewest changes first.
    pub choices: Vec<FittingSettings<S>>,
    /// The smallest peak of all settings that were tried, in bytes.
    pub smallest_peak: Option<u64>,
    /// Number of runs on device `dry`.
    pub runs: usize,
    /// Whether the search stopped because it reached the maximum number of runs.
    pub is_cut_short: bool,
}

/// Searches for settings that fit into memory, starting from `start`. `plan` predicts the memory and speed of
/// settings; it returns an error if the settings contradict each other. `shows_progress` prints progress on a
/// terminal.
pub fn search_fitting_settings<S: Clone>(
    start: &S,
    dimensions: &[SearchDimension<S>],
    shows_progress: bool,
    plan: impl FnMut(&S) -> Result<PlanOutcome>,
) -> SearchResult<S> {
    let known = HashMap::new();
    let mut search =
        Search { start, dimensions, plan, known, runs: 0, smallest_peak: None, is_cut_short: false, shows_progress };
    let choices = search.choices();
    if shows_progress {
        eprint!("\r\x1b[K");
    }
    let Search { runs, smallest_peak, is_cut_short, .. } = search;
    SearchResult { choices, smallest_peak, runs, is_cut_short }
}

/// The level of each dimension, counted from 1; 0 means unchanged.
type Levels = Vec<usize>;

struct Search<'a, S, P> {
    start: &'a S,
    dimensions: &'a [SearchDimension<S>],
    plan: P,
    /// Outcomes of the settings that were tried; `None` if they cannot be planned.
    known: HashMap<Levels, Option<PlanOutcome>>,
    runs: usize,
    smallest_peak: Option<u64>,
    is_cut_short: bool,
    shows_progress: bool,
}

impl<S: Clone, P: FnMut(&S) -> Result<PlanOutcome>> Search<'_, S, P> {
    fn choices(&mut self) -> Vec<FittingSettings<S>> {
        let (mut fitting, mut choices): (Vec<u32>, Vec<FittingSettings<S>>) = (Vec::new(), Vec::new());
        for changes in 1..=MAX_CHANGES {
            let mut found = Vec::new();
            for set in self.sets(changes) {
                let has_smaller_choice = fitting.iter().any(|smaller| smaller & set == *smaller);
                if has_smaller_choice {
                    continue;
                }
                if let Some((levels, outcome)) = self.mildest(set) {
                    fitting.push(set);
                    found.push((set, FittingSettings { settings: self.settings(&levels), changes, outcome }));
                }
            }
            choices.extend(self.best_of_groups(found));
            if choices.len() >= MAX_CHOICES {
                break;
            }
        }
        choices.truncate(MAX_CHOICES);
        choices
    }

    /// Returns all sets of `changes` dimensions, at most one of each group, as bit masks.
    fn sets(&self, changes: u32) -> Vec<u32> {
        let of = |set: u32| (0..self.dimensions.len()).filter(move |at| set >> at & 1 == 1);
        let excludes =
            |set: u32| of(set).any(|a| of(set).any(|b| a < b && self.dimensions[a].group == self.dimensions[b].group));
        let all = 1..1u32 << self.dimensions.len();
        all.filter(|set| set.count_ones() == changes && !excludes(*set)).collect()
    }

    /// Returns the weakest levels of a set of dimensions with which the command fits; `None` if it does not fit even
    /// with the strongest.
    fn mildest(&mut self, set: u32) -> Option<(Levels, PlanOutcome)> {
        let strongest = |at: usize| if set >> at & 1 == 1 { self.dimensions[at].levels.len() } else { 0 };
        let mut levels: Levels = (0..self.dimensions.len()).map(strongest).collect();
        let mut outcome = self.fitting(&levels)?;
        for at in (0..levels.len()).rev() {
            // Bisection: the level `fits` fits, and levels below `next` do not.
            let (mut next, mut fits) = (1, levels[at]);
            while next < fits {
                let middle = (next + fits) / 2;
                let mut milder = levels.clone();
                milder[at] = middle;
                match self.fitting(&milder) {
                    Some(of_milder) => (fits, outcome) = (middle, of_milder),
                    None => next = middle + 1,
                }
            }
            levels[at] = fits;
        }
        Some((levels, outcome))
    }

    fn settings(&self, levels: &Levels) -> S {
        let mut settings = self.start.clone();
        for (dimension, level) in self.dimensions.iter().zip(levels).filter(|(_, level)| **level > 0) {
            dimension.levels[level - 1](&mut settings);
        }
        settings
    }

    /// Returns the outcome of settings if they fit; `None` if they do not fit or the search has ended.
    fn fitting(&mut self, levels: &Levels) -> Option<PlanOutcome> {
        if let Some(known) = self.known.get(levels) {
            return known.filter(|outcome| outcome.fits);
        }
        if self.runs >= MAX_RUNS {
            self.is_cut_short = true;
            return None;
        }
        self.runs += 1;
        if self.shows_progress {
            eprint!("\r\x1b[Klooking for options that fit: run {} on device dry", self.runs);
        }
        let settings = self.settings(levels);
        let outcome = (self.plan)(&settings).ok();
        self.known.insert(levels.clone(), outcome);
        if let Some(outcome) = outcome {
            let least = self.smallest_peak.map_or(outcome.peak, |peak| peak.min(outcome.peak));
            self.smallest_peak = Some(least);
        }
        outcome.filter(|outcome| outcome.fits)
    }

    /// Sorts results by speed. Of results that differ only in the dimensions of one group, keeps the one with the
    /// fewest GPUs, or the fastest of these.
    fn best_of_groups(&self, found: Vec<(u32, FittingSettings<S>)>) -> Vec<FittingSettings<S>> {
        let groups = |set: u32| -> Vec<&str> {
            let of = (0..self.dimensions.len()).filter(|at| set >> at & 1 == 1);
            of.map(|at| self.dimensions[at].group).collect()
        };
        let mut best: Vec<(Vec<&str>, FittingSettings<S>)> = Vec::new();
        for (set, choice) in found {
            let key = |c: &FittingSettings<S>| (c.outcome.gpus, -c.outcome.tokens_per_second_per_gpu());
            match best.iter_mut().find(|(of, _)| *of == groups(set)) {
                Some((_, other)) if key(&choice) < key(other) => *other = choice,
                Some(_) => {}
                None => best.push((groups(set), choice)),
            }
        }
        best.sort_by(|(_, a), (_, b)| {
            b.outcome.tokens_per_second_per_gpu().total_cmp(&a.outcome.tokens_per_second_per_gpu())
        });
        best.into_iter().map(|(_, choice)| choice).collect()
    }
}

/// Returns the largest number from `least` to `most` that fits according to `fits`; `None` if `least` does not fit.
/// The search doubles the number and then bisects. It has called `fits` for the result and, below `most`, for the
/// next number.
///
/// # Errors
/// Errors of `fits`.
pub fn largest_that_fits(least: u64, most: u64, mut fits: impl FnMut(u64) -> Result<bool>) -> Result<Option<u64>> {
    if !fits(least)? {
        return Ok(None);
    }
    let (mut good, mut bad) = (least, None);
    while bad.is_none() && good < most {
        let next = good.saturating_mul(2).clamp(good + 1, most);
        if fits(next)? { good = next } else { bad = Some(next) }
    }
    while let Some(end) = bad.filter(|end| end - good > 1) {
        let middle = good + (end - good) / 2;
        if fits(middle)? { good = middle } else { bad = Some(middle) }
    }
    Ok(Some(good))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Settings of a hypothetical command that needs 100 bytes; `a` and `b` reduce the memory, and `gpus` divides it.
    #[derive(Clone, Debug, Default, PartialEq)]
    struct Settings {
        a: u64,
        b: u64,
        gpus: u64,
    }

    fn dimensions() -> Vec<SearchDimension<Settings>> {
        let a: Vec<SettingsChange<Settings>> =
            vec![Box::new(|s| s.a = 10), Box::new(|s| s.a = 20), Box::new(|s| s.a = 30)];
        let b: Vec<SettingsChange<Settings>> = vec![Box::new(|s| s.b = 25)];
        let gpus: Vec<SettingsChange<Settings>> = vec![Box::new(|s| s.gpus = 2), Box::new(|s| s.gpus = 4)];
        vec![
            SearchDimension { name: "a", group: "a", levels: a },
            SearchDimension { name: "b", group: "b", levels: b },
            SearchDimension { name: "gpus", group: "gpus", levels: gpus },
        ]
    }

    fn found(memory: u64) -> SearchResult<Settings> {
        search_fitting_settings(&Settings::default(), &dimensions(), false, |s| {
            let gpus = s.gpus.max(1);
            let peak = (100 - s.a - s.b) / gpus;
            let seconds = 1.0 + s.a as f64;
            Ok(PlanOutcome { peak, seconds, tokens_per_second: gpus as f64 / seconds, gpus, fits: peak <= memory })
        })
    }

    #[test]
    fn the_mildest_levels_of_the_fewest_changes_are_found() {
        let of = |memory| -> Vec<(u32, Settings)> {
            found(memory).choices.into_iter().map(|choice| (choice.changes, choice.settings)).collect()
        };
        let settings = |a, b, gpus| Settings { a, b, gpus };
        // Each result has one change, and the fastest is first. Level 20 of `a` is the weakest that fits.
        assert_eq!(of(80), [(1, settings(0, 25, 0)), (1, settings(0, 0, 2)), (1, settings(20, 0, 0))]);
        // Without more GPUs, one change is not enough, so the second result has two changes. No result has more GPUs
        // than needed.
        assert_eq!(of(50), [(1, settings(0, 0, 2)), (2, settings(30, 25, 0))]);
        // Supersets of a smaller result are left out.
        assert_eq!(of(30), [(1, settings(0, 0, 4))]);
        assert_eq!(of(20), [(2, settings(0, 25, 4)), (2, settings(20, 0, 4))]);
        let none = found(10);
        assert!(none.choices.is_empty() && none.smallest_peak == Some(11) && !none.is_cut_short, "{none:?}");
    }

    #[test]
    fn a_search_ends_at_its_limit_of_runs() {
        let levels = || -> Vec<SettingsChange<u64>> {
            (1..40u64).map(|n| Box::new(move |s: &mut u64| *s += n) as SettingsChange<u64>).collect()
        };
        let names = ["a", "b", "c", "d", "e", "f", "g", "h"];
        let dimensions = names.map(|name| SearchDimension { name, group: name, levels: levels() });
        let mut runs = 0;
        let found = search_fitting_settings(&0, &dimensions, false, |sum| {
            runs += 1;
            let fits = *sum > 70;
            Ok(PlanOutcome { peak: 1000 - sum, seconds: 1.0, tokens_per_second: 1.0, gpus: 1, fits })
        });
        assert!(found.is_cut_short && runs == MAX_RUNS && found.runs == MAX_RUNS, "{found:?}");
        assert!(found.choices.iter().all(|choice| choice.settings > 70 && choice.changes == 2));
    }

    #[test]
    fn the_largest_number_is_found_with_its_neighbours() {
        for limit in [0, 1, 2, 3, 7, 8, 9, 100, 4095, 4096, 9999] {
            let mut asked = Vec::new();
            let largest = largest_that_fits(1, 4096, |n| {
                asked.push(n);
                Ok(n <= limit)
            });
            let wanted = (limit > 0).then_some(limit.min(4096));
            assert_eq!(largest.unwrap(), wanted);
            assert!(wanted.is_none_or(|n| asked.contains(&n) && (n == 4096 || asked.contains(&(n + 1)))), "{asked:?}");
            assert!(asked.len() <= 26, "{asked:?}");
        }
    }
}
