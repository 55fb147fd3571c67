//! The links between the GPUs of a job: their rates, the sources of the rates, and which links a job uses.
//!
//! A rate is for one GPU in one direction, because the ranks of a job send and receive at the same time.

use crate::error::{Error, Result};
use crate::measure::machine::MachineSpec;

/// The share of a link's rate that large exchanges reach. The same share is assumed for all links, because this
/// program's exchanges have not been measured on any of these links. NCCL reaches 360 to 370 of the 450 GB/s of
/// NVLink 4 (its authors: "protocol overhead (~20%)", <https://github.com/NVIDIA/nccl-tests/issues/212>, "exactly
/// what we'd expect", <https://github.com/NVIDIA/nccl-tests/issues/326>), and 85 of 100 GB/s between machines with
/// four cards of InfiniBand HDR (<https://github.com/NVIDIA/nccl-tests/issues/119>).
pub const ATTAINABLE_BANDWIDTH_SHARE: f64 = 0.8;

/// Number of GPUs in a machine if a job does not determine it: the number in DGX and HGX machines.
pub const GPUS_PER_NODE: usize = 8;

/// What a link connects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkReach {
    /// The GPUs of one machine.
    WithinNode,
    /// Machines.
    BetweenNodes,
}

/// A kind of link.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Link {
    /// The name on the command line. All generations of NVLink have the same name; the GPU decides which one is meant.
    pub name: &'static str,
    /// What the link is, in words.
    pub title: &'static str,
    /// What the link connects.
    pub reach: LinkReach,
    /// Bytes per second of one GPU in one direction, as published.
    pub bytes_per_second: f64,
}

impl Link {
    /// Seconds of an exchange in which a GPU sends and receives at most `bytes` each over this link.
    pub fn transfer_seconds(&self, bytes: u64) -> f64 {
        bytes as f64 / (ATTAINABLE_BANDWIDTH_SHARE * self.bytes_per_second)
    }
}

const fn within_node(name: &'static str, title: &'static str, bytes_per_second: f64) -> Link {
    Link { name, title, reach: LinkReach::WithinNode, bytes_per_second }
}

const fn between_nodes(name: &'static str, title: &'static str, bytes_per_second: f64) -> Link {
    Link { name, title, reach: LinkReach::BetweenNodes, bytes_per_second }
}

/// NVLink of a GPU with these bytes per second in one direction. Data sheets state the sum of both directions: "NVLink:
/// 600 GB/s" of A100 SXM for 12 links of 25 GB/s in each, 900 GB/s of H100 and H200 SXM for 18 such links, 1.8 TB/s of
/// B200 for 18 links of 50 GB/s.
fn nvlink(bytes_per_second: f64) -> Link {
    let title = match bytes_per_second as u64 {
        300_000_000_000 => "NVLink 3",
        450_000_000_000 => "NVLink 4",
        900_000_000_000 => "NVLink 5",
        _ => "NVLink",
    };
    within_node("nvlink", title, bytes_per_second)
}

// PCI Express 4.0: 16 GT/s on each of 16 lanes; the data sheets of L40S and A100 state 64 GB/s for both directions.
const PCIE_4: Link = within_node("pcie4", "PCIe 4.0 x16", 32e9);
// PCI Express 5.0: 32 GT/s on each of 16 lanes; the data sheet of H100 states 128 GB/s for both directions.
const PCIE_5: Link = within_node("pcie5", "PCIe 5.0 x16", 64e9);
// ConnectX-7: one port of 400 Gb/s (NDR). DGX H100 and H200 have one for each GPU.
const IB_400: Link = between_nodes("ib400", "InfiniBand 400 Gb/s (NDR)", 50e9);
// ConnectX-6: one port of 200 Gb/s (HDR). DGX A100 has one for each GPU.
const IB_200: Link = between_nodes("ib200", "InfiniBand 200 Gb/s (HDR)", 25e9);
// IEEE 802.3: 100 Gb/s. One port for each GPU is assumed; GPUs that share a port are slower than predicted.
const ETHERNET_100: Link = between_nodes("eth100", "Ethernet 100 Gb/s", 12.5e9);

