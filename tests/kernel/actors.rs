//! Processes that do to sockets what they are told, one order at a time: make them, hand them on, send on them.
//!
//! An actor is this executable once more. It reads an order, a line of JSON, carries it out, and answers with another;
//! an answer comes after the system call has returned, so what the test then sees was done before.

use std::fs::File;
use std::io::{BufRead, BufReader, IoSlice, IoSliceMut, Write};
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr as UnixAddress, UnixDatagram};
use std::process::{Child, ChildStdin, ChildStdout, ExitCode, Stdio};

use anyhow::{Context, Result, bail, ensure};
use nix::errno::Errno;
use nix::fcntl::{SpliceFFlags, splice};
use nix::sys::sendfile::sendfile;
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, Shutdown, SockaddrStorage, UnixAddr, getpeername, getsockname, recv,
    recvmsg, send, sendmsg, setsockopt, shutdown, sockopt,
};
use nix::unistd::pipe;
use serde::{Deserialize, Serialize};
use socket2::{Domain, Protocol, Socket, Type};

use crate::link::Netns;
use crate::process::{Process, again, end};
use crate::workers::{Flow, Who, take_name};

/// The hidden first argument that makes an actor of this executable; its name is the second.
pub const ARGUMENT: &str = "actor";
/// A third argument: standard error is a socket that the parent shares, the actor's socket 0.
const INHERITS: &str = "inherits";

/// What one send moves.
const BYTES: usize = 1000;

/// An actor's own number for one of its sockets.
pub type Id = usize;

/// How bytes get into a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Way {
    Send,
    Sendfile,
    Splice,
    /// send() after the kernel has been given a TLS key.
    Ktls,
}

/// A socket's protocol.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Protocols {
    Tcp,
    Mptcp,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
enum Order {
    /// `shared`: with SO_REUSEPORT.
    Listen {
        on: SocketAddr,
        protocol: Protocols,
        shared: bool,
    },
    Connect {
        to: SocketAddr,
        protocol: Protocols,
        wait: bool,
    },
    /// `wait`: blocks until there is one; else takes all that are there.
    Accept {
        listener: Id,
        wait: bool,
    },
    Send {
        on: Id,
        way: Way,
    },
    /// Gives the kernel a TLS key, and sends without waiting until there is no more room.
    Fill {
        on: Id,
    },
    /// Reads what is there.
    Drain {
        from: Id,
    },
    Shutdown {
        of: Id,
    },
    /// To the actor of that name in the same network namespace, by SCM_RIGHTS.
    Give {
        what: Id,
        to: String,
    },
    Take,
    /// A child of that name, which shares the socket.
    Fork {
        comm: String,
        socket: Id,
    },
    /// Has a child carry out an order, and gives its answer.
    Child {
        which: Id,
        order: Box<Order>,
    },
}

#[derive(Debug, Serialize, Deserialize)]
enum Answer {
    Done,
    Sockets(Vec<(Id, Flow)>),
    Child(Id, Who),
    /// This kernel cannot do it.
    Cannot(String),
    Failed(String),
}

/// A process that does what it is told; it ends when dropped.
pub struct Actor {
    process: Process,
    pub who: Who,
}

/// A child of an actor, in its parent's list.
pub struct Forked {
    id: Id,
    pub who: Who,
}

impl Actor {
    pub fn new(ns: &Netns, comm: &str) -> Result<Actor> {
        let command = again(ARGUMENT, &[comm])?;
        let mut process = ns.enter(|| Process::start(comm, command))?;
        let who = serde_json::from_str(&process.line()?).with_context(|| format!("{comm} did not say who it is"))?;
        Ok(Actor { process, who })
    }

    fn tell(&mut self, order: &Order) -> Result<()> {
        self.process.tell(&serde_json::to_string(order)?)
    }

    fn answer(&mut self, order: &Order) -> Result<Answer> {
        let line = self.process.line()?;
        match serde_json::from_str(&line).with_context(|| format!("{:?} said {line}", self.who))? {
            Answer::Failed(why) => bail!("{:?} was to {order:?}: {why}", self.who),
            answer => Ok(answer),
        }
    }

    fn order(&mut self, order: &Order) -> Result<Answer> {
        self.tell(order)?;
        self.answer(order)
    }

    fn done(&mut self, order: &Order) -> Result<()> {
        match self.order(order)? {
            Answer::Done => Ok(()),
            other => bail!("{order:?}: {other:?}"),
        }
    }

