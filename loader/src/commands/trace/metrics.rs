//! `--metrics` and `--metrics-file`: what Prometheus reads of a run.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::ticks::Ticks;
use crate::cli::TraceOptions;
use crate::console::say;
use crate::kernel::server::Server;
use crate::ledger::epochs::Moving;
use crate::ledger::owners::Owners;
use crate::ledger::summary::ByProcess;
use crate::model::lost::Lost;
use crate::output::metrics::{self, About, Request};
use crate::trace::accounts::Accounts;
use crate::trace::session::Running;

/// The time after which the sums are brought up to now, even if nobody asks, and written to the file.
const EVERY: Duration = Duration::from_secs(15);
/// The age up to which sums are told again, so that many clients cost no more than one.
const FRESH: Duration = Duration::from_secs(1);
/// The time between two looks at clients that have not sent or read everything. The filter of system calls lets nothing be
/// added to an epoll instance, so such clients do not wake xctl.
const LOOK: Duration = Duration::from_millis(5);
/// The time that a client has.
const PATIENCE: Duration = Duration::from_secs(5);
/// The most clients at a time. Further ones are turned away.
const CLIENTS: usize = 128;

/// The sums so far, and those who ask for them.
pub struct Metrics {
    server: Option<Server>,
    file: Option<PathBuf>,
    /// Whether the last attempt to write the file failed, which is told once.
    failed: bool,
    ticks: Ticks,
    about: About,
    owners: Owners,
    text: String,
    /// The answer with the text, which all clients share.
    answer: Rc<[u8]>,
    told_at: Option<Instant>,
    clients: Vec<Client>,
}

impl Metrics {
    /// Begin a run; none if nobody is to be told.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn begin(options: &TraceOptions, server: Option<Server>, about: About) -> Result<Option<Self>> {
        let file = options.metrics_file.clone();
        if server.is_none() && file.is_none() {
            return Ok(None);
        }
        let owners = Owners::new(options.metrics_owners);
        let ticks = Ticks::begin(EVERY)?;
        let (text, answer, clients) = (String::new(), Rc::from([]), Vec::new());
        let new = Self { server, file, failed: false, ticks, about, owners, text, answer, told_at: None, clients };
        if let Some(file) = &new.file {
            // The first write shows at once whether later ones can succeed.
            write(file, metrics::text(&new.owners, &new.about).as_bytes())?;
        }
        Ok(Some(new))
    }

    /// The listening socket.
    pub fn server(&self) -> Option<&Server> {
        self.server.as_ref()
    }

    /// The next time at which [`Metrics::go_on`] has work to do, even if no client comes.
    pub fn due(&self) -> Instant {
        let look = (!self.clients.is_empty()).then(|| Instant::now() + LOOK);
        look.into_iter().fold(self.ticks.due(), Instant::min)
    }

    /// Take in clients, read their requests, and answer them. Nothing here waits for a client.
    ///
    /// # Errors
    /// If the kernel does not let us read what was counted.
    pub fn go_on(&mut self, running: &mut Running, moving: &mut Moving) -> Result<()> {
        self.let_in()?;
        self.clients.iter_mut().for_each(Client::read);
        let asks = self.clients.iter().any(|client| client.asks == Some(Request::Metrics) && client.answer.is_none());
        let is_due = self.ticks.due() <= Instant::now();
        if is_due || (asks && self.told_at.is_none_or(|at| at.elapsed() >= FRESH)) {
            running.tick()?;
            let (gain, lost) = (moving.gain(&running.tables)?, running.lost()?);
            self.add(&gain, running.accounts.as_mut(), lost)?;
        }
        if is_due {
            self.save();
        }
        for client in &mut self.clients {
            client.answer(&self.answer, &self.text);
        }
        let now = Instant::now();
        self.clients.retain(|client| !client.done && now < client.end);
        Ok(())
    }

    /// Add the last part of the run, and write the file for the last time. The programs are detached.
    ///
    /// # Errors
    /// If the clock cannot be read.
    pub fn end(&mut self, gain: &ByProcess, accounts: Option<&mut Accounts>, lost: Lost) -> Result<()> {
        self.add(gain, accounts, lost)?;
        self.save();
        Ok(())
    }

    fn add(&mut self, gain: &ByProcess, accounts: Option<&mut Accounts>, lost: Lost) -> Result<()> {
        let interval = self.ticks.end(gain, accounts, lost)?;
        self.owners.add(&interval.summary, interval.mono_ns);
        self.text = metrics::text(&self.owners, &self.about);
        self.answer = metrics::answer(Request::Metrics, &self.text).into();
        self.told_at = Some(Instant::now());
        Ok(())
    }

    fn save(&mut self) {
        let Some(file) = &self.file else { return };
        let result = write(file, self.text.as_bytes());
        if let Err(error) = &result
            && !self.failed
        {
            say(format_args!("{error:#}: its figures grow old until it can be written again"));
        }
        self.failed = result.is_err();
    }

    fn let_in(&mut self) -> Result<()> {
        let Some(server) = &self.server else { return Ok(()) };
        loop {
            match server.accept() {
                Ok(Some(file)) if self.clients.len() < CLIENTS => self.clients.push(Client::new(file)),
                Ok(Some(_)) => {}
                Ok(None) => return Ok(()),
                // There is no descriptor left: those of the clients become free.
                Err(_) if !self.clients.is_empty() => self.clients.clear(),
                Err(error) => return Err(error).context("cannot let a client in (--metrics)"),
            }
        }
    }
}

/// Replace a file. Who reads it sees the old content or the new one, and never a part.
fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut new = path.as_os_str().to_owned();
    new.push(".new");
    let new = Path::new(&new);
    let replaced = || -> io::Result<()> {
        match fs::remove_file(new) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        // The filter of system calls lets xctl make files, and open none that exists for writing.
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
        self.done = true;
    }
}
