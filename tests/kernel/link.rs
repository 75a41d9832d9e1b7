//! Two network namespaces and the lossy wire between them, gone again when dropped.

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

/// iproute2's own place for named namespaces.
const NAMED: &str = "/var/run/netns";

/// Both ends look the same in every link: it is xctl that must tell namespaces apart.
const DEVICE: &str = "veth0";
/// The second wire of a link that has two.
const SECOND: &str = "veth1";
/// Shorter than the first one's 1500.
pub const SECOND_MTU: u64 = 1400;

/// An address on the link at which nobody answers.
pub const DEAD_V4: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 99, 0, 99));
pub const DEAD_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd99, 0, 0, 0, 0, 0, 0, 0x99));

/// A named network namespace.
pub struct Netns {
    name: String,
    file: File,
    /// What xctl calls `netns`.
    pub inode: u64,
}

impl Netns {
    /// `end` tells namespaces of one link apart.
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

    /// Sets a sysctl of the namespace: `name` is a path below /proc/sys/net/ipv4.
    pub fn set(&self, name: &str, value: &str) -> Result<()> {
        let file = Path::new("/proc/sys/net/ipv4").join(name);
        self.enter(|| std::fs::write(&file, value).with_context(|| format!("writing {value} to {}", file.display())))
    }

