//! Compares the results of calls with a single-threaded model.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::common::{all_to_all, run_ranks_in_threads, short_timeouts};
use proptest::prelude::*;
use reel_support::ranks::{RankError, Ranks, Timeouts, Traffic, TrafficVolume};

/// A call of all ranks.
#[derive(Clone, Copy, Debug)]
pub enum Step {
    Barrier,
    Broadcast(usize),
    AllGather,
    AllToAllInto,
}

fn step() -> impl Strategy<Value = (Step, u64)> {
    let kind = prop_oneof![
        Just(Step::Barrier),
        (0..8usize).prop_map(Step::Broadcast),
        Just(Step::AllGather),
        Just(Step::AllToAllInto),
    ];
    (kind, any::<u64>())
}

/// Returns the bytes that one rank sends to another in a step: up to `most` bytes, and often none.
fn bytes(seed: u64, from: usize, to: usize, most: usize) -> Vec<u8> {
    let mut state = seed ^ ((from as u64) << 32) ^ ((to as u64) << 40) ^ 0x9e37_79b9_7f4a_7c15;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        state >> 33
    };
    let limit = [0, 1, 40, 70_000, most][(next() % 5) as usize];
    let length = if limit == 0 { 0 } else { next() as usize % limit };
    (0..length).map(|i| (i as u64 * 31 + seed + i as u64 / 999) as u8).collect()
}

const TO_ALL: usize = 99;

/// Runs a step and compares the received bytes with the model. Returns the numbers of bytes that were sent and
/// received.
pub fn run_step(ranks: &Ranks, step: Step, seed: u64, most: usize) -> Result<[usize; 2], RankError> {
    let (here, size) = (ranks.rank(), ranks.size());
    let from_all: Vec<Vec<u8>> = (0..size).map(|rank| bytes(seed, rank, here, most)).collect();
    let to_all: Vec<Vec<u8>> = (0..size).map(|rank| bytes(seed, here, rank, most)).collect();
    let length = |parts: &[Vec<u8>]| parts.iter().map(Vec::len).sum::<usize>() - parts[here].len();
    let parts: Vec<&[u8]> = to_all.iter().map(Vec::as_slice).collect();
    match step {
        Step::Barrier => ranks.barrier("meet").map(|()| [0, 0]),
        Step::Broadcast(root) => {
            let root = root % size;
            let wanted = bytes(seed, root, TO_ALL, most);
            let mine = (here == root).then(|| wanted.clone());
            assert!(ranks.broadcast("weights", root, mine)? == wanted, "broadcast");
            Ok(if here == root { [wanted.len() * (size - 1), 0] } else { [0, wanted.len()] })
        }
        Step::AllGather => {
            let wanted: Vec<Vec<u8>> = (0..size).map(|rank| bytes(seed, rank, TO_ALL, most)).collect();
            assert!(ranks.all_gather("metrics", &wanted[here])? == wanted, "all_gather");
            Ok([wanted[here].len() * (size - 1), length(&wanted)])
        }
        Step::AllToAllInto => {
            let mut buffers: Vec<Vec<u8>> = from_all.iter().map(|part| vec![0xee; part.len()]).collect();
            let mut places: Vec<&mut [u8]> = buffers.iter_mut().map(Vec::as_mut_slice).collect();
            ranks.all_to_all_into("gradients", &parts, &mut places)?;
            assert!(buffers == from_all, "all_to_all_into");
            Ok([length(&to_all), length(&from_all)])
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, max_shrink_iters: 20, ..ProptestConfig::default() })]

    #[test]
    fn all_ranks_get_what_a_model_in_one_thread_says(
        size in 1..=8usize, steps in prop::collection::vec(step(), 1..12),
    ) {
        // Each rank sends some MB, and less in large jobs: the largest parts of all pairs together have 8 MB.
        let most = (8 << 20) / size.pow(2);
        run_ranks_in_threads(size, Timeouts::default(), |ranks| {
            let mut volume = TrafficVolume::default();
            for (step, seed) in &steps {
                let [sent, received] = run_step(&ranks, *step, *seed, most).expect("the step");
                volume.sent += sent as u64;
                volume.received += received as u64;
            }
            assert_eq!(ranks.traffic().total(), volume);
            ranks.leave().expect("all leave");
        });
    }
}

#[test]
fn ranks_that_all_send_at_once_do_not_wait_for_each_other() {
    let length = 48 << 20;
    run_ranks_in_threads(3, Timeouts::default(), |ranks| {
        let here = ranks.rank();
        let mine = vec![here as u8; length];
        let all = all_to_all(&ranks, "all", &mine).expect("bytes");
        assert!(all.iter().enumerate().all(|(rank, part)| part.len() == length && part[length / 2] == rank as u8));
    });
}

