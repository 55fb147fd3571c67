//! Tests with the variables that each launcher really sets, and with variables that contradict each other.

use reel_support::ranks::{Launcher, RankError, Transport, World};

/// Parses variables in lines `NAME=value`, and reads the world from them.
fn read(text: &str) -> Result<Option<World>, RankError> {
    let lines = || text.lines().map(str::trim).filter(|line| !line.is_empty());
    World::from_variables(|name| {
        lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('=')).map(str::to_string)
    })
}

fn world(text: &str) -> World {
    read(text).unwrap_or_else(|e| panic!("{e}")).expect("a job of several processes")
}

/// Returns the rank, the size, the local rank and the local size.
fn numbers(world: &World) -> [usize; 4] {
    [world.rank, world.size, world.local_rank, world.local_size]
}

/// torchrun on two nodes with four processes each, without `--rdzv-id`.
const TORCHRUN: &str = "
    LOCAL_RANK=1
    RANK=5
    GROUP_RANK=1
    ROLE_RANK=5
    ROLE_NAME=default
    LOCAL_WORLD_SIZE=4
    WORLD_SIZE=8
    GROUP_WORLD_SIZE=2
    ROLE_WORLD_SIZE=8
    MASTER_ADDR=node1
    MASTER_PORT=29500
    TORCHELASTIC_RESTART_COUNT=0
    TORCHELASTIC_MAX_RESTARTS=3
    TORCHELASTIC_RUN_ID=none
    TORCHELASTIC_USE_AGENT_STORE=False
    TORCH_NCCL_ASYNC_ERROR_HANDLING=1
    OMP_NUM_THREADS=1
";

/// DeepSpeed's launcher on two nodes with two processes each.
const DEEPSPEED: &str = "
    CUDA_VISIBLE_DEVICES=0,1
    MASTER_ADDR=node1
    MASTER_PORT=29500
    WORLD_SIZE=4
    CROSS_RANK=1
    CROSS_SIZE=2
    LOCAL_SIZE=2
    RANK=3
    LOCAL_RANK=1
";

/// The variables of mpirun of Open MPI 4.1.
const OPEN_MPI_4: &str = "
    OMPI_COMMAND=reel
    OMPI_MCA_orte_hnp_uri=1543503872.0;tcp://10.0.0.1:39583
    OMPI_MCA_ess=^singleton
    OMPI_MCA_ess_base_jobid=1543503873
    OMPI_MCA_ess_base_vpid=2
    OMPI_COMM_WORLD_SIZE=4
    OMPI_COMM_WORLD_LOCAL_SIZE=2
    OMPI_UNIVERSE_SIZE=4
    OMPI_COMM_WORLD_RANK=2
    OMPI_COMM_WORLD_LOCAL_RANK=0
    OMPI_COMM_WORLD_NODE_RANK=0
";

/// The variables of mpirun of Open MPI 5.
const OPEN_MPI_5: &str = "
    PMIX_NAMESPACE=prterun-node1-2812@1
    PMIX_RANK=3
    PMIX_SERVER_URI41=prterun-node1-2812@0.0;tcp4://127.0.0.1:40265
    OMPI_UNIVERSE_SIZE=4
    OMPI_COMM_WORLD_SIZE=4
    OMPI_WORLD_SIZE=4
    OMPI_COMM_WORLD_LOCAL_SIZE=4
    OMPI_WORLD_LOCAL_SIZE=4
    OMPI_COMM_WORLD_RANK=3
    OMPI_COMM_WORLD_LOCAL_RANK=3
    OMPI_COMM_WORLD_NODE_RANK=3
";

/// mpiexec of MPICH on two nodes: 3 and 2 processes.
const MPICH: &str = "
    MPI_LOCALNRANKS=2
    MPI_LOCALRANKID=1
    PMI_RANK=4
    PMI_SIZE=5
    PMI_FD=9
    MPIR_CVAR_CH3_INTERFACE_HOSTNAME=node2
