//! Helpers for tests: several ranks that are threads of one process, and a small model with samples to train on.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use reel_device::MemoryCategory;
use reel_input::ModelInput;
use reel_samples::sample::Sample;
use reel_support::ranks::{Ranks, Timeouts, World};

/// The folder of a small model.
pub fn model_folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/train/model_a")
}

/// Returns a text sample, which differs between micro-batches.
pub fn text_sample(step: u64, micro_batch: usize) -> Sample {
    let tokens = 5 + 2 * micro_batch;
    let positions: Vec<i64> = (0..tokens as i64).collect();
    let ids = (0..tokens).map(|t| (1 + (t * 7 + micro_batch * 3 + step as usize) % 90) as i32);
    let input_ids: Vec<_> = ids.map(|id| id.try_into().unwrap()).collect();
    let position_ids = [positions.clone(), positions.clone(), positions];
    let inputs = ModelInput { input_ids, position_ids, ..ModelInput::default() };
    let targets = (0..tokens).map(|t| if t + 1 < tokens { t as i32 + 2 } else { -1 }).collect();
    Sample { tokens: inputs, targets }
}

/// Returns the bytes of one category of memory.
pub fn bytes_of_category(category: MemoryCategory, bytes: &[(&str, usize)]) -> usize {
    bytes.iter().find(|(name, _)| *name == category.name()).map_or(0, |(_, bytes)| *bytes)
}

/// Calls `f` for each rank on a separate thread. Returns the results in the order of the ranks.
pub fn run_on_rank_threads<T: Send>(size: usize, f: impl Fn(Arc<Ranks>) -> T + Sync) -> Vec<T> {
    let folder = tempfile::tempdir().unwrap();
    let timeouts = Timeouts { join: Duration::from_secs(60), ..Timeouts::default() };
    std::thread::scope(|scope| {
        let start = |rank| {
            let job = "test".to_string();
            let world = World { rank, size, local_rank: rank, local_size: size, job, ..World::default() };
            let (folder, f) = (folder.path(), &f);
            scope.spawn(move || {
                let ranks = Arc::new(Ranks::join(world, folder, timeouts, Box::new(|_| {})).unwrap());
                let done = f(ranks.clone());
                Arc::into_inner(ranks).unwrap().leave().unwrap();
                done
            })
        };
        let threads: Vec<_> = (0..size).map(start).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}
