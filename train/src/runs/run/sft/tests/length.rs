//! Tests the number of steps of a run, which depends on the lengths of its rows.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use crate::error::{Error, Result};
use crate::options::{RunOptions, SftOptions};
use reel_samples::feed::SampleSource;
use reel_samples::length::{RowsToScan, scan_and_count_batches};
use reel_samples::order::RowOrder;
use reel_samples::skipped_row::SkippedRow;

use crate::runs::run::TrainLoop;
use crate::runs::run::sft::SftLoop;

/// A sample source that has only the token counts of the rows.
struct TokenCounts {
    rows: usize,
    tokens: BTreeMap<usize, usize>,
}

impl SampleSource for TokenCounts {
    type Sample = usize;

    fn row_count(&self) -> usize {
        self.rows
    }

    fn sample(&self, row: usize) -> Result<usize> {
        self.tokens.get(&row).copied().ok_or_else(|| Error::row(self.location(row).0, "cannot be used", "leave it out"))
    }

    fn token_count(sample: &usize) -> usize {
        *sample
    }

    fn location(&self, row: usize) -> (String, usize) {
        (format!("row {row}"), row)
    }
}

#[derive(Debug, PartialEq)]
struct Length {
    steps: u64,
    skipped: Vec<SkippedRow>,
}

fn steps(lengths: &[Option<usize>], change: impl FnOnce(&mut SftOptions)) -> Result<Length> {
    let run = RunOptions { gradient_accumulation_steps: 2, ..RunOptions::default() };
    let mut options = SftOptions { run, ..SftOptions::default() };
    change(&mut options);
    let tokens = lengths.iter().enumerate().filter_map(|(row, n)| n.map(|n| (row, n))).collect();
    let asked = options.requested_step_count();
    let found = scan_and_count_batches(
        &SftLoop::batching(&options, lengths.len()),
        asked.is_none(),
        if SftLoop::must_scan_all_rows(&options) { RowsToScan::AllBut(&[]) } else { RowsToScan::None },
        &Arc::new(TokenCounts { rows: lengths.len(), tokens }),
        &RowOrder::file_order(lengths.len()),
        &AtomicBool::new(false),
        None,
    )?;
    let steps = asked.unwrap_or_else(|| SftLoop::step_count(&options, found.batches));
    Ok(Length { steps, skipped: found.skipped })
}

#[test]
fn step_count_follows_from_epochs_and_rows() {
    let five = [Some(4); 5];
    assert_eq!(steps(&five, |_| ()).unwrap().steps, 3);
    assert_eq!(steps(&five, |o| o.num_train_epochs = 2.0).unwrap().steps, 5);
    assert_eq!(steps(&five, |o| o.num_train_epochs = 0.5).unwrap().steps, 2);
    assert_eq!(steps(&five, |o| o.per_device_train_batch_size = 3).unwrap().steps, 1);
    assert_eq!(steps(&five, |o| o.max_steps = Some(7)).unwrap().steps, 7);
}

#[test]
fn check_data_finds_unusable_rows_and_the_exact_length() {
    let rows = [Some(4), None, Some(9), Some(4)];
    assert_eq!(steps(&rows, |_| ()).unwrap(), Length { steps: 2, skipped: vec![] });
    let checked = |o: &mut SftOptions| (o.check_data, o.max_length) = (true, Some(8));
    let found = steps(&rows, checked).unwrap();
    assert_eq!((found.steps, found.skipped.iter().map(|s| s.row).collect::<Vec<_>>()), (1, vec![1, 2]));
    assert!(
        steps(&rows, |o| (o.check_data, o.strict) = (true, true))
            .unwrap_err()
            .to_string()
            .starts_with("row 1: cannot be used")
    );
    assert!(
        steps(&[None, None], |o| o.check_data = true)
            .unwrap_err()
            .to_string()
            .contains("no row of the file can be used")
    );
}

#[test]
fn packed_micro_batches_are_counted_by_token_counts() {
    let rows = [Some(4), Some(4), Some(3), Some(8), Some(1), Some(1)];
    let packed = |o: &mut SftOptions| (o.packing, o.max_length, o.gradient_accumulation_steps) = (true, Some(8), 1);
    // The micro-batches have the token counts 4 + 4, 3, 8 and 1 + 1.
    assert_eq!(steps(&rows, packed).unwrap().steps, 4);
}

/// A row that is held back from training is also scanned, but it does not count as a usable training row.
#[test]
fn usable_held_out_row_does_not_count_as_a_training_row() {
    let options = SftOptions::default();
    let source = Arc::new(TokenCounts { rows: 3, tokens: BTreeMap::from([(1, 4)]) });
    let scan = |rows: [usize; 2]| {
        scan_and_count_batches(
            &SftLoop::batching(&options, 2),
            true,
            RowsToScan::AllBut(&[]),
            &source,
            &RowOrder::file_order(2).restricted_to(rows.into_iter()),
            &AtomicBool::new(false),
            None,
        )
    };
    let e = scan([0, 2]).unwrap_err().to_string();
    assert!(e.starts_with("row 2: no row of the file can be used"), "{e}");
    let found = scan([1, 2]).unwrap();
    assert_eq!((found.batches, found.skipped.iter().map(|bad| bad.row).collect::<Vec<_>>()), (1, vec![0, 2]));
}
