//! The report as one JSON document. Relocations are written as they become known: the relocations of an object may not fit
//! into memory.

use std::io::{self, BufWriter, Write};

use anyhow::{Context, Result};
use serde::Serialize;

use super::view::Shown;
use super::{Head, Report, Summary, Verdict};
use crate::output::line::Line;

/// The report for programs.
pub(super) struct Json<'w> {
    out: BufWriter<&'w mut dyn Write>,
    /// The relocation that is being written.
    line: Line,
    first: bool,
}

impl<'w> Json<'w> {
    /// A report to this writer.
    pub(super) fn new(out: &'w mut dyn Write) -> Self {
        Json { out: BufWriter::new(out), line: Line::default(), first: true }
    }
}

/// A writer that leaves out the brace at the end of a document, so that other members can follow. Nothing of the document is
/// kept: its lists may be long.
struct Open<W> {
    out: W,
    /// The last byte that was written is a brace, and was not passed on yet.
    is_held: bool,
}

impl<W: Write> Write for Open<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let Some((last, before)) = bytes.split_last() else { return Ok(0) };
        if std::mem::replace(&mut self.is_held, *last == b'}') {
            self.out.write_all(b"}")?;
        }
        self.out.write_all(if self.is_held { before } else { bytes })?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// The members of the document that follow its relocations.
#[derive(Serialize)]
struct End<'e> {
    #[serde(flatten)]
    verdict: &'e Verdict,
    summary: Summary<'e>,
}

impl Report for Json<'_> {
    fn head(&mut self, head: &Head<'_>) -> Result<()> {
        serde_json::to_writer(Open { out: &mut self.out, is_held: false }, head).context("writing the report")?;
        write!(self.out, ",\"relocations\":[").context("writing the report")
    }

    fn relocation(&mut self, shown: &Shown<'_>) -> Result<()> {
        if !std::mem::take(&mut self.first) {
            self.out.write_all(b",").context("writing the report")?;
        }
        serde_json::to_writer(&mut self.line, shown).context("writing the report")?;
        self.out.write_all(self.line.take()).context("writing the report")
    }

    fn end(&mut self, head: &Head<'_>, verdict: &Verdict) -> Result<()> {
        let end = serde_json::to_string(&End { verdict, summary: Summary::of(&head.facts, verdict) })?;
        let members = end.strip_prefix('{').unwrap_or(&end);
        writeln!(self.out, "],{members}").context("writing the report")?;
        self.out.flush().context("writing the report")
    }
}
