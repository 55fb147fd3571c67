//! Reads the rank of this process and the size of its job from environment variables. The launcher, which is the
//! program that starts the processes of a job, sets them:
//!
//! | launcher | rank, size | local rank, local size | job |
//! |---|---|---|---|
//! | torchrun | `RANK`, `WORLD_SIZE` | `LOCAL_RANK`, `LOCAL_WORLD_SIZE` | run id and port |
//! | DeepSpeed | `RANK`, `WORLD_SIZE` | `LOCAL_RANK`, `LOCAL_SIZE` | port |
//! | `reel --gpus` | as torchrun, and `REEL_LAUNCH=1` | as torchrun | `REEL_JOB` |
//! | Open MPI | `OMPI_COMM_WORLD_RANK`, `…_SIZE` | `OMPI_COMM_WORLD_LOCAL_RANK`, `…_LOCAL_SIZE` | `PMIX_NAMESPACE` |
//! | MPICH, Intel MPI | `PMI_RANK`, `PMI_SIZE` | `MPI_LOCALRANKID`, `MPI_LOCALNRANKS` | `I_MPI_HYDRA_UUID` |
//! | PyTorchJob | `RANK`, `WORLD_SIZE` | 0, 1: one process per pod | none |
//! | JobSet | `JOB_COMPLETION_INDEX`, `WORLD_SIZE` | 0, 1 | none |
//! | srun | `SLURM_PROCID`, `SLURM_STEP_NUM_TASKS` | `SLURM_LOCALID`, `SLURM_STEP_TASKS_PER_NODE` | job and step |
//!
//! The launchers are tried in this order, so that the innermost launcher is found: torchrun may run inside srun, and
//! mpirun uses srun to start its daemons on other machines.
//!
//! The variables are those of PyTorch (`local_elastic_agent.py`), DeepSpeed (`launcher/launch.py`), Open MPI
//! (`environment-var`), MPICH (`pmip_cb.c`), Kubeflow's training operator (`envvar.go`) and Slurm (`env.c`,
//! `env_array_for_step`).
//!
//! mpirun, Hydra and srun may also name the process manager by which an MPI library finds the other processes: PMIx by
//! `PMIX_SERVER_URI…`, whose end is a version of PMIx, and PMI by `PMI_FD` or `PMI_PORT`.

use std::fmt;

use crate::diagnostic::Diagnostic;
use serde::{Deserialize, Serialize};

use crate::ranks::error::{RankError, Result};

/// The place of this process in its job: its rank, and the size of the job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct World {
    /// The number of this process, from 0 to `size` - 1.
    pub rank: usize,
    /// The number of processes of the job.
    pub size: usize,
    /// The number of this process among those on its machine, from 0 to `local_size` - 1.
    pub local_rank: usize,
    /// The number of processes of the job on this machine.
    pub local_size: usize,
    /// The program that has started the processes.
    pub launcher: Launcher,
    /// Identifies the job. The text is the same on all ranks, but not unique: a later job can have the same text.
    pub job: String,
    /// The name or address of rank 0's machine (`MASTER_ADDR`), if the launcher or the user has set it.
    pub address: Option<String>,
    /// The ports, from the first to the last, of which this process takes a free one to accept connections; `None`
    /// takes any free port.
    pub ports: Option<(u16, u16)>,
    /// The network interface, such as `eth0`, at whose addresses the other machines connect to this one; `None` allows
    /// all interfaces.
    pub interface: Option<String>,
    /// Whether the launcher starts MPI programs: it has set the variables of the process manager (PMIx or PMI)
    /// through which an MPI library finds the other processes.
    pub offers_mpi: bool,
}

/// The transport of the data that ranks exchange through host memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Transport {
    /// TCP sockets.
    Sockets,
    /// The MPI library that the program is linked with (feature `mpi`).
    Mpi,
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Sockets => "sockets",
            Self::Mpi => "MPI",
        })
    }
}

/// A program that starts the processes of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Launcher {
    /// torchrun, or another launcher that sets the variables of `torch.distributed`.
    Torchrun,
    /// The launcher of DeepSpeed.
    DeepSpeed,
    /// `reel --gpus`, which starts one process per GPU.
    Reel,
    /// mpirun of Open MPI.
    OpenMpi,
    /// mpiexec of MPICH or Intel MPI, which use the process manager Hydra.
    Hydra,
    /// A PyTorchJob of Kubeflow, on Kubernetes.
    PyTorchJob,
    /// A JobSet or an indexed Job, on Kubernetes.
    JobSet,
    /// srun of Slurm.
    Srun,
}

