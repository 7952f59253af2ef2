"""Measures tcp-over-http against plain forwarding, the proxy itself and its peers.

Builds three network namespaces (client, router, internet), in which nothing but the benchmark's own traffic
runs, and measures every gateway in each round, in an order that turns. Installs what is missing: Debian's
packages with apt-get, tun2proxy with cargo, Go programs with `go install`, matplotlib with pip. Needs root.
What a registry does not give is left out and named.

Environment: TOH_BIN, the tcp-over-http to measure, as scripts/build x86_64 leaves it, instead of one made
here; TOH_BENCH_CACHE, where what is built is kept (/var/cache/tcp-over-http-bench); CARGO_TARGET_DIR.
"""

import argparse
import contextlib
import json
import os
import platform
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import gateways
import install
import measure
import results
from lab import CONGESTION, LabError, file_limit, sweep

RESULTS = install.ROOT / "benches/results"


def main() -> int:
    names = [gateway.name for gateway in gateways.every()]
    parser = argparse.ArgumentParser(
        prog="scripts/bench",
        description=__doc__,
        epilog=f"Gateways: {', '.join(names)}.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument(
        "--quick", action="store_true", help="some 8 s a gateway and round, no fixed rate (default)"
    )
    mode.add_argument(
        "--full", action="store_true", help="some 18 s a gateway and round, 10,000 idle connections"
    )
    parser.add_argument(
        "--only", metavar="NAME,...", help="these gateways; plain and straight always come with them"
    )
    parser.add_argument("--rounds", type=int, metavar="N", help="rounds (quick: 3, full: 5)")
    parser.add_argument(
        "--idle", type=int, metavar="N", help="most idle connections (quick: 1,000, full: 10,000)"
    )
    parser.add_argument(
        "--path", choices=("forward", "relay"), help="only this path of tcp-over-http"
    )
    parser.add_argument(
        "--firewall",
        action="store_true",
        help="the router tracks connections and masquerades, as OpenWrt's does",
    )
    parser.add_argument(
        "--flowtable",
        action="store_true",
        help="--firewall, with connections in the kernel's flowtable; not every kernel has one",
    )
    parser.add_argument(
        "--no-offload",
        action="store_true",
        help="no TSO, GSO and GRO on any link: a packet is a packet, as on a small router",
    )
    parser.add_argument(
        "--output", type=Path, metavar="NAME", help="write NAME.json, NAME.md and charts (default: print)"
    )
    parser.add_argument("--list", action="store_true", help="list the gateways and end")
    args = parser.parse_args()
    if args.list:
        print("\n".join(f"{gateway.name:24} {gateway.note}" for gateway in gateways.every()))
        return 0
    if os.geteuid() != 0:
        parser.error("needs root: network namespaces")
    wanted = args.only.split(",") if args.only else names
    if unknown := set(wanted) - set(names):
        parser.error(f"no such gateway: {', '.join(sorted(unknown))}; see --list")
    plan = measure.FULL if args.full else measure.QUICK
    plan = replace(
        plan,
        firewall=args.firewall or args.flowtable,
        flowtable=args.flowtable,
        offloads=not args.no_offload,
    )
    if args.rounds:
        plan = replace(plan, rounds=max(1, min(args.rounds, 50)))
    if args.idle:
        plan = replace(
            plan, idle=tuple(sorted({*(n for n in plan.idle if n < args.idle), min(args.idle, 60_000)}))
        )
    # So that Ctrl-C and SIGTERM both unwind, and namespaces and processes go.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    chosen = [gateway for gateway in gateways.every() if gateway.kind == "limit" or gateway.name in wanted]
    if args.path:
        chosen = [gateway for gateway in chosen if getattr(gateway, "path", args.path) == args.path]
    try:
        found = run(chosen, plan)
    except (install.Missing, LabError) as error:
        print(f"scripts/bench: {error}", file=sys.stderr)
        return 1
    print(results.markdown(found))
    if args.output:
        write(found, args.output)
    return 0


