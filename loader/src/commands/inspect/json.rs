//! The report as one JSON document, written as it becomes known: an object may have more relocations than memory should hold.

use std::io::Write;

use anyhow::{Context, Result};
use serde::Serialize;

use super::gathered::Gathered;
use super::view::Record;
use super::{Head, Report, Verdict};

/// A JSON document of its own.
pub(super) fn json(value: &impl Serialize) -> Result<String> {
    let mut all = Gathered::kept();
    serde_json::to_writer(&mut all, value)?;
    Ok(all.into_text())
}

/// For programs.
pub(super) struct Json<'w> {
    out: Gathered<'w>,
    first: bool,
}

impl<'w> Json<'w> {
    /// To this writer.
    pub(super) fn new(out: &'w mut dyn Write) -> Self {
        Json { out: Gathered::new(out), first: true }
    }

    /// Writes an object, without the brace that closes it.
    fn open(&mut self, what: &impl Serialize) -> Result<()> {
        serde_json::to_writer(&mut self.out, what)?;
        self.out.take_back(b'}');
        Ok(())
    }
}

impl Report for Json<'_> {
    fn head(&mut self, head: &Head<'_>) -> Result<()> {
        self.open(head)?;
        self.out.put(",\"relocations\":[");
        self.out.check().context("writing the report")
    }

    fn relocation(&mut self, record: &Record<'_, '_>) -> Result<()> {
        let about = record.about.json()?;
        let about = about.strip_prefix('{').unwrap_or(about);
        self.out.put(if std::mem::take(&mut self.first) { "" } else { "," });
        self.open(record)?;
        self.out.put(",\"before\":").put(record.before.json()?).put(",\"after\":").put(record.after.json()?);
        self.out.put(",").put(about);
        self.out.check().context("writing the report")
    }

    fn verdict(&mut self, verdict: &Verdict) -> Result<()> {
        let text = json(verdict)?;
        self.out.put("],").put(text.strip_prefix('{').unwrap_or(&text)).put("\n");
        self.out.flush().context("writing the report")
    }
}