impl fmt::Display for Launcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Torchrun => "torchrun",
            Self::DeepSpeed => "DeepSpeed",
            Self::Reel => "reel --gpus",
            Self::OpenMpi => "Open MPI",
            Self::Hydra => "Hydra (MPICH or Intel MPI)",
            Self::PyTorchJob => "PyTorchJob",
            Self::JobSet => "JobSet",
            Self::Srun => "srun",
        })
    }
}

/// Slurm steps with this id or a higher one were not started by srun: batch scripts, and the interactive shells of
/// salloc.
const FIRST_SPECIAL_STEP: u64 = 0xffff_fff0;

/// The variables that process managers set. An MPI library that finds none of them assumes a single process.
const PROCESS_MANAGERS: [&str; 8] = [
    "PMIX_SERVER_URI",
    "PMIX_SERVER_URI2",
    "PMIX_SERVER_URI21",
    "PMIX_SERVER_URI3",
    "PMIX_SERVER_URI4",
    "PMIX_SERVER_URI41",
    "PMI_FD",
    "PMI_PORT",
];

impl Default for World {
    /// A process that `reel` itself has started, alone.
    fn default() -> Self {
        Self {
            rank: 0,
            size: 1,
            local_rank: 0,
            local_size: 1,
            launcher: Launcher::Reel,
            job: String::new(),
            address: None,
            ports: None,
            interface: None,
            offers_mpi: false,
        }
    }
}

impl World {
    /// Reads the environment variables that launchers set. `get` returns the value of a variable, such as
    /// `|name| std::env::var(name).ok()`. Returns `None` if no launcher has set any: then this is a single process.
    ///
    /// # Errors
    /// A variable is missing, is not a number, or contradicts another one.
    pub fn from_variables(get: impl Fn(&str) -> Option<String>) -> Result<Option<Self>> {
        let get = |name: &str| get(name).filter(|value| !value.is_empty());
        let variables = Variables { get: &get };
        let read = [torchrun, open_mpi, hydra, pytorch_job, job_set, srun];
        for launcher in read {
            if let Some(world) = launcher(variables)? {
                return Ok(Some(world));
            }
        }
        Ok(None)
    }

    /// The transport of data between this process and the other ranks. It is MPI if this crate was built with its
    /// feature `mpi` and the launcher starts MPI programs.
    pub fn transport(&self) -> Transport {
        if cfg!(feature = "mpi") && self.offers_mpi { Transport::Mpi } else { Transport::Sockets }
    }

    /// Whether all processes of the job run on this machine.
    pub fn is_on_one_machine(&self) -> bool {
        self.local_size == self.size
    }
}

#[derive(Clone, Copy)]
struct Variables<'a> {
    get: &'a dyn Fn(&str) -> Option<String>,
}

/// The names of a launcher's variables that hold numbers. Without `local` there is one process per machine.
struct Names {
    rank: &'static str,
    size: &'static str,
    local: Option<[&'static str; 2]>,
}

impl Variables<'_> {
    fn text(self, name: &str) -> Option<String> {
        (self.get)(name)
    }

    fn has(self, name: &str) -> bool {
        self.text(name).is_some()
    }

    fn number(self, name: &str) -> Result<usize> {
        let Some(text) = self.text(name) else {
            return Err(wrong(name, "is not set, although the launcher's other variables are", START_AGAIN));
        };
        text.parse().map_err(|_| wrong(name, &format!("is `{text}`"), "give a whole number"))
    }

    /// Reads the place of this process in the job from these variables.
    fn world(self, launcher: Launcher, names: &Names, job: String) -> Result<World> {
        let (rank, size) = (self.number(names.rank)?, self.number(names.size)?);
        check_below(names.rank, rank, names.size, size)?;
        let is_of_mpi = matches!(launcher, Launcher::OpenMpi | Launcher::Hydra | Launcher::Srun);
        let offers_mpi = is_of_mpi && PROCESS_MANAGERS.iter().any(|name| self.has(name));
        let mut world = World { rank, size, launcher, job, offers_mpi, ..World::default() };
        if let Some([local_rank, local_size]) = names.local {
            (world.local_rank, world.local_size) = (self.number(local_rank)?, self.number(local_size)?);
            check_below(local_rank, world.local_rank, local_size, world.local_size)?;
            check_local_size(local_size, world.local_size, names.size, size)?;
        }
        world.address = self.text("MASTER_ADDR");
        Ok(world)
    }
}

