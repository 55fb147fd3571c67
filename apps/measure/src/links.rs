//! The links between the GPUs of a job: their rates, the sources of the rates, and which links a job uses.
//!
//! A rate is for one GPU in one direction, because the ranks of a job send and receive at the same time.

use crate::error::{Result, bad_option};

/// The share of a link's rate that large exchanges reach. Assumed for all links, because no exchange of this program
/// has been measured on any of them. NCCL reaches 360 to 370 of the 450 GB/s of NVLink 4 (its authors: "protocol
/// overhead (~20%)", <https://github.com/NVIDIA/nccl-tests/issues/212>, "exactly what we'd expect",
/// <https://github.com/NVIDIA/nccl-tests/issues/326>), and 85 of 100 GB/s between machines with four cards of
/// InfiniBand HDR (<https://github.com/NVIDIA/nccl-tests/issues/119>).
pub const ATTAINABLE_SHARE: f64 = 0.8;

/// Number of GPUs in a machine if a job does not determine it: the number in DGX and HGX machines.
pub const GPUS_PER_NODE: usize = 8;

/// What a link connects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// The GPUs of one machine.
    WithinNode,
    /// Machines.
    BetweenNodes,
}

/// A kind of link.
#[derive(Debug, PartialEq)]
pub struct Link {
    /// The name on the command line. Two generations of NVLink have the same name; the GPU decides which one is meant.
    pub name: &'static str,
    /// What the link is, in words.
    pub title: &'static str,
    /// What the link connects.
    pub reach: Reach,
    /// Bytes per second of one GPU in one direction, as published.
    pub bytes_per_second: f64,
}

impl Link {
    /// Seconds of an exchange in which a GPU sends and receives at most `bytes` each over this link.
    pub fn seconds(&self, bytes: u64) -> f64 {
        bytes as f64 / (ATTAINABLE_SHARE * self.bytes_per_second)
    }
}

const fn within_node(name: &'static str, title: &'static str, bytes_per_second: f64) -> Link {
    Link { name, title, reach: Reach::WithinNode, bytes_per_second }
}

const fn between_nodes(name: &'static str, title: &'static str, bytes_per_second: f64) -> Link {
    Link { name, title, reach: Reach::BetweenNodes, bytes_per_second }
}

// Data sheets of H100 and H200 SXM: "NVLink: 900 GB/s", the sum of both directions of 18 links of 25 GB/s.
static NVLINK_4: Link = within_node("nvlink", "NVLink 4", 450e9);
// Data sheet of A100 SXM: "NVLink: 600 GB/s", the sum of both directions of 12 links of 25 GB/s.
static NVLINK_3: Link = within_node("nvlink", "NVLink 3", 300e9);
// PCI Express 4.0: 16 GT/s on each of 16 lanes; the data sheets of L40S and A100 state 64 GB/s for both directions.
static PCIE_4: Link = within_node("pcie4", "PCIe 4.0 x16", 32e9);
// PCI Express 5.0: 32 GT/s on each of 16 lanes; the data sheet of H100 states 128 GB/s for both directions.
static PCIE_5: Link = within_node("pcie5", "PCIe 5.0 x16", 64e9);
// ConnectX-7: one port of 400 Gb/s (NDR). DGX H100 and H200 have one for each GPU.
static IB_400: Link = between_nodes("ib400", "InfiniBand 400 Gb/s (NDR)", 50e9);
// ConnectX-6: one port of 200 Gb/s (HDR). DGX A100 has one for each GPU.
static IB_200: Link = between_nodes("ib200", "InfiniBand 200 Gb/s (HDR)", 25e9);
// IEEE 802.3: 100 Gb/s. One port for each GPU is assumed; GPUs that share a port are slower than predicted.
static ETHERNET_100: Link = between_nodes("eth100", "Ethernet 100 Gb/s", 12.5e9);

/// The names of all links on the command line.
pub const LINK_NAMES: &str = "nvlink, pcie4, pcie5, ib400, ib200 or eth100";

/// The links of a job.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Links {
    /// The link between the GPUs of a machine.
    pub within_node: &'static Link,
    /// The link between machines.
    pub between_nodes: &'static Link,
}

impl Links {
    /// Returns the links of a job on GPUs with the short name `gpu`. `names` replaces the default links: within a
    /// machine NVLink, or PCIe for GPUs without it; between machines InfiniBand 400 Gb/s.
    ///
    /// # Errors
    /// A name is unknown, or the GPU does not have this link; two names are both links within a machine, or both
    /// between machines.
    pub fn new(gpu: &str, names: &[String]) -> Result<Self> {
        let nvlink = match gpu {
            "h200" | "h100" => Some(&NVLINK_4),
            "a100" => Some(&NVLINK_3),
            _ => None,
        };
        let (mut within, mut between) = (None, None);
        for name in names {
            let link = match name.as_str() {
                "nvlink" => nvlink.ok_or_else(|| {
                    bad_option("--link", format!("is nvlink, which {gpu} does not have"), "give pcie4 or pcie5")
                })?,
                "pcie4" => &PCIE_4,
                "pcie5" => &PCIE_5,
                "ib400" => &IB_400,
                "ib200" => &IB_200,
                "eth100" => &ETHERNET_100,
                _ => {
                    let what = format!("there is no link named {name:?}");
                    return Err(bad_option("--link", what, format!("give {LINK_NAMES}")));
                }
            };
            let place = match link.reach {
                Reach::WithinNode => &mut within,
                Reach::BetweenNodes => &mut between,
            };
            if let Some(first) = place.replace(link).map(|first: &Link| first.name) {
                let what = format!("has {first} and {name}, which connect the same GPUs");
                return Err(bad_option("--link", what, "give one link within machines and one between them"));
            }
        }
        let usual = nvlink.unwrap_or(&PCIE_4);
        Ok(Self { within_node: within.unwrap_or(usual), between_nodes: between.unwrap_or(&IB_400) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_are_chosen_by_gpu_and_by_name() {
        let links = |gpu: &str, names: &str| {
            let names: Vec<String> = names.split(',').filter(|name| !name.is_empty()).map(String::from).collect();
            Links::new(gpu, &names)
        };
        let titles = |gpu: &str, names: &str| {
            let Links { within_node, between_nodes } = links(gpu, names).unwrap();
            (within_node.title, between_nodes.name)
        };
        assert_eq!(titles("h200", ""), ("NVLink 4", "ib400"));
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
        // 36 GB at 80 % of 450 GB/s.
        assert!((NVLINK_4.seconds(36_000_000_000) - 0.1).abs() < 1e-12);
        assert_eq!(IB_400.seconds(0), 0.0);
    }
}
