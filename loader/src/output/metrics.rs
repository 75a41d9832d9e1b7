//! Metrics in the text format of Prometheus, version 0.0.4, and the answers to requests for them.

use std::fmt::{self, Write};

use bpf_object::sort;

use crate::ledger::owners::{Owner, Owners, Sums, others};
use crate::model::events::Kind;

/// The most bytes of a request.
const LONGEST: usize = 4096;

/// Facts of a run that are metrics, too.
#[derive(Debug)]
pub struct About {
    /// The name of the hook set.
    pub attach: &'static str,
    /// Whether the programs in the kernel are proven to be the object's; none if they could not be compared.
    pub proven: Option<bool>,
}

/// The limits of a connection, in the order of [`crate::ledger::owners::Sums::limited_us`].
const LIMITS: [&str; 3] = ["network", "receiver", "sndbuf"];

/// All metrics as text. `path_of` gives the path of a cgroup, if it is known.
#[must_use]
pub fn text<'p>(owners: &Owners, about: &About, path_of: impl Fn(u64) -> Option<&'p str>) -> String {
    let mut text = String::new();
    // Writing to a string cannot fail.
    let _ = write(&mut text, owners, about).and_then(|()| cgroups(&mut text, owners, path_of));
    text
}

/// The paths of the owners' cgroups. They are no label of the other metrics: a series must not get another label once the path is
/// known.
fn cgroups<'p>(out: &mut String, owners: &Owners, path_of: impl Fn(u64) -> Option<&'p str>) -> fmt::Result {
    head(out, "xctl_cgroup_info", "gauge", "The path of a cgroup.")?;
    let mut ids: Vec<u64> = owners.rows().filter_map(|((_, cgroup), _)| *cgroup).collect();
    sort::by_key(&mut ids, |id| *id);
    ids.dedup();
    for (id, path) in ids.into_iter().filter_map(|id| Some((id, path_of(id)?))) {
        writeln!(out, "xctl_cgroup_info{{cgroup=\"{id}\",path=\"{}\"}} 1", Value(path))?;
    }
    Ok(())
}

fn write(out: &mut String, owners: &Owners, about: &About) -> fmt::Result {
    let mut rows: Vec<_> = owners.rows().collect();
    sort::by_key(&mut rows, |(owner, _)| *owner);
    let others = others();
    head(out, "xctl_tcp_retransmitted_segments_total", "counter", "Retransmitted TCP segments.")?;
    for (owner, sums) in &rows {
        // The row of the others is there from the start, so that a rate of the sum also has the first segments.
        let all = **owner == others;
        for (kind, segs) in Kind::ALL.iter().zip(sums.segs).filter(|(_, segs)| all || *segs > 0) {
            let kind = kind.name();
            writeln!(out, "xctl_tcp_retransmitted_segments_total{{{},kind=\"{kind}\"}} {segs}", Labels(owner))?;
        }
    }
    let mut bytes = |name: &str, help: &str, of: fn(&Sums) -> u64| {
        head(out, name, "counter", help)?;
        rows.iter().try_for_each(|(owner, sums)| writeln!(out, "{name}{{{}}} {}", Labels(owner), of(sums)))
    };
    bytes("xctl_tcp_retransmitted_bytes_total", "Retransmitted payload bytes.", |sums| sums.bytes)?;
    bytes("xctl_tcp_sent_bytes_total", "Payload bytes sent, retransmissions included.", |sums| sums.sent)?;
    let help = "Time with data under way, by what limited it: the network, the peer's window, or the send buffer.";
    head(out, "xctl_tcp_limited_seconds_total", "counter", help)?;
    for (owner, sums) in &rows {
        for (by, us) in LIMITS.iter().zip(sums.limited_us) {
            let (whole, part) = (us / 1_000_000, us % 1_000_000);
            writeln!(out, "xctl_tcp_limited_seconds_total{{{},by=\"{by}\"}} {whole}.{part:06}", Labels(owner))?;
        }
    }
    head(out, "xctl_tcp_retransmit_failures_total", "counter", "Attempts to retransmit that failed.")?;
    writeln!(out, "xctl_tcp_retransmit_failures_total {}", owners.failed)?;
    head(out, "xctl_lost_total", "counter", "Losses of xctl itself, by reason (see lost in the summary).")?;
    for (reason, count) in owners.lost.entries() {
        if let Some(count) = count {
            writeln!(out, "xctl_lost_total{{reason=\"{reason}\"}} {count}")?;
        }
    }
    head(out, "xctl_build_info", "gauge", "The version of xctl, and the hooks in use.")?;
    let (version, attach) = (env!("CARGO_PKG_VERSION"), about.attach);
    writeln!(out, "xctl_build_info{{version=\"{version}\",attach=\"{attach}\"}} 1")?;
    if let Some(proven) = about.proven {
        head(out, "xctl_proven", "gauge", "Whether the programs in the kernel are proven to be the object's.")?;
        writeln!(out, "xctl_proven {}", u8::from(proven))?;
    }
    Ok(())
}

