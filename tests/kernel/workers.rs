//! The processes that make traffic. Each is another process of this executable, with its own PID and name.
//!
//! A worker gets its job as JSON, and reports facts about itself as JSON. The test compares xctl's records with these
//! facts.

use std::ffi::CString;
use std::io::{Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::sys::prctl;
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockType, SockaddrStorage, bind, connect, sendto, setsockopt, socket, sockopt,
};
use nix::unistd::{Pid, gettid};
use serde::{Deserialize, Serialize};

use ::xctl::kernel::capability::{self, Capabilities};
use ::xctl::kernel::confine::{Needs, confine};
use ::xctl::kernel::privilege::{self, User};

use crate::Family;
use crate::counters::{Counters, retransmitting_syns, wait_until_grown};
use crate::link::{Link, Netns};
use crate::process::{PATIENCE, Process, again, end, poll};

/// The hidden first argument that makes a worker of this executable.
pub const ARGUMENT: &str = "worker";

/// The number of the user and group `nobody`, which own nothing.
pub const NOBODY: u32 = 65534;

/// A connection as its local process sees it. v4-mapped IPv6 addresses are written as IPv4.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct Flow {
    pub local: SocketAddr,
    pub remote: SocketAddr,
}

impl Flow {
    /// The same connection as the other end sees it.
    pub fn reversed(self) -> Flow {
        Flow { local: self.remote, remote: self.local }
    }
}

/// A process: the PID and name that xctl must give it.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Who {
    pub pid: u32,
    pub comm: String,
}

/// A worker's report about itself.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Truth {
    pub who: Who,
    pub sent: Vec<Sent>,
}

impl Truth {
    pub fn flows(&self) -> impl Iterator<Item = Flow> {
        self.sent.iter().map(|sent| sent.flow)
    }

    /// The flow of a worker that made exactly one connection.
    pub fn flow(&self) -> Result<Flow> {
        let [one] = self.sent.as_slice() else { bail!("one connection expected: {self:?}") };
        Ok(one.flow)
    }
}

/// The sends on one connection: the number of calls of send() and of their bytes.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
pub struct Sent {
    pub flow: Flow,
    /// The thread that sends.
    pub tid: i32,
    pub sends: u64,
    pub bytes: u64,
}

impl Sent {
    fn nothing(flow: Flow) -> Sent {
        Sent { flow, tid: gettid().as_raw(), sends: 0, bytes: 0 }
    }
}

#[derive(Clone, Serialize, Deserialize)]
enum Job {
    Send(Plan),
    Receive { comm: String, on: SocketAddr },
    Connect { comm: String, to: SocketAddr },
    Mount { comm: String, server: IpAddr },
    Obey { comm: String, from: Option<SocketAddr>, to: SocketAddr },
    Spin { comm: String, cpu: usize },
    Confine { call: Call },
    Become { capabilities: Vec<String>, command: Vec<String> },
}

/// A system call that a confined process is to make.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub enum Call {
    /// An allowed call: reads a file.
    Read,
    Write,
    Socket,
    Execute,
    Signal,
}

/// The job of a sender: it makes connections one after the other until `sends` or `time` is used up.
#[derive(Clone, Serialize, Deserialize)]
pub struct Plan {
    pub comm: String,
    pub to: SocketAddr,
    /// The local address and port. If none, the kernel chooses them.
    pub from: Option<SocketAddr>,
    /// The number of bytes of each send, in turn.
    pub sizes: Vec<usize>,
    /// The number of sends between pauses.
    pub burst: u64,
    pub pause: Duration,
    pub sends: u64,
    pub time: Duration,
    /// The number of sends after which the sender closes the connection and makes a new one.
    pub sends_a_connection: u64,
    /// The sends are made by a thread with another name than the process's.
    pub second_thread: bool,
    /// The sends are made as user and group [`NOBODY`].
    pub as_nobody: bool,
}

impl Plan {
    pub fn new(comm: &str, to: SocketAddr) -> Plan {
        Plan {
            comm: comm.into(),
            to,
            from: None,
            sizes: vec![100],
            burst: 1,
            pause: Duration::from_millis(2),
            sends: u64::MAX,
            time: Duration::from_millis(2500),
            sends_a_connection: u64::MAX,
            second_thread: false,
            as_nobody: false,
        }
    }
}

/// A process that sends by a plan. After its start it waits for [`Sender::go`].
pub struct Sender {
    process: Process,
    pub who: Who,
}

