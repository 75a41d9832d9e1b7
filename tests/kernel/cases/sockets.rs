//! `xctl sockets` is compared with `ss` in each network namespace: the same sockets, states and processes.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use serde::Deserialize;
use socket2::Socket as Socket2;

use super::filters::Cgroup;
use crate::actors::{self, Protocols};
use crate::host::{Set, tool};
use crate::link::{DEAD_V4, DEAD_V6, Link, Netns};
use crate::process::{PATIENCE, Process, poll};
use crate::schema;
use crate::tracefs::with_private_mounts;
use crate::workers::{Flow, NOBODY, Who};
use crate::xctl::{command, refusal};
use crate::{Family, Outcome, Verdict};

pub fn run(_set: Set, family: Family) -> Outcome {
    let link = Link::up()?;
    let there = link.address(&link.b, family);
    let (dead, any): (_, IpAddr) = match family {
        Family::V4 => (DEAD_V4, Ipv4Addr::UNSPECIFIED.into()),
        Family::V6 => (DEAD_V6, Ipv6Addr::UNSPECIFIED.into()),
    };
    let mut holders = vec![];

    // three listeners of three processes, two of which share an address
    let listener = link.b.enter(|| listener((there, 0).into()))?;
    let at = listener.local_addr()?;
    for _ in 0..2 {
        let shared = link.b.enter(|| shared_listener((any, 5201).into(), Protocols::Tcp))?;
        holders.push(Holder::new(shared.context("no TCP")?, Some(NOBODY))?);
    }

    // an open connection that two processes hold, as after fork(); its other end belongs to this process
    let (ours, theirs) = connection(&link, &listener, at)?;
    holders.push(Holder::new(ours.try_clone()?.into(), None)?);
    holders.push(Holder::new(ours.into(), None)?);

    // a connection closed at both ends is in TIME_WAIT here; one closed only here is in FIN_WAIT2 here, and CLOSE_WAIT
    // there
    let (waiting, gone) = connection(&link, &listener, at)?;
    let closed = waiting.local_addr()?;
    drop(waiting);
    drop(gone);
    let (half, other_half) = connection(&link, &listener, at)?;
    half.shutdown(Shutdown::Write)?;
    let half_closed = half.local_addr()?;
    drop(half);

    // a socket in a message between two processes: no process has it open
    let (sent, _received) = UnixDatagram::pair()?;
    let (travelling, _peer) = connection(&link, &listener, at)?;
    let in_flight = travelling.local_addr()?;
    actors::hand_over(&sent, &[travelling.as_raw_fd()])?;
    drop(travelling);

    // a closed socket with unacknowledged data: an orphan
    let (mut left, _peer_of_left) = connection(&link, &listener, at)?;
    let orphan = left.local_addr()?;

    // a connection that is not accepted yet, the last in the queue: no process has it open either
    let patient = link.a.enter(|| Ok(TcpStream::connect(at)?))?;
    let not_accepted = patient.local_addr()?;

    // a handshake whose SYN-ACKs get lost: the address from which it comes leads nowhere (later connections would choose
    // this address)
    let prefix = if family == Family::V4 { 32 } else { 128 };
    let add = format!("addr add {dead}/{prefix} dev veth0{}", if family == Family::V6 { " nodad" } else { "" });
    let path = link.a.path();
    let name = path.file_name().and_then(|name| name.to_str()).context("a namespace without a name")?;
    let status = tool("ip").args(["-n", name]).args(add.split(' ')).status().context("starting ip")?;
    ensure!(status.success(), "ip {add}: {status}");
    let asking = link.a.enter(|| ask(dead, at))?;
    let asked = asking.local_addr()?.as_socket().context("not an address of IP")?;
    let requested = || Ok(ss(&link.b)?.iter().any(|socket| socket.remote == asked));
    ensure!(poll(PATIENCE, requested)?, "no request from {asked}: {:#?}", ss(&link.b)?);

    link.lose(100)?; // for the orphan
    left.write_all(&[b'x'; 1000])?;
    drop(left);

    // MPTCP, if the kernel has it: the process holds the parent, and the sockets are subflows
    let mptcp = link.b.enter(|| shared_listener((any, 5202).into(), Protocols::Mptcp))?;
    let with_mptcp = mptcp.is_some();
    if let Some(mptcp) = mptcp {
        holders.push(Holder::new(mptcp, None)?);
    }

    // a namespace without name and process: only a thread is in it
    let (secret, _hold) = thread_in_a_namespace_of_its_own()?;

    let settled = || -> Result<bool> {
        let here = ss(&link.a)?;
        Ok([(closed, "TIME-WAIT"), (half_closed, "FIN-WAIT-2"), (orphan, "FIN-WAIT-1")]
            .iter()
            .all(|(local, state)| here.iter().any(|socket| socket.local == *local && socket.state == *state)))
    };
    ensure!(poll(PATIENCE, settled)?, "the connections did not become what they should: {:#?}", ss(&link.a)?);

    let before = [ss(&link.a)?, ss(&link.b)?];
    let all = sockets(&[])?;
    let after = [ss(&link.a)?, ss(&link.b)?];
    ensure!(before == after, "the sockets changed meanwhile: {before:#?} {after:#?}");

    let mut count = 0;
    for (ns, theirs) in [&link.a, &link.b].into_iter().zip(&before) {
        let ours: Vec<_> = all.iter().filter(|socket| socket.netns == ns.inode).collect();
        let named = |socket: &&Socket| socket.netns_name.as_deref() == Some(&*ns.name);
        ensure!(ours.iter().all(named), "their namespace is {}: {ours:?}", ns.name);
        same(&ours, theirs)?;
        count += ours.len();
    }
    let of = |netns: u64, local: SocketAddr| {
        let found: Vec<_> = all.iter().filter(|socket| socket.netns == netns && socket.local() == local).collect();
        match found.as_slice() {
            [one] => Ok(*one),
            _ => Err(anyhow!("one socket expected at {local}: {found:?}")),
        }
    };
    for local in [closed, half_closed, in_flight, orphan] {
        let socket = of(link.a.inode, local)?;
        ensure!(socket.owner == "unknown" && socket.pid.is_none(), "whose is that? {socket:?}");
    }
    let requests: Vec<_> = all.iter().filter(|socket| socket.remote() == asked && socket.dport != 0).collect();
    ensure!(
        matches!(requests.as_slice(), [one] if one.state == "NEW_SYN_RECV"
            && one.owner == "listen" && one.pid == Some(std::process::id()) && one.netns == link.b.inode),
        "the request is its listener's: {requests:?}"
    );
    let waits = all.iter().find(|socket| socket.remote() == not_accepted).context("the connection in the queue")?;
    ensure!(waits.owner == "unknown", "nobody has accepted it: {waits:?}");
    let pids = |netns, port| {
        let of_port = all.iter().filter(move |socket| socket.netns == netns && socket.sport == port);
        of_port.map(|socket| socket.pid).collect::<BTreeSet<_>>()
    };
    let listening = BTreeSet::from([Some(holders[0].pid()), Some(holders[1].pid())]);
    ensure!(pids(link.b.inode, 5201) == listening, "two processes listen: {listening:?}");
    let nobodys = all.iter().filter(|socket| socket.netns == link.b.inode && socket.uid == Some(NOBODY)).count();
    ensure!(nobodys == 2, "{nobodys} sockets of user {NOBODY}");
    if with_mptcp {
        let holder = holders.last().map(Holder::pid);
        ensure!(pids(link.b.inode, 5202) == BTreeSet::from([holder]), "MPTCP: not {holder:?}");
    }
    ensure!(pids(secret, 5203) == BTreeSet::from([Some(std::process::id())]), "the namespace of a thread is not there");
    filtered(&link, &all, &holders[0])?;
    drop((theirs, other_half, patient));

    let mut nobody = command(&["sockets"])?;
    nobody.uid(NOBODY).gid(NOBODY);
    let said = refusal(Process::start("xctl sockets without privilege", nobody)?, 3)?;
    ensure!(said.contains("CAP_"), "it does not name a capability: {said:?}");
    Ok(Verdict::Passed(format!("{count} sockets{}", if with_mptcp { "" } else { "; no MPTCP here" })))
}

