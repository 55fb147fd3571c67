//! Measures the calls of `Ranks` over sockets and over MPI, alternately in the same processes, and prints a record as
//! JSON:
//!
//! `cargo run --release -p reel-support --features mpi --example transports >RECORD.json`
//!
//! The example needs Open MPI's `mpirun`, with which it starts itself as 2 and as 4 ranks on this machine. Each round
//! measures one transport and then the other, so that other programs on the machine slow down both. Only the ratios
//! of times are meaningful.

use std::error::Error;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use reel_support::ranks::{Ranks, Timeouts, World};
use serde_json::{Value, json};

/// Message sizes in bytes, each with the number of calls per round.
const SIZES: [(usize, usize); 4] = [(64, 200), (64 << 10, 100), (1 << 20, 20), (16 << 20, 3)];

const CALLS: [&str; 2] = ["all_gather", "all_to_all"];

/// The number of measured rounds, after one warm-up round.
const ROUNDS: usize = 15;

fn main() -> Result<(), Box<dyn Error>> {
    if let Some(folder) = std::env::var_os("RANKS_EXAMPLE") {
        return measure(Path::new(&folder));
    }
    let mut results = Vec::new();
    for ranks in ["2", "4"] {
        let folder = tempfile::tempdir()?;
        let mut mpirun = Command::new("mpirun");
        mpirun.args(["--allow-run-as-root", "--oversubscribe", "--mca", "plm", "isolated", "-n", ranks]);
        mpirun.arg(std::env::current_exe()?).env("RANKS_EXAMPLE", folder.path()).stderr(Stdio::inherit());
        let done = mpirun.output().map_err(|e| format!("mpirun: cannot be started: {e}; install openmpi-bin"))?;
        if !done.status.success() {
            return Err(format!("mpirun: ended with {}; see its message", done.status).into());
        }
        results.extend(serde_json::from_slice::<Vec<Value>>(&done.stdout)?);
    }
    let load: Vec<f64> = read("/proc/loadavg").split(' ').take(3).filter_map(|part| part.parse().ok()).collect();
    let record = json!({
        "machine": machine(),
        "date": command_line("date", &["+%Y-%m-%d"]),
        "commit": command_line("git", &["rev-parse", "--short=8", "HEAD"]),
        "command": "cargo run --release -p reel-support --features mpi --example transports",
        "mpi": command_line("mpirun", &["--version"]).lines().next().unwrap_or_default(),
        "what": "Calls of Ranks between processes of one machine, by sockets and by MPI in turns. `bytes` is what a rank \
                 gives to the call: all to each other rank (all_gather), or a share to each rank (all_to_all). \
                 `sockets_over_mpi` is the median of the rounds' ratios of times: above 1, MPI is faster.",
        "rounds": ROUNDS,
        "load_average": load,
        "results": results,
    });
    println!("{}", serde_json::to_string_pretty(&record)?);
    Ok(())
}

/// Runs the measurement as one of several ranks. Rank 0 prints the results.
fn measure(folder: &Path) -> Result<(), Box<dyn Error>> {
    let by_mpi = World::from_variables(|name| std::env::var(name).ok())?.ok_or("no launcher has started this")?;
    let by_sockets = World { offers_mpi: false, job: format!("{} sockets", by_mpi.job), ..by_mpi.clone() };
    let join = |world| Ranks::join(world, folder, Timeouts::default(), Box::new(|_| std::process::exit(1)));
    let transports = [join(by_sockets)?, join(by_mpi)?];
    let mut results = Vec::new();
    for call in CALLS {
        for (bytes, repetitions) in SIZES {
            let mut seconds = [Vec::new(), Vec::new()];
            for round in 0..=ROUNDS {
                for (ranks, seconds) in transports.iter().zip(&mut seconds) {
                    let time = time(ranks, call, bytes, repetitions)?;
                    if round > 0 {
                        seconds.push(time);
                    }
                }
            }
            let ratios = seconds[0].iter().zip(&seconds[1]).map(|(sockets, mpi)| sockets / mpi);
            let [least, ratio, most] = spread(ratios.collect());
            let [sockets, mpi] = seconds.map(|all| spread(all)[1]);
            results.push(json!({
                "ranks": transports[0].size(), "call": call, "bytes": bytes,
                "sockets_seconds": sockets, "mpi_seconds": mpi,
                "sockets_over_mpi": ratio, "least": least, "most": most,
            }));
        }
    }
    if transports[0].rank() == 0 {
        println!("{}", serde_json::to_string(&results)?);
    }
    for ranks in transports {
        ranks.leave()?;
    }
    Ok(())
}

/// Returns the time of a call in seconds, from a barrier to the end on all ranks.
fn time(ranks: &Ranks, call: &str, bytes: usize, repetitions: usize) -> Result<f64, Box<dyn Error>> {
    let (mine, part) = (vec![1u8; bytes], bytes / ranks.size());
    let mut received = vec![vec![0u8; part]; ranks.size()];
    ranks.barrier("begin")?;
    let start = Instant::now();
    for _ in 0..repetitions {
        if call == "all_gather" {
            ranks.all_gather("gather", &mine)?;
        } else {
            let send: Vec<&[u8]> = mine.chunks_exact(part).collect();
            let mut places: Vec<&mut [u8]> = received.iter_mut().map(Vec::as_mut_slice).collect();
            ranks.all_to_all_into("exchange", &send, &mut places)?;
        }
    }
    ranks.barrier("end")?;
    Ok(start.elapsed().as_secs_f64() / repetitions as f64)
}

/// Returns the minimum, the median and the maximum.
fn spread(mut values: Vec<f64>) -> [f64; 3] {
    values.sort_by(f64::total_cmp);
    [values[0], values[values.len() / 2], values[values.len() - 1]]
}

fn read(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

/// Returns the processor's name in /proc/cpuinfo.
fn machine() -> String {
    let text = read("/proc/cpuinfo");
    let value = |name: &str| {
        let line = text.lines().find(|line| line.split('\t').next() == Some(name));
        line.and_then(|line| Some(line.split_once(':')?.1.trim())).unwrap_or("unknown").to_string()
    };
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let (name, family, model) = (value("model name"), value("cpu family"), value("model"));
    format!("{name}, family {family} model {model}, {cores} cores")
}

fn command_line(program: &str, arguments: &[&str]) -> String {
    let done = Command::new(program).args(arguments).output();
    done.map(|done| String::from_utf8_lossy(&done.stdout).trim().to_string()).unwrap_or_default()
}