impl Sender {
    pub fn new(ns: &Netns, plan: Plan) -> Result<Sender> {
        let (process, truth) = start(ns, &plan.comm.clone(), &Job::Send(plan))?;
        Ok(Sender { process, who: truth.who })
    }

    pub fn go(&mut self) -> Result<()> {
        self.process.tell("go")
    }

    /// Waits until the process has sent all data, the peer has read them, and the process has ended.
    pub fn finish(mut self) -> Result<Truth> {
        let line = self.process.line_until(Instant::now() + PATIENCE)?;
        let line = line.with_context(|| format!("{} does not come to its end in {PATIENCE:?}", self.who.comm))?;
        self.process.succeed()?;
        serde_json::from_str(&line).with_context(|| format!("a worker said {line}"))
    }
}

/// Lets all senders send at the same time, and waits for them.
pub fn send_all(mut senders: Vec<Sender>) -> Result<Vec<Truth>> {
    senders.iter_mut().try_for_each(Sender::go)?;
    senders.into_iter().map(Sender::finish).collect()
}

/// A process that listens, accepts, and reads to the end, without ever sending. It ends when dropped.
pub struct Receiver {
    process: Process,
    pub who: Who,
    /// The address of the listener.
    pub at: SocketAddr,
}

impl Receiver {
    /// With port 0 the kernel chooses the port.
    pub fn new(ns: &Netns, comm: &str, address: IpAddr, port: u16) -> Result<Receiver> {
        let job = Job::Receive { comm: comm.into(), on: (address, port).into() };
        let (process, truth) = start(ns, comm, &job)?;
        let at = truth.flow()?.local;
        Ok(Receiver { process, who: truth.who, at })
    }

    /// From now on the process neither accepts nor reads.
    pub fn freeze(&self) -> Result<()> {
        self.process.signal(Signal::SIGSTOP)?;
        let tasks = format!("/proc/{}/task", self.process.pid());
        let stopped = || {
            let all = std::fs::read_dir(&tasks)?.map(|task| Ok(std::fs::read_to_string(task?.path().join("stat"))?));
            Ok(all.collect::<Result<Vec<_>>>()?.iter().all(|stat| stat.contains(") T ")))
        };
        ensure!(poll(PATIENCE, stopped)?, "the receiver did not stop");
        Ok(())
    }
}

/// Runs a process that connects to a peer that never answers. The process gives up when the kernel has counted `syns`
/// retransmits of its SYN.
pub fn connect_in_vain(ns: &Netns, comm: &str, to: SocketAddr, syns: i64) -> Result<Truth> {
    let before = Counters::of(ns)?;
    let (mut process, truth) = start(ns, comm, &Job::Connect { comm: comm.into(), to })?;
    wait_until_grown(ns, &before, "TCPSynRetrans", syns)?;
    process.tell("give up")?;
    process.succeed()?;
    Ok(truth)
}

/// Like [`connect_in_vain`], for processes of these names at once, over IPv4: the kernel has retransmitted the SYN of each.
pub fn crowd_in_vain(ns: &Netns, to: SocketAddr, names: impl ExactSizeIterator<Item = String>) -> Result<Vec<Truth>> {
    let processes = names.len();
    let begin = |comm: String| start(ns, &comm, &Job::Connect { comm: comm.clone(), to });
    let mut all = names.map(begin).collect::<Result<Vec<_>>>()?;
    ensure!(
        poll(PATIENCE, || Ok(retransmitting_syns(ns)? >= processes))?,
        "{} of {processes}",
        retransmitting_syns(ns)?
    );
    all.iter_mut().try_for_each(|(process, _)| process.tell("give up"))?;
    let ended = |(mut process, truth): (Process, Truth)| process.succeed().map(|()| truth);
    all.into_iter().map(ended).collect()
}

/// Starts a process that mounts a share of a server that does not answer. The kernel decides how long the mount call takes.
pub fn mount_in_vain(ns: &Netns, comm: &str, server: IpAddr) -> Result<Process> {
    start(ns, comm, &Job::Mount { comm: comm.into(), server }).map(|(process, _)| process)
}

/// A process that has connected, and carries out orders.
pub struct Puppet {
    process: Process,
    pub truth: Truth,
}

impl Puppet {
    pub fn new(ns: &Netns, comm: &str, to: SocketAddr) -> Result<Puppet> {
        Puppet::from(ns, comm, None, to)
    }

