//! The predictions file of a run and the rows that this process answers. If several processes (ranks) share the rows,
//! only rank 0 has the file. Rank 0 tells the other ranks which rows have no line in the file.

use std::collections::HashMap;
use std::sync::Arc;

use reel_input::ModelInput;
use reel_samples::conversations::RowConversations;
use reel_samples::feed::SampleSource;
use reel_train::Result;
use reel_train::setup::RunRanks;

use crate::predict::file::PredictionFile;
use crate::predict::prompts::RowPrompts;
use crate::predict::settings::PredictionSettings;

/// Rows about one video stay together on a rank unless they are more than 1 / PARTS_PER_RANK of a rank's share of the
/// rows.
const PARTS_PER_RANK: usize = 4;

/// The predictions file of a run, and the rows that this process answers.
#[derive(Debug)]
pub struct PredictionOutput<'a> {
    /// The predictions file; `None` on ranks other than 0.
    pub(super) file: Option<PredictionFile>,
    /// The rows that this process answers, in the order of the data.
    pub(super) rows: Vec<usize>,
    pub(super) ranks: Option<RunRanks<'a>>,
    is_complete: bool,
}

impl From<PredictionFile> for PredictionOutput<'_> {
    /// The output of a run of one process, which answers all rows that have no line in `file`.
    fn from(file: PredictionFile) -> Self {
        Self { rows: file.rows_without_line(), is_complete: file.is_complete(), file: Some(file), ranks: None }
    }
}

impl<'a> PredictionOutput<'a> {
    /// Opens the predictions file with `open` and takes the rows that have no line in it. If there are several ranks,
    /// all of them call this function: rank 0 opens the file, and each rank takes its share of the rows. `settings`
    /// are this rank's settings, and `rows` are all rows of the data.
    ///
    /// # Errors
    /// `open` fails; the settings of two ranks differ; another rank has failed.
    pub fn open(
        ranks: Option<RunRanks<'a>>,
        settings: &PredictionSettings,
        rows: &RowConversations,
        open: impl FnOnce() -> Result<PredictionFile>,
    ) -> Result<Self> {
        let Some(run) = ranks else { return open().map(Self::from) };
        let (file, missing) = Self::open_on_rank_0(run, settings, open)?;
        let is_complete = missing.is_none();
        let video = |row| rows.columns(row).get("path")?.as_str().filter(|path| !path.is_empty()).map(String::from);
        let rows = rows_of_rank(&missing.unwrap_or_default(), video, run.ranks.rank(), run.ranks.size());
        Ok(Self { file, rows, ranks, is_complete })
    }

    /// Opens the predictions file on rank 0 of a divided model. Every rank takes all rows without a line, because the
    /// ranks compute each row together. All ranks call this function.
    ///
    /// # Errors
    /// `open` fails; the settings of two ranks differ; another rank has failed.
    pub fn open_for_divided_model(
        run: RunRanks<'_>,
        settings: &PredictionSettings,
        open: impl FnOnce() -> Result<PredictionFile>,
    ) -> Result<Self> {
        let (file, missing) = Self::open_on_rank_0(run, settings, open)?;
        Ok(Self { is_complete: missing.is_none(), rows: missing.unwrap_or_default(), file, ranks: None })
    }

    /// Opens the predictions file on rank 0 and tells all ranks which rows have no line in it; `None` if the file is
    /// complete.
    fn open_on_rank_0(
        run: RunRanks<'_>,
        settings: &PredictionSettings,
        open: impl FnOnce() -> Result<PredictionFile>,
    ) -> Result<(Option<PredictionFile>, Option<Vec<usize>>)> {
        run.ranks.check_same("settings of the answers", &settings.facts())?;
        let file = if run.is_rank_0() { Some(open()?) } else { None };
        let missing = file.as_ref().map(|file| (!file.is_complete()).then(|| file.rows_without_line()));
        Ok((file, run.broadcast("rows to answer", missing)?))
    }

    /// The predictions file, on the process that writes it.
    pub fn file(&self) -> Option<&PredictionFile> {
        self.file.as_ref()
    }

