//! Two network namespaces and the lossy wire between them, removed when dropped.

use std::fs::File;
use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::{panic, thread};

use anyhow::{Context, Result, bail, ensure};
use nix::sched::{CloneFlags, setns};

use crate::Family;
use crate::counters;
use crate::host::tool;
use crate::process::{PATIENCE, poll};

/// The folder in which iproute2 keeps named namespaces.
const NAMED: &str = "/var/run/netns";

/// The device has the same name at both ends of every link: xctl must tell namespaces apart by itself.
const DEVICE: &str = "veth0";
/// The second wire of a link that has two.
const SECOND: &str = "veth1";
/// Lower than the 1500 of the first wire.
pub const SECOND_MTU: u64 = 1400;

/// An address on the link at which nobody answers.
pub const DEAD_V4: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 99, 0, 99));
pub const DEAD_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd99, 0, 0, 0, 0, 0, 0, 0x99));

/// The address of this family at which nobody answers.
pub fn dead(family: Family) -> IpAddr {
    match family {
        Family::V4 => DEAD_V4,
        Family::V6 => DEAD_V6,
    }
}

/// A named network namespace.
pub struct Netns {
    pub name: String,
    file: File,
    /// The number that xctl prints as `netns`.
    pub inode: u64,
}

impl Netns {
    /// `end` distinguishes the namespaces of one link.
    pub fn new(end: &str) -> Result<Netns> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("xctl-{}-{}-{end}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        std::fs::create_dir_all(NAMED).with_context(|| format!("creating {NAMED}"))?;
        run(tool("ip").args(["netns", "add", &name]), "")?;
        let path = Path::new(NAMED).join(&name);
        let opened = File::open(&path).and_then(|file| file.metadata().map(|about| (file, about.ino())));
        let (file, inode) = opened.with_context(|| format!("opening {}", path.display()))?;
        Ok(Netns { name, file, inode })
    }

    pub fn path(&self) -> PathBuf {
        Path::new(NAMED).join(&self.name)
    }

    /// Sets a sysctl of the namespace. `name` is a path below /proc/sys/net/ipv4.
    pub fn set(&self, name: &str, value: &str) -> Result<()> {
        let file = Path::new("/proc/sys/net/ipv4").join(name);
        self.enter(|| std::fs::write(&file, value).with_context(|| format!("writing {value} to {}", file.display())))
    }

    /// Runs lines of `ip -batch` in the namespace.
    pub fn ip(&self, lines: &str) -> Result<()> {
        run(tool("ip").args(["-n", &self.name, "-batch", "-"]), lines)
    }

    /// Adds a veth pair from this namespace to `to`. The device has the same name at both ends.
    pub fn wire(&self, device: &str, to: &Netns) -> Result<()> {
        self.ip(&format!("link add {device} type veth peer name {device} netns {}\n", to.name))
    }

    /// Does `work` inside the namespace. A separate thread enters the namespace, so that no thread has to return from it.
    /// Processes that this thread starts are born inside.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        let inside = || {
            setns(&self.file, CloneFlags::CLONE_NEWNET).with_context(|| format!("entering {}", self.name))?;
            work()
        };
        thread::scope(|scope| scope.spawn(inside).join()).unwrap_or_else(|panic| panic::resume_unwind(panic))
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        let _ = run(tool("ip").args(["netns", "del", &self.name]), "");
    }
}

/// Namespaces `a` and `b`, joined by a veth pair that has IPv4 and IPv6.
pub struct Link {
    pub a: Netns,
    pub b: Netns,
}

impl Link {
    pub fn up() -> Result<Link> {
        let link = Link { a: Netns::new("a")?, b: Netns::new("b")? };
        link.a.wire(DEVICE, &link.b)?;
        for ns in [&link.a, &link.b] {
            let up = format!("link set lo up\nlink set {DEVICE} address {} up\n", link.hardware(ns));
            ns.ip(&up)?;
        }
        for ns in [&link.a, &link.b] {
            let (own, peer) = (link.host(ns), 3 - link.host(ns));
            let mut batch =
                format!("addr add 10.99.0.{own}/24 dev {DEVICE}\naddr add fd99::{own}/64 dev {DEVICE} nodad\n");
            // fixed neighbours: a lost address resolution costs a second and says nothing about TCP
            for (address, mac) in [
                (format!("10.99.0.{peer}"), peer),
                (format!("fd99::{peer}"), peer),
                (DEAD_V4.to_string(), 0x99),
                (DEAD_V6.to_string(), 0x99),
            ] {
                batch +=
                    &format!("neigh replace {address} lladdr 02:00:00:00:00:{mac:02x} nud permanent dev {DEVICE}\n");
            }
            ns.ip(&batch)?;
        }
        Ok(link)
    }

    /// Adds a second wire. On both wires `a` is fe80::1 and `b` is fe80::2, so that two connections may have the same
    /// addresses. Returns the index of each wire's device, which distinguishes the wires. A wire's index is the same at
    /// both ends.
    pub fn second_wire(&self) -> Result<[u32; 2]> {
        self.a.wire(SECOND, &self.b)?;
        for ns in [&self.a, &self.b] {
            let own = self.host(ns);
            let up = format!("link set {SECOND} address 02:00:00:00:00:{own:02x} mtu {SECOND_MTU} up\n");
            ns.ip(&up)?;
        }
        // both ends must be up first
        for ns in [&self.a, &self.b] {
            let (own, peer) = (self.host(ns), 3 - self.host(ns));
            let mut batch = String::new();
            for device in [DEVICE, SECOND] {
                batch += &format!("addr add fe80::{own}/64 dev {device} nodad\n");
                let mac = format!("02:00:00:00:00:{peer:02x}");
                batch += &format!("neigh replace fe80::{peer} lladdr {mac} nud permanent dev {device}\n");
            }
            ns.ip(&batch)?;
        }
        let text = self.a.enter(|| Ok(std::fs::read_to_string("/proc/thread-self/net/if_inet6")?))?;
        let index = |device: &str| {
            let mut lines = text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
            let line = lines.find(|words| words.last() == Some(&device)).with_context(|| format!("no {device}"))?;
            u32::from_str_radix(line[1], 16).with_context(|| format!("in {line:?}"))
        };
        Ok([index(DEVICE)?, index(SECOND)?])
    }

