//! `--metrics` and `--metrics-file`: the figures of a run for Prometheus.

use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::ticks::Ticks;
use crate::cli::TraceOptions;
use crate::console::say;
use crate::kernel::cgroup::Paths;
use crate::kernel::server::Server;
use crate::ledger::epochs::Moving;
use crate::ledger::group::By;
use crate::ledger::owners::Owners;
use crate::ledger::summary::{ByProcess, Seen};
use crate::model::lost::Lost;
use crate::output::Interval;
use crate::output::metrics::{self, About, Request};
use crate::trace::accounts::Accounts;
use crate::trace::session::Running;

/// The time after which the sums are brought up to now, even if nobody asks.
const EVERY: Duration = Duration::from_secs(15);
/// A request within this time after the last sums gets these sums. So many clients cost no more than one.
const FRESH: Duration = Duration::from_secs(1);
/// The time between two looks at clients that have not sent or read everything. The filter of system calls lets nothing be
/// added to an epoll instance, so such clients do not wake xctl.
const LOOK: Duration = Duration::from_millis(5);
/// The time that a client has.
const PATIENCE: Duration = Duration::from_secs(5);
/// The most clients at a time, and the most that are let in at a time. A further one takes the place of the oldest.
const CLIENTS: usize = 128;

/// The state of `--metrics` and `--metrics-file`: the sums so far, the socket, the file and the clients.
pub struct Metrics {
    server: Option<Server>,
    file: Option<PathBuf>,
    /// Whether the last attempt to write the file failed, which is told once.
    failed: bool,
    ticks: Ticks,
    about: About,
    owners: Owners,
    cgroups: Paths,
    /// The sums as text; empty: nothing was read yet.
    text: String,
    /// The answer with the text, which all clients share.
    answer: Rc<[u8]>,
    /// The time of the last reading, or of the beginning.
    read_at: Instant,
    clients: VecDeque<Client>,
    /// More clients wait, or could not be let in.
    more: bool,
}

impl Metrics {
    /// Begin a run. None: the user asked for neither a socket nor a file.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn begin(options: &TraceOptions, server: Option<Server>, about: About) -> Result<Option<Self>> {
        let file = options.metrics_file.clone();
        if server.is_none() && file.is_none() {
            return Ok(None);
        }
        let new = Self {
            server,
            file,
            failed: false,
            ticks: Ticks::begin(EVERY, Seen::default(), By::Process, None)?,
            about,
            owners: Owners::new(options.metrics_owners),
            cgroups: Paths::begin(),
            text: String::new(),
            answer: Rc::from([]),
            read_at: Instant::now(),
            clients: VecDeque::new(),
            more: false,
        };
        if let Some(file) = &new.file {
            // A folder that does not take the file ends the run before it begins.
            write(file, metrics::text(&new.owners, &new.about, |_| None).as_bytes())?;
        }
        Ok(Some(new))
    }

    /// The listening socket.
    pub fn server(&self) -> Option<&Server> {
        self.server.as_ref()
    }

    /// The next time at which [`Metrics::go_on`] has work to do, even if no client comes.
    pub fn due(&self) -> Instant {
        let look = (self.more || !self.clients.is_empty()).then(|| Instant::now() + LOOK);
        look.into_iter().fold(self.read_at + EVERY, Instant::min)
    }

    /// Take in clients, read their requests, and answer them. Nothing here waits for a client. Returns whether the counters of
    /// connections were read: then connections that have ended may have come to light.
    ///
    /// # Errors
    /// If the kernel does not let us read what was counted.
    pub fn go_on(&mut self, running: &mut Running, moving: &mut Moving) -> Result<bool> {
        self.let_in();
        self.clients.iter_mut().for_each(Client::read);
        let asks = self.clients.iter().any(Client::asks_for_sums);
        let age = self.read_at.elapsed();
        let reads = (asks && (self.text.is_empty() || age >= FRESH)) || age >= EVERY;
        if reads {
            self.refresh(running, moving)?;
        }
        for client in &mut self.clients {
            client.answer(&self.answer, &self.text);
        }
        let now = Instant::now();
        self.clients.retain(|client| !client.done && now < client.end);
        Ok(reads)
    }

    /// Bring the sums up to now, and write the file.
    ///
    /// # Errors
    /// If the kernel does not let us read what was counted.
    pub fn refresh(&mut self, running: &mut Running, moving: &mut Moving) -> Result<()> {
        let interval = self.ticks.read(running, moving)?;
        self.add(&interval);
        Ok(())
    }

    /// Add the last part of the run, and write the file.
    ///
    /// # Errors
    /// If the clock cannot be read.
    pub fn end(&mut self, gain: &ByProcess, accounts: Option<&mut Accounts>, lost: Lost) -> Result<()> {
        let interval = self.ticks.end(gain, accounts, lost)?;
        self.add(&interval);
        Ok(())
    }

    fn add(&mut self, interval: &Interval) {
        self.owners.add(&interval.summary, interval.mono_ns);
        self.cgroups.forget();
        for process in &interval.summary.processes {
            if let (Some(cgroup), Some(pid)) = (process.cgroup, process.pid) {
                let _ = self.cgroups.of(cgroup, pid);
            }
        }
        self.text = metrics::text(&self.owners, &self.about, |cgroup| self.cgroups.known(cgroup));
        self.answer = metrics::answer(Request::Metrics, &self.text).into();
        self.read_at = Instant::now();
        self.save();
    }

    fn save(&mut self) {
        let Some(file) = &self.file else { return };
        let result = write(file, self.text.as_bytes());
        if let Err(error) = &result
            && !self.failed
        {
            say(format_args!("{error:#}: the file keeps its old figures until a later write succeeds"));
        }
        self.failed = result.is_err();
    }

    fn let_in(&mut self) {
        let Some(server) = &self.server else { return };
        self.more = false;
        for _ in 0..CLIENTS {
            match server.accept() {
                Ok(Some(file)) => {
                    if self.clients.len() == CLIENTS {
                        self.clients.pop_front();
                    }
                    self.clients.push_back(Client::new(file));
                }
                Ok(None) => return,
                // This host, or xctl, has too many open files, or too little memory. The client waits.
                Err(_) => break,
            }
        }
        self.more = true;
    }
}

