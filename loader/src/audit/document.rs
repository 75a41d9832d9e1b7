//! The file of a record. Until the record is complete, the file is called `FILE.partial`. Only its owner may read it,
//! since it holds addresses of the kernel. A killed run leaves `FILE.partial` behind, with the calls up to that time.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result, anyhow, bail};
use serde::Serialize;

use super::decode::decode;
use crate::kernel::calendar::Calendar;
use crate::kernel::call::{Call, Known};
use crate::kernel::clock::realtime_ns;
use crate::kernel::host;

/// The version of the document's format.
const VERSION: u32 = 1;

/// The part of the document before the calls.
#[derive(Serialize)]
struct Head {
    schema: u32,
    #[serde(rename = "type")]
    kind: &'static str,
    version: &'static str,
    arguments: Vec<String>,
    time: String,
    kernel: String,
    machine: &'static str,
}

/// The part of the document after the calls, with the facts that the caller adds.
#[derive(Serialize)]
struct Tail<'f, F> {
    calls_total: u64,
    #[serde(flatten)]
    facts: &'f F,
}

#[derive(Debug)]
struct State {
    out: BufWriter<File>,
    calls: u64,
    /// The first error.
    error: Option<io::Error>,
}

impl State {
    fn write(&mut self, what: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>) {
        if self.error.is_none() {
            self.error = what(&mut self.out).err();
        }
    }
}

/// The destination of the calls.
#[derive(Clone, Debug)]
pub(super) struct Calls(Arc<Mutex<State>>);

impl Calls {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Write one more call.
    pub(super) fn add(&self, call: &Call, known: &Known) {
        let mut state = self.state();
        state.calls += 1;
        let call = decode(state.calls, call, known);
        let separator: &[u8] = if state.calls > 1 { b",\n" } else { b"\n" };
        state.write(|out| {
            out.write_all(separator)?;
            Ok(serde_json::to_writer(out, &call)?)
        });
    }
}

/// A document that is being written. The file is removed if the document is dropped unfinished.
#[derive(Debug)]
pub(super) struct Document {
    calls: Calls,
    path: PathBuf,
    /// The name until the end; none once the file has its final name.
    partial: Option<PathBuf>,
}

impl Drop for Document {
    fn drop(&mut self) {
        if let Some(partial) = &self.partial {
            let _ = fs::remove_file(partial);
        }
    }
}

