//! Actors in C, for what takes unsafe code in Rust: tests/ways/ways.c says what they can do, and how they are told.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::RawFd;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::link::Netns;
use crate::process::{Process, nameless_file};
use crate::workers::{Flow, Who};

/// How a system call is made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum How {
    Call,
    /// By io_uring: in the process's own context, if it can be done at once.
    Ring,
    /// In a worker of io_uring's.
    Worker,
    /// In the thread with which io_uring polls for requests.
    Poll,
}

/// How a process takes another name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Renaming {
    Prctl,
    /// And once more by prctl().
    Exec,
    /// The same from another thread than the main one, which that ends.
    ExecByThread,
}

/// Bytes of what is sent alone.
pub const ALONE: u64 = 100;

#[derive(Clone, Copy, Debug)]
pub enum Order {
    Listen(IpAddr),
    Connect(SocketAddr),
    /// By io_uring, and not waited for.
    Ask(SocketAddr),
    Accept(RawFd, How),
    Send(RawFd, How),
    /// So many times a child sends 1 byte and it another at the same time, then it alone [`ALONE`].
    Contend(RawFd, u32),
    Shutdown(RawFd),
    /// By pidfd_getfd().
    Take(u32, RawFd),
    /// What comes in on the first, the kernel sends on the second (sockmap).
    Forward(RawFd, RawFd),
    /// From now on every CPU is in a map operation of bpf(2)'s half the time, where the kernel runs no kprobe's program.
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
            Order::Contend(on, times) => write!(f, "contend {on} {times}"),
            Order::Shutdown(of) => write!(f, "shutdown {of}"),
            Order::Take(pid, theirs) => write!(f, "take {pid} {theirs}"),
            Order::Forward(from, to) => write!(f, "forward {from} {to}"),
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

/// A process that does what it is told; it and its children end when it is dropped.
pub struct RawActor {
    process: Process,
    pub who: Who,
}

/// A child that has not called exec: it has every socket of its parent's from before, under the same number.
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

    /// An error that says so where the kernel cannot do it.
    pub fn attempt(&mut self, order: Order) -> Result<Result<(), String>> {
        Ok(self.told(&order.to_string())?.map(drop))
    }

    pub fn done(&mut self, order: Order) -> Result<()> {
        self.attempt(order)?.map_err(anyhow::Error::msg)
    }

    /// What makes a socket; an error that says so where the kernel cannot do it.
    pub fn attempt_socket(&mut self, order: Order) -> Result<Result<(RawFd, Flow), String>> {
        self.told(&order.to_string())?.map(|said| socket(&said)).map_or_else(|why| Ok(Err(why)), |made| made.map(Ok))
    }

    pub fn socket(&mut self, order: Order) -> Result<(RawFd, Flow)> {
        self.attempt_socket(order)?.map_err(anyhow::Error::msg)
    }

    pub fn listen(&mut self, on: IpAddr) -> Result<(RawFd, SocketAddr)> {
        self.socket(Order::Listen(on)).map(|(listener, flow)| (listener, flow.local))
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
        let (number, pid) = said.split_once(' ').with_context(|| format!("fork said {said}"))?;
        Ok(Child { number: number.parse()?, who: Who { pid: pid.parse()?, comm: comm.into() } })
    }

    pub fn child_done(&mut self, child: &Child, order: Order) -> Result<()> {
        self.told(&format!("child {} {order}", child.number))?.map(drop).map_err(anyhow::Error::msg)
    }

    pub fn child_socket(&mut self, child: &Child, order: Order) -> Result<(RawFd, Flow)> {
        socket(&self.told(&format!("child {} {order}", child.number))?.map_err(anyhow::Error::msg)?)
    }
}

/// What follows "done", or why this kernel cannot.
fn answer(line: &str) -> Result<Result<String, String>> {
    match line.split_once(' ').unwrap_or((line, "")) {
        ("done", said) => Ok(Ok(said.into())),
        ("cannot", why) => Ok(Err(why.into())),
        _ => bail!("it said {line:?}"),
    }
}

/// `FD LOCAL REMOTE`
fn socket(said: &str) -> Result<(RawFd, Flow)> {
    let words: Vec<_> = said.split(' ').collect();
    ensure!(words.len() == 3, "not a socket: {said:?}");
    Ok((words[0].parse()?, Flow { local: words[1].parse()?, remote: words[2].parse()? }))
}