";

/// A worker of a PyTorchJob with an elastic policy, in which the master is rank 0.
const PYTORCH_JOB: &str = "
    KUBERNETES_SERVICE_HOST=10.96.0.1
    KUBERNETES_SERVICE_PORT=443
    HOSTNAME=tune-worker-1
    PYTHONUNBUFFERED=1
    MASTER_PORT=23456
    MASTER_ADDR=tune-master-0
    WORLD_SIZE=4
    RANK=2
    PET_MASTER_PORT=23456
    PET_MASTER_ADDR=tune-master-0
    PET_NNODES=4
    PET_NODE_RANK=2
    PET_NPROC_PER_NODE=auto
";

/// A pod of an indexed Job; the user sets the size and the address.
const JOB_SET: &str = "
    KUBERNETES_SERVICE_HOST=10.96.0.1
    JOB_COMPLETION_INDEX=3
    WORLD_SIZE=4
    MASTER_ADDR=tune-workers-0-0.tune
    MASTER_PORT=3389
";

/// A task of `srun -N 3 --ntasks=11` in a batch job.
const SRUN: &str = "
    SLURM_JOB_ID=81723
    SLURM_JOBID=81723
    SLURM_STEP_ID=2
    SLURM_STEPID=2
    SLURM_JOB_NUM_NODES=3
    SLURM_NNODES=3
    SLURM_NTASKS=11
    SLURM_NPROCS=11
    SLURM_TASKS_PER_NODE=4(x2),3
    SLURM_STEP_NODELIST=gpu[07-09]
    SLURM_STEP_NUM_NODES=3
    SLURM_STEP_NUM_TASKS=11
    SLURM_STEP_TASKS_PER_NODE=4(x2),3
    SLURM_STEP_LAUNCHER_PORT=36877
    SLURM_LAUNCH_NODE_IPADDR=172.31.82.82
    SLURM_NODEID=2
    SLURM_PROCID=9
    SLURM_LOCALID=1
    SLURM_GTIDS=8,9,10
";

/// A batch script, which runs on the first node.
const BATCH: &str = "
    ENVIRONMENT=BATCH
    SLURM_JOB_ID=81723
    SLURM_JOB_NUM_NODES=3
    SLURM_NTASKS=11
    SLURM_TASKS_PER_NODE=4(x2),3
    SLURM_NODEID=0
    SLURM_PROCID=0
    SLURM_LOCALID=0
    SLURM_GTIDS=0
";

#[test]
fn each_launcher_is_recognised() {
    let local = "LOCAL_WORLD_SIZE=8\nTORCHELASTIC_RESTART_COUNT=2\n".to_string() + TORCHRUN;
    let reel = "REEL_LAUNCH=1\nREEL_JOB=5f3a\nRANK=1\nWORLD_SIZE=2\nLOCAL_RANK=1\nLOCAL_WORLD_SIZE=2\n\
                MASTER_ADDR=127.0.0.1\nMASTER_PORT=0";
    let named = "I_MPI_HYDRA_UUID=4e0a\nHYDI_CONTROL_FD=7\n".to_string() + MPICH;
    let cases = [
        (TORCHRUN, Launcher::Torchrun, [5, 8, 1, 4], "torchrun none 29500 ", Some("node1")),
        (&local, Launcher::Torchrun, [5, 8, 1, 8], "torchrun none 29500 2", Some("node1")),
        (DEEPSPEED, Launcher::DeepSpeed, [3, 4, 1, 2], "DeepSpeed  29500 ", Some("node1")),
        (reel, Launcher::Reel, [1, 2, 1, 2], "5f3a", Some("127.0.0.1")),
        (OPEN_MPI_4, Launcher::OpenMpi, [2, 4, 0, 2], "mpirun 1543503873", None),
        (OPEN_MPI_5, Launcher::OpenMpi, [3, 4, 3, 4], "mpirun prterun-node1-2812@1", None),
        (MPICH, Launcher::Hydra, [4, 5, 1, 2], "mpiexec ", None),
        (&named, Launcher::Hydra, [4, 5, 1, 2], "mpiexec 4e0a", None),
        (PYTORCH_JOB, Launcher::PyTorchJob, [2, 4, 0, 1], "PyTorchJob", Some("tune-master-0")),
        (JOB_SET, Launcher::JobSet, [3, 4, 0, 1], "JobSet", Some("tune-workers-0-0.tune")),
        (SRUN, Launcher::Srun, [9, 11, 1, 3], "srun 81723.2", None),
    ];
    for (text, launcher, wanted, job, address) in cases {
        let world = world(text);
        let got = (world.launcher, numbers(&world), world.job.as_str(), world.address.as_deref());
        assert_eq!(got, (launcher, wanted, job, address));
    }
}

