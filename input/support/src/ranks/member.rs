//! A process of the job, as the other processes see it: its machine, and the addresses to connect to.

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs};

use crate::diagnostic::Diagnostic;
use serde::{Deserialize, Serialize};

use crate::ranks::error::Result;
use crate::ranks::launch::{Transport, World};

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
    /// Describes this process, which accepts connections at `port`. If all ranks run on this machine, its addresses
    /// are left out, because they are not needed.
    ///
    /// # Errors
    /// The interface of `world` does not exist or has no address.
    pub fn of_this_process(world: &World, port: u16) -> Result<Self> {
        let read = |path| fs::read_to_string(path).unwrap_or_default();
        let host = read("/proc/sys/kernel/hostname").trim().to_string();
        let mut addresses = Vec::new();
        if !world.is_on_one_machine() {
            let interface = world.interface.as_deref();
            let is_usable = |name: &str| interface.is_none_or(|interface| interface == name);
            let routes = read("/proc/net/route");
            let mut of_ipv4 = ipv4_addresses(&read("/proc/net/fib_trie"));
            of_ipv4.retain(|address| interface.is_none_or(|name| interface_has(&routes, name, *address)));
            addresses.extend(of_ipv4.into_iter().map(IpAddr::from));
            let table = read("/proc/net/if_inet6");
            let of_ipv6 = ipv6_addresses(&table).into_iter();
            addresses.extend(of_ipv6.filter(|(_, name)| is_usable(name)).map(|(address, _)| IpAddr::from(address)));
            if let Some(name) = interface.filter(|_| addresses.is_empty()) {
                let help = "give the name of an interface of every machine (ip address), or leave the interface out";
                let what = format!("has no address that other machines can reach on {host}");
                return Err(Diagnostic::new(format!("interface {name}"), what, help).into());
            }
        }
        let (rank, transport) = (world.rank, world.transport());
        Ok(Self { rank, host, pid: std::process::id(), machine: machine_id(), addresses, port, transport })
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

/// Tells whether an address is in a network that this interface is connected to, from the text of /proc/net/route.
/// The columns are: name of the interface, destination, gateway (0 for a connected network), five more, mask. Numbers
/// are 8 hex digits of the address's bytes in the machine's order.
fn interface_has(routes: &str, interface: &str, address: Ipv4Addr) -> bool {
    let is_of_network = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let number = |at: usize| u32::from_str_radix(fields.get(at)?, 16).ok();
        let (destination, gateway, mask) = (number(1)?, number(2)?, number(7)?);
        let own = u32::from_ne_bytes(address.octets());
        Some(fields[0] == interface && gateway == 0 && mask != 0 && own & mask == destination)
    };
    routes.lines().any(|line| is_of_network(line) == Some(true))
}

/// Parses the IPv6 addresses at which other machines can reach this machine, with the names of their interfaces, from
/// the text of /proc/net/if_inet6. Its columns are: 32 hex digits, index of the interface, length of the prefix, scope
/// (00 is global), flags, name of the interface.
fn ipv6_addresses(table: &str) -> Vec<(Ipv6Addr, &str)> {
    fn address(line: &str) -> Option<(Ipv6Addr, &str)> {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [digits, _, _, scope, _, name] = fields[..] else { return None };
        let bits = u128::from_str_radix(digits, 16).ok()?;
        (scope == "00").then_some((Ipv6Addr::from_bits(bits), name))
    }
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
        assert_eq!(ipv6_addresses(table), [("fd00::2".parse::<Ipv6Addr>().unwrap(), "eth0")]);
    }

    #[test]
    fn an_address_belongs_to_the_interface_of_its_network() {
        let hex = |octets: [u8; 4]| format!("{:08X}", u32::from_ne_bytes(octets));
        let line = |name: &str, destination, gateway, mask| {
            format!("{name}\t{}\t{}\t0001\t0\t0\t0\t{}\t0\t0\t0\n", hex(destination), hex(gateway), hex(mask))
        };
        let header = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n";
        let routes = header.to_string()
            + &line("eth0", [0; 4], [172, 17, 0, 1], [0; 4])
            + &line("eth0", [172, 17, 0, 0], [0; 4], [255, 255, 0, 0])
            + &line("ib0", [10, 1, 0, 0], [0; 4], [255, 255, 0, 0]);
        let has = |name, address| interface_has(&routes, name, Ipv4Addr::from(address));
        assert!(has("eth0", [172, 17, 3, 4]) && has("ib0", [10, 1, 9, 9]));
        assert!(!has("eth0", [10, 1, 9, 9]) && !has("ib0", [172, 17, 3, 4]) && !has("ib", [10, 1, 9, 9]));
        let world = World { size: 2, interface: Some("none0".into()), ..World::default() };
        let e = JobMember::of_this_process(&world, 4000).unwrap_err().to_string();
        assert!(e.starts_with("interface none0: has no address that other machines can reach on "), "{e}");
    }

    #[test]
    fn other_machines_are_reached_at_each_address_once_and_the_given_one_first() {
        let world = World { rank: 3, size: 4, ..World::default() };
        let mut member = JobMember::of_this_process(&world, 4000).unwrap();
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
