"""Processes with a TCP connection each in a network namespace of their own, and the kernel's counters of these connections, as ss
prints them. The processes are quiet until they are told to send. Needs root, iproute2 and nft."""

import contextlib
import os
import re
import resource
import select
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, fields
from pathlib import Path

# The kind of a process is also its name. The segments of the kind `lost` get lost at first. The kind `slow` sends to a reader
# that never reads.
KINDS = ["lost", "slow", "plain"]
PORTS = {kind: 7000 + number for number, kind in enumerate(KINDS)}
# Memory of a process, generously.
PROCESS_KB = 1500
PATIENCE = 300


def size(number):
    """The bytes that a process sends when it is told to. Processes that are neighbours differ."""
    return 5000 * (1 + number % 10)


def port(address):
    return int(address.rsplit(":", 1)[1])


@dataclass
class Counted:
    """What the kernel has counted for a process."""

    name: str
    open: int = 0
    sent: int = 0
    again: int = 0
    received: int = 0
    retrans: int = 0
    twice: int = 0  # segments that had arrived before
    # The kinds but `slow` alone have these, since those of `slow` grow all the time.
    busy_ms: int = 0
    rwnd_ms: int = 0
    sndbuf_ms: int = 0
    # The smoothed round-trip time and how far it is above its least, us: of the connection that waits longest in queues, or of several.
    rtts: frozenset = frozenset()

    def since(self, before):
        """The gain. `open` and the round-trip times are those of now."""
        now = ("name", "open", "rtts")
        values = {one.name: getattr(self, one.name) for one in fields(self)}
        return Counted(**{name: value if name in now else value - getattr(before, name) for name, value in values.items()})


def run(*command):
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


class NoRoom(Exception):
    """This host has not enough memory or time for so many processes."""


class Crowd:
    """So many processes, while they are there, and one more that holds the other ends of their connections."""

    def __init__(self, namespace, count, folder):
        self.namespace, self.count = namespace, count
        self.file = folder / f"crowd-{count}"
        self.told = 0
        self.owners = {}  # the PID and the number of a process, by the ports of its connection; the reader has no number

    def __enter__(self):
        command = ["ip", "netns", "exec", self.namespace, sys.executable, __file__, str(self.count), str(self.file)]
        self.processes = subprocess.Popen(command, start_new_session=True)
        end = time.monotonic() + PATIENCE
        while not self.file.exists() and self.processes.poll() is None and time.monotonic() < end:
            time.sleep(0.2)
        said = self.file.read_text() if self.file.exists() else f"they are not there after {PATIENCE} s, or have ended"
        if not said.startswith("ready\n"):
            self.__exit__()
            raise NoRoom(said)
        for line in said.splitlines()[1:]:
            here, there, pid, number = (int(word) for word in line.split())
            self.owners[here, there] = pid, number
            self.owners[there, here] = self.processes.pid, None
        return self

    def __exit__(self, *_):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.processes.pid, signal.SIGKILL)
        self.processes.wait()

    def send(self, loss):
        """Tells all processes to send. For so many seconds the segments of the kind `lost` get lost."""
        lossy = f"element ip crowd lossy {{ {PORTS['lost']} }}"
        run("ip", "netns", "exec", self.namespace, "nft", f"add {lossy}")
        os.killpg(self.processes.pid, signal.SIGUSR1)
        self.told += 1
        time.sleep(loss)
        run("ip", "netns", "exec", self.namespace, "nft", f"delete {lossy}")

    def counted(self):
        """What the kernel has counted, by PID, and whether everything has been sent and acknowledged."""
        by_pid, quiet = {}, True
        for line in run("ip", "netns", "exec", self.namespace, "ss", "-tinHO", "state", "established").splitlines():
            _, waiting, here, there, rest = line.split(maxsplit=4)
            pid, number = self.owners[port(here), port(there)]
            kind = "reader" if number is None else KINDS[number % len(KINDS)]
            # as in `rtt:0.035/0.017` and `retrans:0/12`
            figures = {name: value.split("/") for name, value in re.findall(r"(\w+):([\d./]+)", rest)}
            first = lambda name, figures=figures: float(figures.get(name, "0")[0])
            row = by_pid.setdefault(pid, Counted(kind if number is None else f"{kind}-{number}"))
            row.open += 1
            row.sent += int(first("bytes_sent"))
            row.again += int(first("bytes_retrans"))
            row.received += int(first("bytes_received"))
            row.retrans += int(figures.get("retrans", "0")[-1])
            row.twice += int(first("dsack_dups"))
            srtt_us, min_us = round(1000 * first("rtt")), round(1000 * first("minrtt"))
            rtts = row.rtts | {(srtt_us, srtt_us - min_us)}
            longest = max(above for _, above in rtts)
            row.rtts = frozenset((srtt, above) for srtt, above in rtts if above == longest)
            if kind != "slow":
                row.busy_ms += int(first("busy"))
                row.rwnd_ms += int(first("rwnd_limited"))
                row.sndbuf_ms += int(first("sndbuf_limited"))
                wanted = 0 if number is None else self.told * size(number)
                quiet &= waiting == "0" and row.sent - row.again == wanted
        return by_pid, quiet


def work(kind, number, connection):
    """The life of a process."""
    Path("/proc/self/comm").write_text(f"{kind}-{number}")
    while kind == "slow":
        connection.sendall(bytes(1 << 16))
    while True:
        signal.sigwait([signal.SIGUSR1])
        connection.sendall(bytes(size(number)))


def begin(count, file):
    """Starts the processes, and reads what they send. Runs inside the namespace."""
    run("ip", "link", "set", "lo", "mtu", "1500", "up")
    run("nft", "add table ip crowd; add set ip crowd lossy { type inet_service; }; "
        "add chain ip crowd in { type filter hook input priority 0; }; add rule ip crowd in tcp dport @lossy drop")
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    listeners = {kind: socket.create_server(("127.0.0.1", port)) for kind, port in PORTS.items()}
    listeners["slow"].setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    readers, started, ready = [], [], select.epoll()
    for number in range(count):
        kind = KINDS[number % len(KINDS)]
        connection = socket.socket()
        if kind == "slow":
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        connection.connect(listeners[kind].getsockname())
        readers.append(listeners[kind].accept()[0])
        pid = os.fork()
        if pid == 0:
            own = connection.fileno()
            os.closerange(3, own)
            os.closerange(own + 1, readers[-1].fileno() + 1)
            work(kind, number, connection)
        started.append((connection.getsockname()[1], PORTS[kind], pid, number))
        connection.close()
        if kind != "slow":
            ready.register(readers[-1], select.EPOLLIN)
    Path("/proc/self/comm").write_text("reader")
    whole = file.with_suffix(".new")
    whole.write_text("ready\n" + "".join("{} {} {} {}\n".format(*one) for one in started))
    whole.rename(file)
    while True:
        for fd, _ in ready.poll():
            os.read(fd, 1 << 20)


if __name__ == "__main__":
    count, file = int(sys.argv[1]), Path(sys.argv[2])
    try:
        begin(count, file)
    except OSError as error:
        file.write_text(str(error))
