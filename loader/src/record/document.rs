//! The file of a record. Until it is whole it is called `FILE.partial`, readable by its owner only: it names addresses of the
//! kernel. A run that is killed leaves that behind, with the calls up to then.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result, anyhow, bail};
use serde::Serialize;

use super::decode::decode;
use crate::kernel::calendar::rfc3339;
use crate::kernel::calls::{Call, Known};
use crate::kernel::clock::realtime_ns;
use crate::kernel::host;

/// Version of the document.
const VERSION: u32 = 1;

/// What comes before the calls.
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

/// What comes after them, but for what the caller adds.
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
    /// The first thing that went wrong.
    error: Option<io::Error>,
}

impl State {
    fn write(&mut self, what: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>) {
        if self.error.is_none() {
            self.error = what(&mut self.out).err();
        }
    }
}

/// Where calls go.
#[derive(Clone, Debug)]
pub(super) struct Calls(Arc<Mutex<State>>);

impl Calls {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Write one more.
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

/// A document that is being written. Dropped unfinished, it is gone.
#[derive(Debug)]
pub(super) struct Document {
    calls: Calls,
    path: PathBuf,
    partial: PathBuf,
}

impl Drop for Document {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.partial);
    }
}

impl Document {
    /// Begin it; nothing is at `path` yet, or what was there stays.
    pub(super) fn begin(path: &Path) -> Result<Self> {
        let what = || format!("cannot write the record {}", path.display());
        match fs::symlink_metadata(path) {
            Ok(data) if !data.is_file() => {
                bail!("{}: it exists and is not a regular file", what())
            }
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error).with_context(what),
            _ => {}
        }
        let Some(name) = path.file_name() else { bail!("{}: it names no file", what()) };
        let mut name: OsString = name.to_owned();
        name.push(".partial");
        let partial = path.with_file_name(name);
        // What a killed run left behind; nobody else's file is opened.
        match fs::remove_file(&partial) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error).with_context(what),
            _ => {}
        }
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&partial).with_context(what)?;
        let state = State { out: BufWriter::new(file), calls: 0, error: None };
        let document = Self { calls: Calls(Arc::new(Mutex::new(state))), path: path.to_owned(), partial };
        let head = Head {
            schema: VERSION,
            kind: "record",
            version: env!("CARGO_PKG_VERSION"),
            arguments: std::env::args_os().map(|argument| argument.to_string_lossy().into_owned()).collect(),
            time: rfc3339(realtime_ns()?),
            kernel: host::release().unwrap_or_default(),
            machine: std::env::consts::ARCH,
        };
        let head = serde_json::to_string(&head)?;
        let head = head.strip_suffix('}').unwrap_or(&head);
        document.calls.state().write(|out| write!(out, "{head},\"calls\":["));
        Ok(document)
    }

    /// Where calls go.
    pub(super) fn calls(&self) -> Calls {
        self.calls.clone()
    }

    /// Let the file have what was written so far.
    pub(super) fn flush(&self) {
        self.calls.state().write(Write::flush);
    }

    /// Add the rest, and give the file its name.
    pub(super) fn finish(self, facts: &impl Serialize) -> Result<()> {
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
        fs::rename(&self.partial, &self.path).map_err(|error| match error.kind() {
            // Another user by now.
            io::ErrorKind::PermissionDenied => {
                let remedy = "with --user, to rename it takes CAP_DAC_OVERRIDE and CAP_FOWNER";
                anyhow!(error).context(format!("{}: {remedy}", what()))
            }
            _ => anyhow!(error).context(what()),
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::os::unix::fs::MetadataExt;

    use super::*;

    fn scratch(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("xctl-record-{}-{name}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        path
    }

    #[test]
    fn the_file_appears_when_it_is_whole_and_is_the_owners() {
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
    fn what_cannot_be_written_is_said_at_once() {
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