#[test]
fn a_single_process_needs_no_folder_and_no_network() {
    let ranks =
        crate::common::join(crate::common::world(0, 1), "/nowhere".as_ref(), Timeouts::default()).expect("it joins");
    ranks.barrier("a").expect("a barrier");
    assert_eq!(ranks.broadcast("b", 0, Some(vec![1, 2])).expect("bytes"), [1, 2]);
    assert_eq!(ranks.all_gather("c", &[3]).expect("bytes"), [[3]]);
    let mut buffer = [0];
    ranks.all_to_all_into("d", &[&[5]], &mut [&mut buffer]).expect("bytes");
    assert_eq!((buffer, ranks.traffic()), ([5], Traffic::default()));
    ranks.fail_job("an error of its own");
    ranks.leave().expect("it leaves");
}

#[test]
fn threads_of_a_rank_take_turns() {
    let sum = AtomicUsize::new(0);
    run_ranks_in_threads(2, Timeouts::default(), |ranks| {
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..50 {
                        let all = ranks.all_gather("turn", &[ranks.rank() as u8]).expect("bytes");
                        sum.fetch_add(usize::from(all[1][0]), Ordering::Relaxed);
                    }
                });
            }
        });
    });
    assert_eq!(sum.load(Ordering::Relaxed), 2 * 4 * 50);
}

/// Runs a job in which ranks do different work, and returns their errors.
fn errors(size: usize, timeouts: Timeouts, work: impl Fn(&Ranks) -> Result<(), RankError> + Sync) -> Vec<String> {
    run_ranks_in_threads(size, timeouts, |ranks| work(&ranks).expect_err("the job fails").to_string())
}

#[test]
fn ranks_in_different_calls_are_named_with_both_calls() {
    let all = errors(4, short_timeouts(), |ranks| match ranks.rank() {
        2 => ranks.all_gather("metrics", &[1]).map(drop),
        _ => ranks.barrier("step 5"),
    });
    let wanted = "rank 2: is in all_gather 'metrics', but rank 0 is in barrier 'step 5'; all ranks must make the same";
    assert!(all.iter().all(|text| text.starts_with(wanted)), "{all:#?}");

    let all = errors(2, Timeouts::default(), |ranks| match ranks.rank() {
        0 => ranks.all_gather("step 1", &[1]).and_then(|_| ranks.all_gather("step 2", &[1])).map(drop),
        _ => ranks.all_gather("step 2", &[1]).map(drop),
    });
    assert!(all[0].contains("is in all_gather 'step") && all[0] == all[1], "{all:#?}");

    let all = errors(2, Timeouts::default(), |ranks| {
        // After this barrier the ranks are connected, so the following broadcast of rank 0 does not wait for rank 1.
        ranks.barrier("start")?;
        match ranks.rank() {
            0 => ranks.broadcast("weights", 0, Some(vec![1])).and_then(|_| ranks.broadcast("x", 1, None)).map(drop),
            _ => ranks.broadcast("x", 0, None).map(drop),
        }
    });
    let wanted = "rank 0: is in broadcast 'weights', but rank 1 is in broadcast 'x'";
    assert!(all[0].starts_with(wanted) && all[0] == all[1], "{all:#?}");
}

#[test]
fn lengths_that_differ_from_those_of_buffers_are_named() {
    let all = errors(2, Timeouts::default(), |ranks| {
        let (mut a, mut b) = ([0; 8], [0; 8]);
        let room = if ranks.rank() == 0 { 7 } else { 8 };
        ranks.all_to_all_into("parts", &[&[0; 8], &[0; 8]], &mut [&mut a, &mut b[..room]])?;
        ranks.barrier("end")
    });
    let wanted = "rank 1: sends 8 bytes to rank 0, which expects 7 in all_to_all 'parts'";
    assert!(all.iter().all(|text| text.starts_with(wanted)), "{all:#?}");
}

#[test]
fn a_rank_that_does_not_come_is_named_with_its_last_call() {
    let timeouts = Timeouts { call: Duration::from_millis(700), ..short_timeouts() };
    let all = errors(3, timeouts, |ranks| {
        ranks.barrier("step 4")?;
        if ranks.rank() == 1 {
            std::thread::sleep(Duration::from_millis(1500));
        }
        ranks.all_gather("metrics", &[1]).map(drop)
    });
    for text in &all {
        assert!(
            text.starts_with("rank 1 (") && text.contains("has waited 0.7 s for it in all_gather 'metrics'"),
            "{text}"
        );
        assert!(text.contains("the last call of rank 1 was barrier 'step 4'"), "{text}");
    }
    // A call may take longer than the limit if data keep arriving.
    let timeouts = Timeouts { call: Duration::from_millis(700), ..short_timeouts() };
    run_ranks_in_threads(4, timeouts, |ranks| {
        all_to_all(&ranks, "first", &[1]).expect("bytes");
        std::thread::sleep(Duration::from_millis(350) * ranks.rank() as u32);
        all_to_all(&ranks, "second", &[1]).expect("bytes");
    });
}

