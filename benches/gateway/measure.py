"""The measurements: what is done with one gateway in one lab."""

import contextlib
import functools
import json
import os
import subprocess
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from gateways import Gateway
from lab import PROXY, SERVER, SPREAD, Lab, LabError, file_limit

FIXED_RATE = 800_000_000  # bits per second
STREAMS = {"up1": (1, False), "down1": (1, True), "up4": (4, False), "down4": (4, True)}
RATES = {"up_fixed": False, "down_fixed": True}
CONNECTS = {"connect1": 1, "connect8": 8}
# Idle connections asked for; what the limit of open files leaves of them is what is tried.
IDLE = (1_000, 10_000)
# What they may take to be opened and tried.
IDLE_SECONDS = 120
# What a measurement may end with.
FAILURES = (LabError, subprocess.SubprocessError, ValueError, OSError)
# For how long system calls are counted.
SYSCALL_SECONDS = 0.4
# Of a kernel thread, in /proc/PID/stat (<linux/sched.h>).
PF_KTHREAD = 0x200000


@dataclass(frozen=True)
class Plan:
    """How long and what."""

    stream_seconds: float
    connect_seconds: float
    rounds: int
    fixed_rate: bool
    idle: tuple[int, ...]
    # Whether the router has one.
    firewall: bool = False
    # Whether that lets the kernel's flowtable take connections.
    flowtable: bool = False
    # Whether all links have TSO, GSO and GRO; a small router's have not.
    offloads: bool = True
    # Also before each stream, not counted.
    warmup: float = 0.3

    def idle_counts(self) -> list[int]:
        """The idle connections there can be with two files each in one process."""
        most = (file_limit() - 200) // 2 // 100 * 100
        return sorted({min(count, most) for count in self.idle})


QUICK = Plan(stream_seconds=1.0, connect_seconds=0.7, rounds=3, fixed_rate=False, idle=(1_000,))
FULL = Plan(stream_seconds=2.0, connect_seconds=1.5, rounds=5, fixed_rate=True, idle=IDLE)


@dataclass
class Running:
    """A gateway in a lab."""

    lab: Lab
    gateway: Gateway
    process: subprocess.Popen | None

    def is_there(self) -> bool:
        """Whether it has not ended."""
        return self.process is None or self.process.poll() is None

    def client(self, *argv) -> list:
        """The command of a client that goes through this gateway."""
        via = ["--via", f"{PROXY[0]}:{PROXY[1]}"] if self.gateway.via_proxy else []
        command, *rest = argv
        return [self.lab.tools, command, "--to", f"{SERVER[0]}:{SERVER[1]}", *via, *rest]


@contextlib.contextmanager
def running(gateway: Gateway, tools: Path, plan: Plan):
    """A new lab with the gateway in it, ready for connections."""
    with Lab(tools, plan.firewall, plan.flowtable, plan.offloads) as lab:
        process = gateway.start(lab)
        try:
            lab.wait_until(lambda: _is_ready(lab, gateway, process), "a connection comes through")
        except LabError as error:
            said = lab.log(Path(gateway.binary).name) if gateway.binary else ""
            raise LabError(f"{error}: {said}") from error
        yield Running(lab, gateway, process)
        if process:
            lab.stop(process)


def one_round(gateways: list[Gateway], tools: Path, plan: Plan, turn: int) -> dict[str, dict]:
    """All of a round's figures, by gateway. What fails is missing in them, with the reason under `errors`.

    Each figure is taken of all gateways, one right after the other, in an order that turns: what else the machine does
    is much the same for them.
    """
    found: dict[str, dict] = {gateway.name: {"errors": {}} for gateway in gateways}
    with contextlib.ExitStack() as stack:
        runs = []
        for gateway in gateways:
            figures = found[gateway.name]
            try:
                run = stack.enter_context(running(gateway, tools, plan))
            except FAILURES as error:
                figures["errors"]["round"] = str(error)
                continue
            figures["rss_idle"] = figures["rss_load"] = _rss(run.process)
            runs.append(run)
        for number, (name, take) in enumerate(_figures(plan)):
            first = (turn + number) % max(len(runs), 1)
            for run in runs[first:] + runs[:first]:
                figures = found[run.gateway.name]
                if not run.is_there():
                    continue
                try:
                    figures[name] = take(run)
                    figures["rss_load"] = _most(figures["rss_load"], figures[name].pop("rss", None))
                except FAILURES as error:
                    figures["errors"][name] = str(error)
                if not run.is_there():
                    log = run.lab.log(Path(run.gateway.binary).name)
                    figures["errors"]["round"] = f"{name}: the gateway has ended: {log}"
    return found


def _figures(plan: Plan):
    """What a round takes: names, and functions of a running gateway."""
    for name, (streams, down) in STREAMS.items():
        yield name, functools.partial(_stream, plan=plan, streams=streams, down=down)
    for name, down in RATES.items() if plan.fixed_rate else ():
        yield name, functools.partial(_stream, plan=plan, streams=1, down=down, rate=FIXED_RATE)
    for name, concurrency in CONNECTS.items():
        yield name, functools.partial(_connect, plan=plan, concurrency=concurrency)


