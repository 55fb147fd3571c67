//! A training run or an evaluation of several processes (ranks), started by `--gpus N`, torchrun, mpirun, srun or on
//! Kubernetes. Rank 0 writes OUT and prints; the other ranks compute. In a training run they have an output folder of
//! their own, which is removed at the end.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use anyhow::Result;
use reel_device::Device;
use reel_device::cuda::Nvidia;
use reel_serve::ServeError;
use reel_support::diagnostic::{TemporaryPaths, remove_unfinished_files};
use reel_support::error::{Error, Kind};
use reel_support::files::temporary_folder_in;
use reel_support::ranks::{Fact, RankError, Ranks, Timeouts, Transport, World};
use reel_tools::measure::trace;
use reel_train::options::{ReportTo, RunOptions};
use reel_train::runs::folder::output;
use reel_train::setup::RunRanks;
use serde_json::Value;
use tempfile::TempDir;

use crate::common::{CommonOptions, DeviceName};
use crate::fail::{failed, usage_error};
use crate::rank_flags::RankFlags;
use crate::{interrupt, launch, model, output as print};

/// Maximum time that a rank waits for the other ranks in one call. It is long, because rank 0 may write a checkpoint
/// or a report between two steps.
const LONGEST_PAUSE: Duration = Duration::from_secs(3600);

/// Options of a run that may differ between its processes. They are paths of the same files on different machines,
/// whose contents are compared instead, or only rank 0 uses them. [`program_facts`] has the kind of the device and the
/// dtype that the run really uses.
const MAY_DIFFER: [&str; 21] = [
    "decoder",
    "frame_cache",
    "frame_cache_limit",
    "model",
    "data",
    "media_root",
    "out",
    "eval_file",
    "eval_data",
    "eval_media_root",
    "save_total_limit",
    "logging_steps",
    "report_to",
    "report_command",
    "run_name",
    "wandb_project",
    "device",
    "dtype",
    "threads",
    "rank_ports",
    "rank_interface",
];

/// Returns the rank of this process and the size of its job, from the environment variables of a launcher; `None` for
/// a single process.
///
/// # Errors
/// The variables of a launcher contradict each other.
pub fn world_from_environment() -> Result<Option<World>> {
    let world = World::from_variables(|name| std::env::var(name).ok())?;
    Ok(world.filter(|world| world.size > 1))
}

/// Returns an error if a launcher has started several processes of a command that runs as one process.
pub fn refuse_several_processes(command: &str) -> Result<()> {
    // `generate` and `serve` refuse a launcher themselves if they do not divide the model.
    const OF_SEVERAL: [&str; 6] = ["sft", "grpo", "eval", "doctor", "generate", "serve"];
    // These commands write nothing that several processes could write at the same time.
    const HARMLESS: [&str; 4] = ["help", "completions", "man", "plan"];
    if OF_SEVERAL.contains(&command) || HARMLESS.contains(&command) {
        return Ok(());
    }
    world_from_environment()?.map_or(Ok(()), |world| Err(single_process_error(command, &world)))
}

/// The error of a command that runs as one process although a launcher has started several.
pub fn single_process_error(command: &str, world: &World) -> anyhow::Error {
    let World { rank, size, launcher, .. } = world;
    let what = format!("runs as one process, but {launcher} has started {size}, of which this is rank {rank}");
    let help = match command {
        "generate" | "serve" => format!("start it without the launcher, or give --tensor-parallel-size {size}"),
        _ => "start it without the launcher".to_string(),
    };
    failed(format!("reel {command}"), what, help)
}

/// Describes this process's place in its job, for `reel doctor`.
pub fn describe_process() -> String {
    match World::from_variables(|name| std::env::var(name).ok()) {
        Ok(None) => "one process: no launcher has set its environment variables".to_string(),
        Ok(Some(world)) => {
            let World { rank, size, local_rank, local_size, launcher, .. } = &world;
            let place = format!("rank {rank} of {size}, {local_rank} of {local_size} on this machine");
            let transport = world.transport();
            let why = match world.offers_mpi && transport == Transport::Sockets {
                true => ", because this program was built without the feature mpi",
                false => "",
            };
            format!("{place}, started by {launcher}; data between CPUs by {transport}{why}")
        }
        Err(e) => e.to_string(),
    }
}

