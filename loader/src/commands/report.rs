//! `xctl report`: the summary and the ledger of runs, from the JSON lines that they printed. The command needs no privilege.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Error, Result, anyhow, bail};

use crate::kernel::terminal::columns;
use crate::ledger::saved::{Record, Sums};
use crate::ledger::summary::Summary;
use crate::ledger::timeline::Timeline;
use crate::output::text::{Text, result_of_verify};
use crate::output::{Output, svg};

/// The longest line that is read, in bytes. A summary with 1,024 rows has two million.
const LONGEST: u64 = 64 << 20;

/// Print the runs in each of these files; `-` is standard input.
///
/// # Errors
/// A file cannot be read, or a line in it is no record; the message names file and line.
pub fn run(files: &[PathBuf], out: &mut dyn Write) -> Result<()> {
    for path in files {
        if files.len() > 1 {
            writeln!(out, "{}:", path.display())?;
        }
        report(&mut *open(path)?, out, columns()).with_context(|| path.display().to_string())?;
    }
    Ok(())
}

/// Print a picture of the last run in these files that has intervals.
///
/// # Errors
/// Those of [`run`]; or there is no such run, or it has more intervals than a picture shows.
pub fn picture(files: &[PathBuf], out: &mut dyn Write) -> Result<()> {
    let (mut last, mut run) = (Timeline::default(), Timeline::default());
    for path in files {
        let drawn = records(&mut *open(path)?, &mut |_, record| {
            match record {
                Some(Record::Ready(ready)) => {
                    let before = std::mem::replace(&mut run, Timeline::begin(&ready));
                    if !before.ends.is_empty() {
                        last = before;
                    }
                }
                Some(Record::Interval(interval)) => run.interval(&interval).map_err(Error::msg)?,
                Some(Record::Process(process)) => run.process(&process.0).map_err(Error::msg)?,
                Some(Record::Group) => run.has_groups = true,
                Some(Record::Summary(totals)) => totals.processes.iter().for_each(|of| run.verdict(&of.0)),
                _ => {}
            }
            Ok(())
        });
        drawn.with_context(|| path.display().to_string())?;
    }
    let run = if run.ends.is_empty() { last } else { run };
    if run.ends.is_empty() {
        bail!("no run has intervals here: give the output of `xctl top --json`");
    }
    if run.has_groups {
        bail!("the last run with intervals has no rows by process: give the output of `xctl top --json` without --by");
    }
    Ok(svg::draw(&run, out)?)
}

fn open(path: &Path) -> Result<Box<dyn BufRead>> {
    Ok(match path {
        standard if standard == Path::new("-") => Box::new(io::stdin().lock()),
        path => {
            let file = File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
            Box::new(BufReader::new(file))
        }
    })
}

/// Hand over each record, with the number of its line. None: the last line is cut off.
fn records(from: &mut dyn BufRead, each: &mut dyn FnMut(u64, Option<Record>) -> Result<()>) -> Result<()> {
    let (mut line, mut number) = (Vec::new(), 0_u64);
    while read_line(from, &mut line).with_context(|| format!("line {}", number + 1))? {
        number += 1;
        let record = match Record::read(&line) {
            Ok(record) => Some(record),
            Err(_) if line.iter().all(u8::is_ascii_whitespace) => continue,
            Err(_) if line.last() != Some(&b'\n') => None,
            Err(error) => {
                return Err(anyhow!("line {number} is no record of xctl ({error}): is this the output of --json?"));
            }
        };
        each(number, record).with_context(|| format!("line {number}"))?;
    }
    Ok(())
}

/// Print each run in the lines of a file, on a terminal of this width or elsewhere.
fn report(from: &mut dyn BufRead, out: &mut dyn Write, terminal: Option<usize>) -> Result<()> {
    let (mut sums, mut runs) = (Sums::default(), 0);
    records(from, &mut |number, record| {
        match record {
            None => writeln!(out, "line {number}, the last one, is cut off")?,
            Some(Record::Ready(ready)) => {
                unfinished(std::mem::take(&mut sums), &mut runs, out, terminal)?;
                writeln!(out, "a run of xctl {}, schema {}, hooks {}", ready.version, ready.schema, ready.attach)?;
            }
            Some(Record::Retransmit(record)) => sums.retransmit(record),
            Some(Record::Connection(record)) => sums.connection(*record),
            Some(Record::Drop(record)) => sums.drop(*record),
            Some(Record::Summary(totals)) => {
                let verified = totals.verified;
                Text::new(&mut *out, false).within(terminal).summary(&Summary::from(*totals))?;
                if let Some(equal) = verified {
                    writeln!(out, "{}", result_of_verify(equal))?;
                }
                sums = Sums::default();
                runs += 1;
            }
            Some(Record::Interval(_) | Record::Process(_) | Record::Group | Record::Other) => {}
        }
        Ok(())
    })?;
    unfinished(sums, &mut runs, out, terminal)?;
    if runs == 0 {
        bail!(
            "the input has no summary, no retransmit, no drop and no end of a connection: give the output of `xctl trace --json` or \
             `xctl top --json`"
        );
    }
    Ok(())
}

/// Print what the records of a run without a summary add up to, if there are any.
fn unfinished(sums: Sums, runs: &mut u64, out: &mut dyn Write, terminal: Option<usize>) -> Result<()> {
    if sums.is_empty() {
        return Ok(());
    }
    *runs += 1;
    writeln!(out, "this run has no summary: the figures are the sums of its records, and losses are not known")?;
    Ok(Text::new(out, false).within(terminal).totals(&sums.summary())?)
}