/// A filtered `xctl sockets` lists exactly those of all sockets that pass its filter.
fn filtered(link: &Link, all: &[Socket], holder: &Holder) -> Result<()> {
    let (pid, netns) = (holder.pid(), link.b.inode);
    let comm = fs::read_to_string(format!("/proc/{pid}/comm"))?.trim_end().to_owned();
    let (of_pid, of_netns, of_comm) = (pid.to_string(), netns.to_string(), comm.clone());
    let own = Cgroup::root()?.map(|root| Cgroup::new(root.join(format!("xctl-sockets-{pid}")))).transpose()?;
    let cgroup = own.as_ref().map(|own| own.path.display().to_string()).unwrap_or_default();
    let is_here = |socket: &Socket| {
        let is_ours = |address: IpAddr| matches!(address, IpAddr::V4(v4) if v4.octets().starts_with(&[10, 99]));
        socket.state == "ESTABLISHED" && (is_ours(socket.saddr) || is_ours(socket.daddr))
    };
    type Passes = Box<dyn Fn(&Socket) -> bool>;
    let mut filters: Vec<(Vec<&str>, Passes)> = vec![
        (vec!["--pid", &of_pid], Box::new(move |socket| socket.pid == Some(pid) || socket.is_held_by(pid))),
        (vec!["--comm", &of_comm], Box::new(move |socket| socket.comm.as_deref() == Some(&comm))),
        (vec!["--port", "5201", "-6"], Box::new(|socket| socket.sport == 5201 && socket.saddr.is_ipv6())),
        (vec!["--port", "5201", "-4"], Box::new(|socket| socket.sport == 5201 && socket.saddr.is_ipv4())),
        (vec!["--netns", &of_netns], Box::new(move |socket| socket.netns == netns)),
        (vec!["--state", "listen,close_wait"], Box::new(|socket| ["LISTEN", "CLOSE_WAIT"].contains(&&*socket.state))),
        (vec!["--addr", "10.99.0.0/16", "--state", "established"], Box::new(move |socket| is_here(socket))),
    ];
    if let Some(own) = &own {
        own.take(pid)?;
        filters.push((vec!["--cgroup", &cgroup], Box::new(move |socket| socket.pid == Some(pid))));
    }
    for (args, passes) in filters {
        // Half-open connections end by themselves, between one listing and the next if the machine is slow.
        let lasts = |socket: &Socket| socket.state != "NEW_SYN_RECV";
        let here = |socket: &&Socket| [link.a.inode, link.b.inode].contains(&socket.netns) && lasts(socket);
        let keys = |list: &[&Socket]| list.iter().map(|socket| format!("{socket:?}")).collect::<Vec<_>>();
        let expected = keys(&all.iter().filter(here).filter(|socket| passes(socket)).collect::<Vec<_>>());
        let found = sockets(&args)?;
        ensure!(found.iter().all(&passes), "{args:?} lets through {found:?}");
        let found = keys(&found.iter().filter(here).collect::<Vec<_>>());
        ensure!(found == expected, "{args:?}: {found:#?}, without it {expected:#?}");
    }
    Ok(())
}

