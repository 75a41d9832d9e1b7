//! A run of `xctl top` as one picture (SVG): what was sent again, how long segments waited, and what set the pace, by process.

use std::fmt::Write as _;
use std::io::{self, Write};

use super::connections::{bytes, share};
use crate::ledger::timeline::{Key, Line, Point, Timeline};

/// The most processes in a picture.
const MOST: usize = 12;

/// The most letters of a text. Names in records may be of any length.
const LETTERS: usize = 200;

/// Lengths in pixels: the picture's width; the place, width and height of a chart, and from one chart to the next; the height
/// of the head, and from one process to the next.
const WIDTH: f64 = 1100.0;
const LEFT: f64 = 60.0;
const CHART: f64 = 270.0;
const HIGH: f64 = 60.0;
const STEP: f64 = 340.0;
const HEAD: f64 = 100.0;
const ROW: f64 = 110.0;

/// Colours that colour-blind people tell apart: again, round trip; receiver, send buffer, network.
const AGAIN: &str = "#d55e00";
const ABOVE: &str = "#0072b2";
const LIMITS: [(&str, &str); 3] = [("receiver", "#009e73"), ("send buffer", "#e69f00"), ("network", "#999999")];

/// Print the picture.
///
/// # Errors
/// If the writer refuses the bytes.
pub fn draw(run: &Timeline, out: &mut dyn Write) -> io::Result<()> {
    out.write_all(picture(run).as_bytes())
}

fn picture(run: &Timeline) -> String {
    let worst = run.worst();
    let shown = worst.len().min(MOST);
    let height = HEAD + ROW * shown as f64 + 30.0;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" font-family=\"sans-serif\" \
         font-size=\"12\">\n<title>{}</title>\n<desc>For each process over time: the share of bytes that were sent again, the \
         round-trip time above its least, and the time in which the receiver, the send buffer or the network set the \
         pace. A gap means that the value is not known.</desc>\n\
         <rect width=\"{WIDTH}\" height=\"{height}\" fill=\"#ffffff\"/>\n",
        escaped(&title(run))
    );
    text(&mut svg, (20.0, 26.0), "font-size=\"16\"", &title(run));
    let lost: Vec<_> = run.lost.iter().map(|(name, count)| format!("{name} {count}")).collect();
    let lost = if lost.is_empty() { "no known loss".to_owned() } else { format!("lost: {}", lost.join(", ")) };
    text(&mut svg, (20.0, 48.0), "fill=\"#555555\"", &format!("{}; {lost}", run.about));
    for (column, title) in
        ["sent again, % of bytes", "round trip above its least, ms", "limited by, % of time:"].iter().enumerate()
    {
        text(&mut svg, (LEFT + STEP * column as f64, HEAD - 20.0), "font-weight=\"bold\"", title);
    }
    for (number, (name, colour)) in LIMITS.iter().enumerate() {
        let x = LEFT + STEP * 2.0 + [150.0, 208.0, 288.0][number];
        text(&mut svg, (x, HEAD - 20.0), &format!("fill=\"{colour}\" font-weight=\"bold\""), name);
    }
    let end = run.ends.last().copied().unwrap_or(0.0);
    for (row, (key, line)) in worst.iter().take(MOST).enumerate() {
        let top = HEAD + ROW * row as f64 + 20.0;
        text(&mut svg, (LEFT, top - 8.0), "", &label(key, line));
        let charts = [
            vec![(AGAIN, line.points.iter().map(|point| point.again).collect())],
            vec![(ABOVE, line.points.iter().map(|point| point.above_ms).collect())],
            limits(&line.points),
        ];
        for (column, areas) in charts.iter().enumerate() {
            let chart = Chart { left: LEFT + STEP * column as f64, top, ends: &run.ends, end };
            chart.draw(&mut svg, &line.points, areas);
        }
    }
    let rest = worst.len() - shown;
    let rest = if rest > 0 { format!("and {rest} more processes") } else { String::new() };
    text(&mut svg, (LEFT, height - 12.0), "fill=\"#555555\"", &rest);
    svg += "</svg>\n";
    svg
}

/// The values of an area: one for each point.
type Values = Vec<Option<f64>>;