const START_AGAIN: &str = "start the processes with the launcher itself, or unset its other variables";

fn wrong(name: &str, what: &str, help: &str) -> RankError {
    Diagnostic::new(name, what, help).into()
}

fn check_below(name: &str, value: usize, limit_name: &str, limit: usize) -> Result<()> {
    if limit == 0 {
        return Err(wrong(limit_name, "is 0", "give the number of processes, at least 1"));
    }
    if value >= limit {
        let help = format!("give a number from 0 to {}", limit - 1);
        return Err(wrong(name, &format!("is {value}, but {limit_name} is {limit}"), &help));
    }
    Ok(())
}

fn check_local_size(name: &str, value: usize, size_name: &str, size: usize) -> Result<()> {
    if value > size {
        let what = format!("is {value}, but {size_name} is {size}");
        return Err(wrong(name, &what, "give the number of the job's processes on this machine"));
    }
    Ok(())
}

/// Reads the variables of torchrun, DeepSpeed and `reel --gpus`.
fn torchrun(variables: Variables<'_>) -> Result<Option<World>> {
    let is_reel = variables.text("REEL_LAUNCH").is_some_and(|value| value == "1");
    let is_torch = variables.has("TORCHELASTIC_RUN_ID") || variables.has("RANK") && variables.has("LOCAL_RANK");
    let (launcher, job) = if is_reel {
        let Some(job) = variables.text("REEL_JOB") else {
            return Err(wrong("REEL_JOB", "is not set, although REEL_LAUNCH is", "unset REEL_LAUNCH"));
        };
        (Launcher::Reel, job)
    } else if is_torch {
        let is_deepspeed = variables.has("LOCAL_SIZE") && !variables.has("LOCAL_WORLD_SIZE");
        let launcher = if is_deepspeed { Launcher::DeepSpeed } else { Launcher::Torchrun };
        (launcher, torchrun_job(variables, launcher))
    } else {
        return Ok(None);
    };
    let local_size = if launcher == Launcher::DeepSpeed { "LOCAL_SIZE" } else { "LOCAL_WORLD_SIZE" };
    let local = Some(["LOCAL_RANK", local_size]);
    variables.world(launcher, &Names { rank: "RANK", size: "WORLD_SIZE", local }, job).map(Some)
}

/// Returns the job id of torchrun or DeepSpeed. The run id is `none` by default, so the port, which is the same on all
/// nodes, is added. A restart starts a new job. But the number of restarts is added only if there is one node: on
/// several nodes it can differ within an attempt, because each agent counts the restarts that its own processes have
/// caused (<https://github.com/pytorch/pytorch/issues/108158>).
fn torchrun_job(variables: Variables<'_>, launcher: Launcher) -> String {
    let text = |name| variables.text(name).unwrap_or_default();
    let is_one_node = text("LOCAL_WORLD_SIZE") == text("WORLD_SIZE");
    let restarts = if is_one_node { text("TORCHELASTIC_RESTART_COUNT") } else { String::new() };
    [launcher.to_string(), text("TORCHELASTIC_RUN_ID"), text("MASTER_PORT"), restarts].join(" ")
}

fn open_mpi(variables: Variables<'_>) -> Result<Option<World>> {
    let names = Names {
        rank: "OMPI_COMM_WORLD_RANK",
        size: "OMPI_COMM_WORLD_SIZE",
        local: Some(["OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"]),
    };
    if !variables.has(names.rank) && !variables.has(names.size) {
        return Ok(None);
    }
    let id = variables.text("PMIX_NAMESPACE").or_else(|| variables.text("OMPI_MCA_ess_base_jobid"));
    let job = format!("mpirun {}", id.unwrap_or_default());
    variables.world(Launcher::OpenMpi, &names, job).map(Some)
}

/// Reads the variables of Hydra, the process manager of MPICH and Intel MPI. `srun --mpi=pmi2` also sets `PMI_RANK`
/// and `PMI_SIZE`, but not the local variables.
fn hydra(variables: Variables<'_>) -> Result<Option<World>> {
    let local = ["MPI_LOCALRANKID", "MPI_LOCALNRANKS"];
    let names = Names { rank: "PMI_RANK", size: "PMI_SIZE", local: Some(local) };
    let (has_rank, has_local) = (variables.has(names.rank), local.iter().any(|name| variables.has(name)));
    if is_srun_step(variables) && !(has_rank && has_local) {
        return Ok(None);
    }
    let is_several = variables.text(names.size).is_some_and(|size| size != "1");
    if !(has_local || has_rank && is_several) {
        return Ok(None);
    }
    let id = variables.text("I_MPI_HYDRA_UUID").or_else(|| variables.text("PMI_JOBID"));
    let job = format!("mpiexec {}", id.unwrap_or_default());
    variables.world(Launcher::Hydra, &names, job).map(Some)
}