/// A user with a mount namespace can mount a network namespace in it, and then mount another file over the first one. This
/// file is a FIFO, which blocks open(), or a namespace of another kind. Neither may block xctl.
pub fn mounted_over(_set: Set, _family: Family) -> Outcome {
    let folder = std::env::temp_dir().join(format!("xctl-over-{}", std::process::id()));
    fs::create_dir(&folder).with_context(|| format!("creating {}", folder.display()))?;
    let outcome = look_over(&folder);
    // not earlier: its mounts go with the folder, in every mount namespace
    let _ = fs::remove_dir_all(&folder);
    outcome
}

fn look_over(folder: &Path) -> Outcome {
    let nothing = None::<&str>;
    let holder = with_private_mounts(|| {
        let bind = |kind: &str, name: &str| {
            let (from, on) = (format!("/proc/self/ns/{kind}"), folder.join(name));
            File::create(&on)?;
            mount(Some(from.as_str()), &on, nothing, MsFlags::MS_BIND, nothing)
                .with_context(|| format!("mounting {from}"))
        };
        bind("net", "fifo")?;
        bind("net", "uts")?;
        mount(Some("none"), folder, Some("tmpfs"), MsFlags::empty(), nothing).context("mounting over them")?;
        mkfifo(&folder.join("fifo"), Mode::S_IRWXU).context("making a FIFO")?;
        bind("uts", "uts")?;
        let mut sleep = tool("sleep");
        sleep.arg("600");
        Process::start("sleep", sleep)
    })?;
    let mountinfo = fs::read_to_string(format!("/proc/{}/mountinfo", holder.pid()))?;
    let hidden = mountinfo.lines().filter(|line| line.contains(" net:[") && line.contains("xctl-over")).count();
    ensure!(hidden == 2, "{hidden} namespaces are mounted there: {mountinfo}");
    for args in [&["sockets", "--json"][..], &["trace", "--verify", "--seed", "proc", "--duration", "1"]] {
        let mut xctl = Process::start("xctl", command(args)?)?;
        xctl.rest().and_then(|_| xctl.succeed()).with_context(|| format!("{args:?}"))?;
    }
    Ok(Verdict::Passed("neither waited for nor entered".into()))
}

