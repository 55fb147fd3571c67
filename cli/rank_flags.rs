//! The options of commands that run as several processes: time limits, ports and interface ([`RankFlags`]), and several
//! machines without a launcher ([`JobFlags`]).

use std::str::FromStr;
use std::time::Duration;

use anyhow::Result;
use clap::Args;
use reel_support::ranks::{Launcher, Timeouts, World};
use serde::{Deserialize, Serialize};

use crate::fail::usage_error;
use crate::launch::LocalProcesses;

/// The options with which processes find each other and notice the end of another one.
#[derive(Args, Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
#[command(next_help_heading = "Options for several processes")]
pub struct RankFlags {
    /// Time limit in seconds for the start of the other processes [default: 300]
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(1..=86_400))]
    join_timeout: Option<u32>,
    /// Time in seconds without a sign of life after which a process counts as ended [default: 40]
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(2..=86_400))]
    heartbeat_timeout: Option<u32>,
    /// Time limit in seconds for an exchange, in which a process waits for others that are alive [default: 3600,
    /// between GPUs 600]
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(1..=604_800))]
    exchange_timeout: Option<u32>,
    /// Ports at which the processes connect to each other, such as 29500-29507; a machine needs one for each of its
    /// processes [default: any free port]
    #[arg(long, value_name = "A-B")]
    rank_ports: Option<PortRange>,
    /// Network interface through which machines connect to each other, such as eth0 [default: any]
    #[arg(long, value_name = "NAME")]
    rank_interface: Option<String>,
}

impl RankFlags {
    /// Returns the time limits of a job whose calls wait `call` by default. `is_limited`: `--exchange-timeout` also
    /// limits calls between hosts, in which a server waits for its next request.
    pub fn timeouts(&self, call: Duration, is_limited: bool) -> Timeouts {
        let seconds = |seconds: Option<u32>| seconds.map(|seconds| Duration::from_secs(seconds.into()));
        let default = Timeouts::default();
        let limit = seconds(self.exchange_timeout);
        let timeouts = Timeouts {
            join: seconds(self.join_timeout).unwrap_or(default.join),
            call: limit.filter(|_| is_limited).unwrap_or(call),
            device_exchange: limit.unwrap_or(default.device_exchange),
            ..default
        };
        timeouts.with_silence(seconds(self.heartbeat_timeout).unwrap_or(default.silence))
    }

    /// Returns `world` with the ports and the interface of these options.
    pub fn place(&self, world: World) -> World {
        let ports = self.rank_ports.map(|PortRange { first, last }| (first, last));
        World { ports, interface: self.rank_interface.clone(), ..world }
    }
}

/// A range of ports (`--rank-ports`), such as `29500-29507`, or one port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
struct PortRange {
    first: u16,
    last: u16,
}

impl FromStr for PortRange {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let port = |text: &str| text.trim().parse().ok().filter(|port: &u16| *port > 0);
        match (port(first), port(last)) {
            (Some(first), Some(last)) if first <= last => Ok(Self { first, last }),
            _ => Err("give two ports from 1 to 65535, the smaller one first, such as 29500-29507".into()),
        }
    }
}

impl TryFrom<String> for PortRange {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<PortRange> for String {
    fn from(PortRange { first, last }: PortRange) -> Self {
        format!("{first}-{last}")
    }
}

/// The options of commands that run on several machines.
#[derive(Args, Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
#[command(next_help_heading = "Options for several processes")]
pub struct JobFlags {
    /// Number of machines of the job. The command is started on each of them, with its own --node-rank, and starts
    /// --gpus processes there
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024))]
    #[serde(skip)]
    pub nodes: Option<u32>,
    /// Number of this machine, from 0
    #[arg(long, value_name = "K")]
    #[serde(skip)]
    node_rank: Option<u32>,
    /// Name or address of machine 0, and the port at which its first process waits for the others [default: what this
    /// process writes into OUT]
    #[arg(long, value_name = "HOST:PORT")]
    #[serde(skip)]
    rendezvous: Option<HostPort>,
    #[command(flatten)]
    #[serde(flatten)]
    pub ranks: RankFlags,
}

/// A host and a port (`--rendezvous`), such as `node0:29500` or `[fd00::1]:29500`.
#[derive(Clone, Debug, PartialEq, Eq)]
struct HostPort {
    host: String,
    port: u16,
}

