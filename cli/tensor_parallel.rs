//! `--tensor-parallel-size N`: N processes (ranks) of this machine compute one model together, each with 1/N of the
//! decoder's weights and KV cache. Every rank runs the same command; only rank 0 prints, writes files and listens.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Result;
use clap::Args;
use reel_device::Device;
use reel_input::config::ModelConfig;
use reel_model::tensor_parallel::TensorParallel;
use reel_support::error::{Error, Kind};
use reel_support::files::create_private_folder;
use reel_support::ranks::{Fact, Launcher, Ranks, World};
use reel_tools::measure::trace;
use reel_train::step::shard_exchange;
use rustix::process::{Signal, geteuid, set_parent_process_death_signal};

use crate::common::CommonOptions;
use crate::fail::usage_error;
use crate::launch::LocalProcesses;
use crate::prompt::{ModelFlags, find_or_download_model};
use crate::rank_flags::RankFlags;
use crate::{interrupt, launch, ranks};

/// The name of the option.
const OPTION: &str = "--tensor-parallel-size";

/// Maximum time that a rank waits for the other ranks in one call. The ranks of a server wait for the next request,
/// so the time is practically unlimited. A rank that has ended is detected much earlier.
const LONGEST_PAUSE: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// Maximum time that a process waits for its own threads before it disconnects from the other processes.
const LONGEST_LEAVE: Duration = Duration::from_secs(5);

/// The option that divides a model among several processes.
#[derive(Args, Clone, Debug)]
pub struct TensorParallelFlag {
    /// Divide the model among N processes of this machine, each on a GPU of its own with 1/N of the decoder's weights
    /// and KV cache; the results have the bits of one process [default: 1]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=64))]
    tensor_parallel_size: Option<u32>,
    #[command(flatten)]
    ranks: RankFlags,
}

/// This process, as one of several processes that compute a model together.
pub struct TensorParallelProcess {
    ranks: Arc<Ranks>,
    /// Whether the common work is done. A later error does not count as a failure of the rank.
    is_done: AtomicBool,
}

impl TensorParallelFlag {
    /// Returns true if the model is divided among several processes.
    pub fn uses_several_processes(&self) -> bool {
        self.tensor_parallel_size.is_some_and(|size| size > 1)
    }

    /// Calls `work` in this process; or, with `--tensor-parallel-size N`, in each of N processes. If no launcher has
    /// started them, this process starts the N processes and waits for them.
    ///
    /// # Errors
    /// The model of `model` cannot be divided by N; the device does not suit N processes; the errors of `work`; another
    /// process has failed.
    pub fn run(
        &self,
        command: &str,
        model: &ModelFlags,
        common: &CommonOptions,
        work: impl FnOnce(Option<&TensorParallelProcess>, &CommonOptions) -> Result<()>,
    ) -> Result<()> {
        let size = self.tensor_parallel_size.map_or(1, |size| size as usize);
        match ranks::world_from_environment()? {
            None if size == 1 => work(None, common),
            None => {
                // The model is checked and downloaded here once, not in each process.
                let (base, _) = model.base_model_and_adapter_folder()?;
                TensorParallel::check(&ModelConfig::open(&find_or_download_model(&base)?)?, size)?;
                ranks::refuse_unusable_devices(common, &processes_of_this_machine(size))?;
                launch::launch_processes(OPTION, &LocalProcesses::of_one_machine(size))
            }
            Some(world) if size == 1 => Err(ranks::single_process_error(command, &world)),
            Some(world) => {
                let process = TensorParallelProcess::join(self.ranks.place(world), size, common, &self.ranks)?;
                let own = ranks::common_options(process.ranks.world(), common);
                let done = work(Some(&process), &own);
                process.finish(done)
            }
        }
    }
}

/// Describes rank 0 of `size` processes that this program starts on this machine.
fn processes_of_this_machine(size: usize) -> World {
    World { size, local_size: size, ..World::default() }
}

/// Returns the folder in which the processes find each other, which only this user can use: that of the process that
/// started them, or a folder of this user among the temporary files.
///
/// # Errors
/// Another user has made the folder, or has rights to it.
fn rendezvous_folder() -> Result<PathBuf> {
    let own = || std::env::temp_dir().join(format!("reel-{}", geteuid().as_raw()));
    let folder = std::env::var_os(launch::TEMPORARY_FOLDER_VARIABLE).map_or_else(own, PathBuf::from);
    create_private_folder(&folder)?;
    Ok(folder)
}