/// This process of a training run or an evaluation that runs as several processes.
pub struct RunProcess {
    ranks: Arc<Ranks>,
    /// Set once all ranks have agreed to stop.
    pub stop: AtomicBool,
    interrupted: Arc<AtomicBool>,
    /// The output folder, which all ranks can access.
    out: PathBuf,
    /// The temporary output folder of a rank other than 0.
    scratch: Option<TempDir>,
    /// Removes `scratch` if a signal or the end of another rank ends this process.
    _unfinished: Option<TemporaryPaths>,
    /// The checkpoint that the run resumes from.
    checkpoint: Option<String>,
}

impl RunProcess {
    /// Waits until all processes of `world` have joined, and finds the checkpoint from which the run starts. `resolved`
    /// has every option of the run.
    ///
    /// # Errors
    /// A process is missing or has other options; the command or the device does not support several processes; rank 0
    /// refuses the output folder.
    pub fn join(
        world: World,
        options: &RunOptions,
        common: &CommonOptions,
        flags: &RankFlags,
        resolved: &Value,
    ) -> Result<Self> {
        refuse_unusable_devices(common, &world)?;
        let (accumulated, size) = (options.gradient_accumulation_steps, world.size);
        let mut process = Self::connect(world, &options.out, common, flags, option_facts(resolved))?;
        // From here on, all ranks have the same options, so all of them return this error.
        if accumulated < size {
            let what = format!("is {accumulated}, so some of the {size} processes would have no micro-batch");
            let help = format!("give at least {size}; it counts the micro-batches of all processes");
            return Err(usage_error("--gradient-accumulation-steps", what, help));
        }
        if !process.is_rank_0() {
            // A hidden name, so that the folder is removed with its contents if this process is ended.
            let folder =
                std::env::var_os(launch::TEMPORARY_FOLDER_VARIABLE).map_or_else(std::env::temp_dir, PathBuf::from);
            let scratch = temporary_folder_in(&folder, ".reel-rank-", ".part");
            let scratch = scratch.map_err(|e| print::cannot_write(&folder, e))?;
            process._unfinished = Some(TemporaryPaths::new([scratch.path().to_path_buf()]));
            process.scratch = Some(scratch);
        }
        process.checkpoint = process.find_start(options).inspect_err(|e| process.ranks.fail_job(&format!("{e:#}")))?;
        Ok(process)
    }

    /// Joins an evaluation with the output folder `out`. Returns when all processes of `world` have joined.
    ///
    /// # Errors
    /// A process is missing; the device does not support several processes; `out` cannot be written.
    pub fn join_evaluation(world: World, out: &Path, common: &CommonOptions, flags: &RankFlags) -> Result<Self> {
        refuse_unusable_devices(common, &world)?;
        // The options of each benchmark are compared before its first question.
        Self::connect(world, out, common, flags, Vec::new())
    }

    /// Joins a check of data whose list of unusable rows is in `folder`. Returns when all processes of `world` have
    /// joined.
    ///
    /// # Errors
    /// A process is missing or has other options; the device does not support several processes; `folder` cannot be
    /// written.
    pub fn join_data_check(
        world: World,
        folder: &Path,
        common: &CommonOptions,
        flags: &RankFlags,
        resolved: &Value,
    ) -> Result<Self> {
        refuse_unusable_devices(common, &world)?;
        Self::connect(world, folder, common, flags, option_facts(resolved))
    }

    fn connect(
        world: World,
        out: &Path,
        common: &CommonOptions,
        flags: &RankFlags,
        options: Vec<Fact>,
    ) -> Result<Self> {
        fs::create_dir_all(out).map_err(|e| print::cannot_write(out, e))?;
        if world.rank > 0 {
            trace::discard_trace();
        }
        let ranks = join_ranks(world, out, flags.timeouts(LONGEST_PAUSE, true), common, options)?;
        Ok(Self {
            ranks: Arc::new(ranks),
            stop: AtomicBool::new(false),
            interrupted: interrupt::stop_flag(),
            out: out.to_path_buf(),
            scratch: None,
            _unfinished: None,
            checkpoint: None,
        })
    }