/// Create the file that this run alone writes. It is locked as long as it is open, so that a second run does not take it for
/// a file that a killed run left behind.
fn create(partial: &Path) -> Result<File> {
    let taken = || anyhow!("another xctl is writing {}", partial.display());
    match OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(partial) {
        Ok(file) if !lock(&file)? => return Err(taken()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        // A file of anyone else must not be written to, and a link must not be followed.
        _ => fs::remove_file(partial)?,
    }
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(partial)?;
    let is_own = || Ok::<_, io::Error>(file.metadata()?.ino() == fs::symlink_metadata(partial)?.ino());
    if lock(&file)? && is_own().unwrap_or(false) { Ok(file) } else { Err(taken()) }
}

/// Lock the file. False if another process has locked it.
fn lock(file: &File) -> io::Result<bool> {
    match file.try_lock() {
        Ok(()) => Ok(true),
        Err(TryLockError::WouldBlock) => Ok(false),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

impl Document {
    /// Begin the document. The final name `path` is not touched yet: a file that is there stays.
    pub(super) fn begin(path: &Path) -> Result<Self> {
        let what = || format!("cannot write the record {}", path.display());
        match fs::symlink_metadata(path) {
            Ok(data) if !data.is_file() => {
                bail!("{}: the file exists and is not a regular file", what())
            }
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error).with_context(what),
            _ => {}
        }
        let Some(name) = path.file_name() else { bail!("{}: the path names no file", what()) };
        let mut name: OsString = name.to_owned();
        name.push(".partial");
        let partial = path.with_file_name(name);
        let file = create(&partial).with_context(what)?;
        let state = State { out: BufWriter::new(file), calls: 0, error: None };
        let document =
            Self { calls: Calls(Arc::new(Mutex::new(state))), path: path.to_owned(), partial: Some(partial) };
        let head = Head {
            schema: VERSION,
            kind: "record",
            version: env!("CARGO_PKG_VERSION"),
            arguments: std::env::args_os().map(|argument| argument.to_string_lossy().into_owned()).collect(),
            time: Calendar::default().rfc3339(realtime_ns()?).into(),
            kernel: host::release().unwrap_or_default(),
            machine: std::env::consts::ARCH,
        };
        let head = serde_json::to_string(&head)?;
        let head = head.strip_suffix('}').unwrap_or(&head);
        document.calls.state().write(|out| write!(out, "{head},\"calls\":["));
        Ok(document)
    }

    /// The destination of the calls.
    pub(super) fn calls(&self) -> Calls {
        self.calls.clone()
    }

    /// Write to the file all that is buffered so far.
    pub(super) fn flush(&self) {
        self.calls.state().write(Write::flush);
    }

    /// Add the rest, and give the file its final name.
    pub(super) fn finish(mut self, facts: &impl Serialize) -> Result<()> {
        let what = || format!("cannot write the record {}", self.path.display());
        let mut state = self.calls.state();
        let tail = serde_json::to_string(&Tail { calls_total: state.calls, facts })?;
        let tail = tail.strip_prefix('{').unwrap_or(&tail);
        state.write(|out| {
            writeln!(out, "\n],{tail}")?;
            out.flush()?;
            out.get_ref().sync_all()
        });
        if let Some(error) = state.error.take() {
            return Err(error).with_context(what);
        }
        drop(state);
        let Some(partial) = &self.partial else { return Ok(()) };
        fs::rename(partial, &self.path).map_err(|error| match error.kind() {
            // The process has another user by now.
            io::ErrorKind::PermissionDenied => {
                let remedy = "with --user, renaming the file takes CAP_DAC_OVERRIDE and CAP_FOWNER";
                anyhow!(error).context(format!("{}: {remedy}", what()))
            }
            _ => anyhow!(error).context(what()),
        })?;
        self.partial = None;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scratch(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("xctl-record-{}-{name}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        path
    }

    #[test]
    fn the_file_appears_when_complete_and_only_its_owner_may_read_it() {
        let folder = scratch("whole");
        let path = folder.join("record.json");
        fs::write(&path, "old").unwrap();
        fs::write(folder.join("record.json.partial"), "left behind").unwrap();
        let document = Document::begin(&path).unwrap();
        document.flush();
        assert_eq!(fs::read_to_string(&path).unwrap(), "old");
        document.finish(&serde_json::json!({ "more": 1 })).unwrap();
        let read: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        assert_eq!((&read["schema"], &read["more"], &read["calls_total"]), (&1.into(), &1.into(), &0.into()));
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 1);
        drop(Document::begin(&path).unwrap());
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 1, "an unfinished one is gone");
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn an_unwritable_file_is_refused_at_the_start() {
        let folder = scratch("not");
        for (path, why) in [
            (folder.clone(), "not a regular file"),
            (PathBuf::from("/dev/null"), "not a regular file"),
            (folder.join("none/record.json"), "No such file or directory"),
            (PathBuf::from("/"), "not a regular file"),
            (PathBuf::new(), "cannot write the record"),
        ] {
            let error = format!("{:#}", Document::begin(&path).unwrap_err());
            assert!(error.contains(why) && error.contains(&path.display().to_string()), "{error}");
        }
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn a_second_run_does_not_touch_the_file_of_the_first() {
        let folder = scratch("two");
        let path = folder.join("record.json");
        let first = Document::begin(&path).unwrap();
        let error = format!("{:#}", Document::begin(&path).unwrap_err());
        assert!(error.contains("another xctl is writing"), "{error}");
        first.finish(&serde_json::json!({ "of": "the first" })).unwrap();
        let read: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        assert_eq!(read["of"], "the first");
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn a_full_disk_is_an_error_and_leaves_nothing() {
        let folder = scratch("full");
        let document = Document::begin(&folder.join("record.json")).unwrap();
        document.calls.state().out = BufWriter::new(OpenOptions::new().write(true).open("/dev/full").unwrap());
        let error = document.finish(&serde_json::json!({})).unwrap_err();
        assert!(format!("{error:#}").contains("No space left"), "{error:#}");
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 0);
        fs::remove_dir_all(folder).unwrap();
    }
}
