use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use proptest::prelude::*;
use reel_support::ranks::{Ranks, Timeouts, World};

use super::*;
use crate::error::SkipCause;
use crate::error::{Error, Kind};

/// A data source with one row per element: its token count, or `None` for an unusable row. A sample is the pair (row
/// number, token count).
pub(super) struct FakeDataSource(Vec<Option<usize>>);

pub(super) fn one_token_rows(rows: usize) -> FakeDataSource {
    FakeDataSource(vec![Some(1); rows])
}

impl SampleSource for FakeDataSource {
    type Sample = (usize, usize);
    fn row_count(&self) -> usize {
        self.0.len()
    }
    fn sample(&self, row: usize) -> Result<Self::Sample> {
        // Preparing a row takes a time that depends on the row, so that the threads finish out of order.
        std::thread::sleep(std::time::Duration::from_micros((row as u64 * 7919) % 60));
        self.0[row].map(|n| (row, n)).ok_or_else(|| Error::row(format!("d:{row}"), "is broken", "fix it"))
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
) -> MicroBatchFeed<FakeDataSource> {
    MicroBatchFeed::new(Arc::new(FakeDataSource(rows.to_vec())), order, batching, from, 1, 3)
}

fn rows_of(feed: &mut MicroBatchFeed<FakeDataSource>, batches: usize) -> Vec<Vec<usize>> {
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

/// A run of half an epoch does not end without a step and without an error.
#[test]
fn feed_that_ends_before_a_usable_row_fails() {
    let half = MicroBatchOptions { end: Some(2), ..PLAIN };
    let rows = [None, None, Some(1), Some(1)];
    let error = |from: &DataPosition| {
        feed(&rows, RowOrder::file_order(4), half, from).next_micro_batch().unwrap_err().to_string()
    };
    let e = error(&DataPosition::default());
    assert!(e.starts_with("d:2: no row that the run reads can be used; ") && e.contains("is broken"), "{e}");
    let e = error(&DataPosition { slot: 0, skipped: vec![0, 1] });
    assert!(e.starts_with("d:1: no row that the run reads can be used: all were skipped before; "), "{e}");
}

/// Rows that the order does not reach, such as rows that are held back from training, do not count as usable rows.
#[test]
fn rows_outside_the_order_are_not_counted() {
    let order = || RowOrder::file_order(2).restricted_to([0, 2].into_iter());
    let start = DataPosition::default();
    let e = feed(&[None, Some(1), None], order(), PLAIN, &start).next_micro_batch().unwrap_err().to_string();
    assert!(e.starts_with("d:3: no row of the file can be used"), "{e}");
    // An unusable row outside the order has no effect either: row 2 can still be used.
    let from = DataPosition { slot: 0, skipped: vec![1] };
    let got = rows_of(&mut feed(&[None, None, Some(1)], order(), PLAIN, &from), 2);
    assert_eq!(got, [[2, 2], [2, 2]]);
}

#[test]
fn feed_whose_rows_were_all_skipped_before_fails() {
    let from = DataPosition { slot: 0, skipped: vec![0, 1] };
    let e = feed(&[Some(1); 2], RowOrder::file_order(2), PLAIN, &from).next_micro_batch().unwrap_err().to_string();
    assert!(e.starts_with("d:1: no usable row is left: all rows were skipped before; "), "{e}");
    let ended = DataPosition { slot: 2, ..from };
    let options = MicroBatchOptions { end: Some(2), ..PLAIN };
    assert!(feed(&[Some(1); 2], RowOrder::file_order(2), options, &ended).next_micro_batch().unwrap().is_none());
}

#[test]
fn feed_ends_when_it_is_stopped() {
    let mut feed = feed(&[Some(1); 2], RowOrder::file_order(2), PLAIN, &DataPosition::default());
    let stop = AtomicBool::new(true);
    assert!(matches!(feed.next_micro_batch_or_stop(Some(&stop)), Err(e) if e.kind == Kind::Stopped));
    stop.store(false, Ordering::SeqCst);
    assert_eq!(feed.next_micro_batch_or_stop(Some(&stop)).unwrap().unwrap().rows, [0, 1]);
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
                false => Err(Error::row("d:1", "is broken", "fix it")),
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
        let mut again = MicroBatchFeed::new(Arc::new(FakeDataSource(rows)), order, batching, &at, threads, window);
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
    let skipped = |row: usize| SkippedRow {
        row,
        line: row + 1,
        cause: SkipCause::Other,
        reason: format!("row {row} failed before"),
    };
    let feed = feed(&rows, RowOrder::file_order(4), PLAIN, &DataPosition::default());
    let mut feed = feed.skip_when_reached(vec![skipped(1), skipped(3)]);
    let batches: Vec<_> = (0..3).map_while(|_| feed.next_micro_batch().unwrap()).collect();
    assert_eq!(batches.iter().map(|b| b.rows.clone()).collect::<Vec<_>>(), [[0, 2], [0, 2], [0, 2]]);
    assert_eq!(
        batches.iter().map(|b| b.skipped.clone()).collect::<Vec<_>>(),
        [vec![skipped(1)], vec![skipped(3)], vec![]]
    );
}

/// A data source that counts how often its rows are prepared.
struct Counting {
    rows: FakeDataSource,
    prepared: Vec<AtomicUsize>,
}

impl SampleSource for Counting {
    type Sample = (usize, usize);
    fn row_count(&self) -> usize {
        self.rows.row_count()
    }
    fn sample(&self, row: usize) -> Result<Self::Sample> {
        self.prepared[row].fetch_add(1, Ordering::SeqCst);
        self.rows.sample(row)
    }
    fn token_count(sample: &Self::Sample) -> usize {
        FakeDataSource::token_count(sample)
    }
    fn location(&self, row: usize) -> (String, usize) {
        self.rows.location(row)
    }
    /// The expected lengths differ from the numbers of tokens, because an expected length is only an estimate.
    fn expected_length(&self, row: usize) -> u64 {
        1 + row as u64 * 7919 % 13
    }
}

/// How several ranks share a feed in a test.
#[derive(Clone, Copy, Debug)]
struct Sharing {
    size: usize,
    per_step: usize,
    assignment: RankAssignment,
    /// Whether the feeds know all numbers of tokens from the start.
    known: bool,
}

/// A micro-batch of a feed: its rows, samples, skipped rows, position and rank.
type FedBatch = (Vec<usize>, Vec<(usize, usize)>, Vec<SkippedRow>, u64, usize);

/// The results of a feed on one rank: its micro-batches, and the error that ended it.
type Fed = (Vec<FedBatch>, Option<String>);

fn all_of(mut feed: MicroBatchFeed<Counting>, limit: usize) -> Fed {
    let mut batches = Vec::new();
    while batches.len() < limit {
        match feed.next_micro_batch() {
            Ok(Some(b)) => batches.push((b.rows, b.samples, b.skipped, b.slot, b.rank)),
            Ok(None) => break,
            Err(e) => return (batches, Some(e.to_string())),
        }
    }
    (batches, None)
}

/// Runs the feeds of all ranks, each in a thread. Returns the results of each rank.
fn shared(
    source: &Arc<Counting>,
    order: &RowOrder,
    batching: MicroBatchOptions,
    from: &DataPosition,
    sharing: Sharing,
    limit: usize,
) -> Vec<Fed> {
    let Sharing { size, per_step, assignment, known } = sharing;
    let folder = tempfile::tempdir().unwrap();
    let run = |rank: usize| {
        let text = move |name: &str| match name {
            "RANK" | "LOCAL_RANK" => Some(rank.to_string()),
            "WORLD_SIZE" | "LOCAL_WORLD_SIZE" => Some(size.to_string()),
            "REEL_LAUNCH" => Some("1".to_string()),
            "REEL_JOB" => Some("feed".to_string()),
            _ => None,
        };
        let world = World::from_variables(text).unwrap().unwrap();
        let ranks = Arc::new(Ranks::join(world, folder.path(), Timeouts::default(), Box::new(|_| ())).unwrap());
        let lengths = source.rows.0.iter().enumerate().filter_map(|(row, n)| Some((row, (*n)?)));
        let feed = MicroBatchFeed::new(source.clone(), order.clone(), batching, from, 2, 2)
            .share_among(Some(FeedRanks { ranks: ranks.clone(), per_step, assignment }))
            .add_known_lengths(lengths.filter(|_| known));
        let fed = all_of(feed, limit);
        Arc::into_inner(ranks).unwrap().leave().unwrap();
        fed
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..size).map(|rank| scope.spawn(move || run(rank))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

fn counting(rows: &[Option<usize>]) -> Arc<Counting> {
    let prepared = rows.iter().map(|_| AtomicUsize::new(0)).collect();
    Arc::new(Counting { rows: FakeDataSource(rows.to_vec()), prepared })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    /// Several ranks make the same micro-batches, skip the same rows and stop with the same error as a single process,
    /// and the samples of each micro-batch are on its rank.
    #[test]
    fn ranks_make_the_micro_batches_of_one_process(
        rows in prop::collection::vec(prop::option::weighted(0.85, 1usize..8), 1..24),
        seed in prop::option::of(any::<u64>()),
        batch in 1usize..4,
        packing: bool,
        strict in prop::bool::weighted(0.1),
        limit in 5usize..16,
        end in prop::option::of(1u64..50),
        from in 0u64..8,
        size in 2usize..5,
        more in 0usize..4,
        known: bool,
        by_length: bool,
    ) {
        let order = seed.map_or_else(|| RowOrder::file_order(rows.len()), |s| RowOrder::shuffled(rows.len(), s));
        let batching = MicroBatchOptions { rows: batch, packing, max_length: Some(limit), end, strict, ..PLAIN };
        let from = DataPosition { slot: end.map_or(from, |end| from.min(end)), skipped: Vec::new() };
        let assignment = if by_length && !packing { RankAssignment::ByExpectedLength } else { RankAssignment::InTurn };
        let sharing = Sharing { size, per_step: size + more, assignment, known };
        let count = 3 * sharing.per_step;
        let one = all_of(MicroBatchFeed::new(counting(&rows), order.clone(), batching, &from, 1, 3), count);
        for (rank, got) in shared(&counting(&rows), &order, batching, &from, sharing, count).into_iter().enumerate() {
            // An error ends all ranks at the start of its round. A single process still makes the micro-batches of
            // that round that precede the error.
            let made = got.0.len();
            let as_many = made == one.0.len() || one.1.is_some() && made < one.0.len();
            prop_assert!(as_many, "{} micro-batches, not {}", made, one.0.len());
            prop_assert_eq!(&got.1, &one.1);
            for (i, (got, want)) in got.0.into_iter().zip(&one.0).enumerate() {
                prop_assert!(assignment != RankAssignment::InTurn || got.4 == i % sharing.per_step % size);
                let samples = if got.4 == rank { want.1.clone() } else { Vec::new() };
                prop_assert_eq!(&got, &(want.0.clone(), samples, want.2.clone(), want.3, got.4), "micro-batch {}", i);
            }
        }
    }
}

/// Asserts that the loads of two ranks in a step differ by at most the length of the longest micro-batch.
#[track_caller]
fn assert_even(source: &Counting, step: &[FedBatch], size: usize) {
    let length = |rows: &[usize]| rows.iter().map(|&row| source.expected_length(row)).sum::<u64>();
    let load = |rank: usize| step.iter().filter(|batch| batch.4 == rank).map(|batch| length(&batch.0)).sum::<u64>();
    let loads: Vec<u64> = (0..size).map(load).collect();
    let longest = step.iter().map(|batch| length(&batch.0)).max().unwrap();
    assert!(loads.iter().max().unwrap() - loads.iter().min().unwrap() <= longest, "{loads:?}, longest {longest}");
}

/// If no row is skipped, each row is prepared once, on one rank. With packing, this holds if the lengths are known.
#[test]
fn ranks_prepare_no_row_twice() {
    let lengths: Vec<Option<usize>> = (0..60).map(|row| Some(1 + row * 7 % 5)).collect();
    use RankAssignment::{ByExpectedLength, InTurn};
    let cases = [
        (2, 2, InTurn, false),
        (3, 4, InTurn, false),
        (4, 6, InTurn, false),
        (3, 5, InTurn, true),
        (2, 6, ByExpectedLength, false),
        (4, 10, ByExpectedLength, false),
    ];
    for (size, per_step, assignment, packing) in cases {
        let source = counting(&lengths);
        let batching = MicroBatchOptions { rows: 2, packing, max_length: Some(12), end: Some(60), ..PLAIN };
        let sharing = Sharing { size, per_step, assignment, known: packing };
        let order = RowOrder::shuffled(60, 5);
        let fed = shared(&source, &order, batching, &DataPosition::default(), sharing, usize::MAX);
        assert_eq!(fed[0].0.iter().map(|batch| batch.0.len()).sum::<usize>(), 60);
        let prepared: Vec<usize> = source.prepared.iter().map(|n| n.load(Ordering::SeqCst)).collect();
        assert_eq!(prepared, [1; 60], "{sharing:?}, packing {packing}");
        if assignment == ByExpectedLength {
            fed[0].0.chunks(per_step).for_each(|step| assert_even(&source, step, size));
        }
    }
}
