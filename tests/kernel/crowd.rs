//! Processes with many connections. Each is another process of this executable with its own PID and name, as in workers.rs.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::process::{Command, ExitCode};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use nix::sys::socket::{SockFlag, setsockopt, sockopt};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::link::Netns;
use crate::process::{Process, again, end, now};
use crate::workers::{Flow, Who, local, open, take_name, told};

/// The hidden first argument that makes a member of this executable.
pub const ARGUMENT: &str = "crowd";

/// The first byte that a churner sends; it tells the server how to end the connection.
const CLOSE: u8 = b'c';
const RESET: u8 = b'r';
const JUST_READ: u8 = b'j';
/// The byte that a [`crate::workers::Puppet`] sends: the server answers and keeps the connection open.
const KEEP: u8 = b'x';

#[derive(Clone, Serialize, Deserialize)]
pub enum Job {
    /// Waits for "go", makes this many connections, ends them in different ways, and reports each four-tuple with its
    /// times.
    Churn { to: SocketAddr, connections: usize, threads: usize },
    /// Accepts connections and does for each what its first byte asks for. On "close", closes the connections that need not
    /// stay open.
    Serve { on: SocketAddr },
    /// Opens connections, reports them, and carries out orders: "each N", "bulk N", "trickle N".
    Hold { to: SocketAddr, connections: usize },
}

/// A connection of a churner, with the times (`CLOCK_MONOTONIC`, ns) between which the connection got its four-tuple.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Life {
    pub flow: Flow,
    pub asked: u64,
    pub got: u64,
}

/// A running member. It ends when dropped.
pub struct Member {
    process: Process,
    pub who: Who,
}

impl Member {
    pub fn new(ns: &Netns, comm: &str, job: &Job) -> Result<Member> {
        let command = command(comm, job)?;
        Member::started(ns.enter(|| Process::start(comm, command))?)
    }

    /// Starts a member with exactly this PID. None if other processes always get the PID.
    pub fn with_pid(ns: &Netns, comm: &str, job: &Job, pid: u32) -> Result<Option<Member>> {
        const LAST: &str = "/proc/sys/kernel/ns_last_pid";
        let process = ns.enter(|| {
            for _ in 0..100 {
                let command = command(comm, job)?;
                std::fs::write(LAST, (pid - 1).to_string()).with_context(|| format!("writing to {LAST}"))?;
                let process = Process::start(comm, command)?;
                if process.pid() == pid {
                    return Ok(Some(process));
                }
            }
            Ok(None)
        })?;
        process.map(Member::started).transpose()
    }

    fn started(mut process: Process) -> Result<Member> {
        let line = process.line()?;
        let who = serde_json::from_str(&line).with_context(|| format!("a member said {line}"))?;
        Ok(Member { process, who })
    }

    pub fn tell(&mut self, text: &str) -> Result<()> {
        self.process.tell(text)
    }

    /// The member's next answer. A working member prints lines that say so; these are not answers.
    pub fn said<T: DeserializeOwned>(&mut self) -> Result<T> {
        loop {
            let line = self.process.line()?;
            if line != WORKING {
                return serde_json::from_str(&line).with_context(|| format!("a member said {line}"));
            }
        }
    }

    /// Sends an order, and waits until the member has carried it out.
    pub fn order(&mut self, text: &str) -> Result<()> {
        self.tell(text)?;
        self.said()
    }

    /// Kills the member: the kernel ends its connections.
    pub fn kill(mut self) -> Result<()> {
        self.process.signal(Signal::SIGKILL)?;
        self.process.wait().map(drop)
    }
}

fn command(comm: &str, job: &Job) -> Result<Command> {
    again(ARGUMENT, &[&serde_json::to_string(&(comm, job))?])
}

// ---- from here on: inside the member ----

const WORKING: &str = "working";

pub fn main(job: &str) -> ExitCode {
    let done = serde_json::from_str(job).context("reading the job").and_then(|(comm, job): (String, Job)| {
        take_name(&comm)?;
        say(&Who { pid: std::process::id(), comm })?;
        match job {
            Job::Churn { to, connections, threads } => churn(to, connections, threads),
            Job::Serve { on } => serve(on),
            Job::Hold { to, connections } => hold(to, connections),
        }
    });
    end(done)
}

fn say(what: &impl Serialize) -> Result<()> {
    println!("{}", serde_json::to_string(what)?);
    Ok(())
}

fn churn(to: SocketAddr, connections: usize, threads: usize) -> Result<()> {
    told()?;
    let work = |first: usize| (first..connections).step_by(threads).map(|number| live(to, number)).collect();
    let lives = thread::scope(|scope| {
        let threads: Vec<_> = (0..threads).map(|first| scope.spawn(move || work(first))).collect();
        while !threads.iter().all(thread::ScopedJoinHandle::is_finished) {
            println!("{WORKING}");
            thread::sleep(Duration::from_millis(200));
        }
        let lives = threads.into_iter().map(|thread| thread.join().map_err(|_| anyhow!("a thread panicked"))?);
        lives.collect::<Result<Vec<Vec<Life>>>>()
    })?;
    say(&lives.concat())
}

