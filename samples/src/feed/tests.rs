use std::sync::atomic::{AtomicBool, Ordering};

use proptest::prelude::*;

use super::*;

/// A data source with one row per element: its token count, or `None` for an unusable row. A sample is the pair (row
/// number, token count).
pub(super) struct DataSource(Vec<Option<usize>>);

pub(super) fn rows_of_ones(rows: usize) -> DataSource {
    DataSource(vec![Some(1); rows])
}

impl SampleSource for DataSource {
    type Sample = (usize, usize);
    fn row_count(&self) -> usize {
        self.0.len()
    }
    fn sample(&self, row: usize) -> Result<Self::Sample> {
        // Preparing a row takes a time that depends on the row, so that the threads finish out of order.
        std::thread::sleep(std::time::Duration::from_micros((row as u64 * 7919) % 60));
        self.0[row].map(|n| (row, n)).ok_or_else(|| SampleError::row(format!("d:{row}"), "is broken", "fix it"))
    }
    fn token_count(sample: &Self::Sample) -> usize {
        sample.1
    }
    fn location(&self, row: usize) -> (String, usize) {
        (format!("d:{}", row + 1), row + 1)
    }
}

const PLAIN: MicroBatchOptions =
    MicroBatchOptions { rows: 2, packing: false, max_length: None, limit: "--max-length", end: None, strict: false };

fn feed(
    rows: &[Option<usize>],
    order: RowOrder,
    batching: MicroBatchOptions,
    from: &DataPosition,
) -> MicroBatchFeed<DataSource> {
    MicroBatchFeed::new(Arc::new(DataSource(rows.to_vec())), order, batching, from, 1, 3)
}

fn rows_of(feed: &mut MicroBatchFeed<DataSource>, batches: usize) -> Vec<Vec<usize>> {
    (0..batches).map_while(|_| feed.next_micro_batch().unwrap()).map(|b| b.rows).collect()
}

#[test]
fn batches_continue_into_the_next_epoch() {
    let rows = [Some(1); 3];
    let got = rows_of(&mut feed(&rows, RowOrder::file_order(3), PLAIN, &DataPosition::default()), 4);
    assert_eq!(got, [[0, 1], [2, 0], [1, 2], [0, 1]]);
}

#[test]
fn stream_end_limits_the_number_of_rows() {
    let rows = [Some(1); 3];
    let ended = MicroBatchOptions { end: Some(5), ..PLAIN };
    let got = rows_of(&mut feed(&rows, RowOrder::file_order(3), ended, &DataPosition::default()), 9);
    assert_eq!(got, [vec![0, 1], vec![2, 0], vec![1]]);
}

#[test]
fn unusable_rows_are_reported_once_and_replaced() {
    let rows = [Some(1), None, Some(9), Some(1)];
    let limited = MicroBatchOptions { max_length: Some(5), ..PLAIN };
    let mut feed = feed(&rows, RowOrder::file_order(4), limited, &DataPosition::default());
    let first = feed.next_micro_batch().unwrap().unwrap();
    assert_eq!(first.rows, [0, 3]);
    assert_eq!(first.skipped.iter().map(|s| (s.row, s.line)).collect::<Vec<_>>(), [(1, 2), (2, 3)]);
    assert!(first.skipped[1].reason.contains("has 9 tokens, more than --max-length 5"), "{:?}", first.skipped);
    let second = feed.next_micro_batch().unwrap().unwrap();
    assert_eq!((second.rows, second.skipped.len(), second.slot), (vec![0, 3], 0, 8));
}

#[test]
fn unusable_rows_at_the_end_are_reported() {
    let ended = MicroBatchOptions { end: Some(3), ..PLAIN };
    let mut feed = feed(&[Some(1), Some(1), None], RowOrder::file_order(3), ended, &DataPosition::default());
    assert_eq!(feed.next_micro_batch().unwrap().unwrap().rows, [0, 1]);
    let last = feed.next_micro_batch().unwrap().unwrap();
    assert_eq!((last.rows.len(), last.skipped.len(), last.slot), (0, 1, 3));
    assert!(feed.next_micro_batch().unwrap().is_none());
}

#[test]
fn packing_fills_with_whole_rows() {
    let rows = [Some(4), Some(3), Some(3), Some(9), Some(10), Some(11), Some(1)];
    let packed = MicroBatchOptions { packing: true, max_length: Some(10), end: Some(7), ..PLAIN };
    let mut feed = feed(&rows, RowOrder::file_order(7), packed, &DataPosition::default());
    assert_eq!(rows_of(&mut feed, 9), [vec![0, 1, 2], vec![3], vec![4], vec![6]]);
}

