//! The report as one JSON document, written as it becomes known: an object may have more relocations than memory should hold.

use std::io::Write;

use anyhow::{Context, Result};
use serde::Serialize;

use super::gathered::Gathered;
use super::view::Record;
use super::{Head, Report, Verdict};

/// For programs.
pub(super) struct Json<'w> {
    out: Gathered<'w>,
    first: bool,
    /// Where text is made that is to be kept.
    scratch: Gathered<'static>,
}

impl<'w> Json<'w> {
    /// To this writer.
    pub(super) fn new(out: &'w mut dyn Write) -> Self {
        Json { out: Gathered::new(out), first: true, scratch: Gathered::kept() }
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
        let scratch = &mut self.scratch;
        let [about, before, after] =
            [record.about.json(scratch)?, record.before.json(scratch)?, record.after.json(scratch)?];
        let about = about.strip_prefix('{').unwrap_or(about);
        self.out.put(if std::mem::take(&mut self.first) { "" } else { "," });
        self.open(record)?;
        self.out.put(",\"before\":").put(before).put(",\"after\":").put(after);
        self.out.put(",").put(about);
        self.out.check().context("writing the report")
    }

    fn verdict(&mut self, verdict: &Verdict) -> Result<()> {
        serde_json::to_writer(&mut self.scratch, verdict)?;
        let text = self.scratch.take();
        self.out.put("],").put(text.strip_prefix('{').unwrap_or(&text)).put("\n");
        self.out.flush().context("writing the report")
    }
}