impl FromStr for HostPort {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let split = text.rsplit_once(':').and_then(|(host, port)| Some((host, port.parse().ok()?)));
        let (host, port) = split.filter(|(host, port)| !host.is_empty() && *port > 0).ok_or("give HOST:PORT")?;
        Ok(Self { host: host.trim_start_matches('[').trim_end_matches(']').to_string(), port })
    }
}

impl JobFlags {
    /// Returns the place `world` of a process in its job with the addresses and ports of these options.
    pub fn place(&self, world: World) -> World {
        let mut world = self.ranks.place(world);
        if let Some(HostPort { host, port }) = &self.rendezvous {
            world.address = Some(host.clone());
            if world.rank == 0 {
                world.ports = Some((*port, *port));
            }
        }
        world
    }

    /// Returns the processes that this command starts on this machine; `None` if this process does the work itself.
    /// `gpus` is `--gpus`. A launcher that starts one process on each machine, such as a PyTorchJob, gives the number
    /// of machines.
    ///
    /// # Errors
    /// The options contradict each other or the launcher's variables.
    pub fn processes_to_start(&self, gpus: Option<u32>, world: Option<&World>) -> Result<Option<LocalProcesses>> {
        let count = gpus.unwrap_or(1) as usize;
        let given = match (self.nodes, self.node_rank) {
            (None, _) if self.rendezvous.is_some() => {
                return Err(usage_error(
                    "--rendezvous",
                    "is for several machines",
                    "give --nodes N and --node-rank K, too",
                ));
            }
            // Launch commands of other programs name machine 0 of one.
            (None, None | Some(0)) => None,
            (None, Some(node)) => {
                return Err(usage_error(
                    "--node-rank",
                    format!("is {node}, but --nodes is not given"),
                    "give --nodes N",
                ));
            }
            (Some(nodes), Some(node)) if node < nodes => Some((nodes as usize, node as usize)),
            (Some(1), None) => Some((1, 0)),
            (Some(nodes), node) => {
                let node = node.map_or("not given".to_string(), |node| node.to_string());
                let (what, help) = (format!("is {node}, but --nodes is {nodes}"), format!("give 0 to {}", nodes - 1));
                return Err(usage_error("--node-rank", what, help));
            }
        };
        let Some(world) = world else {
            let (nodes, node) = given.unwrap_or((1, 0));
            let job =
                given.map(|_| self.rendezvous.as_ref().map_or("nodes".into(), |at| format!("{}:{}", at.host, at.port)));
            let starts = nodes * count > 1;
            return Ok(starts.then(|| LocalProcesses { count, first: node * count, size: nodes * count, job }));
        };
        let World { rank, size, local_size, launcher, .. } = world;
        if *launcher == Launcher::Reel {
            return Ok(None);
        }
        if let Some((nodes, node)) = given.filter(|given| *given != (*size, *rank) || *local_size != 1) {
            let what = format!(
                "is {nodes}, and --node-rank {node}, but {launcher} has started {size} processes, of which this is rank \
                 {rank}, {local_size} of them on this machine"
            );
            return Err(usage_error("--nodes", what, "leave both out, or start the command without the launcher"));
        }
        let is_per_machine = *local_size == 1;
        if gpus.is_some() && count != *size && !is_per_machine {
            let what = format!("is {count}, but {launcher} has started {size} processes");
            return Err(usage_error("--gpus", what, "leave it out"));
        }
        let starts = is_per_machine && count > 1;
        let job = Some(world.job.clone());
        Ok(starts.then(|| LocalProcesses { count, first: rank * count, size: size * count, job }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flags(nodes: Option<(u32, u32)>) -> JobFlags {
        let (nodes, node_rank) = nodes.unzip();
        JobFlags { nodes, node_rank, ..JobFlags::default() }
    }

    fn started(
        nodes: Option<(u32, u32)>,
        gpus: Option<u32>,
        world: Option<&World>,
    ) -> Result<Option<[usize; 3]>, String> {
        let found = flags(nodes).processes_to_start(gpus, world).map_err(|e| e.to_string())?;
        Ok(found.map(|start| [start.count, start.first, start.size]))
    }

    #[test]
    fn processes_of_one_machine_and_of_several() {
        assert_eq!(started(None, None, None), Ok(None));
        assert_eq!(started(None, Some(1), None), Ok(None));
        assert_eq!(started(None, Some(4), None), Ok(Some([4, 0, 4])));
        assert_eq!(started(Some((4, 2)), Some(8), None), Ok(Some([8, 16, 32])));
        assert_eq!(started(Some((2, 1)), None, None), Ok(Some([1, 1, 2])));
        assert_eq!(started(Some((1, 0)), None, None), Ok(None));
        assert_eq!(started(Some((2, 2)), None, None), Err("--node-rank: is 2, but --nodes is 2; give 0 to 1".into()));
        let of = |nodes, node_rank| JobFlags { nodes, node_rank, ..JobFlags::default() };
        let refused = |flags: JobFlags| flags.processes_to_start(None, None).err().map(|e| e.to_string());
        let missing = "--node-rank: is not given, but --nodes is 3; give 0 to 2";
        assert_eq!(refused(of(Some(3), None)), Some(missing.into()));
        assert_eq!(
            refused(of(None, Some(1))),
            Some("--node-rank: is 1, but --nodes is not given; give --nodes N".into())
        );
        assert_eq!(refused(of(None, Some(0))), None);
        let rendezvous = JobFlags { rendezvous: "h:1".parse().ok(), ..JobFlags::default() };
        assert!(refused(rendezvous).is_some_and(|e| e.starts_with("--rendezvous: is for several machines; ")));
    }

    /// A PyTorchJob, an indexed Job and `srun --ntasks-per-node 1` start one process on each machine. With `--gpus`,
    /// each of them starts the processes of its machine.
    #[test]
    fn a_launcher_of_one_process_per_machine_counts_machines() {
        let pod = World { rank: 1, size: 2, launcher: Launcher::PyTorchJob, job: "j".into(), ..World::default() };
        assert_eq!(started(None, None, Some(&pod)), Ok(None));
        assert_eq!(started(None, Some(1), Some(&pod)), Ok(None));
        assert_eq!(started(None, Some(4), Some(&pod)), Ok(Some([4, 4, 8])));
        assert_eq!(started(Some((2, 1)), Some(2), Some(&pod)), Ok(Some([2, 2, 4])));
        let e = started(Some((2, 0)), Some(2), Some(&pod)).unwrap_err();
        assert!(e.starts_with("--nodes: is 2, and --node-rank 0, but PyTorchJob has started 2 processes, "), "{e}");
        let torchrun = World { rank: 1, size: 4, local_size: 2, launcher: Launcher::Torchrun, ..World::default() };
        assert_eq!(started(None, Some(4), Some(&torchrun)), Ok(None));
        let e = started(None, Some(2), Some(&torchrun)).unwrap_err();
        assert_eq!(e, "--gpus: is 2, but torchrun has started 4 processes; leave it out");
        let own = World { size: 4, local_size: 2, ..World::default() };
        assert_eq!(started(Some((2, 0)), Some(2), Some(&own)), Ok(None), "a process that this command has started");
    }

    #[test]
    fn time_limits_ports_and_addresses_are_parsed() {
        let port = |text: &str| text.parse::<PortRange>().map(String::from);
        assert_eq!(port("29500-29507"), Ok("29500-29507".into()));
        assert_eq!(port("80"), Ok("80-80".into()));
        for wrong in ["", "0-5", "7-6", "a-b", "1-70000", "1-2-3"] {
            assert!(port(wrong).is_err(), "{wrong}");
        }
        let at = |text: &str| text.parse::<HostPort>().map(|at| (at.host, at.port)).ok();
        assert_eq!(at("node0:29500"), Some(("node0".into(), 29500)));
        assert_eq!(at("[fd00::1]:29500"), Some(("fd00::1".into(), 29500)));
        assert!(["node0", ":1", "node0:", "node0:0", "node0:x"].iter().all(|text| at(text).is_none()));
        let flags = RankFlags { heartbeat_timeout: Some(16), exchange_timeout: Some(5), ..RankFlags::default() };
        let seconds = |is_limited| {
            let of = flags.timeouts(Duration::from_secs(99), is_limited);
            [of.join, of.heartbeat, of.silence, of.call, of.device_exchange].map(|limit| limit.as_secs())
        };
        assert_eq!(seconds(true), [300, 2, 16, 5, 5]);
        assert_eq!(seconds(false), [300, 2, 16, 99, 5]);
    }
}
