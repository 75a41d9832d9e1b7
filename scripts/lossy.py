"""Two network namespaces with a link between them that loses segments, and processes that use it. The demonstration and the tests
of docs/store.md and docs/metrics.md use this. Needs root, iproute2 and nft."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

ADDRESS = "10.99.7.{}"
PORT = 7000
SLOW_PORT = 7001


class Lossy:
    """The link, while it is there. Its processes end with it."""

    def __init__(self, lost=10):
        """Of `lost` segments in each direction, one gets lost."""
        self.lost = lost
        self.names = [f"xctl-{os.getpid()}-{end}" for end in "ab"]
        self.processes = []

    def __enter__(self):
        try:
            for name in self.names:
                run("ip", "netns", "add", name)
            first, second = self.names
            run("ip", "link", "add", "veth0", "netns", first, "type", "veth", "peer", "name", "veth0", "netns", second)
            for number, name in enumerate(self.names, 1):
                run("ip", "-n", name, "address", "add", ADDRESS.format(number) + "/24", "dev", "veth0")
                # Without large segments, which would get lost as a whole.
                run("ip", "-n", name, "link", "set", "veth0", "gso_max_segs", "1", "up")
                # On arrival: what is dropped before it leaves, TCP takes for this host's own queue.
                lose = f"add rule ip t i iifname veth0 numgen random mod {self.lost} < 1 drop"
                table = "add table ip t; add chain ip t i { type filter hook input priority 0; }"
                run("ip", "netns", "exec", name, "nft", f"{table}; {lose}")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        for process in reversed(self.processes):  # who sends before who reads
            process.kill()
            process.wait()
        for name in self.names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)

    def netns(self, end):
        """The number of a namespace: 0 is the first."""
        return os.stat(f"/run/netns/{self.names[end]}").st_ino

    def start(self, end, job, name):
        """Starts a process of this name in a namespace: 0 is the first. It has said that it is ready."""
        command = ["ip", "netns", "exec", self.names[end], sys.executable, __file__, job, name]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True)
        self.processes.append(process)
        if process.stdout.readline() != b"ready\n":
            raise RuntimeError(f"{name} does not start")
        return process


def run(*command):
    subprocess.run(command, check=True, capture_output=True)


def serve(port, rate=None):
    """Reads each connection to its end; with a rate, so many bytes a second."""

    def read(connection):
        while connection.recv(1 << 16 if rate is None else rate // 10):
            if rate is not None:
                time.sleep(0.1)
        connection.close()

    listener = socket.create_server((ADDRESS.format(2), port), backlog=64)
    print("ready", flush=True)
    while True:
        threading.Thread(target=read, args=(listener.accept()[0],), daemon=True).start()


def send(port, connections, writes, size, pause):
    """Connections one after the other, each of so many writes. None: without end."""
    print("ready", flush=True)
    while connections is None or connections > 0:
        connection = socket.create_connection((ADDRESS.format(2), port))
        sent = 0
        while writes is None or sent < writes:
            connection.sendall(b"x" * size)
            sent += 1
            time.sleep(pause)
        connection.shutdown(socket.SHUT_WR)
        connection.recv(1)
        connection.close()
        connections = None if connections is None else connections - 1


def spin():
    """Uses a CPU. Softirqs interrupt such a process, and it looks guilty of what they do."""
    print("ready", flush=True)
    while True:
        pass


JOBS = {
    "serve": lambda: serve(PORT),
    "serve-slowly": lambda: serve(SLOW_PORT, 20_000),
    "few": lambda: send(PORT, 3, 60, 2000, 0.005),
    "bulk": lambda: send(PORT, None, None, 1 << 15, 0.02),
    "short": lambda: send(PORT, None, 10, 2000, 0.01),
    "feed": lambda: send(SLOW_PORT, None, None, 1 << 16, 0),
    "spin": spin,
}

if __name__ == "__main__":
    job, name = sys.argv[1:]
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the one who started it
    Path("/proc/self/comm").write_text(name)
    JOBS[job]()