    /// Returns the absolute path of the checkpoint that rank 0 finds.
    fn find_start(&self, options: &RunOptions) -> Result<Option<String>> {
        let found = match self.ranks.rank() {
            0 => {
                // Also restores an earlier run if the process that was replacing it was killed. The run itself does
                // the same later.
                let _lock = output::lock_output_folder(&options.out)?;
                let start = output::find_run_start(options)?;
                let path = start.checkpoint().map(|path| path.canonicalize().unwrap_or(path.to_path_buf()));
                Some(path.map(|path| path.display().to_string()).unwrap_or_default().into_bytes())
            }
            _ => None,
        };
        let path = self.ranks.broadcast("start of the run", 0, found)?;
        Ok(Some(String::from_utf8_lossy(&path).into_owned()).filter(|path| !path.is_empty()))
    }

    /// The number of processes on this machine.
    pub fn processes_on_machine(&self) -> u64 {
        self.ranks.world().local_size as u64
    }

    /// The number of processes that share the memory of `device`: those of this machine on CPUs, 1 on GPUs, because
    /// each process has a GPU of its own.
    pub fn processes_on_device(&self, device: &Device) -> u64 {
        processes_on_device(&self.ranks, device)
    }

    /// Returns the common options of this rank. The rank gets its share of this machine's CPUs, or a GPU of its own,
    /// and only rank 0 prints.
    pub fn common_options(&self, common: &CommonOptions) -> CommonOptions {
        common_options(self.ranks.world(), common)
    }

    /// Adapts the options of a run to this rank: ranks other than 0 write only to their temporary folder.
    pub fn adapt_options_to_rank(&self, run: &mut RunOptions) {
        if let Some(scratch) = &self.scratch {
            run.out = scratch.path().join("out");
            run.resume_from_checkpoint.clone_from(&self.checkpoint);
            (run.overwrite, run.report_to, run.report_command) = (false, vec![ReportTo::None], None);
        }
    }

    /// Returns this process's access to the other ranks, in the form that a training run takes.
    pub fn ranks(&self) -> RunRanks<'_> {
        RunRanks { ranks: &self.ranks, out: &self.out, interrupted: &self.interrupted }
    }

    /// Whether this is rank 0, which writes OUT and prints the result.
    pub fn is_rank_0(&self) -> bool {
        self.ranks.rank() == 0
    }

    /// Names the folder for temporary files in an error in place of this rank's own folder in it, which is removed and
    /// which the user has not chosen.
    fn without_temporary_folder(&self, e: anyhow::Error) -> anyhow::Error {
        let Some(scratch) = &self.scratch else { return e };
        match e.downcast::<Error>() {
            Ok(e) => e.with_path_renamed(&scratch.path().join("out"), &std::env::temp_dir()).into(),
            Err(e) => e,
        }
    }

    /// Ends this rank: reports an error to the other ranks, or waits until they have finished, too.
    pub fn finish<T>(self, done: Result<T>) -> Result<T> {
        let done = done.map_err(|e| self.without_temporary_folder(e));
        match &done {
            Err(e) if is_error_of_another_rank(e) => {}
            // All ranks have agreed to stop. Rank 0 may still be writing a checkpoint, so this rank must not report a
            // failure, which would end rank 0. Perhaps only one rank got the signal; all ranks exit with its exit
            // code.
            Err(e) if matches!(e.downcast_ref(), Some(Error { kind: Kind::Stopped, .. })) => {
                let own = [interrupt::signal_exit_code().unwrap_or(0)];
                let codes = self.ranks.all_gather("exit codes", &own).unwrap_or_default();
                codes
                    .into_iter()
                    .flatten()
                    .find(|code| *code > 0)
                    .into_iter()
                    .for_each(interrupt::set_exit_code_of_other_process);
                let _ = Arc::into_inner(self.ranks).map_or(Ok(()), Ranks::leave);
            }
            Err(e) => self.ranks.fail_job(&format!("{e:#}")),
            Ok(_) => Arc::into_inner(self.ranks).map_or(Ok(()), Ranks::leave)?,
        }
        done
    }
}

