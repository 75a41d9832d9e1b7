//! Actors in C, for actions that take unsafe code in Rust. tests/ways/ways.c lists the actions and the orders for them.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::RawFd;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::link::Netns;
use crate::process::{Process, nameless_file};
use crate::tcp_info::TcpInfo;
use crate::workers::{Flow, Who};

/// The way to make a system call.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum How {
    Call,
    /// By io_uring, in the process's own context if the call need not wait.
    Ring,
    /// By io_uring, in one of its workers.
    Worker,
    /// By io_uring, in its thread that polls for requests.
    Poll,
}

/// The way in which a process takes another name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Renaming {
    Prctl,
    /// By exec(), and once more by prctl().
    Exec,
    /// By exec() from another thread than the main one, which ends that thread.
    ExecByThread,
}

/// The number of bytes of a send of the actor in [`RawActor::contend`] that has no other send at the same time.
pub const ALONE: u64 = 100;
/// The same, of its rival.
pub const RIVAL_ALONE: u64 = 101;

#[derive(Clone, Copy, Debug)]
pub enum Order {
    Listen(IpAddr),
    Connect(SocketAddr),
    /// Connects by io_uring, and does not wait for the connection.
    Ask(SocketAddr),
    Accept(RawFd, How),
    Send(RawFd, How),
    Shutdown(RawFd),
    /// Makes the kernel take the peer's window as closed, until the peer's next ACK.
    NoWindow(RawFd),
    /// Takes a socket by pidfd_getfd().
    Take(u32, RawFd),
    /// Makes the kernel send on the second socket all data that arrive on the first (sockmap).
    Forward(RawFd, RawFd),
    /// Writes so many bytes in the background, this many at a time.
    Pour(RawFd, u32, u32),
    /// Reads to the end in the background, this many bytes at a time, with a pause of so many milliseconds behind each.
    Drain(RawFd, u32, u32),
    /// Keeps every CPU in a map operation of bpf(2) half the time from now on. During the operation the kernel runs no
    /// kprobe's program.
    Crowd,
}

impl fmt::Display for Order {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Order::Listen(on) => write!(f, "listen {on}"),
            Order::Connect(to) => write!(f, "connect {} {}", to.ip(), to.port()),
            Order::Ask(to) => write!(f, "ask {} {}", to.ip(), to.port()),
            Order::Accept(listener, how) => write!(f, "accept {listener} {how}"),
            Order::Send(on, how) => write!(f, "send {on} {how}"),
            Order::Shutdown(of) => write!(f, "shutdown {of}"),
            Order::NoWindow(of) => write!(f, "no_window {of}"),
            Order::Take(pid, theirs) => write!(f, "take {pid} {theirs}"),
            Order::Forward(from, to) => write!(f, "forward {from} {to}"),
            Order::Pour(on, bytes, size) => write!(f, "pour {on} {bytes} {size}"),
            Order::Drain(from, size, pause) => write!(f, "drain {from} {size} {pause}"),
            Order::Crowd => f.write_str("crowd"),
        }
    }
}

impl fmt::Display for How {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(match self {
            How::Call => "call",
            How::Ring => "ring",
            How::Worker => "worker",
            How::Poll => "poll",
        })
    }
}

/// A process that carries out orders. The process and its children end when it is dropped.
pub struct RawActor {
    process: Process,
    pub who: Who,
}

/// A child that has not called exec(). It has every socket that its parent had at the fork, under the same number.
pub struct Child {
    number: usize,
    pub who: Who,
}

impl RawActor {
    pub fn new(ns: &Netns, comm: &str) -> Result<RawActor> {
        let (_file, path) = nameless_file(::ways::PROGRAM)?;
        let mut command = Command::new(path);
        command.arg(comm);
        let mut process = ns.enter(|| Process::start(comm, command))?;
        let pid = answer(&process.line()?)?.map_err(anyhow::Error::msg)?.parse()?;
        Ok(RawActor { process, who: Who { pid, comm: comm.into() } })
    }

    fn told(&mut self, order: &str) -> Result<Result<String, String>> {
        self.process.tell(order)?;
        answer(&self.process.line()?).with_context(|| format!("{:?} was to {order}", self.who))
    }

    /// Carries out an order. The inner error says that the kernel cannot do it.
    pub fn attempt(&mut self, order: Order) -> Result<Result<(), String>> {
        Ok(self.told(&order.to_string())?.map(drop))
    }