    fn sockets(&mut self, order: &Order) -> Result<Vec<(Id, Flow)>> {
        match self.order(order)? {
            Answer::Sockets(sockets) => Ok(sockets),
            other => bail!("{order:?}: {other:?}"),
        }
    }

    fn socket(&mut self, order: &Order) -> Result<(Id, Flow)> {
        let sockets = self.sockets(order)?;
        sockets.first().copied().with_context(|| format!("{order:?}: no socket"))
    }

    pub fn listen(&mut self, on: SocketAddr) -> Result<(Id, SocketAddr)> {
        let (id, flow) = self.socket(&Order::Listen { on, protocol: Protocols::Tcp, shared: false })?;
        Ok((id, flow.local))
    }

    /// One of several that listen there.
    pub fn listen_shared(&mut self, on: SocketAddr) -> Result<(Id, SocketAddr)> {
        let (id, flow) = self.socket(&Order::Listen { on, protocol: Protocols::Tcp, shared: true })?;
        Ok((id, flow.local))
    }

    /// An error that says so where the kernel has no MPTCP.
    pub fn listen_mptcp(&mut self, on: SocketAddr) -> Result<Result<(Id, SocketAddr), String>> {
        match self.order(&Order::Listen { on, protocol: Protocols::Mptcp, shared: false })? {
            Answer::Sockets(sockets) if sockets.len() == 1 => Ok(Ok((sockets[0].0, sockets[0].1.local))),
            Answer::Cannot(why) => Ok(Err(why)),
            other => bail!("{other:?}"),
        }
    }

    pub fn connect(&mut self, to: SocketAddr, protocol: Protocols) -> Result<(Id, Flow)> {
        self.socket(&Order::Connect { to, protocol, wait: true })
    }

    /// Asks for a connection and does not wait for it.
    pub fn ask(&mut self, to: SocketAddr) -> Result<(Id, Flow)> {
        self.socket(&Order::Connect { to, protocol: Protocols::Tcp, wait: false })
    }

    /// The same by MPTCP.
    pub fn ask_mptcp(&mut self, to: SocketAddr) -> Result<(Id, Flow)> {
        self.socket(&Order::Connect { to, protocol: Protocols::Mptcp, wait: false })
    }

    pub fn accept(&mut self, listener: Id) -> Result<(Id, Flow)> {
        self.socket(&Order::Accept { listener, wait: true })
    }

    /// Takes what is waiting to be accepted.
    pub fn accept_waiting(&mut self, listener: Id) -> Result<Vec<(Id, Flow)>> {
        self.sockets(&Order::Accept { listener, wait: false })
    }

    /// Begins to wait for a connection; [`Actor::accepted`] says which it got.
    pub fn begin_accept(&mut self, listener: Id) -> Result<()> {
        self.tell(&Order::Accept { listener, wait: true })
    }

    pub fn accepted(&mut self, listener: Id) -> Result<(Id, Flow)> {
        let Answer::Sockets(sockets) = self.answer(&Order::Accept { listener, wait: true })? else {
            bail!("accept() gave no socket")
        };
        sockets.first().copied().context("accept() gave no socket")
    }

    /// An error that says so where the kernel does not know the way.
    pub fn send_by(&mut self, on: Id, way: Way) -> Result<Result<(), String>> {
        match self.order(&Order::Send { on, way })? {
            Answer::Done => Ok(Ok(())),
            Answer::Cannot(why) => Ok(Err(why)),
            other => bail!("{way:?}: {other:?}"),
        }
    }

    /// By kTLS; an error that says so where the kernel does not know it.
    pub fn fill(&mut self, on: Id) -> Result<Result<(), String>> {
        match self.order(&Order::Fill { on })? {
            Answer::Done => Ok(Ok(())),
            Answer::Cannot(why) => Ok(Err(why)),
            other => bail!("{other:?}"),
        }
    }

    pub fn drain(&mut self, from: Id) -> Result<()> {
        self.done(&Order::Drain { from })
    }

    pub fn send(&mut self, on: Id) -> Result<()> {
        self.done(&Order::Send { on, way: Way::Send })
    }

    /// Sends FIN, by shutdown().
    pub fn shutdown(&mut self, of: Id) -> Result<()> {
        self.done(&Order::Shutdown { of })
    }

    /// Both are in the same network namespace; the giver keeps the socket open.
    pub fn give(&mut self, what: Id, to: &mut Actor) -> Result<Id> {
        self.done(&Order::Give { what, to: to.who.comm.clone() })?;
        Ok(to.socket(&Order::Take)?.0)
    }