/// The launchers of MPI programs set variables that name the process manager. Without them, an MPI library would
/// assume a single process.
#[test]
fn launchers_of_mpi_programs_offer_mpi() {
    let pmix = format!("{OPEN_MPI_4}\nPMIX_SERVER_URI2=1543503872.0;tcp4://127.0.0.1:48235");
    let [by_pmix, by_pmi] = ["PMIX_SERVER_URI4=x", "PMI_FD=5"].map(|manager| format!("{SRUN}\n{manager}"));
    for text in [OPEN_MPI_5, &pmix, MPICH, &by_pmix, &by_pmi] {
        assert!(world(text).offers_mpi, "{text}");
    }
    // torchrun inside mpirun: its processes are not the ones that mpirun has started.
    let inner = format!("{OPEN_MPI_5}\n{TORCHRUN}");
    for text in [OPEN_MPI_4, SRUN, TORCHRUN, PYTORCH_JOB, JOB_SET, &inner] {
        assert_eq!((world(text).offers_mpi, world(text).transport()), (false, Transport::Sockets), "{text}");
    }
}

#[test]
fn a_size_of_one_is_a_job_of_one_process() {
    let one = "SLURM_JOB_ID=7\nSLURM_STEP_ID=0\nSLURM_PROCID=0\nSLURM_LOCALID=0\nSLURM_NODEID=0\n\
               SLURM_STEP_NUM_TASKS=1\nSLURM_STEP_TASKS_PER_NODE=1\n";
    // `srun --pty bash` on a cluster where pmi2 is the default.
    let shell = format!("PMI_RANK=0\nPMI_SIZE=1\nPMI_FD=5\nPMI_JOBID=7.0\n{one}");
    for text in [one, &shell] {
        assert_eq!((numbers(&world(text)), world(text).launcher), ([0, 1, 0, 1], Launcher::Srun));
    }
    assert_eq!(
        numbers(&world(
            "OMPI_COMM_WORLD_RANK=0\nOMPI_COMM_WORLD_SIZE=1\nOMPI_COMM_WORLD_LOCAL_RANK=0\nOMPI_COMM_WORLD_LOCAL_SIZE=1"
        )),
        [0, 1, 0, 1]
    );
}

#[test]
fn what_is_no_job_of_several_processes_is_a_single_process() {
    // The shell of salloc is a Slurm step with an id that no program of the user gets.
    let interactive = SRUN.replace("SLURM_STEP_ID=2", "SLURM_STEP_ID=4294967290");
    let singles = [
        "",
        BATCH,
        &interactive,
        "MASTER_ADDR=node1\nMASTER_PORT=29500\nWORLD_SIZE=8",
        "JOB_COMPLETION_INDEX=3\nKUBERNETES_SERVICE_HOST=10.96.0.1",
        "RANK=\nWORLD_SIZE=\nLOCAL_RANK=\nOMPI_COMM_WORLD_RANK=",
        "PMI_RANK=0\nPMI_SIZE=1",
        "LOCAL_RANK=0",
    ];
    for text in singles {
        assert_eq!(read(text), Ok(None), "{text}");
    }
}