/// The names of all links on the command line.
pub const LINK_NAMES: &str = "nvlink, pcie4, pcie5, ib400, ib200 or eth100";

/// The links of a job.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct JobLinks {
    /// The link between the GPUs of a machine.
    pub within_node: Link,
    /// The link between machines.
    pub between_nodes: Link,
}

impl JobLinks {
    /// Returns the links of a job on the GPUs of `machine`. `names` replaces the default links: within a machine
    /// NVLink, or PCIe for GPUs without it; between machines InfiniBand 400 Gb/s.
    ///
    /// # Errors
    /// A name is unknown, or the GPU does not have this link; two names are both links within a machine, or both
    /// between machines.
    pub fn new(machine: &MachineSpec, names: &[String]) -> Result<Self> {
        let nvlink = machine.nvlink.map(nvlink);
        let (mut within, mut between) = (None, None);
        for name in names {
            let link = match name.as_str() {
                "nvlink" => nvlink.ok_or_else(|| {
                    let what = format!("is nvlink, which {} does not have", machine.name);
                    Error::usage("--link", what, "give pcie4 or pcie5")
                })?,
                "pcie4" => PCIE_4,
                "pcie5" => PCIE_5,
                "ib400" => IB_400,
                "ib200" => IB_200,
                "eth100" => ETHERNET_100,
                _ => {
                    let what = format!("there is no link named {name:?}");
                    return Err(Error::usage("--link", what, format!("give {LINK_NAMES}")));
                }
            };
            let place = match link.reach {
                LinkReach::WithinNode => &mut within,
                LinkReach::BetweenNodes => &mut between,
            };
            if let Some(first) = place.replace(link).map(|first: Link| first.name) {
                let what = format!("has {first} and {name}, which connect the same GPUs");
                return Err(Error::usage("--link", what, "give one link within machines and one between them"));
            }
        }
        let usual = nvlink.unwrap_or(if machine.pcie == PCIE_5.name { PCIE_5 } else { PCIE_4 });
        Ok(Self { within_node: within.unwrap_or(usual), between_nodes: between.unwrap_or(IB_400) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_are_chosen_by_gpu_and_by_name() {
        let links = |gpu: &str, names: &str| {
            let names: Vec<String> = names.split(',').filter(|name| !name.is_empty()).map(String::from).collect();
            JobLinks::new(&MachineSpec::gpu_by_name(gpu).unwrap(), &names)
        };
        let titles = |gpu: &str, names: &str| {
            let JobLinks { within_node, between_nodes } = links(gpu, names).unwrap();
            (within_node.title, between_nodes.name)
        };
        assert_eq!(titles("h200", ""), ("NVLink 4", "ib400"));
        assert_eq!(titles("b200", ""), ("NVLink 5", "ib400"));
        assert_eq!(titles("a100", "eth100"), ("NVLink 3", "eth100"));
        assert_eq!(titles("l40s", ""), ("PCIe 4.0 x16", "ib400"));
        assert_eq!(titles("h100", "ib200,pcie5"), ("PCIe 5.0 x16", "ib200"));
        for (gpu, names, error) in [
            ("rtx4090", "nvlink", "--link: is nvlink, which rtx4090 does not have; "),
            ("h200", "ib800", "--link: there is no link named \"ib800\"; give nvlink, pcie4, "),
            ("h200", "nvlink,pcie4", "--link: has nvlink and pcie4, which connect the same GPUs; "),
        ] {
            let text = links(gpu, names).unwrap_err().to_string();
            assert!(text.starts_with(error), "{text}");
        }
    }

    #[test]
    fn a_link_reaches_a_share_of_its_rate() {
        // The exchange of 36 GB at 80 % of 450 GB/s takes 0.1 s.
        assert!((nvlink(450e9).transfer_seconds(36_000_000_000) - 0.1).abs() < 1e-12);
        assert_eq!(IB_400.transfer_seconds(0), 0.0);
    }
}
