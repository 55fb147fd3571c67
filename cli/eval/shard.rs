//! `--shard I/N`: divides the rows of a benchmark among N jobs. Part I has the rows I, I + N, I + 2N, …. Long videos
//! often follow each other in a file, so this spreads them over the jobs.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// One part of the rows of a benchmark: part `index` of `count`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shard {
    /// Number of this part, counted from 0.
    pub index: usize,
    /// Number of parts of the run.
    pub count: usize,
}

/// Maximum number of parts of a run.
const MAX_COUNT: usize = 10_000;

impl Shard {
    /// Whether the row `row`, counted from 0, belongs to this part.
    pub fn contains_row(self, row: usize) -> bool {
        row % self.count == self.index
    }

    /// The predictions file of this part: `NAME.0-of-4.jsonl`.
    pub fn predictions_file(self, out: &Path, benchmark: &str) -> PathBuf {
        out.join(format!("{benchmark}.{}-of-{}.jsonl", self.index, self.count))
    }
}

impl FromStr for Shard {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parsed = text.split_once('/').and_then(|(i, n)| Some((i.trim().parse().ok()?, n.trim().parse().ok()?)));
        match parsed {
            Some((index, count)) if index < count && count <= MAX_COUNT => Ok(Self { index, count }),
            Some((index, count)) if count > 0 && index >= count => {
                Err(format!("parts are numbered from 0, so the last of {count} is {}/{count}", count - 1))
            }
            _ => Err(format!("give I/N such as 0/4, with N from 1 to {MAX_COUNT}")),
        }
    }
}

impl fmt::Display for Shard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.index, self.count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_numbered_from_0() {
        assert_eq!("1/4".parse(), Ok(Shard { index: 1, count: 4 }));
        assert_eq!("0/1".parse::<Shard>().map(|shard| shard.to_string()), Ok("0/1".into()));
        for (text, words) in [
            ("4/4", "0, so the last of 4 is 3/4"),
            ("1", "give I/N"),
            ("0/0", "give I/N"),
            ("a/2", "give I/N"),
            ("0/99999", "1 to 10000"),
        ] {
            let e = text.parse::<Shard>().unwrap_err();
            assert!(e.contains(words), "{text}: {e}");
        }
    }

    #[test]
    fn each_row_belongs_to_one_part() {
        for row in 0..20 {
            let owners = (0..3).filter(|&index| Shard { index, count: 3 }.contains_row(row)).count();
            assert_eq!(owners, 1);
        }
    }
}
