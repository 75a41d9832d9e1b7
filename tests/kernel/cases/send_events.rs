//! xctl reports every send once, with its process. The retransmits of the connection name the same process.

use anyhow::{bail, ensure};
use nix::sys::signal::Signal;

use crate::host::Set;
use crate::link::Link;
use crate::process::PATIENCE;
use crate::workers::{Plan, Receiver, Sender, send_all};
use crate::xctl::Xctl;
use crate::{Family, Outcome, Verdict};

const SENDS: u64 = 200;

pub fn run(set: Set, family: Family) -> Outcome {
    let link = Link::lossy()?;
    let receiver = Receiver::new(&link.b, "receiver", link.address(&link.b, family), 0)?;
    let sizes = vec![1, 37, 500, 999];
    let plan = Plan { sizes, sends: SENDS, time: PATIENCE, ..Plan::new("counted", receiver.at) };
    let sender = Sender::new(&link.a, plan)?;
    let xctl = Xctl::start(set, &["--events", "all"])?;
    let truths = send_all(vec![sender])?;
    link.quiet()?;
    let trace = xctl.stop(Signal::SIGINT)?;

    trace.nothing_lost()?;
    let [truth] = truths.as_slice() else { bail!("one sender expected: {truths:?}") };
    let [sent] = truth.sent.as_slice() else { bail!("one connection expected: {truth:?}") };
    let seen: Vec<_> = trace.sends.iter().filter(|send| send.at.netns == link.a.inode).collect();
    ensure!(sent.sends == SENDS && seen.len() as u64 == SENDS, "{} sends made, {} seen", sent.sends, seen.len());
    seen.iter().try_for_each(|send| send.at.is_of(&truth.who, sent.flow))?;
    let bytes: u64 = seen.iter().map(|send| send.bytes).sum();
    ensure!(bytes == sent.bytes, "{} bytes sent, {bytes} seen", sent.bytes);
    ensure!(trace.sends.iter().all(|send| send.at.netns != link.b.inode), "the receiver never sends");
    let retransmits = trace.all_of(link.a.inode, &truth.who, sent.flow)?;
    Ok(Verdict::Passed(format!("{SENDS} sends, {retransmits} retransmits")))
}