    pub fn fork(&mut self, comm: &str, socket: Id) -> Result<Forked> {
        match self.order(&Order::Fork { comm: comm.into(), socket })? {
            Answer::Child(id, who) => Ok(Forked { id, who }),
            other => bail!("fork: {other:?}"),
        }
    }

    pub fn child_sends(&mut self, child: &Forked) -> Result<()> {
        self.done(&child.order(Order::Send { on: 0, way: Way::Send }))
    }

    /// The child accepts on the listener that it shares.
    pub fn child_accepts(&mut self, child: &Forked) -> Result<(Id, Flow)> {
        self.socket(&child.order(Order::Accept { listener: 0, wait: true }))
    }

    pub fn child_shuts_down(&mut self, child: &Forked, of: Id) -> Result<()> {
        self.done(&child.order(Order::Shutdown { of }))
    }

    pub fn child_gives(&mut self, child: &Forked, what: Id, to: &mut Actor) -> Result<Id> {
        self.done(&child.order(Order::Give { what, to: to.who.comm.clone() }))?;
        Ok(to.socket(&Order::Take)?.0)
    }
}

impl Forked {
    fn order(&self, order: Order) -> Order {
        Order::Child { which: self.id, order: Box::new(order) }
    }
}

// ---- from here on: inside the actor ----

/// `args`: what follows [`ARGUMENT`].
pub fn main(args: &[String]) -> ExitCode {
    end(act(args))
}

/// A socket that came by SCM_RIGHTS is only a number: to own it takes unsafe code.
enum Held {
    Own(OwnedFd),
    Number(RawFd),
}

impl Held {
    fn number(&self) -> RawFd {
        match self {
            Held::Own(fd) => fd.as_raw_fd(),
            Held::Number(number) => *number,
        }
    }

    fn own(&self) -> Result<&OwnedFd> {
        match self {
            Held::Own(fd) => Ok(fd),
            Held::Number(_) => bail!("not for a socket that was handed over"),
        }
    }
}

struct Forkling {
    _child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

struct Stage {
    sockets: Vec<Held>,
    children: Vec<Forkling>,
    mailbox: UnixDatagram,
}

fn act(args: &[String]) -> Result<()> {
    let comm = args.first().context("an actor without a name")?;
    take_name(comm)?;
    let address = UnixAddress::from_abstract_name(mailbox_of(comm))?;
    let mailbox = UnixDatagram::bind_addr(&address).context("making its mailbox")?;
    let mut stage = Stage { sockets: vec![], children: vec![], mailbox };
    if args.get(1).is_some_and(|arg| arg == INHERITS) {
        stage.sockets.push(Held::Own(std::io::stderr().as_fd().try_clone_to_owned()?));
    }
    println!("{}", serde_json::to_string(&Who { pid: std::process::id(), comm: comm.clone() })?);
    for line in std::io::stdin().lines() {
        let answer = serde_json::from_str(&line?).context("reading the order").and_then(|order| stage.obey(order));
        let answer = answer.unwrap_or_else(|error| Answer::Failed(format!("{error:#}")));
        println!("{}", serde_json::to_string(&answer)?);
    }
    Ok(())
}

/// Abstract names belong to the network namespace.
fn mailbox_of(comm: &str) -> Vec<u8> {
    format!("xctl-actor-{comm}").into_bytes()
}

impl Stage {
    fn obey(&mut self, order: Order) -> Result<Answer> {
        match order {
            Order::Listen { on, protocol, shared } => self.listen(on, protocol, shared),
            Order::Connect { to, protocol, wait } => self.connect(to, protocol, wait),
            Order::Accept { listener, wait } => self.accept(listener, wait),
            Order::Send { on, way } => self.send(on, way),
            Order::Fill { on } => self.fill(on),
            Order::Drain { from } => {
                let mut buffer = vec![0; 1 << 16];
                let socket = self.held(from)?.number();
                until_blocked(|| recv(socket, &mut buffer, MsgFlags::MSG_DONTWAIT))
            }
            Order::Shutdown { of } => {
                shutdown(self.held(of)?.number(), Shutdown::Write).context("shutdown()")?;
                Ok(Answer::Done)
            }
            Order::Give { what, to } => {
                let fds = [self.held(what)?.number()];
                let message = [ControlMessage::ScmRights(&fds)];
                let to = UnixAddr::new_abstract(&mailbox_of(&to))?;
                sendmsg(self.mailbox.as_raw_fd(), &[IoSlice::new(b"x")], &message, MsgFlags::empty(), Some(&to))?;
                Ok(Answer::Done)
            }
            Order::Take => self.take(),
            Order::Fork { comm, socket } => self.fork(&comm, socket),
            Order::Child { which, order } => {
                let child = self.children.get_mut(which).context("no such child")?;
                writeln!(child.input, "{}", serde_json::to_string(&order)?)?;
                child.answer()
            }
        }
    }

