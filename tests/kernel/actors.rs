//! Processes that make sockets, hand sockets on and send on them, one order at a time.
//!
//! An actor is another process of this executable. It reads an order (a line of JSON), carries the order out, and answers
//! with another line. The answer comes after the system call has returned, so the test sees the effect of the order.

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
    Backlog, ControlMessage, ControlMessageOwned, MsgFlags, Shutdown, SockaddrStorage, UnixAddr, getpeername,
    getsockname, recv, recvmsg, send, sendmsg, setsockopt, shutdown, sockopt,
};
use nix::unistd::pipe;
use serde::{Deserialize, Serialize};
use socket2::{Domain, Protocol, Socket, Type};

use crate::link::Netns;
use crate::process::{Process, again, end};
use crate::workers::{Flow, Who, take_name};

/// The hidden first argument that makes an actor of this executable. The second argument is the actor's name.
pub const ARGUMENT: &str = "actor";
/// The third argument of a child: standard error is a socket that the parent shares, and becomes the actor's socket 0.
const INHERITS: &str = "inherits";

/// The number of bytes of one send.
const BYTES: usize = 1000;

/// An actor's own number for one of its sockets.
pub type Id = usize;

/// How bytes get into a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Way {
    Send,
    Sendfile,
    Splice,
    /// send() after the kernel got a TLS key.
    Ktls,
}

/// A socket's protocol.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Protocols {
    Tcp,
    Mptcp,
    /// SMC, over a socket of AF_SMC.
    Smc,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
enum Order {
    /// `shared`: the listener has SO_REUSEPORT.
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
    /// `wait`: accept() blocks until there is a connection. Otherwise the actor accepts all connections that are in the
    /// queue.
    Accept {
        listener: Id,
        wait: bool,
    },
    Send {
        on: Id,
        way: Way,
    },
    /// Gives the kernel a TLS key, and sends without blocking until the buffer has no more room.
    Fill {
        on: Id,
    },
    /// Reads all data that are there.
    Drain {
        from: Id,
    },
    Shutdown {
        of: Id,
    },
    /// Sends the socket to the actor of that name in the same network namespace, by SCM_RIGHTS.
    Give {
        what: Id,
        to: String,
    },
    Take,
    /// Closes the mailbox, and thereby each unread socket in it.
    CloseMailbox,
    /// Leaves the socket in a message between two unix sockets that keep each other alive. No process has these two open.
    Strand {
        what: Id,
    },
    /// Makes a unix socket and closes it.
    OpenAndClose,
    /// Calls listen() on a socket that already listens.
    ListenAgain {
        on: Id,
    },
    /// Forks a child of that name, which shares the socket.
    Fork {
        comm: String,
        socket: Id,
    },
    /// Makes a child carry out an order, and returns the child's answer.
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
    /// This kernel cannot carry out the order.
    Cannot(String),
    Failed(String),
}

/// A process that carries out orders. It ends when dropped.
pub struct Actor {
    process: Process,
    pub who: Who,
}