#[test]
fn the_innermost_launcher_counts() {
    // torchrun, mpirun and mpiexec inside srun. mpirun starts its daemons with srun.
    let below = |inner: &str| world(&format!("{inner}\n{SRUN}")).launcher;
    assert_eq!(below(TORCHRUN), Launcher::Torchrun);
    assert_eq!(below(OPEN_MPI_5), Launcher::OpenMpi);
    assert_eq!(below(MPICH), Launcher::Hydra);
    // srun alone, with --mpi=pmi2.
    assert_eq!(below("PMI_RANK=9\nPMI_SIZE=11\nPMI_FD=5\nPMI_JOBID=81723.2"), Launcher::Srun);
    // torchrun in a pod of a PyTorchJob, and mpirun in a shell with leftover variables.
    assert_eq!(world(&format!("{TORCHRUN}\n{PYTORCH_JOB}")).launcher, Launcher::Torchrun);
    assert_eq!(world(&format!("{OPEN_MPI_4}\nWORLD_SIZE=4\nRANK=0")).launcher, Launcher::OpenMpi);
    // A script inside srun that sets the variables of PyTorch, and a script whose variables have other values.
    let script = world(&format!("RANK=9\nWORLD_SIZE=11\nMASTER_ADDR=gpu07\n{SRUN}"));
    assert_eq!((script.launcher, numbers(&script)), (Launcher::Srun, [9, 11, 1, 3]));
    assert_eq!(below("RANK=1\nWORLD_SIZE=2"), Launcher::PyTorchJob);
    // An address that the user sets is used with every launcher.
    assert_eq!(world(&format!("MASTER_ADDR=gpu07\n{SRUN}")).address.as_deref(), Some("gpu07"));
}

#[test]
fn a_restart_on_one_node_is_another_job_and_on_several_nodes_the_same() {
    let restarted = |text: &str| world(&text.replace("RESTART_COUNT=0", "RESTART_COUNT=1")).job;
    let single = TORCHRUN.replace("\n    WORLD_SIZE=8", "\n    WORLD_SIZE=4").replace("RANK=5", "RANK=1");
    assert_ne!(world(&single).job, restarted(&single));
    assert_eq!(world(TORCHRUN).job, restarted(TORCHRUN));
}