/// Connects the processes of `world`; the rendezvous file is in `folder`. `options` are the options that all processes
/// must have.
///
/// # Errors
/// A process is missing, or has another option, device, instruction set or version of the program; two processes
/// compute on the same GPU.
pub fn join_ranks(
    world: World,
    folder: &Path,
    timeouts: Timeouts,
    common: &CommonOptions,
    options: Vec<Fact>,
) -> Result<Ranks> {
    let ranks = Ranks::join(world, folder, timeouts, Box::new(end_process_after_rank_error))?;
    ranks.check_same("program and options", &[program_facts(common)?, options].concat())?;
    if let DeviceName::Cuda(named) = common.device()? {
        let world = ranks.world();
        let own = if world.local_size > 1 { gpu_of(world, Nvidia::gpu_count())? } else { named };
        let gpus = ranks.all_gather("GPUs", Nvidia::gpu_uuid(own).unwrap_or_default().as_bytes())?;
        if let Err(e) = refuse_shared_gpu(&gpus) {
            // All ranks return the same error. They disconnect first, so that no rank reports that another rank has
            // ended.
            ranks.leave()?;
            return Err(e);
        }
    }
    Ok(ranks)
}

/// Returns what the processes of a job must have in common apart from their options: the version of the program, the
/// kind of device, the dtype and the instruction set.
fn program_facts(common: &CommonOptions) -> Result<Vec<Fact>> {
    let (device, isa) = match common.device()? {
        DeviceName::Cuda(_) => ("cuda", "that of the GPU"),
        _ => ("cpu", reel_device::cpu::simd::isa().name()),
    };
    let dtype = model::activation_dtype(common).name();
    let facts = [
        ("version of reel", env!("CARGO_PKG_VERSION")),
        ("--device", device),
        ("instruction set", isa),
        ("--dtype", dtype),
    ];
    Ok(facts.map(|(name, value)| (name.to_string(), value.to_string())).to_vec())
}

/// Returns the options that all processes of a run must have. `resolved` has every option of the run.
fn option_facts(resolved: &Value) -> Vec<Fact> {
    let options = resolved.as_object().into_iter().flatten();
    let compared = options.filter(|(name, _)| !MAY_DIFFER.contains(&name.as_str()));
    let text = |value: &Value| match value {
        Value::Null => "not given".to_string(),
        Value::String(text) => text.clone(),
        value => value.to_string(),
    };
    compared.map(|(name, value)| (format!("--{}", name.replace('_', "-")), text(value))).collect()
}

/// Returns the common options of one of several processes. The process gets its share of this machine's CPUs, or a
/// GPU of its own, and only rank 0 prints.
pub fn common_options(world: &World, common: &CommonOptions) -> CommonOptions {
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let share = (cpus / world.local_size).max(1);
    let mut own = CommonOptions { threads: common.threads.or(Some(share)), ..common.clone() };
    if let (Ok(DeviceName::Cuda(_)), true) = (common.device(), world.local_size > 1) {
        own.device = gpu_of(world, Nvidia::gpu_count()).ok().map(|number| format!("cuda:{number}"));
    }
    if world.rank > 0 {
        (own.quiet, own.json) = (true, false);
    }
    own
}

/// The number of processes that share the memory of `device`, see [`RunProcess::processes_on_device`].
pub fn processes_on_device(ranks: &Ranks, device: &Device) -> u64 {
    if device.capabilities().own_memory { 1 } else { ranks.world().local_size as u64 }
}

/// Returns an error if the device does not support several processes, or if there are fewer GPUs than processes.
pub fn refuse_unusable_devices(common: &CommonOptions, world: &World) -> Result<()> {
    let device = common.device()?;
    let World { local_size, .. } = *world;
    match device {
        DeviceName::Cpu => Ok(()),
        DeviceName::Cuda(_) if common.device.as_ref().is_some_and(|name| name.contains(':')) && local_size > 1 => {
            let what = format!("names one GPU, but {local_size} processes on this machine need one each");
            Err(usage_error("--device", what, "give --device cuda"))
        }
        DeviceName::Cuda(_) => gpu_of(world, Nvidia::gpu_count()).map(drop),
        DeviceName::Sim | DeviceName::Dry => {
            let help = "give --device cpu or cuda, or start one process";
            Err(usage_error("--device", "is not possible with several processes, which compute on CPUs or GPUs", help))
        }
    }
}