/// Read a line with its end. False: there is none left.
fn read_line(from: &mut dyn BufRead, line: &mut Vec<u8>) -> Result<bool> {
    line.clear();
    io::Read::take(from, LONGEST).read_until(b'\n', line)?;
    if line.len() as u64 == LONGEST && line.last() != Some(&b'\n') {
        bail!("it is longer than {} MiB", LONGEST >> 20);
    }
    Ok(!line.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::balance::Balance;
    use crate::ledger::summary::{ByProcess, Others, Seen, add};
    use crate::model::events::{How, Kind, Owner, ProcessKey, Retransmit};
    use crate::model::lost::Lost;
    use crate::model::reading::{Account, AccountWhy, Reading};
    use crate::output::json::Json;

    fn printed(text: &str) -> Result<String> {
        let mut out = Vec::new();
        report(&mut text.as_bytes(), &mut out, None)?;
        Ok(String::from_utf8(out)?)
    }

    const RETRANSMIT: &str = r#"{"type":"retransmit","pid":7,"comm":"rsync","kind":"tlp","segs":3,"bytes":30,"err":0}"#;

    #[test]
    fn a_run_without_a_summary_is_added_up() {
        let text = printed(&format!("{RETRANSMIT}\n{RETRANSMIT}\n{{\"type\":\"retr")).unwrap();
        for said in
            ["line 3, the last one, is cut off", "no summary", "6 segments sent again in 2 retransmits", "rsync"]
        {
            assert!(text.contains(said), "{said}: {text}");
        }
        assert!(!text.contains("lost"), "{text}");
    }

    #[test]
    fn a_summary_prints_as_it_did_in_the_run() {
        let (mut by_process, mut balance) = (ByProcess::new(), Balance::new(250));
        balance.begin(150);
        for tgid in [7, 8] {
            let since = u64::from(tgid) * 20;
            let owner =
                Owner { tgid, since, how: How::Send as u8, comm: *b"worker\0\0\0\0\0\0\0\0\0\0", ..Owner::default() };
            let event = Retransmit { owner, segs: tgid, bytes: 10, kind: Kind::Rto as u8, ..Retransmit::default() };
            add(by_process.entry(ProcessKey::of(&owner)).or_default(), &event);
            let reading = Reading { bytes_sent: 1 << 20, bytes_retrans: 1 << 16, free: 90, ..Reading::default() };
            let reading =
                Reading { total_retrans: 9, dsack_dups: 8, srtt_us: 8 * 70_000, min_rtt_us: 9_000, ..reading };
            let (why, mono_ns) = (AccountWhy::Ended as u8, 400_000_000);
            _ = balance.note(&Account { owner, reading, why, mono_ns, socket: 1, wanted: 1, ..Account::default() });
        }
        let lost = Lost { ledger: 3, ..Lost::default() };
        let mut summary = Summary::new(&by_process, &Others::default(), lost, Seen::default());
        summary.add_ledger(&balance.rows, &balance.folded, 500_000_000);
        let (mut json, mut text) = (Vec::new(), Vec::new());
        Json::new(&mut json).summary(&summary).unwrap();
        Text::new(&mut text, false).summary(&summary).unwrap();
        let text = String::from_utf8(text).unwrap();
        assert!(text.contains("needless resends 6.2 %") && text.contains("ledger 3") && text.contains('*'), "{text}");
        let json = String::from_utf8(json).unwrap();
        assert_eq!(printed(&json).unwrap(), text);
        for equal in [true, false] {
            let verified = json.replace("\"verified\":null", &format!("\"verified\":{equal}"));
            assert_eq!(printed(&verified).unwrap(), format!("{text}{}\n", result_of_verify(equal)));
        }
    }

    #[test]
    fn what_is_no_record_is_named() {
        let error = printed(&format!("{RETRANSMIT}\n\nhello\n")).unwrap_err();
        assert!(format!("{error:#}").starts_with("line 3 is no record"), "{error:#}");
        assert!(printed("").is_err());
        assert!(printed("{\"type\":\"ready\",\"schema\":1,\"attach\":\"kprobe\",\"version\":\"1\"}\n").is_err());
    }

    fn drawn(name: &str, text: &str) -> Result<String> {
        let path = std::env::temp_dir().join(format!("xctl-picture-{}-{name}", std::process::id()));
        std::fs::write(&path, text)?;
        let mut out = Vec::new();
        let result = picture(std::slice::from_ref(&path), &mut out);
        std::fs::remove_file(path)?;
        result.map(|()| String::from_utf8(out).unwrap())
    }

    #[test]
    fn the_last_run_with_intervals_is_drawn() {
        let ready =
            |version| format!("{{\"type\":\"ready\",\"schema\":1,\"attach\":\"kprobe\",\"version\":\"{version}\"}}\n");
        let lost = serde_json::to_string(&Lost::default()).unwrap();
        let interval = format!("{{\"type\":\"interval\",\"time\":\"t\",\"interval_us\":1000000,\"lost\":{lost}}}\n");
        let first = format!("{}{interval}{}{interval}{interval}", ready("1"), ready("2"));
        let svg = drawn("runs", &format!("{first}{}{RETRANSMIT}\n", ready("3"))).unwrap();
        assert!(svg.contains("xctl 2, hooks kprobe") && svg.contains("2.0 s"), "{svg}");
        let error = drawn("none", &format!("{}{RETRANSMIT}\n", ready("1"))).unwrap_err();
        assert!(format!("{error:#}").contains("xctl top --json"), "{error:#}");
        let process = r#"{"type":"process","pid":1,"comm":"x","segs":0,"bytes":0,"retransmits":0}"#;
        let error = drawn("early", &format!("{process}\n{interval}")).unwrap_err();
        assert!(format!("{error:#}").contains("line 1: the record `process` is of no interval"), "{error:#}");
    }
}