/// A socket as xctl prints it.
#[derive(Deserialize, Debug)]
#[serde(deny_unknown_fields)]
struct Socket {
    r#type: String,
    family: String,
    saddr: IpAddr,
    sport: u16,
    daddr: IpAddr,
    dport: u16,
    netns: u64,
    netns_name: Option<String>,
    state: String,
    pid: Option<u32>,
    comm: Option<String>,
    uid: Option<u32>,
    owner: String,
    holders: Option<Vec<Who>>,
    more: Option<usize>,
}

impl Socket {
    fn local(&self) -> SocketAddr {
        (self.saddr, self.sport).into()
    }

    fn remote(&self) -> SocketAddr {
        (self.daddr, self.dport).into()
    }

    fn is_held_by(&self, pid: u32) -> bool {
        self.holders.iter().flatten().any(|holder| holder.pid == pid)
    }
}

#[derive(Deserialize)]
struct Counts {
    schema: u32,
    sockets: usize,
    namespaces: usize,
    owners: BTreeMap<String, usize>,
}

/// The kernel's own sockets of a namespace, as `xctl sockets` prints them: their remote addresses and their states.
pub fn of_kernel(ns: &Netns) -> Result<Vec<(SocketAddr, String)>> {
    let all = sockets(&[])?.into_iter().filter(|socket| socket.netns == ns.inode && socket.owner == "kernel");
    Ok(all.map(|socket| (socket.remote(), socket.state)).collect())
}

/// The holders of a shared socket, as `xctl sockets` prints them, and the number of those that are not listed. A listener
/// is found by its local address.
pub fn holders_of(ns: &Netns, flow: Flow) -> Result<(Vec<Who>, usize)> {
    let is_it = |socket: &Socket| {
        let remote = if flow.remote == flow.local { socket.state == "LISTEN" } else { socket.remote() == flow.remote };
        socket.netns == ns.inode && socket.local() == flow.local && remote
    };
    let socket = sockets(&[])?.into_iter().find(is_it).with_context(|| format!("no socket {flow:?}"))?;
    ensure!(socket.owner == "shared", "not shared: {socket:?}");
    Ok((socket.holders.unwrap_or_default(), socket.more.unwrap_or_default()))
}

