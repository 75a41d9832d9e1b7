//! The report as one JSON document, written as it becomes known: an object may have more relocations than memory should hold.

use std::io::{self, Write};

use anyhow::{Context, Result};
use serde::Serialize;
use serde_json::Serializer;
use serde_json::ser::Formatter;

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

/// Leaves out the outermost braces.
#[derive(Default)]
struct Bare {
    depth: usize,
}

impl Formatter for Bare {
    fn begin_object<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.depth += 1;
        if self.depth > 1 { writer.write_all(b"{") } else { Ok(()) }
    }

    fn end_object<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.depth -= 1;
        if self.depth > 0 { writer.write_all(b"}") } else { Ok(()) }
    }
}

/// Adds the members of an object.
fn members(out: &mut Gathered<'_>, what: &impl Serialize) -> Result<()> {
    Ok(what.serialize(&mut Serializer::with_formatter(out, Bare::default()))?)
}

impl<'w> Json<'w> {
    /// To this writer.
    pub(super) fn new(out: &'w mut dyn Write) -> Self {
        Json { out: Gathered::new(out), first: true, place: None, scratch: Gathered::kept() }
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
            members(&mut self.scratch, &Names { program, section })?;
            let json = self.scratch.take();
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
        self.be_at(record)?;
        let Json { out, first, place, scratch } = self;
        let place = place.as_ref().map_or("", |place| &place.json);
        let [about, before, after] =
            [record.about.json(scratch)?, record.before.json(scratch)?, record.after.json(scratch)?];
        out.put(if std::mem::take(first) { "{" } else { ",{" }).put(place).put(",");
        members(out, record)?;
        out.put(",\"before\":").put(before).put(",\"after\":").put(after);
        out.put(",").put(about.strip_prefix('{').unwrap_or(about));
        out.check().context("writing the report")
    }

    fn written(&self) -> u64 {
        self.out.total()
    }

    fn verdict(&mut self, verdict: &Verdict) -> Result<()> {
        self.out.put("],");
        members(&mut self.out, verdict)?;
        self.out.put("}\n").flush().context("writing the report")
    }
}