def run(chosen: list[gateways.Gateway], plan: measure.Plan) -> dict:
    """Installs, measures, and puts everything together."""
    install.prepare()
    sweep()
    tools = install.tools()
    notes = _notes(plan)
    plan = replace(plan, idle=tuple(plan.idle_counts()))
    versions, left_out = {}, {}
    for gateway in chosen:
        say(f"{gateway.name}: looking for it")
        try:
            versions[gateway.name] = gateway.install()
        except install.Missing as reason:
            left_out[gateway.name] = str(reason)
            say(f"{gateway.name}: left out: {reason}")
    present = [gateway for gateway in chosen if gateway.name in versions]

    with _precedence():
        rounds: dict[str, list[dict]] = {gateway.name: [] for gateway in present}
        for n in range(plan.rounds):
            say(f"round {n + 1} of {plan.rounds}")
            for name, figures in measure.one_round(present, tools, plan, n * 3).items():
                rounds[name].append(figures)
                for cell, error in figures["errors"].items():
                    say(f"{name}: {cell}: {error}")
        idle: dict[str, list[dict]] = {gateway.name: [] for gateway in present}
        for gateway in present:
            for count in plan.idle if gateway.kind != "limit" else ():
                say(f"{gateway.name}: {count} idle connections")
                with contextlib.suppress(*measure.FAILURES):
                    idle[gateway.name].append(measure.idle(gateway, tools, plan, count))

    limits = {name: rounds[name] for name in ("plain", "straight") if name in rounds}
    return {
        "date": time.strftime("%Y-%m-%d"),
        "machine": _machine(),
        "plan": asdict(plan),
        "gateways": [
            {
                "name": gateway.name,
                "kind": gateway.kind,
                "note": gateway.note,
                "version": versions[gateway.name],
                "binary_bytes": gateway.binary.stat().st_size if gateway.binary else None,
                "medians": results.summary(rounds[gateway.name], idle[gateway.name], limits),
                "rounds": rounds[gateway.name],
            }
            for gateway in present
        ],
        "left_out": left_out,
        "notes": notes,
    }


@contextlib.contextmanager
def _precedence():
    """What is measured goes before other programs of the machine: by its niceness, and by that of its session, which the
    scheduler looks at first (sched(7), autogroup)."""
    session, before = Path("/proc/self/autogroup"), os.getpriority(os.PRIO_PROCESS, 0)
    with contextlib.suppress(OSError):
        os.setsid()  # unless a shell has given us a group of our own
    with contextlib.suppress(OSError):
        session.write_text("-20")
    os.setpriority(os.PRIO_PROCESS, 0, -20)
    try:
        yield
    finally:
        os.setpriority(os.PRIO_PROCESS, 0, before)
        with contextlib.suppress(OSError):
            session.write_text("0")


def write(found: dict, output: Path):
    """The results as JSON and Markdown, and the charts."""
    output = output if output.parent != Path() else RESULTS / output
    output.parent.mkdir(parents=True, exist_ok=True)
    rounded = json.loads(json.dumps(found), parse_float=lambda text: float(f"{float(text):.5g}"))
    output.with_suffix(".json").write_text(json.dumps(rounded, indent=1) + "\n")
    output.with_suffix(".md").write_text(results.markdown(found))
    say(f"written: {output}.json, {output}.md")
    try:
        python = install.python_with("matplotlib")
        charts = [python, Path(__file__).with_name("charts.py"), output.with_suffix(".json"), output.parent]
        subprocess.run(charts, check=True)
    except (install.Missing, subprocess.CalledProcessError) as error:
        say(f"no charts: {error}")


def _notes(plan: measure.Plan) -> list[str]:
    notes = []
    counts = plan.idle_counts()
    if max(plan.idle) not in counts:
        notes.append(
            f"{max(plan.idle):,} idle connections were asked for; a process may open {file_limit():,} files "
            f"here, and a relay needs two for a connection, so it was {max(counts):,}"
        )
    if (load := os.getloadavg()[0]) > 0.5:
        notes.append(f"other work was running (load {load:.1f} at the start): figures are low and noisy")
    return notes


def _machine() -> dict:
    cpu = "unknown CPU"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            cpu = line.split(":", 1)[1].strip()
            break
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "kernel": platform.release(),
        "congestion": CONGESTION,
        "open_files": file_limit(),
    }


def say(text: str):
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