fn pytorch_job(variables: Variables<'_>) -> Result<Option<World>> {
    let names = Names { rank: "RANK", size: "WORLD_SIZE", local: None };
    if !variables.has(names.rank) || !variables.has(names.size) {
        return Ok(None);
    }
    let world = variables.world(Launcher::PyTorchJob, &names, "PyTorchJob".into())?;
    // A script that srun has started may set `RANK` and `WORLD_SIZE` for PyTorch. Then srun's variables give the
    // local rank.
    let by_srun = srun(variables).ok().flatten();
    Ok(Some(by_srun.filter(|srun| (srun.rank, srun.size) == (world.rank, world.size)).unwrap_or(world)))
}

fn job_set(variables: Variables<'_>) -> Result<Option<World>> {
    let names = Names { rank: "JOB_COMPLETION_INDEX", size: "WORLD_SIZE", local: None };
    if !variables.has(names.rank) || !variables.has(names.size) {
        return Ok(None);
    }
    variables.world(Launcher::JobSet, &names, "JobSet".into()).map(Some)
}

/// Tells whether srun has started this process. Batch scripts and shells of salloc have a `SLURM_PROCID` too.
fn is_srun_step(variables: Variables<'_>) -> bool {
    let step = variables.text("SLURM_STEP_ID").and_then(|id| id.parse::<u64>().ok());
    let is_program = step.is_none_or(|id| id < FIRST_SPECIAL_STEP);
    variables.has("SLURM_PROCID") && variables.has("SLURM_STEP_NUM_TASKS") && is_program
}

fn srun(variables: Variables<'_>) -> Result<Option<World>> {
    if !is_srun_step(variables) {
        return Ok(None);
    }
    let text = |name| variables.text(name).unwrap_or_default();
    let job = format!("srun {}.{}", text("SLURM_JOB_ID"), text("SLURM_STEP_ID"));
    let names = Names { rank: "SLURM_PROCID", size: "SLURM_STEP_NUM_TASKS", local: None };
    let mut world = variables.world(Launcher::Srun, &names, job)?;
    world.local_rank = variables.number("SLURM_LOCALID")?;
    world.local_size = tasks_on_node(variables, world.size)?;
    check_below("SLURM_LOCALID", world.local_rank, "the number of tasks on this node", world.local_size)?;
    Ok(Some(world))
}

/// Returns the number of tasks on this node. The value `4(x2),3` means 4, 4 and 3 tasks on three nodes.
fn tasks_on_node(variables: Variables<'_>, tasks: usize) -> Result<usize> {
    const NAME: &str = "SLURM_STEP_TASKS_PER_NODE";
    let Some(text) = variables.text(NAME) else {
        return Err(wrong(NAME, "is not set, although SLURM_STEP_NUM_TASKS is", START_AGAIN));
    };
    let node = variables.number("SLURM_NODEID")?;
    let Some(groups) = text.split(',').map(tasks_and_nodes).collect::<Option<Vec<_>>>() else {
        return Err(wrong(NAME, &format!("is `{text}`"), "give numbers of tasks such as `4(x2),3`"));
    };
    let all = groups.iter().try_fold(0usize, |sum, (tasks, nodes)| sum.checked_add(tasks.checked_mul(*nodes)?));
    if all != Some(tasks) {
        let what = format!("is `{text}`, but SLURM_STEP_NUM_TASKS is {tasks}");
        return Err(wrong(NAME, &what, START_AGAIN));
    }
    let mut first = 0usize;
    for (tasks, nodes) in groups {
        first = first.saturating_add(nodes);
        if node < first {
            return Ok(tasks);
        }
    }
    Err(wrong("SLURM_NODEID", &format!("is {node}, but {NAME} is `{text}`, {first} nodes"), START_AGAIN))
}

/// Parses `4(x2)` (4 tasks on each of 2 nodes) or `3` (3 tasks on 1 node).
fn tasks_and_nodes(text: &str) -> Option<(usize, usize)> {
    match text.trim().split_once("(x") {
        None => Some((text.trim().parse().ok()?, 1)),
        Some((tasks, nodes)) => Some((tasks.parse().ok()?, nodes.strip_suffix(')')?.parse().ok()?)),
    }
}