    /// Like [`Puppet::new`], from this address and port. If none, the kernel chooses them.
    pub fn from(ns: &Netns, comm: &str, from: Option<SocketAddr>, to: SocketAddr) -> Result<Puppet> {
        let (process, truth) = start(ns, comm, &Job::Obey { comm: comm.into(), from, to })?;
        Ok(Puppet { process, truth })
    }

    /// Tells the process to send 1000 bytes. The process does not report when it has sent them.
    pub fn send(&mut self) -> Result<()> {
        self.process.tell("send")
    }

    /// Tells the process to shut its socket down for sending, and to keep the socket.
    pub fn shut(&mut self) -> Result<()> {
        self.process.tell("shut")
    }

    /// Makes the process exit without closing first, after it has carried out its earlier orders. Returns when the process
    /// is reaped.
    pub fn exit(mut self) -> Result<()> {
        self.process.tell("exit")?;
        self.process.succeed()
    }

    /// Like [`Puppet::exit`], but the process is reaped only when the returned value is dropped. Returns when the process
    /// has exited.
    pub fn exit_unreaped(mut self) -> Result<Process> {
        self.process.tell("exit")?;
        let stat = format!("/proc/{}/stat", self.process.pid());
        let is_zombie = || Ok(std::fs::read_to_string(&stat).context("it was reaped")?.contains(") Z "));
        ensure!(poll(PATIENCE, is_zombie)?, "it did not exit");
        Ok(self.process)
    }
}

/// Makes a connection over a link that loses every packet: `comm` has sent, and its data have been retransmitted once.
pub fn unanswered(link: &Link, family: Family, comm: &str) -> Result<(Receiver, Puppet)> {
    let receiver = Receiver::new(&link.b, "receiver", link.address(&link.b, family), 0)?;
    let mut sender = Puppet::new(&link.a, comm, receiver.at)?;
    let before = Counters::of(&link.a)?;
    link.lose(100)?;
    sender.send()?;
    wait_until_grown(&link.a, &before, "RetransSegs", 1)?;
    Ok((receiver, sender))
}

/// Pins one busy process to each CPU: "the current process" of a softirq is then a plausible wrong one.
pub fn keep_cpus_busy(ns: &Netns) -> Result<Vec<Process>> {
    let spin = |cpu| {
        let comm = format!("busy-{cpu}");
        start(ns, &comm, &Job::Spin { comm: comm.clone(), cpu }).map(|(process, _)| process)
    };
    cpus()?.into_iter().map(spin).collect()
}

/// The CPUs on which this process may run.
pub fn cpus() -> Result<Vec<usize>> {
    let allowed = sched_getaffinity(Pid::from_raw(0)).context("asking which CPUs there are")?;
    Ok((0..CpuSet::count()).filter(|cpu| allowed.is_set(*cpu).unwrap_or(false)).collect())
}

/// Moves the calling thread to this CPU, where it stays.
pub fn move_to(cpu: usize) -> Result<()> {
    let mut only = CpuSet::new();
    only.set(cpu)?;
    sched_setaffinity(Pid::from_raw(0), &only).with_context(|| format!("moving to CPU {cpu}"))
}

/// Starts a worker in `ns` and reads its first report.
fn start(ns: &Netns, comm: &str, job: &Job) -> Result<(Process, Truth)> {
    let command = worker(job)?;
    let mut process = ns.enter(|| Process::start(comm, command))?;
    let line = process.line()?;
    let truth = serde_json::from_str(&line).with_context(|| format!("{comm} said {line}"))?;
    Ok((process, truth))
}

/// Starts a process that confines itself as xctl does, says so, and then makes this call.
pub fn confined(call: Call) -> Result<Process> {
    let mut process = Process::start("the confined", worker(&Job::Confine { call })?)?;
    let line = process.line()?;
    ensure!(line == "confined", "it said {line:?}");
    Ok(process)
}

/// The command, run by nobody (user and group 65534) with these capabilities and no others.
pub fn by_nobody(capabilities: &[&str], command: &Command) -> Result<Command> {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let command = words.map(|word| word.to_str().map(str::to_owned).context("not UTF-8")).collect::<Result<_>>()?;
    worker(&Job::Become { capabilities: capabilities.iter().map(|&name| name.into()).collect(), command })
}

fn worker(job: &Job) -> Result<Command> {
    again(ARGUMENT, &[&serde_json::to_string(job)?])
}

// ---- from here on: inside the worker ----