/// Returns the words of the command line, which must be the same on all ranks, because they run on one machine. Keys of
/// the API are left out.
fn command_line_facts() -> Vec<Fact> {
    let words: Vec<String> = std::env::args_os().skip(1).map(|word| word.to_string_lossy().into_owned()).collect();
    let is_key = |word: &str| word.starts_with("--api-key");
    let is_secret = |at: usize| is_key(&words[at]) || at > 0 && is_key(&words[at - 1]);
    let numbered = (0..words.len()).filter(|at| !is_secret(*at));
    numbered.map(|at| (format!("word {} of the command line", at + 1), words[at].clone())).collect()
}

impl TensorParallelProcess {
    fn join(world: World, size: usize, common: &CommonOptions, flags: &RankFlags) -> Result<Self> {
        let World { launcher, size: started, local_size, .. } = &world;
        if *started != size {
            let what = format!("is {size}, but {launcher} has started {started} processes");
            return Err(usage_error(OPTION, what, format!("give {started}")));
        }
        if *local_size != size {
            let what = format!("is {size}, but {launcher} has started {local_size} of the processes on this machine");
            return Err(usage_error(OPTION, what, "start all processes on one machine"));
        }
        ranks::refuse_unusable_devices(common, &world)?;
        if world.rank > 0 {
            trace::discard_trace();
        }
        // From here on, the first signal only sets the flag; rank 0 tells the other ranks about it.
        interrupt::stop_flag();
        if world.launcher == Launcher::Reel {
            // The process ends if its parent is killed. Otherwise a server process would never end.
            let _ = set_parent_process_death_signal(Some(Signal::TERM));
        }
        let timeouts = flags.timeouts(LONGEST_PAUSE, false);
        let folder = rendezvous_folder()?;
        let ranks = ranks::join_ranks(world, &folder, timeouts, common, command_line_facts())?;
        Ok(Self { ranks: Arc::new(ranks), is_done: AtomicBool::new(false) })
    }

    /// Returns the connection to the other processes.
    pub fn ranks(&self) -> &Arc<Ranks> {
        &self.ranks
    }

    /// Records that the work that all processes share is done.
    pub fn set_common_work_done(&self) {
        self.is_done.store(true, Ordering::Relaxed);
    }

    /// Whether this is rank 0, which prints and writes files.
    pub fn is_rank_0(&self) -> bool {
        self.ranks.rank() == 0
    }

    /// Divides a model among the processes, which exchange activations from now on. All of them call this once.
    ///
    /// # Errors
    /// The model cannot be divided; NCCL is missing; another process has failed.
    pub fn divide_model(&self, config: &ModelConfig, device: &Device) -> Result<TensorParallel> {
        Ok(TensorParallel::new(shard_exchange::connect(&self.ranks, device)?, config)?)
    }

    /// Returns the minimum of `number` over all processes. All of them must call this function.
    ///
    /// # Errors
    /// Another process has failed.
    pub fn min_over_ranks(&self, name: &str, number: u64) -> Result<u64> {
        let all = self.ranks.all_gather(name, &number.to_le_bytes())?;
        let of_rank = |bytes: &Vec<u8>| bytes.first_chunk().map(|bytes| u64::from_le_bytes(*bytes));
        Ok(all.iter().filter_map(of_rank).min().unwrap_or(number))
    }

    /// Ends this process's part of the work: reports an error to the other processes, or waits until they have
    /// finished, too.
    fn finish(self, done: Result<()>) -> Result<()> {
        match &done {
            // A signal has stopped all processes, and rank 0 has reported it.
            Err(e)
                if ranks::is_error_of_another_rank(e)
                    && interrupt::signal_exit_code().is_some()
                    && !self.is_rank_0() =>
            {
                return Ok(());
            }
            Err(e) if ranks::is_error_of_another_rank(e) => {}
            // All processes have stopped before the same step. Rank 0 may still be writing its file, so the others
            // report no failure.
            Err(e) if matches!(e.downcast_ref(), Some(Error { kind: Kind::Stopped, .. })) => {
                let prints = self.is_rank_0();
                leave(self.ranks)?;
                return if prints { done } else { Ok(()) };
            }
            Err(_) if self.is_done.load(Ordering::Relaxed) => leave(self.ranks)?,
            Err(e) => self.ranks.fail_job(&format!("{e:#}")),
            Ok(()) => leave(self.ranks)?,
        }
        done
    }
}

/// Disconnects from the other processes at the normal end, after all of them have done their work.
fn leave(mut ranks: Arc<Ranks>) -> Result<()> {
    ranks.barrier("end of the command")?;
    // Threads of a server may still hold clones of `ranks` for a moment.
    let begun = Instant::now();
    while begun.elapsed() < LONGEST_LEAVE {
        match Arc::try_unwrap(ranks) {
            Ok(ranks) => return Ok(ranks.leave()?),
            Err(shared) => ranks = shared,
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}