    fn held(&self, id: Id) -> Result<&Held> {
        self.sockets.get(id).with_context(|| format!("no socket {id}"))
    }

    fn keep(&mut self, socket: Held) -> Result<(Id, Flow)> {
        let local: SockaddrStorage = getsockname(socket.number())?;
        let local = address(&local)?;
        // a listener has no peer
        let remote = match getpeername::<SockaddrStorage>(socket.number()) {
            Ok(remote) => address(&remote)?,
            Err(_) => local,
        };
        self.sockets.push(socket);
        Ok((self.sockets.len() - 1, Flow { local, remote }))
    }

    fn listen(&mut self, on: SocketAddr, protocol: Protocols, shared: bool) -> Result<Answer> {
        let Some(socket) = open(on, protocol)? else { return Ok(Answer::Cannot("this kernel has no MPTCP".into())) };
        if shared {
            setsockopt(&socket, sockopt::ReusePort, &true)?;
        }
        socket.bind(&on.into()).with_context(|| format!("binding to {on}"))?;
        socket.listen(64).with_context(|| format!("listening on {on}"))?;
        Ok(Answer::Sockets(vec![self.keep(Held::Own(socket.into()))?]))
    }

    fn connect(&mut self, to: SocketAddr, protocol: Protocols, wait: bool) -> Result<Answer> {
        let Some(socket) = open(to, protocol)? else { return Ok(Answer::Cannot("this kernel has no MPTCP".into())) };
        socket.set_nonblocking(!wait)?;
        match socket.connect(&to.into()) {
            Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) && !wait => {}
            other => other.with_context(|| format!("connecting to {to}"))?,
        }
        let (id, flow) = self.keep(Held::Own(socket.into()))?;
        // a socket that still waits for its connection has no peer either
        Ok(Answer::Sockets(vec![(id, Flow { remote: to, ..flow })]))
    }

    fn accept(&mut self, listener: Id, wait: bool) -> Result<Answer> {
        let listener = TcpListener::from(self.held(listener)?.own()?.try_clone()?);
        let mut accepted = vec![];
        if wait {
            accepted.push(self.keep(Held::Own(listener.accept().context("accept()")?.0.into()))?);
        } else {
            listener.set_nonblocking(true)?;
            loop {
                match listener.accept() {
                    Ok((socket, _)) => accepted.push(self.keep(Held::Own(socket.into()))?),
                    Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => break,
                    Err(error) => return Err(error).context("accept()"),
                }
            }
            listener.set_nonblocking(false)?;
        }
        Ok(Answer::Sockets(accepted))
    }

    fn send(&mut self, on: Id, way: Way) -> Result<Answer> {
        let socket = self.held(on)?;
        let data = [b'x'; BYTES];
        let moved = match way {
            Way::Send => send(socket.number(), &data, MsgFlags::empty()).context("send()")?,
            Way::Sendfile => {
                let file = File::open("/proc/self/exe")?;
                sendfile(socket.own()?, &file, None, BYTES).context("sendfile()")?
            }
            Way::Splice => {
                let (end, start) = pipe()?;
                File::from(start).write_all(&data)?;
                splice(&end, None, socket.own()?, None, BYTES, SpliceFFlags::empty()).context("splice()")?
            }
            Way::Ktls => {
                if let Err(why) = encrypt(socket.own()?) {
                    return Ok(Answer::Cannot(why));
                }
                send(socket.number(), &data, MsgFlags::empty()).context("send() with kTLS")?
            }
        };
        ensure!(moved == BYTES, "{way:?} moved {moved} bytes");
        Ok(Answer::Done)
    }

    fn fill(&mut self, on: Id) -> Result<Answer> {
        let socket = self.held(on)?.own()?;
        if let Err(why) = encrypt(socket) {
            return Ok(Answer::Cannot(why));
        }
        let data = vec![b'x'; 1 << 14];
        until_blocked(|| send(socket.as_raw_fd(), &data, MsgFlags::MSG_DONTWAIT))
    }