    /// Whether an earlier run has written all rows, so that no rank has anything to do.
    pub fn is_complete(&self) -> bool {
        self.is_complete
    }
}

/// Divides the rows `missing` among `ranks` ranks and returns the rows of `rank`. A row goes to the rank with the
/// fewest rows so far. Rows about the same video go to the same rank, which then decodes the video and computes its
/// vision tokens only once; but if a large part of the rows is about one video, several ranks share it. `video` returns
/// the video of a row.
fn rows_of_rank(missing: &[usize], video: impl Fn(usize) -> Option<String>, rank: usize, ranks: usize) -> Vec<usize> {
    let most = (missing.len() / (PARTS_PER_RANK * ranks)).max(1);
    let mut counts = vec![0; ranks];
    // For each video: the rank that gets the next row about it, and the number of rows about it that this rank
    // already has.
    let mut videos: HashMap<String, (usize, usize)> = HashMap::new();
    let mut own = Vec::new();
    for &row in missing {
        let idlest = (0..ranks).min_by_key(|&other| counts[other]).unwrap_or(0);
        let owner = match video(row) {
            None => idlest,
            Some(video) => {
                let (owner, rows) = videos.entry(video).or_insert((idlest, 0));
                if *rows == most {
                    (*owner, *rows) = (idlest, 0);
                }
                *rows += 1;
                *owner
            }
        };
        counts[owner] += 1;
        if owner == rank {
            own.push(row);
        }
    }
    own
}

/// Some rows of a data file, counted from 0, as a source of prompts.
pub(super) struct RowSubset {
    prompts: Arc<RowPrompts>,
    rows: Vec<usize>,
}

impl RowSubset {
    pub(super) fn new(prompts: Arc<RowPrompts>, rows: Vec<usize>) -> Self {
        Self { prompts, rows }
    }
}

impl SampleSource for RowSubset {
    type Sample = ModelInput;

    fn row_count(&self) -> usize {
        self.rows.len()
    }

    fn sample(&self, index: usize) -> reel_samples::Result<ModelInput> {
        self.prompts.sample(self.rows[index])
    }

    fn token_count(sample: &ModelInput) -> usize {
        RowPrompts::token_count(sample)
    }

    fn location(&self, index: usize) -> (String, usize) {
        self.prompts.location(self.rows[index])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_share_all_rows_and_keep_the_rows_of_a_video_together() {
        let missing: Vec<usize> = (5..125).filter(|row| row % 7 != 0).collect();
        // Each three consecutive rows are about one video. Every fifth row has no video.
        let video = |row: usize| (!row.is_multiple_of(5)).then(|| format!("{}.mp4", row / 3));
        for ranks in [1, 2, 3, 4, 7] {
            let parts: Vec<Vec<usize>> = (0..ranks).map(|rank| rows_of_rank(&missing, video, rank, ranks)).collect();
            let mut all: Vec<usize> = parts.iter().flatten().copied().collect();
            all.sort_unstable();
            assert_eq!(all, missing);
            assert!(parts.iter().all(|part| part.is_sorted()));
            let lengths = parts.iter().map(Vec::len);
            assert!(lengths.clone().max().unwrap() - lengths.min().unwrap() <= 3, "{parts:?}");
            let owner = |row| parts.iter().position(|part| part.contains(row)).unwrap();
            for (row, next) in missing.iter().zip(&missing[1..]) {
                assert!(video(*row).is_none() || video(*row) != video(*next) || owner(row) == owner(next), "{row}");
            }
        }
    }

    #[test]
    fn ranks_share_the_rows_of_a_single_video() {
        let missing: Vec<usize> = (0..64).collect();
        for rank in 0..4 {
            assert_eq!(rows_of_rank(&missing, |_| Some("a.mp4".into()), rank, 4).len(), 16);
        }
        assert_eq!(rows_of_rank(&[3], |_| Some("a.mp4".into()), 1, 2), [0usize; 0]);
    }
}
