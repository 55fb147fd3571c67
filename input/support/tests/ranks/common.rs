//! Helpers that start the ranks of one job as threads of the test.

use std::path::Path;
use std::time::Duration;

use reel_support::ranks::{RankError, Ranks, Timeouts, World};

/// Returns the world of a rank in a job whose ranks all run on this machine.
pub fn world(rank: usize, size: usize) -> World {
    World { rank, size, local_rank: rank, local_size: size, job: "test".into(), ..World::default() }
}

/// Joins a job with a callback that does nothing.
pub fn join(world: World, folder: &Path, timeouts: Timeouts) -> Result<Ranks, RankError> {
    Ranks::join(world, folder, timeouts, Box::new(|_| {}))
}

/// Sends `part` to each rank. Returns the parts that the ranks have sent to this rank, which have the same length.
pub fn all_to_all(ranks: &Ranks, name: &str, part: &[u8]) -> Result<Vec<Vec<u8>>, RankError> {
    let mut parts = vec![vec![0; part.len()]; ranks.size()];
    let mut buffers: Vec<&mut [u8]> = parts.iter_mut().map(Vec::as_mut_slice).collect();
    ranks.all_to_all_into(name, &vec![part; ranks.size()], &mut buffers)?;
    Ok(parts)
}

/// Short time limits for jobs that are expected to fail.
pub fn short_timeouts() -> Timeouts {
    Timeouts {
        join: Duration::from_secs(5),
        heartbeat: Duration::from_millis(50),
        silence: Duration::from_millis(1500),
        call: Duration::from_secs(20),
        ..Timeouts::default()
    }
}

/// Runs `work` in a thread for each rank of a job. Returns the results by rank.
pub fn run_ranks_in_threads<T: Send>(size: usize, timeouts: Timeouts, work: impl Fn(Ranks) -> T + Sync) -> Vec<T> {
    let folder = tempfile::tempdir().expect("a folder");
    let results = std::thread::scope(|scope| {
        let (folder, work) = (folder.path(), &work);
        let start = |rank| scope.spawn(move || work(join(world(rank, size), folder, timeouts).expect("it joins")));
        let threads: Vec<_> = (0..size).map(start).collect();
        threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
    });
    assert_eq!(std::fs::read_dir(folder.path()).expect("the folder").count(), 0, "a rendezvous file is left");
    results
}