pub fn main(job: &str) -> ExitCode {
    end(serde_json::from_str(job).context("reading the job").and_then(work))
}

fn work(job: Job) -> Result<()> {
    match job {
        Job::Send(plan) => {
            take_name(&plan.comm)?;
            if plan.as_nobody {
                privilege::switch_user(User { uid: NOBODY, gid: NOBODY })?;
            }
            say(&plan.comm, vec![])?;
            told()?;
            let comm = plan.comm.clone();
            let sent = if plan.second_thread {
                let thread = thread::Builder::new().name("not-the-owner".into()).spawn(move || send(&plan))?;
                thread.join().map_err(|_| anyhow!("the sending thread panicked"))??
            } else {
                send(&plan)?
            };
            say(&comm, sent)
        }
        Job::Receive { comm, on } => receive(&comm, on),
        Job::Connect { comm, to } => {
            take_name(&comm)?;
            let (socket, refused) = open(None, to, SockFlag::SOCK_NONBLOCK)?;
            say(&comm, vec![Sent::nothing(Flow { local: local(&socket)?, remote: to })])?;
            told()?;
            ensure!(refused == Some(Errno::EINPROGRESS), "connect() said {refused:?}");
            Ok(())
        }
        Job::Mount { comm, server } => {
            take_name(&comm)?;
            say(&comm, vec![])?;
            let (share, options) = (format!("//{server}/share"), format!("ip={server},sec=none,vers=3.0"));
            mount(Some(share.as_str()), "/tmp", Some("cifs"), MsFlags::empty(), Some(options.as_str()))
                .context("mounting a share")
        }
        Job::Obey { comm, from, to } => {
            take_name(&comm)?;
            let (mut socket, _) = open(from, to, SockFlag::empty())?;
            say(&comm, vec![Sent::nothing(Flow { local: local(&socket)?, remote: to })])?;
            loop {
                match told()?.as_str() {
                    "send" => socket.write_all(&[b'x'; 1000])?,
                    "shut" => socket.shutdown(Shutdown::Write)?,
                    _ => return Ok(()),
                }
            }
        }
        Job::Confine { call } => {
            privilege::no_new_privileges()?;
            confine(Needs::default()).context("confining itself")?;
            println!("confined");
            match call {
                Call::Read => std::fs::read("/proc/self/stat").map(drop)?,
                Call::Write => std::fs::write("/dev/null", "")?,
                Call::Socket => drop(TcpListener::bind("127.0.0.1:0")?),
                Call::Execute => return Err(Command::new("/proc/self/exe").exec().into()),
                Call::Signal => kill(Pid::this(), Signal::SIGCONT)?,
            }
            println!("done");
            Ok(())
        }
        Job::Become { capabilities, command } => {
            let known = [capability::BPF, capability::PERFMON].into_iter().chain(capability::OPTIONAL);
            let list: Vec<_> = known.filter(|one| capabilities.iter().any(|name| name == one.name)).collect();
            ensure!(list.len() == capabilities.len(), "unknown among {capabilities:?}");
            privilege::switch_user(User { uid: NOBODY, gid: NOBODY })?;
            privilege::hand_on(Capabilities::of(&list))?;
            let (program, arguments) = command.split_first().context("no command")?;
            Err(Command::new(program).args(arguments).exec().into())
        }
        Job::Spin { comm, cpu } => {
            move_to(cpu)?;
            take_name(&comm)?;
            say(&comm, vec![])?;
            end_with_parent();
            loop {
                std::hint::spin_loop();
            }
        }
    }
}

/// Names the process. The caller must be the main thread, before any action that xctl may see.
pub fn take_name(comm: &str) -> Result<()> {
    prctl::set_name(&CString::new(comm)?).context("setting the name of the process")
}

/// Reports to the test the process and its sends so far.
fn say(comm: &str, sent: Vec<Sent>) -> Result<()> {
    let truth = Truth { who: Who { pid: std::process::id(), comm: comm.into() }, sent };
    println!("{}", serde_json::to_string(&truth)?);
    Ok(())
}

/// The next line from the test. An error if the test is gone.
pub fn told() -> Result<String> {
    let mut line = String::new();
    ensure!(std::io::stdin().read_line(&mut line)? > 0, "the test ended before it said what to do");
    Ok(line.trim_end().to_owned())
}

/// Ends this process when the pipe from the test is closed: a killed test cannot stop its workers.
pub fn end_with_parent() {
    thread::spawn(|| {
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        std::process::exit(0);
    });
}

