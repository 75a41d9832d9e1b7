//! The text of `xctl trace`: its namespaces and its columns.

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::host::Set;
use crate::link::Link;
use crate::process::Process;
use crate::schema;
use crate::workers::{Plan, Receiver, Sender, send_all};
use crate::xctl::command;
use crate::{Family, Outcome, Verdict};

/// Events of two namespaces: from the first event of the second one on, each line names the namespace of its local address.
pub fn namespaces(set: Set, family: Family) -> Outcome {
    let link = Link::lossy()?;
    let ends = [(&link.a, &link.b), (&link.b, &link.a)];
    let mut senders = vec![];
    let mut receivers = vec![];
    for (from, to) in ends {
        let receiver = Receiver::new(to, "receiver", link.address(to, family), 0)?;
        senders.push(Sender::new(from, Plan { sizes: vec![700], burst: 4, ..Plan::new("sender", receiver.at) })?);
        receivers.push(receiver);
    }
    let [a, b] = ends.map(|(ns, _)| ns.path().display().to_string());
    let args = ["trace", "--attach", &set.to_string(), "--netns", &a, "--netns", &b];
    let mut xctl = Process::start("xctl", command(&args)?)?;
    let mut json = Process::start("xctl --json", command(&[&args[..], &["--json"]].concat())?)?;
    let ready: Value = schema::record(&json.line()?)?;
    ensure!(ready["type"] == "ready", "{ready}");
    let mut lines = vec![xctl.line()?];
    ensure!(lines[0].ends_with("LOCAL -> REMOTE") && !lines[0].contains("NETNS"), "the first titles: {lines:?}");
    send_all(senders)?;
    link.quiet()?;
    xctl.signal(Signal::SIGINT)?;
    lines.extend(xctl.rest()?);
    ensure!(xctl.wait()?.success(), "it failed: {}", xctl.errors());
    let addresses = ends.map(|(ns, _)| (ns.name.as_str(), link.address(ns, family)));
    json.signal(Signal::SIGINT)?;
    let records = json.rest()?.iter().map(|line| schema::record(line)).collect::<Result<Vec<Value>>>()?;
    json.succeed()?;
    let mut of_each = [0; 2];
    for record in records.iter().filter(|record| record["type"] == "retransmit") {
        let is_of = |(_, ip): &(&str, std::net::IpAddr)| record["saddr"] == ip.to_string();
        let end = addresses.iter().position(is_of).context("another address")?;
        ensure!(record["netns_name"] == addresses[end].0, "the namespace is {}: {record}", addresses[end].0);
        of_each[end] += 1;
    }
    ensure!(of_each.iter().all(|records| *records > 0), "records of both namespaces: {of_each:?}");
    // Listeners of both namespaces are still there.
    let mut sockets = Process::start("xctl sockets", command(&["sockets", "--stats", "--netns", &a, "--netns", &b])?)?;
    let listed = sockets.rest()?;
    sockets.succeed()?;
    ensure!(listed[0].contains(" NETNS "), "no column for the namespaces: {listed:?}");
    for (name, ip) in addresses {
        let shown = listed.iter().any(|line| line.contains(&format!(" {name} ")) && line.contains(&ip.to_string()));
        ensure!(shown, "no row of {name} with {ip}: {listed:?}");
    }
    let events: Vec<_> = lines.iter().take_while(|line| !line.is_empty()).collect();
    let Some(titles) = events.iter().skip(1).position(|line| line.contains(" NETNS ")) else {
        bail!("no column for the namespaces: {lines:?}");
    };
    let (before, after) = (&events[1..=titles], &events[titles + 2..]);
    ensure!(before.iter().all(|line| !line.contains("xctl-")), "a name before the titles: {before:?}");
    let mut named = [0, 0];
    for line in after {
        let words: Vec<_> = line.split_whitespace().collect();
        let Some(arrow) = words.iter().position(|word| *word == "->") else { continue };
        let (name, local) = (words[arrow - 3], words[arrow - 1]);
        let Some(end) = addresses.iter().position(|(own, _)| *own == name) else { bail!("no name: {line}") };
        let local: std::net::SocketAddr = local.parse()?;
        ensure!(local.ip() == addresses[end].1, "{name} has {}: {line}", addresses[end].1);
        named[end] += 1;
    }
    ensure!(named.iter().all(|lines| *lines > 0), "not both namespaces: {lines:?}");
    Ok(Verdict::Passed(format!("{} lines before, {named:?} after", before.len())))
}
