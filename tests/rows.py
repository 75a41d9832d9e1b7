"""The rows of `xctl top`: what each cell of a screen shows, and what it must show of a process for which the kernel counted this."""

import re

# The columns, each with the least width of a screen that shows it.
HISTORY = "AGAIN, over time"
COLUMNS = {"PID": 0, "COMM": 0, "OPEN": 90, "ENDED": 100, "SENT/s": 0, "RECV/s": 72, "AGAIN": 0, "RTT": 60, "+QUEUE": 130}
COLUMNS = {**COLUMNS, "RWND": 150, "SNDBUF": 150, "VERDICT": 0, HISTORY: 120}
COMM_WIDTH = 15
UNITS = {"B": 1, "kB": 1e3, "MB": 1e6}
IDLE = 0.1  # a process that is busy for less than this share is idle


def places(titles, width):
    """Where the cells of each column are, below this line of titles. A figure ends where its title ends; a name or verdict begins where
    its title begins. The title of the sparkline says its time."""
    found, end = {}, 0
    for match in re.finditer(r"((AGAIN, )?\d+ s) *$|\S+", titles):
        title = HISTORY if match[1] else match[0]
        begin = match.start() if title in ("COMM", "VERDICT", HISTORY) else end
        end = begin + COMM_WIDTH if title == "COMM" else match.end()
        found[title] = slice(begin, end)
    last = list(found)[-1]
    found[last] = slice(found[last].start, width)
    if HISTORY in found:
        found["VERDICT"] = slice(found["VERDICT"].start, found[HISTORY].start - 1)
    return found


def columns(width):
    """The columns that a screen of this width must have."""
    return [title for title, least in COLUMNS.items() if width >= least]


def share(part, whole):
    percent = 100 * part / whole if whole else 0
    return f"{percent:.0f} %" if percent >= 9.95 else f"{percent:.1f} %"


def duration(us):
    if us < 1000:
        return f"{us} us"
    if us < 10_000:
        return f"{us / 1e3:.1f} ms"
    return f"{us / 1e3:.0f} ms" if us < 10_000_000 else f"{us / 1e6:.0f} s"


def is_rate(text, count, took):
    """Whether this is the rate of so many bytes. The time is known to 0.1 s, and the rate to its last digit."""
    found = re.fullmatch(r"(\d+)(\.\d)? (B|kB|MB)", text)
    if not found:
        return False
    number, fraction, unit = found.groups(default="")
    rate, digit = float(number + fraction) * UNITS[unit], UNITS[unit] * (0.1 if fraction else 1)
    return count / (took + 0.05) - digit <= rate <= count / (took - 0.05) + digit


def is_slow(counted):
    """Whether the other end's receive window is full all the time."""
    return counted.name.startswith("slow")


def verdicts(counted, took):
    """The verdicts that the rules of docs/congestion.md allow. At the threshold of `idle` there are two, since the time is known to
    0.1 s."""
    if is_slow(counted):
        return ["slow receiver, 100 % of busy time"]
    busy = counted.busy_ms / 1e3
    allowed = {"idle": busy / (took + 0.1) < IDLE, held_up(counted): busy / (took - 0.1) >= IDLE}
    return [said for said, holds in allowed.items() if holds]


def held_up(counted):
    """The verdict if the process is not idle."""
    free_ms = counted.busy_ms - counted.rwnd_ms - counted.sndbuf_ms
    limits = {"slow receiver": counted.rwnd_ms, "small send buffer": counted.sndbuf_ms, "network": free_ms}
    limit = max(limits, key=limits.get)
    if limit != "network":
        return f"{limit}, {share(limits[limit], counted.busy_ms)} of busy time"
    reasons = []
    if counted.again and counted.again >= 0.01 * counted.sent:
        kind = "needless resends" if 2 * counted.twice >= counted.retrans else "loss"
        reasons.append(f"{kind} {share(counted.again, counted.sent)}")
    srtt_us, above_us = max(counted.rtts)
    if above_us >= max(20_000, srtt_us - above_us):
        reasons.append(f"queue +{duration(above_us)}")
    return "network: " + (", ".join(reasons) or "nothing wrong seen")


def shortened(said, width):
    """A verdict in this width. One that does not fit says the cause alone, and then loses its middle."""
    if len(said) > width:
        said = said.removeprefix("network: ")
    if len(said) <= width:
        return said
    head = (width - 2) // 2
    return said[:head] + ".." + said[head - (width - 2) :]


def wrong_in(cells, line, pid, counted, took):
    """What is wrong in a row with its cells at these places; none: nothing."""
    shown = {title: line.ljust(place.stop)[place] for title, place in cells.items()}
    text = {title: cell.strip() for title, cell in shown.items()}
    width = cells["VERDICT"].stop - cells["VERDICT"].start
    is_right = {
        "PID": lambda text: text == str(pid),
        "COMM": lambda text: text == counted.name,
        "OPEN": lambda text: text == str(counted.open),
        "ENDED": lambda text: text == "0",
        "SENT/s": lambda text: is_rate(text, counted.sent, took),
        "RECV/s": lambda text: is_rate(text, counted.received, took),
        "AGAIN": lambda text: text == share(counted.again, counted.sent),
        "RTT": lambda text: text in [duration(srtt) for srtt, _ in counted.rtts],
        "+QUEUE": lambda text: text in [duration(above) for _, above in counted.rtts],
        "VERDICT": lambda text: text in [shortened(said, width) for said in verdicts(counted, took)],
        "RWND": lambda text: text == ("100 %" if is_slow(counted) else share(counted.rwnd_ms, counted.busy_ms)),
        "SNDBUF": lambda text: text == ("0.0 %" if is_slow(counted) else share(counted.sndbuf_ms, counted.busy_ms)),
        # This interval comes last. The character may stand for the one before, too.
        HISTORY: lambda _: (shown[HISTORY][-1] != " ") == counted.name.startswith("lost"),
    }
    wrong = [title for title in text if not is_right[title](text[title])]
    return f"{wrong} of {text}, and the kernel counted {counted} for {pid} in {took} s" if wrong else None