/// Returns the index of this process's GPU among the `visible` GPUs of the machine. If only one GPU is visible, the
/// index is 0, because a launcher such as srun may show each process only its own GPU.
fn gpu_of(world: &World, visible: usize) -> Result<usize> {
    let World { local_rank, local_size, .. } = *world;
    match visible {
        1 => Ok(0),
        _ if visible >= local_size => Ok(local_rank),
        _ => {
            let what = format!("{visible} GPUs are visible to {local_size} processes of this machine");
            Err(usage_error("--device", what, "start one process for each GPU, or give --device cpu"))
        }
    }
}

/// Returns an error if two ranks compute on the same GPU, which NCCL does not support. `gpus` has the identity of
/// each rank's GPU; it is empty if the driver does not report it.
fn refuse_shared_gpu(gpus: &[Vec<u8>]) -> Result<()> {
    let earlier = |rank: usize| gpus[..rank].iter().position(|other| *other == gpus[rank] && !other.is_empty());
    let Some((rank, other)) = (0..gpus.len()).find_map(|rank| Some((rank, earlier(rank)?))) else { return Ok(()) };
    let gpu = String::from_utf8_lossy(&gpus[rank]);
    let what = format!("gives ranks {other} and {rank} the same GPU, {gpu}, but each rank needs one of its own");
    let help = "start one process for each GPU, and let the launcher show each process its own GPU or all GPUs";
    Err(usage_error("--device", what, help))
}

/// Returns true if an error says that another rank has failed.
pub fn is_error_of_another_rank(e: &anyhow::Error) -> bool {
    let of_rank = |e: &Error| e.kind == Kind::Rank;
    let of_server = |e: &ServeError| matches!(e, ServeError::Engine(e) if of_rank(e));
    e.is::<RankError>() || e.downcast_ref().is_some_and(of_rank) || e.downcast_ref().is_some_and(of_server)
}

/// Ends this process after another rank has failed, unless the main thread notices the failure first.
pub fn end_process_after_rank_error(e: &RankError) {
    remove_unfinished_files();
    let _ = writeln!(std::io::stderr(), "error: {e}");
    signal_hook::low_level::exit(1);
}

#[cfg(test)]
mod tests {
    use reel_support::ranks::Launcher;

    use super::*;

    #[test]
    fn each_process_of_a_machine_has_a_gpu_of_its_own() {
        let world = |local_rank: usize, local_size: usize| World {
            rank: 8 + local_rank,
            size: 16,
            local_rank,
            local_size,
            launcher: Launcher::Srun,
            ..World::default()
        };
        let gpu = |local_rank: usize, local_size: usize, visible: usize| {
            gpu_of(&world(local_rank, local_size), visible).map_err(|e| e.to_string())
        };
        assert_eq!(gpu(3, 4, 4), Ok(3));
        assert_eq!(gpu(3, 4, 8), Ok(3));
        // The launcher shows each process only its own GPU.
        assert_eq!(gpu(3, 4, 1), Ok(0));
        let missing = "--device: 2 GPUs are visible to 4 processes of this machine";
        assert!(gpu(3, 4, 2).is_err_and(|e| e.starts_with(missing)));
        assert!(gpu(0, 1, 0).is_err());
    }

    #[test]
    fn two_ranks_on_one_gpu_are_refused_with_their_numbers() {
        let refused = |gpus: &[&str]| {
            let gpus: Vec<Vec<u8>> = gpus.iter().map(|gpu| gpu.as_bytes().to_vec()).collect();
            refuse_shared_gpu(&gpus).map_err(|e| e.to_string())
        };
        assert_eq!(refused(&["GPU-1", "GPU-2", "GPU-3"]), Ok(()));
        // Some drivers do not report the identity of a GPU.
        assert_eq!(refused(&["", "GPU-2", ""]), Ok(()));
        let e = refused(&["GPU-1", "GPU-2", "GPU-3", "GPU-2"]).unwrap_err();
        assert!(e.starts_with("--device: gives ranks 1 and 3 the same GPU, GPU-2, "), "{e}");
    }
}
