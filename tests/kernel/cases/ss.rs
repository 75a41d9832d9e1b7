//! A connection that waits between two timeouts stands still: what the last retransmit said of it is what `ss` says.

use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;

use crate::host::{Set, tool};
use crate::link::Link;
use crate::missed::Witness;
use crate::process::PATIENCE;
use crate::process::now;
use crate::workers::{Flow, Puppet, Receiver};
use crate::xctl::{Kind, Retransmit, Xctl};
use crate::{Family, Outcome, Verdict};

/// What ss says of the connection, and when it was asked and had answered.
#[derive(Clone, Debug)]
struct Seen {
    asked: u64,
    answered: u64,
    state: String,
    /// Timeouts in a row.
    backoff: u64,
    rtt_us: u64,
    cwnd: u64,
    ssthresh: Option<u64>,
    mss: u64,
}

pub fn run(set: Set, family: Family) -> Outcome {
    let link = Link::up()?;
    let receiver = Receiver::new(&link.b, "receiver", link.address(&link.b, family), 0)?;
    let mut puppet = Puppet::new(&link.a, "puppet", receiver.at)?;
    let (who, flow) = (puppet.truth.who.clone(), puppet.truth.flow()?);
    for _ in 0..5 {
        puppet.send()?;
    }
    let xctl = Xctl::start(set, &[])?;
    let witness = Witness::of(&[])?;
    link.lose(100)?;
    puppet.send()?;
    // as long as it takes for three answers in a row to fall between the same two timeouts, for two such pauses
    let end = Instant::now() + PATIENCE;
    let mut seen: Vec<Seen> = vec![];
    let mut pauses = vec![];
    while pauses.len() < 2 {
        ensure!(Instant::now() < end, "no pause between timeouts: {seen:?}");
        seen.extend(ask(&link, flow)?);
        if let [.., one, two, three] = seen.as_slice()
            && one.backoff > 0
            && one.backoff == three.backoff
            && !pauses.contains(&two.backoff)
        {
            pauses.push(two.backoff);
        }
        thread::sleep(Duration::from_millis(10));
    }
    link.lose(0)?;
    puppet.exit()?;
    link.quiet()?;
    let trace = xctl.stop(Signal::SIGINT)?;
    if let Some(why) = witness.hidden()? {
        return Ok(Verdict::Skipped(why));
    }

    trace.nothing_lost()?;
    trace.all_of(link.a.inode, &who, flow)?;
    let records: Vec<_> = trace.of(link.a.inode).collect();
    let mut compared = 0;
    for (index, record) in records.iter().enumerate() {
        let next = records.get(index + 1).map_or(u64::MAX, |next| next.mono_ns);
        let between = |seen: &&Seen| record.mono_ns < seen.asked && seen.answered < next;
        // the last word of the pause is about the heal, perhaps
        if record.kind != Kind::Rto || next == u64::MAX {
            continue;
        }
        for seen in seen.iter().filter(between).filter(|seen| pauses.contains(&seen.backoff)) {
            same(record, seen)?;
            compared += 1;
        }
    }
    ensure!(compared > 0, "nothing to compare among {} retransmits and {seen:?}", records.len());
    let Seen { rtt_us, cwnd, ssthresh, mss, .. } = &seen[seen.len() - 1];
    Ok(Verdict::Passed(format!(
        "{compared} answers, the last: rtt {rtt_us} us, cwnd {cwnd}, ssthresh {ssthresh:?}, mss {mss}"
    )))
}

fn same(record: &Retransmit, seen: &Seen) -> Result<()> {
    // as long as there is no threshold it is a number beyond all windows, which ss does not show (tcp_stats_print())
    let ssthresh = record.ssthresh.filter(|ssthresh| *ssthresh < 0xffff);
    let ours = (record.srtt_us, record.cwnd, ssthresh, record.mss);
    let of_ss = (Some(seen.rtt_us), Some(seen.cwnd), seen.ssthresh, Some(seen.mss));
    ensure!(ours == of_ss, "(srtt_us, cwnd, ssthresh, mss): xctl {ours:?}, ss {of_ss:?}: {record:?}");
    ensure!(record.state == "ESTABLISHED" && seen.state == "ESTAB", "{} and {}", record.state, seen.state);
    Ok(())
}

/// Asks ss; none if it does not say all yet.
fn ask(link: &Link, flow: Flow) -> Result<Option<Seen>> {
    let local = format!("sport = :{}", flow.local.port());
    let asked = now()?;
    let output = link.a.enter(|| tool("ss").args(["-Htin", &local]).output().context("starting ss"))?;
    let answered = now()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(output.status.success(), "ss: {}", String::from_utf8_lossy(&output.stderr));
    let words: Vec<_> = text.split_whitespace().collect();
    let Some(state) = words.first() else { bail!("ss does not know {flow:?}") };
    let is = |address: SocketAddr| words.get(3..5).is_some_and(|words| words.contains(&address.to_string().as_str()));
    ensure!(is(flow.local) && is(flow.remote), "not about {flow:?}: {text}");
    let value = |name: &str| words.iter().find_map(|word| word.strip_prefix(name)?.strip_prefix(':'));
    let number = |name: &str| -> Result<Option<u64>> {
        value(name).map(|value| value.parse().with_context(|| format!("ss says {name}:{value}"))).transpose()
    };
    // milliseconds and their variance, with six digits, which is every microsecond below a second
    let rtt = value("rtt").and_then(|rtt| rtt.split('/').next()?.parse::<f64>().ok());
    let (Some(rtt), Some(backoff), Some(cwnd), Some(mss)) = (rtt, number("backoff")?, number("cwnd")?, number("mss")?)
    else {
        return Ok(None);
    };
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    let rtt_us = (rtt * 1000.0).round() as u64;
    let state = (*state).to_owned();
    Ok(Some(Seen { asked, answered, state, backoff, rtt_us, cwnd, ssthresh: number("ssthresh")?, mss }))
}