/// The output of `xctl sockets --json`. Each line must fit the contract strictly.
fn sockets(args: &[&str]) -> Result<Vec<Socket>> {
    let output = command(&[&["sockets", "--json"], args].concat())?.output().context("starting xctl")?;
    let (printed, said) = (String::from_utf8(output.stdout)?, String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.success(), "xctl ended with {} and said {said:?}", output.status);
    let (list, last) = printed.trim_end().rsplit_once('\n').unwrap_or(("", printed.trim_end()));
    let counts: Counts = schema::record(last)?;
    let sockets: Vec<Socket> = list.lines().map(schema::record).collect::<Result<_>>()?;
    ensure!(counts.schema == 1 && counts.sockets == sockets.len() && counts.namespaces >= 3, "odd counts: {last}");
    let mut owners = BTreeMap::new();
    for socket in &sockets {
        let process = !["unknown", "kernel", "shared"].contains(&socket.owner.as_str());
        let shared = socket.owner == "shared";
        let complete = [socket.pid.is_some(), socket.comm.is_some() && !shared, socket.uid.is_some()] == [process; 3]
            && [socket.holders.is_some(), socket.more.is_some()] == [shared; 2];
        let family = if socket.saddr.is_ipv4() { "ipv4" } else { "ipv6" };
        ensure!(socket.r#type == "socket" && complete && socket.family == family, "odd: {socket:?}");
        *owners.entry(socket.owner.clone()).or_insert(0) += 1;
    }
    ensure!(owners == counts.owners, "counted {owners:?}, told {:?}", counts.owners);
    Ok(sockets)
}

/// A socket as ss prints it.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Line {
    state: String,
    local: SocketAddr,
    remote: SocketAddr,
    /// The PID and the name of each process.
    users: BTreeSet<(u32, String)>,
}