    /// Does `work` inside the namespace. A thread of its own enters it, so that nothing must find the way back;
    /// what that thread starts is born inside.
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
        let (a, b) = (&link.a.name, &link.b.name);
        run(tool("ip").args(["-n", a, "link", "add", DEVICE, "type", "veth", "peer", "name", DEVICE, "netns", b]), "")?;
        for ns in [&link.a, &link.b] {
            let up = format!("link set lo up\nlink set {DEVICE} address {} up\n", link.hardware(ns));
            run(tool("ip").args(["-n", &ns.name, "-batch", "-"]), &up)?;
        }
        for ns in [&link.a, &link.b] {
            let (own, peer) = (link.host(ns), 3 - link.host(ns));
            let mut batch =
                format!("addr add 10.99.0.{own}/24 dev {DEVICE}\naddr add fd99::{own}/64 dev {DEVICE} nodad\n");
            // fixed neighbours: an address resolution that is lost costs a second and says nothing about TCP
            for (address, mac) in [
                (format!("10.99.0.{peer}"), peer),
                (format!("fd99::{peer}"), peer),
                (DEAD_V4.to_string(), 0x99),
                (DEAD_V6.to_string(), 0x99),
            ] {
                batch +=
                    &format!("neigh replace {address} lladdr 02:00:00:00:00:{mac:02x} nud permanent dev {DEVICE}\n");
            }
            run(tool("ip").args(["-n", &ns.name, "-batch", "-"]), &batch)?;
        }
        Ok(link)
    }

    /// A second wire: on both, `a` is fe80::1 and `b` fe80::2, so that two connections may have the same addresses. The index
    /// of each device, which says which is meant; at both ends it is the same.
    pub fn second_wire(&self) -> Result<[u32; 2]> {
        let (a, b) = (&self.a.name, &self.b.name);
        run(tool("ip").args(["-n", a, "link", "add", SECOND, "type", "veth", "peer", "name", SECOND, "netns", b]), "")?;
        for ns in [&self.a, &self.b] {
            let own = self.host(ns);
            let up = format!("link set {SECOND} address 02:00:00:00:00:{own:02x} mtu {SECOND_MTU} up\n");
            run(tool("ip").args(["-n", &ns.name, "-batch", "-"]), &up)?;
        }
        // not before both ends are up
        for ns in [&self.a, &self.b] {
            let (own, peer) = (self.host(ns), 3 - self.host(ns));
            let mut batch = String::new();
            for device in [DEVICE, SECOND] {
                batch += &format!("addr add fe80::{own}/64 dev {device} nodad\n");
                let mac = format!("02:00:00:00:00:{peer:02x}");
                batch += &format!("neigh replace fe80::{peer} lladdr {mac} nud permanent dev {device}\n");
            }
            run(tool("ip").args(["-n", &ns.name, "-batch", "-"]), &batch)?;
        }
        let text = self.a.enter(|| Ok(std::fs::read_to_string("/proc/thread-self/net/if_inet6")?))?;
        let index = |device: &str| {
            let mut lines = text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
            let line = lines.find(|words| words.last() == Some(&device)).with_context(|| format!("no {device}"))?;
            u32::from_str_radix(line[1], 16).with_context(|| format!("in {line:?}"))
        };
        Ok([index(DEVICE)?, index(SECOND)?])
    }

    /// From now on TCP of `ns` makes every segment a buffer of its own.
    pub fn one_by_one(&self, ns: &Netns) -> Result<()> {
        run(tool("ip").args(["-n", &ns.name, "link", "set", DEVICE, "gso_max_segs", "1"]), "")
    }

    /// A link that loses 5 of 100 packets each way.
    pub fn lossy() -> Result<Link> {
        let link = Link::up()?;
        link.lose(5)?;
        Ok(link)
    }

    /// The hardware address of `ns`.
    pub fn hardware(&self, ns: &Netns) -> String {
        format!("02:00:00:00:00:{:02x}", self.host(ns))
    }

    /// From now on nothing longer than `bytes` arrives at `ns`, of IPv4, though it lets the peer send more.
    pub fn narrow(&self, ns: &Netns, bytes: u32) -> Result<()> {
        let batch = format!("route replace 10.99.0.0/24 dev {DEVICE} advmss 1000\nlink set {DEVICE} mtu {bytes}\n");
        self.one_by_one(self.peer(ns))?;
        // a queue between TCP and the wire, which would tell TCP that it has dropped something
        self.lose_from(self.peer(ns), 0)?;
        run(tool("ip").args(["-n", &ns.name, "-batch", "-"]), &batch)
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

    /// The other end.
    fn peer(&self, ns: &Netns) -> &Netns {
        if ns.inode == self.a.inode { &self.b } else { &self.a }
    }

    /// Loses that part of the packets from now on, in both directions.
    pub fn lose(&self, percent: u8) -> Result<()> {
        self.lose_from(&self.a, percent)?;
        self.lose_from(&self.b, percent)
    }

    /// Loses that part of what `ns` sends: by netem where the kernel has it, else by nft where it would arrive.
    pub fn lose_from(&self, ns: &Netns, percent: u8) -> Result<()> {
        self.lose_on(DEVICE, ns, percent)
    }

    /// The same on the second wire.
    pub fn lose_from_second(&self, ns: &Netns, percent: u8) -> Result<()> {
        self.lose_on(SECOND, ns, percent)
    }

    fn lose_on(&self, device: &str, ns: &Netns, percent: u8) -> Result<()> {
        let loss = format!("{percent}%");
        let netem = run(
            tool("tc").args(["-n", &ns.name, "qdisc", "replace", "dev", device, "root", "netem", "loss", &loss]),
            "",
        );
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
        self.peer(ns)
            .enter(|| run(tool("nft").args(["-f", "-"]), &rules))
            .with_context(|| format!("no way to lose packets: netem failed too ({no_netem:#})"))
    }

    /// Waits until no connection is left in either namespace: whatever TCP still had to say has been said.
    pub fn quiet(&self) -> Result<()> {
        for ns in [&self.a, &self.b] {
            let still = || counters::connections(ns);
            ensure!(poll(PATIENCE, || Ok(still()?.is_empty()))?, "{}: still open: {:?}", ns.name, still()?);
        }
        Ok(())
    }
}

/// Removes what a killed run left behind.
pub fn sweep() {
    for entry in std::fs::read_dir(NAMED).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let pid = name.strip_prefix("xctl-").and_then(|rest| rest.split('-').next()?.parse::<u32>().ok());
        if pid.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
            let _ = run(tool("ip").args(["netns", "del", &name]), "");
        }
    }
}

fn run(command: &mut Command, input: &str) -> Result<()> {
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("starting {command:?}"))?;
    if let Some(mut pipe) = child.stdin.take() {
        // a tool that failed before it read all has more to say about that on standard error
        let _ = pipe.write_all(input.as_bytes());
    }
    let output = child.wait_with_output().with_context(|| format!("waiting for {command:?}"))?;
    if !output.status.success() {
        bail!("{command:?}: {}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}