/// Makes one connection. The number selects one of the ways to end it. Errors in the middle of a connection are expected.
fn live(to: SocketAddr, number: usize) -> Result<Life> {
    const SOON: Duration = Duration::from_secs(1);
    let (asked, mut socket) = connecting(to)?;
    let life = Life { flow: Flow { local: local(&socket)?, remote: to }, asked, got: now()? };
    socket.set_nonblocking(false)?;
    // a send waits for the connection
    let mut send = |first: u8| socket.write(&[[first].as_slice(), &[b'.'; 599]].concat()).is_ok();
    match number % 5 {
        // closed with data in flight: the kernel goes on alone
        0 => drop(send(JUST_READ) && send(JUST_READ)),
        1 => {
            send(JUST_READ);
            abort(&socket)?;
        }
        2 => {
            send(CLOSE);
            socket.set_read_timeout(Some(SOON))?;
            let _ = socket.read_to_end(&mut Vec::new());
        }
        // mostly aborted before the handshake is over
        3 => abort(&socket)?,
        // a send on a connection that the peer has reset
        _ => {
            send(RESET);
            socket.set_read_timeout(Some(SOON))?;
            let _ = socket.read_to_end(&mut Vec::new());
            let _ = socket.write(b".");
        }
    }
    Ok(life)
}

/// A socket that has called connect(), and the time of the call. Waits for a port while every port is taken.
fn connecting(to: SocketAddr) -> Result<(u64, TcpStream)> {
    let end = Instant::now() + Duration::from_secs(60);
    loop {
        let asked = now()?;
        match open(None, to, SockFlag::SOCK_NONBLOCK) {
            Err(error) if error.downcast_ref() == Some(&Errno::EADDRNOTAVAIL) && Instant::now() < end => {
                thread::sleep(Duration::from_millis(5));
            }
            opened => return opened.map(|(socket, _)| (asked, socket)),
        }
    }
}

/// Makes close() reset the connection.
fn abort(socket: &TcpStream) -> Result<()> {
    setsockopt(socket, sockopt::Linger, &libc::linger { l_onoff: 1, l_linger: 0 }).context("setting SO_LINGER")
}

/// A connection of the server.
struct Served {
    stream: TcpStream,
    kept: bool,
}

fn serve(on: SocketAddr) -> Result<()> {
    let listener = TcpListener::bind(on).with_context(|| format!("listening on {on}"))?;
    listener.set_nonblocking(true)?;
    say(&listener.local_addr()?)?;
    let stdin = std::io::stdin();
    let mut open: Vec<Served> = vec![];
    loop {
        let mut ready: Vec<bool> = {
            let served = open.iter().map(|served| served.stream.as_fd());
            let all = [stdin.as_fd(), listener.as_fd()].into_iter().chain(served);
            let mut fds: Vec<_> = all.map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
            poll(&mut fds, PollTimeout::NONE).context("waiting for connections")?;
            fds.iter().map(|fd| fd.any().unwrap_or(true)).collect()
        };
        if ready[0] {
            // "close" is the only order; an error if the test is gone
            told()?;
            open.retain(|served| served.kept);
            say(&())?;
            continue;
        }
        let mut talks = ready.split_off(2).into_iter();
        let mut failure = None;
        open.retain_mut(|served| {
            !talks.next().unwrap_or(false)
                || answer(served).unwrap_or_else(|error| {
                    failure = Some(error);
                    false
                })
        });
        failure.map_or(Ok(()), Err)?;
        while ready[1]
            && let Ok((stream, _)) = listener.accept()
        {
            stream.set_nonblocking(true)?;
            open.push(Served { stream, kept: false });
        }
    }
}

/// Reads, and does what the first byte asks for. False: the connection must be closed.
fn answer(Served { stream, kept }: &mut Served) -> Result<bool> {
    let mut buffer = [0; 1 << 14];
    match stream.read(&mut buffer) {
        Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(true),
        Err(_) | Ok(0) => return Ok(false),
        Ok(_) => {}
    }
    match buffer[0] {
        CLOSE => return Ok(false),
        RESET => {
            abort(stream)?;
            return Ok(false);
        }
        KEEP if !*kept => {
            // the server sends, too; a fresh connection has room for it, unless the peer has reset it
            let _ = stream.write(b"!");
            *kept = true;
        }
        _ => {}
    }
    Ok(true)
}

fn hold(to: SocketAddr, connections: usize) -> Result<()> {
    let opened = (0..connections).map(|_| -> Result<_> {
        let (socket, _) = open(None, to, SockFlag::empty())?;
        socket.set_nodelay(true)?;
        Ok((Flow { local: local(&socket)?, remote: to }, socket))
    });
    let (flows, mut sockets): (Vec<_>, Vec<_>) = opened.collect::<Result<Vec<_>>>()?.into_iter().unzip();
    say(&flows)?;
    loop {
        let order = told()?;
        let (what, number) = order.split_once(' ').with_context(|| format!("told {order:?}"))?;
        let number: usize = number.parse()?;
        match what {
            // one send on every Nth connection
            "each" => sockets.iter_mut().step_by(number).try_for_each(|socket| socket.write_all(&[b'.'; 1000]))?,
            // one send of N bytes, on the first connection
            "bulk" => sockets[0].write_all(&vec![b'.'; number])?,
            // N sends with pauses, on the first connection
            "trickle" => (0..number).try_for_each(|_| {
                thread::sleep(Duration::from_millis(1));
                sockets[0].write_all(&[b'.'; 500])
            })?,
            // N sends without pauses, on the first connection
            "burst" => (0..number).try_for_each(|_| sockets[0].write_all(&[b'.'; 100]))?,
            _ => return Err(anyhow!("told {order:?}")),
        }
        say(&())?;
    }
}