#[test]
fn contradictions_name_the_variable_its_value_and_what_to_do() {
    let with = |text: &str, change: &str| format!("{change}\n{text}");
    let cases = [
        (with(TORCHRUN, "RANK=8"), "RANK: is 8, but WORLD_SIZE is 8; give a number from 0 to 7"),
        (with(TORCHRUN, "RANK=-1"), "RANK: is `-1`; give a whole number"),
        (with(TORCHRUN, "WORLD_SIZE=many"), "WORLD_SIZE: is `many`; give a whole number"),
        (with(TORCHRUN, "WORLD_SIZE=0"), "WORLD_SIZE: is 0; give the number of processes, at least 1"),
        (with(TORCHRUN, "LOCAL_RANK=4"), "LOCAL_RANK: is 4, but LOCAL_WORLD_SIZE is 4; give a number from 0 to 3"),
        (with(TORCHRUN, "LOCAL_WORLD_SIZE=9"), "LOCAL_WORLD_SIZE: is 9, but WORLD_SIZE is 8; give the number of the"),
        ("RANK=0\nLOCAL_RANK=0\nWORLD_SIZE=2".into(), "LOCAL_WORLD_SIZE: is not set, although the launcher's other"),
        ("REEL_LAUNCH=1\nRANK=0".into(), "REEL_JOB: is not set, although REEL_LAUNCH is; unset REEL_LAUNCH"),
        (with(OPEN_MPI_5, "OMPI_COMM_WORLD_SIZE=0"), "OMPI_COMM_WORLD_SIZE: is 0; give the number of processes"),
        ("OMPI_COMM_WORLD_SIZE=4".into(), "OMPI_COMM_WORLD_RANK: is not set, although the launcher's other variables"),
        (
            with(MPICH, "MPI_LOCALRANKID=2"),
            "MPI_LOCALRANKID: is 2, but MPI_LOCALNRANKS is 2; give a number from 0 to 1",
        ),
        ("PMI_RANK=1\nPMI_SIZE=2".into(), "MPI_LOCALRANKID: is not set, although the launcher's other variables are"),
        // The variables of `mpiexec -pmi-port`.
        (
            "MPI_LOCALNRANKS=2\nMPI_LOCALRANKID=1\nPMI_PORT=node1:4000\nPMI_ID=1".into(),
            "PMI_RANK: is not set, although the launcher's other variables are",
        ),
        (with(PYTORCH_JOB, "RANK=4"), "RANK: is 4, but WORLD_SIZE is 4; give a number from 0 to 3"),
        (with(JOB_SET, "WORLD_SIZE=3"), "JOB_COMPLETION_INDEX: is 3, but WORLD_SIZE is 3; give a number from 0 to 2"),
        (with(SRUN, "SLURM_PROCID=11"), "SLURM_PROCID: is 11, but SLURM_STEP_NUM_TASKS is 11; give a number from"),
        (with(SRUN, "SLURM_LOCALID=3"), "SLURM_LOCALID: is 3, but the number of tasks on this node is 3; give a"),
        (
            with(SRUN, "SLURM_NODEID=3"),
            "SLURM_NODEID: is 3, but SLURM_STEP_TASKS_PER_NODE is `4(x2),3`, 3 nodes; start",
        ),
        (
            with(SRUN, "SLURM_STEP_TASKS_PER_NODE=4(x2),4"),
            "SLURM_STEP_TASKS_PER_NODE: is `4(x2),4`, but SLURM_STEP_NUM",
        ),
        (with(SRUN, "SLURM_STEP_TASKS_PER_NODE=4(x2)3"), "SLURM_STEP_TASKS_PER_NODE: is `4(x2)3`; give numbers of"),
        (
            with(SRUN, "SLURM_STEP_TASKS_PER_NODE=18446744073709551615(x2)"),
            "SLURM_STEP_TASKS_PER_NODE: is `18446744073",
        ),
    ];
    for (text, wanted) in cases {
        let error = read(&text).expect_err(wanted).to_string();
        assert!(error.starts_with(wanted), "got {error}\nnot {wanted}");
    }
}

/// Reading never panics for any variables, and a returned rank is always less than its size.
#[test]
fn any_values_give_a_place_or_an_error() {
    use proptest::prelude::*;
    let name = prop::sample::select(vec![
        "RANK",
        "WORLD_SIZE",
        "LOCAL_RANK",
        "LOCAL_WORLD_SIZE",
        "TORCHELASTIC_RUN_ID",
        "REEL_LAUNCH",
        "REEL_JOB",
        "OMPI_COMM_WORLD_RANK",
        "OMPI_COMM_WORLD_SIZE",
        "PMI_RANK",
        "PMI_SIZE",
        "MPI_LOCALRANKID",
        "MPI_LOCALNRANKS",
        "JOB_COMPLETION_INDEX",
        "SLURM_PROCID",
        "SLURM_STEP_NUM_TASKS",
        "SLURM_LOCALID",
        "SLURM_NODEID",
        "SLURM_STEP_TASKS_PER_NODE",
        "SLURM_STEP_ID",
    ]);
    let value = prop_oneof!["[0-5]", "[0-9(x),]{0,6}", ".{0,3}"];
    let variables = prop::collection::hash_map(name, value, 0..12);
    proptest!(|(variables in variables)| {
        if let Ok(Some(world)) = World::from_variables(|name| variables.get(name).cloned()) {
            prop_assert!(world.rank < world.size && world.local_rank < world.local_size);
        }
    });
}