/// The three limits stacked, the highest area first.
fn limits(points: &[Point]) -> Vec<(&'static str, Values)> {
    let sum = |parts: usize| points.iter().map(|point| Some(point.limits?[..parts].iter().sum())).collect();
    (1..=LIMITS.len()).rev().map(|parts| (LIMITS[parts - 1].1, sum(parts))).collect()
}

fn title(run: &Timeline) -> String {
    let seconds = run.ends.last().copied().unwrap_or(0.0);
    let to = run.time.split('.').next().unwrap_or_default();
    format!("TCP connections by process: {seconds:.1} s until {to} UTC")
}

fn label(key: &Key, line: &Line) -> String {
    let pid = key.pid.map_or(String::new(), |pid| format!(" ({pid})"));
    let verdict = line.verdict.as_ref().map_or(String::new(), |words| format!(": {words}"));
    format!("{}{pid}, {} sent, {} again{verdict}", key.name, bytes(line.sent), share(line.again, line.sent))
}

/// One chart: its upper left corner, and the times of all intervals.
struct Chart<'a> {
    left: f64,
    top: f64,
    ends: &'a [f64],
    end: f64,
}

impl Chart<'_> {
    /// Draw areas over each other. The scale ends at the greatest value.
    fn draw(&self, svg: &mut String, points: &[Point], areas: &[(&str, Values)]) {
        let &Self { left, top, end, .. } = self;
        let most = areas.iter().flat_map(|(_, values)| values.iter().flatten()).copied().fold(0.0, f64::max);
        let base = top + HIGH;
        _ = writeln!(svg, "<path d=\"M{left:.1} {top:.1}V{base:.1}h{CHART}\" fill=\"none\" stroke=\"#bbbbbb\"/>");
        for (colour, values) in areas {
            let path = self.area(points, values, if most > 0.0 { HIGH / most } else { 0.0 });
            _ = writeln!(svg, "<path d=\"{path}\" fill=\"{colour}\" stroke=\"{colour}\"/>");
        }
        let small = "font-size=\"10\" fill=\"#555555\"";
        let at_end = format!("{small} text-anchor=\"end\"");
        if most > 0.0 {
            text(svg, (left - 4.0, top + 8.0), &at_end, &format!("{most:.1}"));
        }
        text(svg, (left - 4.0, base), &at_end, "0");
        text(svg, (left, base + 11.0), small, "0 s");
        text(svg, (left + CHART, base + 11.0), &at_end, &format!("{end:.1} s"));
    }

    /// The outline of an area. A value is a step as long as its interval. Intervals without a value are gaps.
    fn area(&self, points: &[Point], values: &[Option<f64>], scale: f64) -> String {
        let base = self.top + HIGH;
        let x = |time: f64| self.left + if self.end > 0.0 { CHART * time / self.end } else { 0.0 };
        let (mut path, mut next) = (String::new(), None);
        for (point, value) in points.iter().zip(values) {
            let Some(value) = value else { continue };
            if next != Some(point.interval) {
                if next.is_some() {
                    _ = write!(path, "V{base:.1}Z");
                }
                let begins = point.interval.checked_sub(1).and_then(|before| self.ends.get(before)).copied();
                _ = write!(path, "M{:.1} {base:.1}", x(begins.unwrap_or(0.0)));
            }
            let ends = self.ends.get(point.interval).copied().unwrap_or(self.end);
            _ = write!(path, "V{:.1}H{:.1}", base - value * scale, x(ends));
            next = Some(point.interval + 1);
        }
        if next.is_some() {
            _ = write!(path, "V{base:.1}Z");
        }
        path
    }
}

fn text(svg: &mut String, (x, y): (f64, f64), attributes: &str, content: &str) {
    _ = writeln!(svg, "<text x=\"{x:.1}\" y=\"{y:.1}\" {attributes}>{}</text>", escaped(content));
}