#[test]
fn a_rank_that_has_left_is_named_by_those_that_wait_for_it() {
    for leaver in [0, 2] {
        let errors = run_ranks_in_threads(3, short_timeouts(), |ranks| {
            if ranks.rank() == leaver {
                // A slow rank may learn of the failure before it has returned from the first barrier.
                return ranks.barrier("step 4").and_then(|()| ranks.leave()).err().map(|error| error.to_string());
            }
            let error = ranks.barrier("step 4").and_then(|()| ranks.barrier("step 5")).expect_err("the job fails");
            assert_eq!(error.rank, Some(leaver));
            Some(error.to_string())
        });
        for (rank, text) in errors.iter().enumerate().filter(|(rank, _)| *rank != leaver || leaver == 0) {
            let text = text.as_ref().unwrap_or_else(|| panic!("rank {rank} has no error"));
            assert!(text.contains("has left, but rank") && text.contains("in barrier 'step 5'"), "{text}");
        }
    }
}

#[test]
fn a_rank_may_leave_while_others_still_exchange() {
    run_ranks_in_threads(4, short_timeouts(), |ranks| {
        let here = ranks.rank();
        if here == 3 {
            ranks.broadcast("last words", 3, Some(vec![7; 3 << 20])).expect("sent");
            return ranks.leave().expect("it leaves");
        }
        // Rank 0 calls `leave` first and waits for the others. Ranks 1 and 2 receive the last bytes after ranks have
        // left.
        std::thread::sleep(Duration::from_millis(150) * here as u32);
        assert_eq!(ranks.broadcast("last words", 3, None).expect("received").len(), 3 << 20);
        ranks.leave().expect("it leaves");
    });
}

#[test]
fn an_error_of_one_rank_is_the_error_of_all() {
    for failing in 0..3 {
        let all = errors(3, Timeouts::default(), |ranks| {
            if ranks.rank() == failing {
                ranks.fail_job("data.jsonl:7: video: cannot be read; check the path");
            }
            let error = ranks.barrier("step 1").expect_err("the job fails");
            assert_eq!((error.rank, ranks.check()), (Some(failing), Err(error.clone())));
            Err(error)
        });
        let wanted = format!("rank {failing}: data.jsonl:7: video: cannot be read; check the path");
        assert!(all.iter().all(|text| *text == wanted), "{all:#?}");
    }
}

#[test]
fn a_rank_that_panics_tells_the_others() {
    let all = run_ranks_in_threads(2, Timeouts::default(), |ranks| {
        if ranks.rank() == 1 {
            let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(move || {
                let _ranks = ranks;
                std::panic::resume_unwind(Box::new(()));
            }));
            assert!(panicked.is_err());
            return String::new();
        }
        ranks.barrier("step 1").expect_err("the job fails").to_string()
    });
    assert_eq!(all[0], "rank 1: it panicked");
}

/// Returns what each of `size` ranks says about the facts that `facts(rank)` returns.
fn compared(size: usize, facts: impl Fn(usize) -> Vec<(&'static str, String)> + Sync) -> Vec<Result<(), String>> {
    run_ranks_in_threads(size, Timeouts::default(), |ranks| {
        let facts: Vec<_> = facts(ranks.rank()).into_iter().map(|(name, value)| (name.to_string(), value)).collect();
        let result = ranks.check_same("facts", &facts).map_err(|e| e.to_string());
        ranks.leave().expect("the job has not failed");
        result
    })
}

#[test]
fn the_first_fact_that_differs_is_named_on_all_ranks() {
    let same = |_: usize| vec![("--seed", "3".to_string()), ("version", "1".into())];
    assert_eq!(compared(3, same), vec![Ok(()); 3]);
    let said = |facts: fn(usize) -> Vec<(&'static str, String)>, starts: &str, has: &str| {
        for result in compared(4, facts) {
            let e = result.unwrap_err();
            assert!(e.starts_with(starts) && e.contains(has) && e.contains("; start all ranks with the same"), "{e}");
        }
    };
    let rate =
        |rank| vec![("--seed", "3".to_string()), ("--rate", if rank == 2 { "0.1".into() } else { "0.2".into() })];
    said(rate, "--rate: is 0.1 on rank 2 (", "), but 0.2 on rank 0; ");
    let two = |rank: usize| vec![("--seed", rank.min(1).to_string()), ("--rate", rank.to_string())];
    said(two, "--seed: is 1 on ranks 1, 2, 3, but 0 on rank 0; ", "");
    let more = |rank: usize| if rank == 3 { vec![("--lora-r", "x".repeat(200))] } else { Vec::new() };
    said(more, "--lora-r: is xxx", "x… on rank 3 (");
}