def idle(gateway: Gateway, tools: Path, plan: Plan, count: int) -> dict:
    """Memory with so many idle connections, and how many of them still work."""
    with running(gateway, tools, plan) as run:
        figures = {"wanted": count, "rss_before": _rss(run.process), "files_before": _files(run.process)}
        argv = run.client("idle", "--spread", SPREAD, "--connections", count)
        client = run.lab.spawn(
            "client",
            argv,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        # Some spin for ever once they have no file left to accept with.
        patience = threading.Timer(IDLE_SECONDS, client.kill)
        patience.start()
        figures |= json.loads(client.stdout.readline() or "{}")
        figures |= {"rss": _rss(run.process), "files": _files(run.process)}
        with contextlib.suppress(BrokenPipeError):
            client.stdin.write("\n")
            client.stdin.flush()
        figures |= json.loads(client.stdout.readline() or "{}")
        client.wait(30)
        patience.cancel()
        figures["gone"] = bool(run.process) and run.process.poll() is not None
    return figures


def _stream(run: Running, plan: Plan, streams, down, rate=0) -> dict:
    argv = ["--streams", streams, "--seconds", plan.stream_seconds + plan.warmup, "--warmup", plan.warmup]
    argv += ["--down"] if down else []
    argv += ["--rate", rate] if rate else []
    lab = run.lab
    gateway, proxy, system = _cpu(run.process), _cpu(lab.proxy), _system_cpu()
    client = lab.spawn(
        "client", run.client("stream", *argv), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    rss = None
    while client.poll() is None:
        rss = _most(rss, _rss(run.process))
        time.sleep(0.05)
    out, err = client.communicate()
    if client.returncode != 0:
        raise LabError(err.strip())
    said = json.loads(out)
    if said["bits_per_second"] == 0:
        raise LabError("no byte has come through")
    gb = said["bytes"] / 1e9
    busy, softirq = (after - before for after, before in zip(_system_cpu(), system, strict=True))
    figures = {
        "gbps": said["bits_per_second"] / 1e9,
        "proxy_s_per_gb": (_cpu(lab.proxy) - proxy) / gb,
        "system_s_per_gb": busy / gb,
        "softirq_s_per_gb": softirq / gb,
        "rss": rss,
    }
    if run.process:
        figures["gateway_s_per_gb"] = (_cpu(run.process) - gateway) / gb
    return figures


def _connect(run: Running, plan: Plan, concurrency: int) -> dict:
    argv = ["--spread", SPREAD, "--concurrency", concurrency]
    before = _cpu(run.process)
    figures = json.loads(run.lab.run("client", run.client("connect", *argv, "--seconds", plan.connect_seconds)))
    if run.process and figures["done"]:
        figures["gateway_us"] = (_cpu(run.process) - before) / figures["done"] * 1e6
        figures |= _syscalls(run, argv)
    return figures


def _syscalls(run: Running, argv: list) -> dict:
    """The gateway's system calls for a connection, apart from the time of connections: counting takes some."""
    output = run.lab.dir / "perf"
    perf = ["perf", "stat", "-x", ",", "-o", output, "-e", "raw_syscalls:sys_enter", "-p", run.process.pid, "--"]
    client = run.client("connect", *argv, "--seconds", SYSCALL_SECONDS)
    done = json.loads(run.lab.run("client", [*perf, *client]))["done"]
    counts = [line.split(",")[0] for line in output.read_text().splitlines() if "sys_enter" in line]
    return {"gateway_syscalls": int(counts[0]) / done} if done else {}


def _is_ready(lab: Lab, gateway: Gateway, process) -> bool:
    if process and process.poll() is not None:
        raise LabError(f"it ended with {process.returncode}")
    return lab.reaches_server(gateway.via_proxy)


def _cpu(process) -> float:
    """CPU seconds that a process has taken with all its threads, user and kernel."""
    if process is None:
        return 0.0
    # The clock of another process: see CPUCLOCK_SCHED in <linux/posix-timers.h>.
    return time.clock_gettime(~process.pid << 3 | 2)


def _system_cpu() -> tuple[float, float]:
    """CPU seconds of the whole machine but for programs that are not ours, and how much of it was spent in interrupts."""
    ticks = os.sysconf("SC_CLK_TCK")
    user, nice, system, _idle, _iowait, irq, softirq, *_ = map(
        int, Path("/proc/stat").read_text().split()[1:9]
    )
    return (user + nice + system + irq + softirq - _others()) / ticks, (irq + softirq) / ticks


def _others() -> int:
    """Ticks that programs outside our process group have taken, with those of their children that have ended."""
    total = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = stat.read_text().rpartition(")")[2].split()
            if int(fields[2]) != os.getpgrp() and not int(fields[6]) & PF_KTHREAD:
                total += sum(map(int, fields[11:15]))
    return total


def _files(process) -> int | None:
    """Files that it has open."""
    if process is None:
        return None
    return len(os.listdir(f"/proc/{process.pid}/fd"))


def _rss(process) -> int | None:
    """Resident memory in bytes."""
    if process is None:
        return None
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
    return None


def _most(*values):
    return max((value for value in values if value is not None), default=None)