fn head(out: &mut String, name: &str, kind: &str, help: &str) -> fmt::Result {
    writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}")
}

/// The labels of an owner. An empty label says that there is no cgroup.
struct Labels<'a>(&'a Owner);

impl fmt::Display for Labels<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (comm, cgroup) = self.0;
        write!(f, "comm=\"{}\",cgroup=\"", Value(comm))?;
        cgroup.map_or(Ok(()), |cgroup| write!(f, "{cgroup}"))?;
        f.write_char('"')
    }
}

/// The value of a label.
struct Value<'a>(&'a str);

impl fmt::Display for Value<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for one in self.0.chars() {
            match one {
                '"' | '\\' => write!(f, "\\{one}")?,
                '\n' => f.write_str("\\n")?,
                one => f.write_char(one)?,
            }
        }
        Ok(())
    }
}

/// A request, by its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// The metrics.
    Metrics,
    /// The head of the answer with the metrics.
    Head,
    /// Another page.
    Other,
    /// Another method.
    Method,
    /// Not HTTP, or too long.
    Garbage,
}

/// The request in these bytes; none: more bytes belong to it.
#[must_use]
pub fn request(bytes: &[u8]) -> Option<Request> {
    let ends = |end: &[u8]| bytes.windows(end.len()).any(|window| window == end);
    if !ends(b"\r\n\r\n") && !ends(b"\n\n") {
        return (bytes.len() >= LONGEST).then_some(Request::Garbage);
    }
    let line = bytes.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let mut words = line.trim_ascii().split(|byte| *byte == b' ');
    let (method, target, version) = (words.next()?, words.next(), words.next());
    let page = target.and_then(|target| target.split(|byte| *byte == b'?').next());
    Some(match (method, page) {
        _ if !version.is_some_and(|version| version.starts_with(b"HTTP/1.")) || words.next().is_some() => {
            Request::Garbage
        }
        (b"GET", Some(b"/metrics")) => Request::Metrics,
        (b"HEAD", Some(b"/metrics")) => Request::Head,
        (b"GET" | b"HEAD", _) => Request::Other,
        _ => Request::Method,
    })
}