/// A child of an actor, by its index in its parent's list.
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
        self.attempt(order)?.map_err(anyhow::Error::msg)
    }

    /// The inner error says that the kernel cannot carry out the order.
    fn attempt(&mut self, order: &Order) -> Result<Result<(), String>> {
        match self.order(order)? {
            Answer::Done => Ok(Ok(())),
            Answer::Cannot(why) => Ok(Err(why)),
            other => bail!("{order:?}: {other:?}"),
        }
    }

    fn sockets(&mut self, order: &Order) -> Result<Vec<(Id, Flow)>> {
        self.attempt_sockets(order)?.map_err(anyhow::Error::msg)
    }

    /// Like [`Actor::attempt`], for an order that makes sockets.
    fn attempt_sockets(&mut self, order: &Order) -> Result<Result<Vec<(Id, Flow)>, String>> {
        match self.order(order)? {
            Answer::Sockets(sockets) if !sockets.is_empty() || matches!(order, Order::Accept { wait: false, .. }) => {
                Ok(Ok(sockets))
            }
            Answer::Cannot(why) => Ok(Err(why)),
            other => bail!("{order:?}: {other:?}"),
        }
    }

    fn socket(&mut self, order: &Order) -> Result<(Id, Flow)> {
        Ok(self.sockets(order)?[0])
    }

    pub fn listen(&mut self, on: SocketAddr) -> Result<(Id, SocketAddr)> {
        let (id, flow) = self.socket(&Order::Listen { on, protocol: Protocols::Tcp, shared: false })?;
        Ok((id, flow.local))
    }

    /// Opens one of several listeners on that address.
    pub fn listen_shared(&mut self, on: SocketAddr) -> Result<(Id, SocketAddr)> {
        let (id, flow) = self.socket(&Order::Listen { on, protocol: Protocols::Tcp, shared: true })?;
        Ok((id, flow.local))
    }

    /// The inner error says that the kernel has no MPTCP.
    pub fn listen_mptcp(&mut self, on: SocketAddr) -> Result<Result<(Id, SocketAddr), String>> {
        let made = self.attempt_sockets(&Order::Listen { on, protocol: Protocols::Mptcp, shared: false })?;
        Ok(made.map(|sockets| (sockets[0].0, sockets[0].1.local)))
    }

    pub fn connect(&mut self, to: SocketAddr, protocol: Protocols) -> Result<(Id, Flow)> {
        self.socket(&Order::Connect { to, protocol, wait: true })
    }

    /// Connects by SMC. The inner error says that the kernel has no SMC.
    pub fn connect_smc(&mut self, to: SocketAddr) -> Result<Result<(Id, Flow), String>> {
        let made = self.attempt_sockets(&Order::Connect { to, protocol: Protocols::Smc, wait: true })?;
        Ok(made.map(|sockets| sockets[0]))
    }

    /// Starts to connect and does not wait for the connection.
    pub fn ask(&mut self, to: SocketAddr) -> Result<(Id, Flow)> {
        self.socket(&Order::Connect { to, protocol: Protocols::Tcp, wait: false })
    }

    /// Like [`Actor::ask`], by MPTCP.
    pub fn ask_mptcp(&mut self, to: SocketAddr) -> Result<(Id, Flow)> {
        self.socket(&Order::Connect { to, protocol: Protocols::Mptcp, wait: false })
    }

    pub fn accept(&mut self, listener: Id) -> Result<(Id, Flow)> {
        self.socket(&Order::Accept { listener, wait: true })
    }

    /// Accepts the connections that are in the queue.
    pub fn accept_waiting(&mut self, listener: Id) -> Result<Vec<(Id, Flow)>> {
        self.sockets(&Order::Accept { listener, wait: false })
    }

    /// Begins to wait for a connection; [`Actor::accepted`] returns the connection.
    pub fn begin_accept(&mut self, listener: Id) -> Result<()> {
        self.tell(&Order::Accept { listener, wait: true })
    }

    pub fn accepted(&mut self, listener: Id) -> Result<(Id, Flow)> {
        let Answer::Sockets(sockets) = self.answer(&Order::Accept { listener, wait: true })? else {
            bail!("accept() gave no socket")
        };
        sockets.first().copied().context("accept() gave no socket")
    }

    /// The inner error says that the kernel does not know the way.
    pub fn send_by(&mut self, on: Id, way: Way) -> Result<Result<(), String>> {
        self.attempt(&Order::Send { on, way })
    }

    /// Fills the buffer by kTLS. The inner error says that the kernel has no kTLS.
    pub fn fill(&mut self, on: Id) -> Result<Result<(), String>> {
        self.attempt(&Order::Fill { on })
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

    /// Gives a socket to an actor in the same network namespace. The giver keeps the socket open.
    pub fn give(&mut self, what: Id, to: &mut Actor) -> Result<Id> {
        self.done(&Order::Give { what, to: to.who.comm.clone() })?;
        Ok(to.socket(&Order::Take)?.0)
    }

    /// Puts the socket in the other actor's mailbox. The other actor does not read its mailbox.
    pub fn mail(&mut self, what: Id, to: &Actor) -> Result<()> {
        self.done(&Order::Give { what, to: to.who.comm.clone() })
    }

    /// Takes the first socket in the mailbox.
    pub fn take(&mut self) -> Result<(Id, Flow)> {
        self.socket(&Order::Take)
    }

    pub fn close_mailbox(&mut self) -> Result<()> {
        self.done(&Order::CloseMailbox)
    }

    /// Makes the socket unreachable for every process. The socket stays open until the kernel collects it.
    pub fn strand(&mut self, what: Id) -> Result<()> {
        self.done(&Order::Strand { what })
    }

    /// Makes the kernel collect stranded sockets: before 6.10 in this process, later in a worker.
    pub fn open_and_close(&mut self) -> Result<()> {
        self.done(&Order::OpenAndClose)
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

    pub fn child_listens_again(&mut self, child: &Forked) -> Result<()> {
        self.done(&child.order(Order::ListenAgain { on: 0 }))
    }

    /// The child accepts on the listener that it shares with its parent.
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

/// `args`: the arguments after [`ARGUMENT`].
pub fn main(args: &[String]) -> ExitCode {
    end(act(args))
}

/// A socket from SCM_RIGHTS is only a number here: unsafe code would be needed to own it.
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
    mailbox: Option<UnixDatagram>,
}

fn act(args: &[String]) -> Result<()> {
    let comm = args.first().context("an actor without a name")?;
    take_name(comm)?;
    let address = UnixAddress::from_abstract_name(mailbox_of(comm))?;
    let mailbox = UnixDatagram::bind_addr(&address).context("making its mailbox")?;
    let mut stage = Stage { sockets: vec![], children: vec![], mailbox: Some(mailbox) };
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

/// The mailbox has an abstract name, which belongs to the network namespace.
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
                sendmsg(self.mailbox()?, &[IoSlice::new(b"x")], &message, MsgFlags::empty(), Some(&to))?;
                Ok(Answer::Done)
            }
            Order::Take => self.take(),
            Order::CloseMailbox => {
                self.mailbox = None;
                Ok(Answer::Done)
            }
            Order::Strand { what } => {
                let (sends, receives) = UnixDatagram::pair()?;
                let fds = [self.held(what)?.number(), receives.as_raw_fd()];
                hand_over(&sends, &fds)?;
                // the receiver's own message keeps it alive, so closing the receiver collects nothing
                drop(sends);
                drop(receives);
                Ok(Answer::Done)
            }
            Order::OpenAndClose => {
                drop(UnixDatagram::unbound()?);
                Ok(Answer::Done)
            }
            Order::ListenAgain { on } => {
                nix::sys::socket::listen(self.held(on)?.own()?, Backlog::new(64)?).context("listen()")?;
                Ok(Answer::Done)
            }
            Order::Fork { comm, socket } => self.fork(&comm, socket),
            Order::Child { which, order } => {
                let child = self.children.get_mut(which).context("no such child")?;
                writeln!(child.input, "{}", serde_json::to_string(&order)?)?;
                child.answer()
            }
        }
    }

    fn mailbox(&self) -> Result<RawFd> {
        self.mailbox.as_ref().map(AsRawFd::as_raw_fd).context("its mailbox is closed")
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
        let Some(socket) = open(on, protocol)? else { return Ok(no(protocol)) };
        if shared {
            setsockopt(&socket, sockopt::ReusePort, &true)?;
        }
        socket.bind(&on.into()).with_context(|| format!("binding to {on}"))?;
        socket.listen(64).with_context(|| format!("listening on {on}"))?;
        Ok(Answer::Sockets(vec![self.keep(Held::Own(socket.into()))?]))
    }

    fn connect(&mut self, to: SocketAddr, protocol: Protocols, wait: bool) -> Result<Answer> {
        let Some(socket) = open(to, protocol)? else { return Ok(no(protocol)) };
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
            let message = recvmsg::<()>(self.mailbox()?, &mut buffer, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC)?;
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

/// Sends the descriptors in a message on this socket.
pub fn hand_over(on: &UnixDatagram, fds: &[RawFd]) -> Result<()> {
    let message = [ControlMessage::ScmRights(fds)];
    sendmsg::<()>(on.as_raw_fd(), &[IoSlice::new(b"x")], &message, MsgFlags::empty(), None)?;
    Ok(())
}

fn no(protocol: Protocols) -> Answer {
    Answer::Cannot(format!("this kernel has no {}", format!("{protocol:?}").to_uppercase()))
}

/// None if the kernel has no such protocol.
pub fn open(address: SocketAddr, protocol: Protocols) -> Result<Option<Socket>> {
    const AF_SMC: i32 = 43;
    const SMCPROTO_SMC: i32 = 0;
    const SMCPROTO_SMC6: i32 = 1;
    let domain = Domain::for_address(address);
    let (domain, number) = match protocol {
        Protocols::Tcp => (domain, Protocol::TCP),
        Protocols::Mptcp => (domain, Protocol::MPTCP),
        Protocols::Smc if domain == Domain::IPV4 => (Domain::from(AF_SMC), SMCPROTO_SMC.into()),
        Protocols::Smc => (Domain::from(AF_SMC), SMCPROTO_SMC6.into()),
    };
    match Socket::new(domain, Type::STREAM, Some(number)) {
        Ok(socket) => Ok(Some(socket)),
        Err(error)
            if protocol != Protocols::Tcp
                && [libc::EPROTONOSUPPORT, libc::EINVAL, libc::ENOPROTOOPT, libc::EAFNOSUPPORT]
                    .contains(&error.raw_os_error().unwrap_or(0)) =>
        {
            Ok(None)
        }
        Err(error) => Err(error).context("making a socket"),
    }
}

/// Repeats the call until it would block.
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

/// Makes the kernel encrypt all data sent from now on; nobody reads them. The error says why the kernel cannot.
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
