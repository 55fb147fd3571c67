//! Finds the fact in which the ranks of a job differ: an option, the fingerprint of a file, the version of the program.

use crate::diagnostic::Diagnostic;

use crate::ranks::error::{RankError, format_ranks};
use crate::ranks::member::JobMember;

/// A fact about a process that must be the same on all ranks: its name, such as `--learning-rate`, and its value.
pub type Fact = (String, String);

const HELP: &str = "start all ranks with the same program, options, files and instruction set";

/// The maximum number of characters of a value in an error.
const MAX_SHOWN: usize = 80;

/// Returns the error about the first fact in which a rank differs from rank 0. `of_ranks` has the facts of each rank as
/// JSON.
pub(crate) fn difference(members: &[JobMember], of_ranks: &[Vec<u8>]) -> RankError {
    let parsed: Vec<Vec<Fact>> = of_ranks.iter().map(|json| serde_json::from_slice(json).unwrap_or_default()).collect();
    let value = |rank: usize, name: &str| parsed[rank].iter().find(|fact| fact.0 == name).map(|fact| fact.1.as_str());
    let ranks_that_differ =
        |name: &str| -> Vec<usize> { (1..parsed.len()).filter(|&rank| value(rank, name) != value(0, name)).collect() };
    let names = parsed.iter().flatten().map(|fact| fact.0.as_str());
    let found = names.map(|name| (name, ranks_that_differ(name))).find(|(_, ranks)| !ranks.is_empty());
    let Some((name, ranks)) = found else {
        return Diagnostic::new("", "the ranks do not have the same order of options", HELP).into();
    };
    let first = ranks[0];
    let same: Vec<usize> = ranks.into_iter().filter(|&rank| value(rank, name) == value(first, name)).collect();
    let place = if same.len() == 1 { members[first].to_string() } else { format_ranks(&same) };
    let shown = |rank: usize| match value(rank, name) {
        None => "not given".to_string(),
        Some(value) if value.chars().count() > MAX_SHOWN => value.chars().take(MAX_SHOWN).collect::<String>() + "…",
        Some(value) => value.to_string(),
    };
    let what = format!("is {} on {place}, but {} on rank 0", shown(first), shown(0));
    RankError { diagnostic: Diagnostic::new(name, what, HELP), rank: Some(first) }
}