#[test]
fn strict_run_and_data_without_usable_rows_fail() {
    let strict = MicroBatchOptions { strict: true, ..PLAIN };
    let e = feed(&[Some(1), None], RowOrder::file_order(2), strict, &DataPosition::default())
        .next_micro_batch()
        .unwrap_err();
    assert!(e.to_string().starts_with("d:1: is broken"), "{e}");
    let e =
        feed(&[None, None], RowOrder::file_order(2), PLAIN, &DataPosition::default()).next_micro_batch().unwrap_err();
    assert!(e.to_string().contains("no row of the file can be used"), "{e}");
}

/// If the last usable row fails, the message says that no usable row is left, not that no row can be used.
#[test]
fn data_whose_last_usable_row_fails_says_that_none_is_left() {
    struct OnlyOnce(AtomicBool);
    impl SampleSource for OnlyOnce {
        type Sample = usize;
        fn row_count(&self) -> usize {
            1
        }
        fn sample(&self, _: usize) -> Result<usize> {
            match self.0.swap(false, Ordering::SeqCst) {
                true => Ok(1),
                false => Err(SampleError::row("d:1", "is broken", "fix it")),
            }
        }
        fn token_count(sample: &usize) -> usize {
            *sample
        }
        fn location(&self, _: usize) -> (String, usize) {
            ("d:1".into(), 1)
        }
    }
    let source = Arc::new(OnlyOnce(AtomicBool::new(true)));
    let one = MicroBatchOptions { rows: 1, ..PLAIN };
    let mut feed = MicroBatchFeed::new(source, RowOrder::file_order(1), one, &DataPosition::default(), 1, 1);
    assert_eq!(feed.next_micro_batch().unwrap().unwrap().rows, [0]);
    let e = feed.next_micro_batch().unwrap_err().to_string();
    assert!(e.contains("no usable row is left") && e.contains("is broken"), "{e}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    /// A feed that starts at any position gives the same micro-batches as an uninterrupted feed, with any number of
    /// threads and any prefetch window.
    #[test]
    fn any_position_is_found_again(
        rows in prop::collection::vec(prop::option::weighted(0.8, 1usize..8), 1..8),
        seed in prop::option::of(any::<u64>()),
        batch in 1usize..4,
        packing: bool,
        limit in 5usize..16,
        stop in 0usize..8,
        threads in 1usize..4,
        window in 1usize..6,
    ) {
        prop_assume!(rows.iter().flatten().any(|&n| n <= limit));
        let order = seed.map_or_else(|| RowOrder::file_order(rows.len()), |s| RowOrder::shuffled(rows.len(), s));
        let batching = MicroBatchOptions { rows: batch, packing, max_length: Some(limit), limit: "--max-length", end: None, strict: false };
        let mut whole = feed(&rows, order.clone(), batching, &DataPosition::default());
        let (mut at, mut want) = (DataPosition::default(), Vec::new());
        for i in 0..stop + 6 {
            let b = whole.next_micro_batch().unwrap().unwrap();
            prop_assert!(packing || b.rows.len() == batch);
            prop_assert!(!packing || b.samples.iter().map(|s| s.1).sum::<usize>() <= limit);
            prop_assert!(b.rows.iter().zip(&b.samples).all(|(&r, s)| r == s.0));
            if i < stop { at.advance_past(&b) } else { want.push((b.rows, b.skipped, b.slot)) }
        }
        let mut again = MicroBatchFeed::new(Arc::new(DataSource(rows)), order, batching, &at, threads, window);
        for want in want {
            let b = again.next_micro_batch().unwrap().unwrap();
            prop_assert_eq!((b.rows, b.skipped, b.slot), want);
        }
    }
}

/// Rows that an earlier process skipped are skipped without being prepared when the feed reaches them.
#[test]
fn expected_rows_are_skipped_without_being_tried() {
    let rows = [Some(1); 4];
    let skipped =
        |row: usize| SkippedRow { row, line: row + 1, cause: None, reason: format!("row {row} failed before") };
    let feed = feed(&rows, RowOrder::file_order(4), PLAIN, &DataPosition::default());
    let mut feed = feed.skip_when_reached(vec![skipped(1), skipped(3)]);
    let batches: Vec<_> = (0..3).map_while(|_| feed.next_micro_batch().unwrap()).collect();
    assert_eq!(batches.iter().map(|b| b.rows.clone()).collect::<Vec<_>>(), [[0, 2], [0, 2], [0, 2]]);
    assert_eq!(
        batches.iter().map(|b| b.skipped.clone()).collect::<Vec<_>>(),
        [vec![skipped(1)], vec![skipped(3)], vec![]]
    );
}
