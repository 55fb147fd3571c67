//! A process of the job, as the other processes see it: its machine, and the addresses to connect to.

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs};

use serde::{Deserialize, Serialize};

use crate::launch::Transport;

/// A process of the job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct JobMember {
    pub rank: usize,
    /// The name of the process's machine.
    pub host: String,
    /// The process id.
    pub pid: u32,
    /// The id of the process's machine; see [`machine_id`].
    pub machine: String,
    /// The addresses of the process's machine. If a connection to rank 0 has used one of them, that address is the
    /// first.
    pub addresses: Vec<IpAddr>,
    /// The port at which the process accepts connections.
    pub port: u16,
    /// The transport with which the process exchanges data.
    pub transport: Transport,
}

impl fmt::Display for JobMember {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rank {} ({}, process {})", self.rank, self.host, self.pid)
    }
}

impl JobMember {
    /// Describes this process. `is_local`: all ranks run on this machine, so its addresses are not needed.
    pub fn of_this_process(rank: usize, port: u16, is_local: bool, transport: Transport) -> Self {
        let read = |path| fs::read_to_string(path).unwrap_or_default();
        let host = read("/proc/sys/kernel/hostname").trim().to_string();
        let mut addresses = Vec::new();
        if !is_local {
            addresses.extend(ipv4_addresses(&read("/proc/net/fib_trie")).into_iter().map(IpAddr::from));
            addresses.extend(ipv6_addresses(&read("/proc/net/if_inet6")).into_iter().map(IpAddr::from));
        }
        Self { rank, host, pid: std::process::id(), machine: machine_id(), addresses, port, transport }
    }

    /// Returns the addresses for connecting to this process, in the order of attempts. `first` is the name or address
    /// of its machine, if the user has set one.
    pub fn socket_addresses(&self, first: Option<&str>) -> Vec<SocketAddr> {
        if self.machine == machine_id() {
            return vec![SocketAddr::from((Ipv4Addr::LOCALHOST, self.port))];
        }
        let resolve = |host: &str| (host, self.port).to_socket_addrs().into_iter().flatten().collect::<Vec<_>>();
        let mut sockets = first.map(resolve).unwrap_or_default();
        sockets.extend(self.addresses.iter().map(|address| SocketAddr::new(*address, self.port)));
        if self.addresses.is_empty() {
            sockets.extend(resolve(&self.host));
        }
        let mut known = BTreeSet::new();
        sockets.retain(|socket| known.insert(*socket));
        sockets
    }

    /// Moves an address to the front of the list.
    pub fn put_address_first(&mut self, address: IpAddr) {
        let address = address.to_canonical();
        self.addresses.retain(|known| *known != address);
        self.addresses.insert(0, address);
    }
}

/// Returns an id of this process's machine. Processes with the same id reach each other at 127.0.0.1: they have the
/// same running kernel and the same network namespace. Two containers on one machine may have different namespaces.
fn machine_id() -> String {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let network = fs::read_link("/proc/self/ns/net").unwrap_or_default();
    format!("{} {}", boot.trim(), network.display())
}

/// Parses this machine's IPv4 addresses from the text of /proc/net/fib_trie: a line `|-- 10.0.0.12`, then
/// `/32 host LOCAL`.
fn ipv4_addresses(table: &str) -> Vec<Ipv4Addr> {
    let mut last = None;
    let mut found = Vec::new();
    for line in table.lines().map(str::trim) {
        if let Some(address) = line.strip_prefix("|-- ") {
            last = address.parse::<Ipv4Addr>().ok();
        } else if line == "/32 host LOCAL" {
            found.extend(last.filter(|address| !address.is_loopback() && !found.contains(address)));
        }
    }
    found
}

/// Parses the IPv6 addresses at which other machines can reach this machine from the text of /proc/net/if_inet6. Its
/// columns are: 32 hex digits, index of the interface, length of the prefix, scope (00 is global), flags, name of the
/// interface.
fn ipv6_addresses(table: &str) -> Vec<Ipv6Addr> {
    let address = |line: &str| {
        let mut fields = line.split_whitespace();
        let (digits, scope) = (fields.next()?, fields.nth(2)?);
        let bits = u128::from_str_radix(digits, 16).ok()?;
        (scope == "00").then_some(Ipv6Addr::from_bits(bits))
    };
    table.lines().filter_map(address).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_those_of_interfaces() {
        let trie = "Main:\n  +-- 0.0.0.0/0 3 0 5\n     |-- 0.0.0.0\n        /0 universe UNICAST\n     +-- 127.0.0.0/8\n\
                    \x20          |-- 127.0.0.1\n              /32 host LOCAL\n     +-- 10.0.0.0/24 2 0 2\n\
                    \x20          |-- 10.0.0.0\n              /24 control UNICAST\n           |-- 10.0.0.12\n\
                    \x20             /32 host LOCAL\n        |-- 10.0.0.255\n           /32 control BROADCAST\nLocal:\n\
                    \x20          |-- 10.0.0.12\n              /32 host LOCAL\n           |-- x\n /32 host LOCAL\n";
        assert_eq!(ipv4_addresses(trie), [Ipv4Addr::new(10, 0, 0, 12)]);
        let table = "fe8000000000000000fc00fffe000001 04 40 20 80     eth0\n\
                     00000000000000000000000000000001 01 80 10 80       lo\n\
                     fd000000000000000000000000000002 04 40 00 82     eth0\nzz 04 40 00 82 eth1\n\n";
        assert_eq!(ipv6_addresses(table), ["fd00::2".parse::<Ipv6Addr>().unwrap()]);
    }

    #[test]
    fn other_machines_are_reached_at_each_address_once_and_the_given_one_first() {
        let mut member = JobMember::of_this_process(3, 4000, false, Transport::Sockets);
        let local = [SocketAddr::from((Ipv4Addr::LOCALHOST, 4000))];
        assert_eq!(member.socket_addresses(Some("10.9.9.9")), local, "this machine is reached at its loopback address");
        member.machine = "another".into();
        member.addresses = ["10.0.0.1", "10.0.0.2", "fd00::2"].map(|text| text.parse().unwrap()).into();
        member.put_address_first("::ffff:10.0.0.2".parse().unwrap());
        let text: Vec<String> = member.socket_addresses(Some("10.0.0.1")).iter().map(SocketAddr::to_string).collect();
        assert_eq!(text, ["10.0.0.1:4000", "10.0.0.2:4000", "[fd00::2]:4000"]);
        assert_eq!(member.socket_addresses(Some("no such host")).len(), 3);
    }
}