    pub fn done(&mut self, order: Order) -> Result<()> {
        self.attempt(order)?.map_err(anyhow::Error::msg)
    }

    /// Carries out an order that makes a socket. The inner error says that the kernel cannot do it.
    pub fn attempt_socket(&mut self, order: Order) -> Result<Result<(RawFd, Flow), String>> {
        self.told(&order.to_string())?.map(|said| socket(&said)).map_or_else(|why| Ok(Err(why)), |made| made.map(Ok))
    }

    pub fn socket(&mut self, order: Order) -> Result<(RawFd, Flow)> {
        self.attempt_socket(order)?.map_err(anyhow::Error::msg)
    }

    pub fn listen(&mut self, on: IpAddr) -> Result<(RawFd, SocketAddr)> {
        self.socket(Order::Listen(on)).map(|(listener, flow)| (listener, flow.local))
    }

    /// What the kernel tells the process about its own connection.
    pub fn tcp_info(&mut self, of: RawFd) -> Result<TcpInfo> {
        let said = self.told(&format!("tcp_info {of}"))?.map_err(anyhow::Error::msg)?;
        TcpInfo::parse(&said).with_context(|| format!("not a TCP_INFO: {said}"))
    }

    pub fn rename(&mut self, how: Renaming, comm: &str) -> Result<()> {
        let how = match how {
            Renaming::Prctl => "prctl",
            Renaming::Exec => "exec",
            Renaming::ExecByThread => "thread",
        };
        self.told(&format!("rename {how} {comm}"))?.map_err(anyhow::Error::msg)?;
        let named = std::fs::read_to_string(format!("/proc/{}/comm", self.who.pid)).context("reading its name")?;
        ensure!(named.trim_end() == comm, "{:?} was to take the name {comm}, and is {named:?}", self.who);
        self.who.comm = comm.into();
        Ok(())
    }

    pub fn fork(&mut self, comm: &str) -> Result<Child> {
        let said = self.told(&format!("fork {comm}"))?.map_err(anyhow::Error::msg)?;
        child(&said, comm)
    }

    /// Forks a child named `first`, which sends a byte on the socket and exits. A second child, named `second`, gets its
    /// PID within the clock tick in which the first child was born.
    pub fn succeed(&mut self, on: RawFd, first: &str, second: &str) -> Result<(Who, Child)> {
        let said = self.told(&format!("succeed {on} {first} {second}"))?.map_err(anyhow::Error::msg)?;
        let second = child(&said, second)?;
        Ok((Who { pid: second.who.pid, comm: first.into() }, second))
    }

    /// Repeats this many times: a child and the actor send 1 byte each at the same time, on two CPUs; then the actor alone
    /// sends [`ALONE`], and the child alone [`RIVAL_ALONE`]. The answer is the child.
    pub fn contend(&mut self, on: RawFd, times: u32) -> Result<Who> {
        let said = self.told(&format!("contend {on} {times}"))?.map_err(anyhow::Error::msg)?;
        Ok(Who { pid: said.parse()?, comm: "rival".into() })
    }

    pub fn child_done(&mut self, child: &Child, order: Order) -> Result<()> {
        self.told(&format!("child {} {order}", child.number))?.map(drop).map_err(anyhow::Error::msg)
    }

    pub fn child_socket(&mut self, child: &Child, order: Order) -> Result<(RawFd, Flow)> {
        socket(&self.told(&format!("child {} {order}", child.number))?.map_err(anyhow::Error::msg)?)
    }
}

/// The text after "done", or the reason why this kernel cannot do it.
fn answer(line: &str) -> Result<Result<String, String>> {
    match line.split_once(' ').unwrap_or((line, "")) {
        ("done", said) => Ok(Ok(said.into())),
        ("cannot", why) => Ok(Err(why.into())),
        _ => bail!("it said {line:?}"),
    }
}

/// Parses `NUMBER PID`.
fn child(said: &str, comm: &str) -> Result<Child> {
    let (number, pid) = said.split_once(' ').with_context(|| format!("not a child: {said:?}"))?;
    Ok(Child { number: number.parse()?, who: Who { pid: pid.parse()?, comm: comm.into() } })
}

/// Parses `FD LOCAL REMOTE`.
fn socket(said: &str) -> Result<(RawFd, Flow)> {
    let words: Vec<_> = said.split(' ').collect();
    ensure!(words.len() == 3, "not a socket: {said:?}");
    Ok((words[0].parse()?, Flow { local: words[1].parse()?, remote: words[2].parse()? }))
}