    /// From now on TCP of `ns` puts every segment into an skb of its own.
    pub fn one_by_one(&self, ns: &Netns) -> Result<()> {
        ns.ip(&format!("link set {DEVICE} gso_max_segs 1\n"))
    }

    /// A link that loses 5 of 100 packets each way.
    pub fn lossy() -> Result<Link> {
        let link = Link::up()?;
        link.lose(5)?;
        Ok(link)
    }

    /// The hardware address of the device in `ns`.
    pub fn hardware(&self, ns: &Netns) -> String {
        format!("02:00:00:00:00:{:02x}", self.host(ns))
    }

    /// From now on no IPv4 packet longer than `bytes` arrives at `ns`, though `ns` lets the peer send longer ones.
    pub fn narrow(&self, ns: &Netns, bytes: u32) -> Result<()> {
        let batch = format!("route replace 10.99.0.0/24 dev {DEVICE} advmss 1000\nlink set {DEVICE} mtu {bytes}\n");
        self.one_by_one(self.peer(ns))?;
        // without a queue between them, TCP would learn at once that the wire has dropped a packet
        self.lose_from(self.peer(ns), 0)?;
        ns.ip(&batch)
    }

    /// The last byte of the addresses of `ns`: 1 for `a`, 2 for `b`.
    fn host(&self, ns: &Netns) -> u8 {
        if ns.inode == self.a.inode { 1 } else { 2 }
    }

    pub fn address(&self, ns: &Netns, family: Family) -> IpAddr {
        let host = self.host(ns);
        match family {
            Family::V4 => Ipv4Addr::new(10, 99, 0, host).into(),
            Family::V6 => Ipv6Addr::new(0xfd99, 0, 0, 0, 0, 0, 0, host.into()).into(),
        }
    }

    /// The namespace at the other end.
    fn peer(&self, ns: &Netns) -> &Netns {
        if ns.inode == self.a.inode { &self.b } else { &self.a }
    }

    /// Loses `percent` of the packets from now on, in both directions.
    pub fn lose(&self, percent: u8) -> Result<()> {
        self.lose_from(&self.a, percent)?;
        self.lose_from(&self.b, percent)
    }

    /// Loses `percent` of the packets that `ns` sends. netem drops them where the kernel has it; otherwise nft drops them
    /// at the peer.
    pub fn lose_from(&self, ns: &Netns, percent: u8) -> Result<()> {
        lose_on(DEVICE, ns, self.peer(ns), percent)
    }

    /// Like [`Link::lose_from`], on the second wire.
    pub fn lose_from_second(&self, ns: &Netns, percent: u8) -> Result<()> {
        lose_on(SECOND, ns, self.peer(ns), percent)
    }

    /// Waits until no connection is left in either namespace: TCP has nothing more to send.
    pub fn quiet(&self) -> Result<()> {
        quiet(&[&self.a, &self.b])
    }
}

/// Waits until no connection is left in these namespaces.
pub fn quiet(all: &[&Netns]) -> Result<()> {
    for ns in all {
        let still = || counters::connections(ns);
        ensure!(poll(PATIENCE, || Ok(still()?.is_empty()))?, "{}: still open: {:?}", ns.name, still()?);
    }
    Ok(())
}

/// Loses `percent` of the packets from `ns` to `peer` on the wire whose device has this name at both ends.
pub fn lose_on(device: &str, ns: &Netns, peer: &Netns, percent: u8) -> Result<()> {
    let loss = format!("{percent}%");
    let netem =
        run(tool("tc").args(["-n", &ns.name, "qdisc", "replace", "dev", device, "root", "netem", "loss", &loss]), "");
    let Err(no_netem) = netem else { return Ok(()) };
    let which = match percent {
        0 => "meta l4proto tcp accept".to_owned(),
        // nft refuses a comparison that is always true
        100.. => "meta l4proto tcp drop".to_owned(),
        _ => format!("meta l4proto tcp numgen random mod 100 < {percent} drop"),
    };
    let rules = format!(
        "add table inet {device}\ndelete table inet {device}\nadd table inet {device}\n\
         add chain inet {device} input {{ type filter hook input priority 0; }}\n\
         add rule inet {device} input iifname {device} {which}\n"
    );
    peer.enter(|| run(tool("nft").args(["-f", "-"]), &rules))
        .with_context(|| format!("no way to lose packets: netem failed too ({no_netem:#})"))
}

/// Removes the namespaces of a killed run.
pub fn sweep() {
    for entry in std::fs::read_dir(NAMED).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let pid = name.strip_prefix("xctl-").and_then(|rest| rest.split('-').next()?.parse::<u32>().ok());
        if pid.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
            let _ = run(tool("ip").args(["netns", "del", &name]), "");
        }
    }
}

pub fn run(command: &mut Command, input: &str) -> Result<()> {
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("starting {command:?}"))?;
    if let Some(mut pipe) = child.stdin.take() {
        // if a tool fails before it has read all its input, its standard error says more about the cause
        let _ = pipe.write_all(input.as_bytes());
    }
    let output = child.wait_with_output().with_context(|| format!("waiting for {command:?}"))?;
    if !output.status.success() {
        bail!("{command:?}: {}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}