/// Text for XML, which takes no control characters.
fn escaped(text: &str) -> String {
    let allowed = |letter: &char| !letter.is_control() && !matches!(letter, '\u{fffe}' | '\u{ffff}');
    let mut out = String::new();
    for letter in text.chars().filter(allowed).take(LETTERS) {
        match letter {
            '&' => out += "&amp;",
            '<' => out += "&lt;",
            '>' => out += "&gt;",
            _ => out.push(letter),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::saved::Record;

    /// A run with intervals of these lengths, seconds, and in each of them a record with these figures: bytes sent, bytes
    /// sent again, and milliseconds limited by the receiver. None: no record.
    fn run(intervals: &[(u64, Option<[u64; 3]>)], comm: &str, processes: u32) -> Timeline {
        let mut run = Timeline::default();
        for (seconds, figures) in intervals {
            let lost = r#"{"perf":3,"output":0,"map_full":0,"unknown":0,"unattributed":0,"totals":0,"ledger":0,"missed":null}"#;
            let interval =
                format!(r#"{{"type":"interval","time":"T<1>","interval_us":{},"lost":{lost}}}"#, seconds * 1_000_000);
            let Ok(Record::Interval(interval)) = Record::read(interval.as_bytes()) else { panic!("{interval}") };
            run.interval(&interval).unwrap();
            for pid in figures.iter().flat_map(|_| 1..=processes) {
                let [sent, again, limited] = figures.unwrap();
                let mut tcp = serde_json::to_value(crate::ledger::counters::Counters::default()).unwrap();
                for (name, value) in [
                    ("bytes_sent", sent),
                    ("bytes_retrans", again),
                    ("rwnd_limited_us", limited * 1000),
                    ("busy_us", limited * 2000),
                ] {
                    tcp[name] = value.into();
                }
                let process = serde_json::json!({
                    "type": "process", "pid": pid, "comm": comm, "segs": 0, "bytes": 0, "retransmits": 0, "tcp": tcp,
                    "rtt": {"srtt_us": 7000, "min_us": 3000, "var_us": null},
                });
                let Ok(Record::Process(process)) = Record::read(process.to_string().as_bytes()) else {
                    panic!("{process}")
                };
                run.process(&process.0).unwrap();
            }
        }
        run
    }

    #[test]
    fn a_value_is_a_step_as_long_as_its_interval_and_no_value_is_a_gap() {
        let svg = picture(&run(&[(1, Some([1000, 100, 500])), (3, None), (1, Some([1000, 50, 250]))], "rsync", 1));
        // The chart begins at 60, 180 and is 270 wide for 5 seconds and 60 high for 10 %.
        let again = "M60.0 180.0V120.0H114.0V180.0ZM276.0 180.0V150.0H330.0V180.0Z";
        assert!(svg.contains(&format!("<path d=\"{again}\" fill=\"{AGAIN}\"")), "{svg}");
        let above = "M400.0 180.0V120.0H454.0V180.0ZM616.0 180.0V120.0H670.0V180.0Z";
        assert!(svg.contains(&format!("<path d=\"{above}\" fill=\"{ABOVE}\"")), "{svg}");
        // Half of the first second the receiver, the other half the network: the highest value is 100 %.
        let [receiver, network] = ["V150.0H794.0V180.0ZM956.0 180.0V165.0", "V120.0H794.0V180.0ZM956.0 180.0V150.0"];
        for (colour, values) in [(LIMITS[0].1, receiver), (LIMITS[2].1, network)] {
            let path = format!("<path d=\"M740.0 180.0{values}H1010.0V180.0Z\" fill=\"{colour}\"");
            assert!(svg.contains(&path), "{path}: {svg}");
        }
        for said in [
            "rsync (1), 2.0 kB sent, 7.5 % again",
            ">10.0</text>",
            ">4.0</text>",
            ">100.0</text>",
            "5.0 s",
            "lost: perf 3",
        ] {
            assert!(svg.contains(said), "{said}: {svg}");
        }
    }

    #[test]
    fn names_are_no_markup_and_have_an_end() {
        let name = format!("<b>&\u{1b}[31m\n{}", "x".repeat(1000));
        let svg = picture(&run(&[(1, Some([1, 1, 1]))], &name, 1));
        assert!(svg.contains("&lt;b&gt;&amp;[31mxxx") && svg.contains("T&lt;1&gt;"), "{svg}");
        assert!(!svg.contains('\u{1b}') && !svg.contains(&"x".repeat(LETTERS)), "{svg}");
    }

    #[test]
    fn the_worst_are_drawn_and_the_rest_are_counted() {
        let svg = picture(&run(&[(1, Some([1000, 0, 0]))], "many", MOST as u32 + 3));
        assert_eq!(svg.matches("many (").count(), MOST);
        assert!(svg.contains("and 3 more processes"), "{svg}");
    }
}