/// Replace a file. A reader of the file sees the old content or the new content, never a part.
fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut new = path.as_os_str().to_owned();
    new.push(".new");
    let new = Path::new(&new);
    let replaced = || -> io::Result<()> {
        match fs::remove_file(new) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        // The filter of system calls lets xctl make new files, but does not let xctl open an existing file for writing.
        let mut file = OpenOptions::new().write(true).create_new(true).open(new)?;
        file.write_all(bytes).and_then(|()| fs::rename(new, path)).inspect_err(|_| _ = fs::remove_file(new))
    };
    replaced().with_context(|| format!("cannot write {} (--metrics-file)", path.display()))
}

/// A connection to a client.
struct Client {
    file: File,
    request: Vec<u8>,
    asks: Option<Request>,
    /// The answer, and how much of it was sent.
    answer: Option<(Rc<[u8]>, usize)>,
    done: bool,
    end: Instant,
}

impl Client {
    fn new(file: File) -> Self {
        Self { file, request: Vec::new(), asks: None, answer: None, done: false, end: Instant::now() + PATIENCE }
    }

    /// Whether it waits for the sums.
    fn asks_for_sums(&self) -> bool {
        self.answer.is_none() && matches!(self.asks, Some(Request::Metrics | Request::Head))
    }

    fn read(&mut self) {
        let mut room = [0; 1024];
        while self.asks.is_none() && !self.done {
            match self.file.read(&mut room) {
                // The client has gone, or says no more.
                Ok(0) => self.done = true,
                Ok(count) => {
                    self.request.extend_from_slice(&room[..count]);
                    self.asks = metrics::request(&self.request);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(_) => self.done = true,
            }
        }
    }

    /// Send as much of the answer as there is room for.
    fn answer(&mut self, metrics: &Rc<[u8]>, text: &str) {
        let Some(asks) = self.asks.filter(|_| !self.done) else { return };
        let (bytes, sent) = self.answer.get_or_insert_with(|| match asks {
            Request::Metrics => (Rc::clone(metrics), 0),
            other => (metrics::answer(other, text).into(), 0),
        });
        while *sent < bytes.len() {
            match self.file.write(&bytes[*sent..]) {
                Ok(count) => *sent += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(_) => break,
            }
        }
        // A connection that is closed with unread bytes ends by a reset, and the client may lose the answer.
        let mut room = [0; 1024];
        for _ in 0..64 {
            if !matches!(self.file.read(&mut room), Ok(1..)) {
                break;
            }
        }
        self.done = true;
    }
}
