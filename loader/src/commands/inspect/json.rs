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
    /// Where the last relocation was: most are in the same program, whose name may be long.
    place: Option<Place>,
    /// Where text is made that is to be kept.
    scratch: Gathered<'static>,
}

/// A program and its section, and both as members of a JSON object.
struct Place {
    program: Option<String>,
    section: String,
    json: String,
}

impl<'w> Json<'w> {
    /// To this writer.
    pub(super) fn new(out: &'w mut dyn Write) -> Self {
        Json { out: Gathered::new(out), first: true, place: None, scratch: Gathered::kept() }
    }

    /// The members of an object, without its braces.
    fn members(&mut self, what: &impl Serialize) -> Result<String> {
        serde_json::to_writer(&mut self.scratch, what)?;
        self.scratch.take_back(b'}');
        let mut text = self.scratch.take();
        text.drain(..1);
        Ok(text)
    }

    /// Sees to it that `place` is that of the relocation.
    fn be_at(&mut self, record: &Record<'_, '_>) -> Result<()> {
        #[derive(Serialize)]
        struct Names<'r> {
            program: Option<&'r str>,
            section: &'r str,
        }
        let Record { program, section, .. } = *record;
        let is_same = |place: &Place| (place.program.as_deref(), place.section.as_str()) == (program, section);
        if !self.place.as_ref().is_some_and(is_same) {
            let json = self.members(&Names { program, section })?;
            self.place = Some(Place { program: program.map(str::to_owned), section: section.to_owned(), json });
        }
        Ok(())
    }
}

impl Report for Json<'_> {
    fn head(&mut self, head: &Head<'_>) -> Result<()> {
        serde_json::to_writer(&mut self.out, head)?;
        self.out.take_back(b'}');
        self.out.put(",\"relocations\":[");
        self.out.check().context("writing the report")
    }

    fn relocation(&mut self, record: &Record<'_, '_>) -> Result<()> {
        let members = self.members(record)?;
        self.be_at(record)?;
        let Json { out, first, place, scratch } = self;
        let place = place.as_ref().map_or("", |place| &place.json);
        let [about, before, after] =
            [record.about.json(scratch)?, record.before.json(scratch)?, record.after.json(scratch)?];
        out.put(if std::mem::take(first) { "{" } else { ",{" }).put(place).put(",").put(&members);
        out.put(",\"before\":").put(before).put(",\"after\":").put(after);
        out.put(",").put(about.strip_prefix('{').unwrap_or(about));
        out.check().context("writing the report")
    }

    fn verdict(&mut self, verdict: &Verdict) -> Result<()> {
        let members = self.members(verdict)?;
        self.out.put("],").put(&members).put("}\n");
        self.out.flush().context("writing the report")
    }
}