    fn take(&mut self) -> Result<Answer> {
        let mut byte = [0];
        let mut buffer = [IoSliceMut::new(&mut byte)];
        let mut space = nix::cmsg_space!(RawFd);
        let number = {
            let message =
                recvmsg::<()>(self.mailbox.as_raw_fd(), &mut buffer, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC)?;
            message.cmsgs()?.find_map(|part| match part {
                ControlMessageOwned::ScmRights(fds) => fds.first().copied(),
                _ => None,
            })
        };
        Ok(Answer::Sockets(vec![self.keep(Held::Number(number.context("a message without a socket")?))?]))
    }

    fn fork(&mut self, comm: &str, socket: Id) -> Result<Answer> {
        let mut command = again(ARGUMENT, &[comm, INHERITS])?;
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        command.stderr(self.held(socket)?.own()?.try_clone()?);
        let mut child = command.spawn().with_context(|| format!("starting {comm}"))?;
        let input = child.stdin.take().context("no pipe for its input")?;
        let output = BufReader::new(child.stdout.take().context("no pipe for its output")?);
        let mut child = Forkling { _child: child, input, output };
        let who = serde_json::from_str(&child.line()?).with_context(|| format!("{comm} did not say who it is"))?;
        self.children.push(child);
        Ok(Answer::Child(self.children.len() - 1, who))
    }
}

impl Forkling {
    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        ensure!(self.output.read_line(&mut line)? > 0, "the child has ended");
        Ok(line)
    }

    fn answer(&mut self) -> Result<Answer> {
        let line = self.line()?;
        serde_json::from_str(&line).with_context(|| format!("the child said {line}"))
    }
}

/// None where the kernel has no such protocol.
pub fn open(address: SocketAddr, protocol: Protocols) -> Result<Option<Socket>> {
    let number = match protocol {
        Protocols::Tcp => Protocol::TCP,
        Protocols::Mptcp => Protocol::MPTCP,
    };
    match Socket::new(Domain::for_address(address), Type::STREAM, Some(number)) {
        Ok(socket) => Ok(Some(socket)),
        Err(error)
            if protocol == Protocols::Mptcp
                && [libc::EPROTONOSUPPORT, libc::EINVAL, libc::ENOPROTOOPT]
                    .contains(&error.raw_os_error().unwrap_or(0)) =>
        {
            Ok(None)
        }
        Err(error) => Err(error).context("making a socket"),
    }
}

/// Does it again until it would have to wait.
fn until_blocked(mut call: impl FnMut() -> Result<usize, Errno>) -> Result<Answer> {
    loop {
        match call() {
            Ok(0) => bail!("the connection has ended"),
            Ok(_) => {}
            Err(Errno::EAGAIN) => return Ok(Answer::Done),
            Err(error) => return Err(error.into()),
        }
    }
}

/// From now on the kernel encrypts what is sent; nobody will want to read it. An error that says why it cannot.
fn encrypt(socket: &OwnedFd) -> Result<(), String> {
    let cannot = |error| format!("this kernel has no kTLS ({error})");
    setsockopt(socket, sockopt::TcpUlp::default(), b"tls").map_err(cannot)?;
    let info = libc::tls12_crypto_info_aes_gcm_128 {
        info: libc::tls_crypto_info { version: libc::TLS_1_2_VERSION, cipher_type: libc::TLS_CIPHER_AES_GCM_128 },
        iv: [1; libc::TLS_CIPHER_AES_GCM_128_IV_SIZE],
        key: [2; libc::TLS_CIPHER_AES_GCM_128_KEY_SIZE],
        salt: [3; libc::TLS_CIPHER_AES_GCM_128_SALT_SIZE],
        rec_seq: [0; libc::TLS_CIPHER_AES_GCM_128_REC_SEQ_SIZE],
    };
    setsockopt(socket, sockopt::TcpTlsTx, &sockopt::TlsCryptoInfo::Aes128Gcm(info)).map_err(cannot)
}

fn address(from: &SockaddrStorage) -> Result<SocketAddr> {
    let v4 = from.as_sockaddr_in().map(|v4| SocketAddr::from((v4.ip(), v4.port())));
    let v6 = || from.as_sockaddr_in6().map(|v6| SocketAddr::from((v6.ip(), v6.port())));
    v4.or_else(v6).context("not an address of IP")
}