/// The answer to a request. The connection ends after it.
#[must_use]
pub fn answer(request: Request, metrics: &str) -> Vec<u8> {
    const PLAIN: &str = "text/plain; charset=utf-8";
    const METRICS: &str = "text/plain; version=0.0.4; charset=utf-8";
    let (status, kind, body) = match request {
        Request::Metrics | Request::Head => ("200 OK", METRICS, metrics),
        Request::Other => ("404 Not Found", PLAIN, "xctl's metrics are at /metrics\n"),
        Request::Method => ("405 Method Not Allowed", PLAIN, "xctl answers GET and HEAD\n"),
        Request::Garbage => ("400 Bad Request", PLAIN, "this is no request that xctl understands\n"),
    };
    let length = body.len();
    let allow = if request == Request::Method { "Allow: GET, HEAD\r\n" } else { "" };
    let mut answer = format!(
        "HTTP/1.1 {status}\r\n{allow}Content-Type: {kind}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
    );
    if request != Request::Head {
        answer += body;
    }
    answer.into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::counters::Counters;
    use crate::ledger::figures::Ledger;
    use crate::ledger::summary::{Process, Summary};
    use crate::model::events::KINDS;
    use crate::model::lost::Lost;

    #[test]
    fn the_text_has_each_owner_once_and_escapes_names() {
        let mut owners = Owners::new(10);
        let tcp = Counters { bytes_sent: 1000, busy_us: 2_500_000, sndbuf_limited_us: 30, ..Counters::ZERO };
        let mut ledger = Ledger::default();
        ledger.tcp = Some(tcp);
        let mut kinds = [0; KINDS];
        (kinds[Kind::Rto as usize], kinds[Kind::Tlp as usize]) = (4, 1);
        let row =
            Process { comm: Some("a\"b\\c\nd".into()), cgroup: Some(77), kinds, bytes: 500, ..Process::default() };
        let processes = vec![Process { ledger, ..row.clone() }, row];
        let lost = Lost { perf: 3, ..Lost::default() };
        owners.add(&Summary { processes, lost, failed: 9, ..Summary::default() }, 1);
        let about = About { attach: "kprobe", proven: Some(true) };
        let text = text(&owners, &about, |cgroup| (cgroup == 77).then_some(r"/a\x2d.slice"));
        let of_it = r#"comm="a\"b\\c\nd",cgroup="77""#;
        for line in [
            format!("xctl_tcp_retransmitted_segments_total{{{of_it},kind=\"rto\"}} 8"),
            format!("xctl_tcp_retransmitted_segments_total{{{of_it},kind=\"tlp\"}} 2"),
            format!("xctl_tcp_retransmitted_bytes_total{{{of_it}}} 1000"),
            format!("xctl_tcp_sent_bytes_total{{{of_it}}} 1000"),
            format!("xctl_tcp_limited_seconds_total{{{of_it},by=\"network\"}} 2.499970"),
            format!("xctl_tcp_limited_seconds_total{{{of_it},by=\"sndbuf\"}} 0.000030"),
            "xctl_tcp_retransmitted_bytes_total{comm=\"other\",cgroup=\"\"} 0".into(),
            "xctl_tcp_retransmitted_segments_total{comm=\"other\",cgroup=\"\",kind=\"syn\"} 0".into(),
            "xctl_tcp_retransmit_failures_total 9".into(),
            "xctl_lost_total{reason=\"perf\"} 3".into(),
            format!("xctl_build_info{{version=\"{}\",attach=\"kprobe\"}} 1", env!("CARGO_PKG_VERSION")),
            "xctl_proven 1".into(),
            r#"xctl_cgroup_info{cgroup="77",path="/a\\x2d.slice"} 1"#.into(),
        ] {
            assert_eq!(text.lines().filter(|one| **one == line).count(), 1, "{line}\n{text}");
        }
        assert!(!text.contains("missed"), "nobody knows how many");
        let mut names: Vec<_> = text.lines().filter_map(|line| line.rsplit_once(' ')).map(|(name, _)| name).collect();
        let all = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), all, "no series is there twice");
    }

    #[test]
    fn requests_are_told_apart() {
        let long = [b'x'; LONGEST];
        for (bytes, expected) in [
            (&b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"[..], Some(Request::Metrics)),
            (b"GET /metrics?x=1 HTTP/1.0\n\n", Some(Request::Metrics)),
            (b"HEAD /metrics HTTP/1.1\r\n\r\n", Some(Request::Head)),
            (b"GET / HTTP/1.1\r\n\r\n", Some(Request::Other)),
            (b"POST /metrics HTTP/1.1\r\n\r\n", Some(Request::Method)),
            (b"GET /metrics\r\n\r\n", Some(Request::Garbage)),
            (b"GET /metrics HTTP/1.1 x\r\n\r\n", Some(Request::Garbage)),
            (b"\x16\x03\x01\x02\n\n", Some(Request::Garbage)),
            (b"\n\n", Some(Request::Garbage)),
            (b"GET /metrics HTTP/1.1\r\n", None),
            (b"", None),
            (&long, Some(Request::Garbage)),
            (&long[1..], None),
        ] {
            assert_eq!(request(bytes), expected, "{:?}", String::from_utf8_lossy(bytes));
        }
    }

    #[test]
    fn an_answer_says_how_long_it_is() {
        let text = |request| String::from_utf8(answer(request, "metrics\n")).unwrap();
        assert!(text(Request::Metrics).ends_with("Content-Length: 8\r\nConnection: close\r\n\r\nmetrics\n"));
        assert!(text(Request::Head).ends_with("Content-Length: 8\r\nConnection: close\r\n\r\n"));
        assert!(text(Request::Method).contains("405 Method Not Allowed\r\nAllow: GET, HEAD\r\n"));
    }
}