fn ss(ns: &Netns) -> Result<Vec<Line>> {
    let output = ns.enter(|| tool("ss").args(["-H", "-O", "-tanp"]).output().context("starting ss"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success(), "ss: {}", String::from_utf8_lossy(&output.stderr));
    let mut lines: Vec<_> = text
        .lines()
        .map(|line| {
            let fields: Vec<_> = line.split_whitespace().collect();
            let [state, _, _, local, remote, ..] = fields.as_slice() else { bail!("ss said {line:?}") };
            let v6 = local.contains('[') || local.starts_with('*');
            let (local, remote) = (address(local, v6)?, address(remote, v6)?);
            Ok(Line { state: (*state).into(), local, remote, users: users(line) })
        })
        .collect::<Result<_>>()?;
    lines.sort();
    Ok(lines)
}

/// ss writes `*` for any port, and for the address of a listener that accepts both families.
fn address(text: &str, v6: bool) -> Result<SocketAddr> {
    let (ip, port) = text.rsplit_once(':').with_context(|| format!("ss: no port in {text:?}"))?;
    let ip: IpAddr = match ip.trim_matches(['[', ']']) {
        "*" if v6 => Ipv6Addr::UNSPECIFIED.into(),
        "*" => Ipv4Addr::UNSPECIFIED.into(),
        ip => ip.parse().with_context(|| format!("ss: no address in {text:?}"))?,
    };
    let port = if port == "*" { 0 } else { port.parse().with_context(|| format!("ss: no port in {text:?}"))? };
    Ok((ip.to_canonical(), port).into())
}

/// Parses `users:(("sleep",pid=7,fd=0),("sleep",pid=8,fd=0))`.
fn users(line: &str) -> BTreeSet<(u32, String)> {
    let one = |user: &str| {
        let (name, rest) = user.split_once("\",pid=")?;
        Some((rest.split(',').next()?.parse().ok()?, name.to_owned()))
    };
    line.split("(\"").skip(1).filter_map(one).collect()
}

/// Checks that both have the same addresses, states and processes. For a request, ss knows no process, and xctl may name
/// the listener's.
fn same(ours: &[&Socket], theirs: &[Line]) -> Result<()> {
    let state = |socket: &Socket| match socket.state.as_str() {
        "ESTABLISHED" => "ESTAB".to_owned(),
        "NEW_SYN_RECV" => "SYN-RECV".to_owned(),
        "FIN_WAIT1" => "FIN-WAIT-1".to_owned(),
        "FIN_WAIT2" => "FIN-WAIT-2".to_owned(),
        state => state.replace('_', "-"),
    };
    let mut ours: Vec<_> = ours
        .iter()
        .map(|socket| {
            let owner = socket.pid.zip(socket.comm.clone()).filter(|_| socket.state != "NEW_SYN_RECV");
            let holders = socket.holders.iter().flatten().map(|who| (who.pid, who.comm.clone()));
            let owners: BTreeSet<_> = owner.into_iter().chain(holders).collect();
            (state(socket), socket.local(), socket.remote(), owners)
        })
        .collect();
    let mut theirs: Vec<_> =
        theirs.iter().map(|line| (line.state.clone(), line.local, line.remote, line.users.clone())).collect();
    ours.sort();
    theirs.sort();
    ensure!(ours == theirs, "xctl: {ours:#?}\nss: {theirs:#?}");
    Ok(())
}

/// A process that only holds a socket, as its standard input. It ends when dropped.
struct Holder(Child);

impl Holder {
    fn new(socket: OwnedFd, user: Option<u32>) -> Result<Holder> {
        let mut command: Command = tool("sleep");
        command.arg("600").stdin(socket).stdout(Stdio::null());
        if let Some(user) = user {
            command.uid(user);
        }
        Ok(Holder(command.spawn().context("starting sleep")?))
    }

    fn pid(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn listener(at: SocketAddr) -> Result<TcpListener> {
    TcpListener::bind(at).with_context(|| format!("listening on {at}"))
}

/// A listener that may share its address with another. None if the kernel has no such protocol.
fn shared_listener(at: SocketAddr, protocol: Protocols) -> Result<Option<OwnedFd>> {
    let Some(socket) = actors::open(at, protocol)? else { return Ok(None) };
    setsockopt(&socket, sockopt::ReusePort, &true)?;
    socket.bind(&at.into()).with_context(|| format!("binding to {at}"))?;
    socket.listen(5)?;
    Ok(Some(socket.into()))
}

/// Both ends of a new connection from `a` to the listener in `b`.
fn connection(link: &Link, listener: &TcpListener, at: SocketAddr) -> Result<(TcpStream, TcpStream)> {
    let ours = link.a.enter(|| TcpStream::connect(at).context("connecting"))?;
    let theirs = listener.accept().context("accepting")?.0;
    Ok((ours, theirs))
}

/// Starts to connect and does not wait for the answer.
fn ask(from: IpAddr, to: SocketAddr) -> Result<Socket2> {
    let socket = actors::open(to, Protocols::Tcp)?.context("no TCP")?;
    socket.set_nonblocking(true)?;
    socket.bind(&SocketAddr::new(from, 0).into()).with_context(|| format!("binding to {from}"))?;
    match socket.connect(&to.into()) {
        Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => Ok(socket),
        other => bail!("connect() to {to} said {other:?}"),
    }
}

/// Makes a namespace with a listener on port 5203. Only one thread of this process is in the namespace, as long as the
/// handle lives.
fn thread_in_a_namespace_of_its_own() -> Result<(u64, mpsc::Sender<()>)> {
    let (hold, held) = mpsc::channel::<()>();
    let (tell, told) = mpsc::channel();
    thread::spawn(move || {
        let inside = || -> Result<_> {
            unshare(CloneFlags::CLONE_NEWNET).context("making a network namespace")?;
            let inode = File::open("/proc/thread-self/ns/net")?.metadata()?.ino();
            Ok((inode, listener((Ipv4Addr::UNSPECIFIED, 5203).into())?))
        };
        match inside() {
            Ok((inode, listener)) => {
                let _ = tell.send(Ok(inode));
                let _ = held.recv();
                drop(listener);
            }
            Err(error) => drop(tell.send(Err(error))),
        }
    });
    let inode = told.recv_timeout(Duration::from_secs(10)).context("the thread said nothing")??;
    Ok((inode, hold))
}