fn send(plan: &Plan) -> Result<Vec<Sent>> {
    let end = Instant::now() + plan.time;
    let data = vec![b'x'; plan.sizes.iter().copied().max().unwrap_or(0)];
    let mut sizes = plan.sizes.iter().cycle();
    let mut done = vec![];
    let mut total = 0;
    let more = |total: u64| total < plan.sends && Instant::now() < end;
    while more(total) {
        let (mut socket, _) = open(plan.from, plan.to, SockFlag::empty())?;
        let flow = Flow { local: local(&socket)?, remote: canonical(plan.to) };
        let mut sent = Sent::nothing(flow);
        while more(total) && sent.sends < plan.sends_a_connection {
            let size = *sizes.next().context("a plan without sizes")?;
            // one call is one tcp_sendmsg: a blocking socket takes all the data
            let taken = socket.write(&data[..size])?;
            ensure!(taken == size, "a send of {size} took {taken}");
            sent.sends += 1;
            sent.bytes += taken as u64;
            total += 1;
            if total % plan.burst == 0 {
                thread::sleep(plan.pause);
            }
        }
        // closing is part of the conversation, which ends when the peer has read everything
        socket.shutdown(Shutdown::Write)?;
        socket.read_to_end(&mut Vec::new())?;
        done.push(sent);
    }
    Ok(done)
}

fn receive(comm: &str, on: SocketAddr) -> Result<()> {
    take_name(comm)?;
    let listener = TcpListener::bind(on).with_context(|| format!("listening on {on}"))?;
    let at = listener.local_addr()?;
    say(comm, vec![Sent::nothing(Flow { local: at, remote: at })])?;
    end_with_parent();
    for connection in listener.incoming() {
        let mut connection = connection?;
        thread::spawn(move || {
            let mut buffer = vec![0; 1 << 16];
            while connection.read(&mut buffer).is_ok_and(|read| read > 0) {}
        });
    }
    Ok(())
}

/// A socket that has called connect(), and the result of the call: no error, or "in progress".
pub fn open(from: Option<SocketAddr>, to: SocketAddr, flags: SockFlag) -> Result<(TcpStream, Option<Errno>)> {
    let family = if to.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let socket = socket(family, SockType::Stream, flags | SockFlag::SOCK_CLOEXEC, None).context("making a socket")?;
    if let Some(from) = from {
        setsockopt(&socket, sockopt::ReuseAddr, &true)?;
        bind(socket.as_raw_fd(), &SockaddrStorage::from(from)).with_context(|| format!("binding to {from}"))?;
    }
    let refused = match connect(socket.as_raw_fd(), &SockaddrStorage::from(to)) {
        Ok(()) => None,
        Err(Errno::EINPROGRESS) => Some(Errno::EINPROGRESS),
        Err(error) => return Err(error).with_context(|| format!("connecting to {to}")),
    };
    Ok((TcpStream::from(socket), refused))
}

/// The number of bytes that [`connect_fast`] sends with its SYN.
pub const FAST: usize = 500;

/// Starts a connection of this process, and does not wait for it. Its SYN carries data (TCP Fast Open).
pub fn connect_fast(ns: &Netns, to: SocketAddr) -> Result<(TcpStream, Flow)> {
    const ASK_WITHOUT_COOKIES: u32 = 0x1 | 0x4;
    ns.set("tcp_fastopen", &ASK_WITHOUT_COOKIES.to_string())?;
    ns.enter(|| {
        let family = if to.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let socket = socket(family, SockType::Stream, flags, None).context("making a socket")?;
        let fast = MsgFlags::from_bits_retain(libc::MSG_FASTOPEN);
        let sent = sendto(socket.as_raw_fd(), &[b'x'; FAST], &SockaddrStorage::from(to), fast);
        let sent = sent.context("connecting by MSG_FASTOPEN")?;
        ensure!(sent == FAST, "the SYN took {sent} bytes of {FAST}");
        let socket = TcpStream::from(socket);
        let flow = Flow { local: local(&socket)?, remote: to };
        Ok((socket, flow))
    })
}

pub fn local(socket: &TcpStream) -> Result<SocketAddr> {
    socket.local_addr().map(canonical).context("asking for the local address")
}

/// Turns `::ffff:a.b.c.d` into `a.b.c.d`.
fn canonical(address: SocketAddr) -> SocketAddr {
    (address.ip().to_canonical(), address.port()).into()
}
