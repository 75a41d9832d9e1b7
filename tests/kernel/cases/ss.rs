//! The state of a connection does not change between two timeouts: `ss` must agree with the last retransmit.

use std::net::{Shutdown, SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;
use nix::sys::socket::SockFlag;

use crate::host::{Set, tool};
use crate::link::{DEAD_V4, Link, Netns};
use crate::missed::Witness;
use crate::process::{PATIENCE, now, poll};
use crate::workers::{Flow, Puppet, Receiver, local, open};
use crate::xctl::{Kind, Retransmit, Xctl};
use crate::{Family, Outcome, Verdict};

/// The state of the connection by ss, with the times before the question and after the answer.
#[derive(Clone, Debug)]
struct Seen {
    asked: u64,
    answered: u64,
    state: String,
    /// The number of timeouts in a row.
    backoff: u64,
    timeouts: u64,
    /// The number of all retransmitted segments and bytes so far.
    retrans: u64,
    bytes_retrans: u64,
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
    // for example a retransmitted SYN, which has no bytes
    let before = went_again(&say(&link.a, flow)?.text)?;
    link.lose(100)?;
    puppet.send()?;
    // until three answers in a row fall between the same two timeouts, for two such pauses
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
        // the last record of the pause may come from the end of the loss
        if record.kind != Kind::Rto || next == u64::MAX {
            continue;
        }
        let so_far = &records[..=index];
        let sums = so_far.iter().fold(before, |sums, record| (sums.0 + record.segs, sums.1 + record.bytes));
        for seen in seen.iter().filter(between).filter(|seen| pauses.contains(&seen.backoff)) {
            same(record, seen)?;
            let of_ss = (seen.retrans, seen.bytes_retrans);
            ensure!(sums == of_ss, "(segments, bytes) so far: xctl {sums:?}, ss {of_ss:?}: {so_far:?}");
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
    // without a threshold, its value is a number beyond all windows, which ss does not print (tcp_stats_print())
    let ssthresh = record.ssthresh.filter(|ssthresh| *ssthresh < 0xffff);
    let ours = (record.srtt_us, record.cwnd, ssthresh, record.mss, record.sk_retrans);
    let of_ss = (Some(seen.rtt_us), Some(seen.cwnd), seen.ssthresh, Some(seen.mss), seen.timeouts);
    ensure!(ours == of_ss, "(srtt_us, cwnd, ssthresh, mss, sk_retrans): xctl {ours:?}, ss {of_ss:?}: {record:?}");
    ensure!(record.state == "ESTABLISHED" && seen.state == "ESTAB", "{} and {}", record.state, seen.state);
    Ok(())
}

/// Asks ss. None if ss does not print all values yet.
fn ask(link: &Link, flow: Flow) -> Result<Option<Seen>> {
    let Said { asked, answered, text } = say(&link.a, flow)?;
    let words: Vec<_> = text.split_whitespace().collect();
    let Some(state) = words.first() else { bail!("ss does not know {flow:?}") };
    let is = |address: SocketAddr| words.get(3..5).is_some_and(|words| words.contains(&address.to_string().as_str()));
    ensure!(is(flow.local) && is(flow.remote), "not about {flow:?}: {text}");
    let value = |name: &str| words.iter().find_map(|word| word.strip_prefix(name)?.strip_prefix(':'));
    let number = |name: &str| -> Result<Option<u64>> {
        value(name).map(|value| value.parse().with_context(|| format!("ss says {name}:{value}"))).transpose()
    };
    // milliseconds and their variance, with six significant digits: exact to the microsecond below a second
    let rtt = value("rtt").and_then(|rtt| rtt.split('/').next()?.parse::<f64>().ok());
    let (Some(rtt), Some(backoff), Some(cwnd), Some(mss)) = (rtt, number("backoff")?, number("cwnd")?, number("mss")?)
    else {
        return Ok(None);
    };
    let Some(timeouts) = timeouts(&text) else { return Ok(None) };
    let (retrans, bytes_retrans) = went_again(&text)?;
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    let rtt_us = (rtt * 1000.0).round() as u64;
    let state = (*state).to_owned();
    let ssthresh = number("ssthresh")?;
    Ok(Some(Seen { asked, answered, state, backoff, timeouts, retrans, bytes_retrans, rtt_us, cwnd, ssthresh, mss }))
}

/// An answer of ss, with the times before the question and after the answer.
struct Said {
    asked: u64,
    answered: u64,
    text: String,
}

fn say(ns: &Netns, flow: Flow) -> Result<Said> {
    let which = format!("sport = :{} and dport = :{}", flow.local.port(), flow.remote.port());
    let asked = now()?;
    let output = ns.enter(|| tool("ss").args(["-Hatino", &which]).output().context("starting ss"))?;
    let answered = now()?;
    ensure!(output.status.success(), "ss: {}", String::from_utf8_lossy(&output.stderr));
    Ok(Said { asked, answered, text: String::from_utf8_lossy(&output.stdout).into_owned() })
}

/// The number of established connections of a namespace, and the sums of these counters, by the names that ss gives them. ss leaves
/// a counter out if it is 0.
pub fn sums<const N: usize>(ns: &Netns, names: [&str; N]) -> Result<(usize, [u64; N])> {
    let output = ns.enter(|| tool("ss").args(["-HtinoO", "state", "established"]).output().context("starting ss"))?;
    ensure!(output.status.success(), "ss: {}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let value = |line: &str, name: &str| {
        let word = line.split_whitespace().find_map(|word| word.strip_prefix(name)?.strip_prefix(':'));
        word.and_then(|value| value.parse::<u64>().ok()).unwrap_or_default()
    };
    Ok((text.lines().count(), names.map(|name| text.lines().map(|line| value(line, name)).sum())))
}

/// The numbers of all retransmitted segments and bytes so far. ss leaves them out if they are 0.
fn went_again(text: &str) -> Result<(u64, u64)> {
    let value = |name: &str| text.split_whitespace().find_map(|word| word.strip_prefix(name)?.strip_prefix(':'));
    // the two numbers are the segments in flight, and all
    let segments = value("retrans").map_or(Some("0"), |retrans| Some(retrans.split_once('/')?.1));
    let number = |text: Option<&str>| text.and_then(|text| text.parse().ok()).context("ss says no number");
    Ok((number(segments)?, number(value("bytes_retrans").or(Some("0")))?))
}

/// Parses `timer:(on,200ms,COUNT)`.
fn timeouts(text: &str) -> Option<u64> {
    let (_, timer) = text.split_once("timer:(on,")?;
    timer.split_once(',')?.1.split_once(')')?.0.parse().ok()
}

/// In other states, too, the count of earlier retransmits in a record is the count that ss then prints.
pub fn timeouts_in_a_row(set: Set, family: Family) -> Outcome {
    let link = Link::up()?;
    let receiver = Receiver::new(&link.b, "receiver", link.address(&link.b, family), 0)?;
    let ask = |to: SocketAddr| -> Result<(TcpStream, Flow)> {
        let (socket, _) = link.a.enter(|| open(None, to, SockFlag::SOCK_NONBLOCK))?;
        let flow = Flow { local: local(&socket)?, remote: to };
        Ok((socket, flow))
    };
    let (closing, to_last_ack) = ask(receiver.at)?;
    let connected = || Ok(say(&link.b, to_last_ack.reversed())?.text.starts_with("ESTAB"));
    ensure!(poll(PATIENCE, connected)?, "no connection");
    let xctl = Xctl::start(set, &[])?;
    let witness = Witness::of(&[])?;
    link.lose_from(&link.b, 100)?;
    closing.shutdown(Shutdown::Write)?;
    let (_unanswered, to_syn_recv) = ask(receiver.at)?;
    let (_in_vain, to_syn_sent) = ask((DEAD_V4, 443).into())?;
    let sockets = [
        (&link.b, to_last_ack.reversed(), "LAST-ACK", "LAST_ACK"),
        (&link.b, to_syn_recv.reversed(), "SYN-RECV", "NEW_SYN_RECV"),
        (&link.a, to_syn_sent, "SYN-SENT", "SYN_SENT"),
    ];
    // until each stands still for three answers, after its second retransmit
    let end = Instant::now() + PATIENCE;
    let mut seen = [const { Vec::<(Said, u64)>::new() }; 3];
    let paused = |seen: &Vec<(Said, u64)>| seen.windows(3).any(|three| three[0].1 > 1 && three[0].1 == three[2].1);
    while !seen.iter().all(paused) {
        ensure!(Instant::now() < end, "no pauses: {:?}", seen.map(|seen| seen.last().map(|seen| seen.1)));
        for ((ns, flow, state, _), seen) in sockets.iter().zip(&mut seen) {
            let said = say(ns, *flow)?;
            if let (true, Some(count)) = (said.text.starts_with(state), timeouts(&said.text)) {
                seen.push((said, count));
            }
        }
        thread::sleep(Duration::from_millis(10));
    }
    link.lose_from(&link.b, 0)?;
    let trace = xctl.stop(Signal::SIGINT)?;
    if let Some(why) = witness.hidden()? {
        return Ok(Verdict::Skipped(why));
    }

    // retransmits continue while xctl ends, and kprobes are not detached at the same moment
    ensure!(trace.summary.lost.perf == 0, "lost: {:?}", trace.summary.lost);
    let mut compared = [0; 3];
    for (((ns, flow, _, state), seen), compared) in sockets.iter().zip(&seen).zip(&mut compared) {
        let records: Vec<_> = trace.of(ns.inode).filter(|record| record.at.flow() == *flow).collect();
        for (index, record) in records.iter().enumerate().filter(|(_, record)| record.state == *state) {
            let next = records.get(index + 1).map_or(u64::MAX, |next| next.mono_ns);
            for (said, count) in seen.iter().filter(|(said, _)| record.mono_ns < said.asked && said.answered < next) {
                ensure!(record.sk_retrans == *count, "ss counts {count}: {record:?}: {}", said.text);
                *compared += 1;
            }
        }
        ensure!(*compared > 0, "nothing to compare in {state}: {records:?}");
    }
    Ok(Verdict::Passed(format!("answers in LAST_ACK, NEW_SYN_RECV, SYN_SENT: {compared:?}")))
}
