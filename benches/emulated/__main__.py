"""The instructions of a router's binary for what it carries: see scripts/instructions-emulated."""

import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import threading

HERE = pathlib.Path(__file__).resolve().parent
PROJECT = HERE.parents[1]
COMMITTED = HERE / "instructions"
# What is let pass, in percent.
TOLERANCE = 15
ROUNDS = 5
MEGABYTE = 10**6
# Each case is run with both numbers, and what the first takes is subtracted.
CASES = {"down": (4, 24), "up": (4, 24), "down-super": (8, 136), "up-super": (8, 136), "connection": (20, 120)}
# How large super-packets are, and how many come at a time, is a matter of the machine and its moment: figures to
# read, not to hold anything against.
LOOSE = "-super"


def main(update, targets):
    with tempfile.TemporaryDirectory(prefix="toh-") as directory:
        plugin = pathlib.Path(directory) / "instructions.so"
        subprocess.run(["cc", "-O2", "-shared", "-fPIC", "-o", plugin, HERE / "instructions.c"], check=True)
        figures = {}
        for target in targets:
            os.environ["TOH_RUNNER"] = f"qemu-{emulator_of(target)} -plugin {plugin}"
            os.environ["TOH_BIN"] = str(PROJECT / "target/dist" / target / "tcp-over-http")
            for case in CASES:
                figures[f"{target}-{case}"] = figure(case, pathlib.Path(directory))
    return write(figures) if update else compare(figures)


def emulator_of(target):
    for line in (PROJECT / "scripts/targets").read_text().splitlines():
        if line.split()[:1] == [target]:
            return line.split()[2]
    sys.exit(f"no target {target}")


def figure(case, directory):
    """Instructions for a megabyte or a connection."""
    few, many = CASES[case]
    rounds = [(count(case, many, directory) - count(case, few, directory)) / (many - few) for _ in range(ROUNDS)]
    return round(statistics.median(rounds))


def count(case, number, directory):
    """Instructions of a whole run; in a process of its own, for the harness reads TOH_RUNNER when it is loaded."""
    result = directory / "count"
    subprocess.run(
        [sys.executable, "-B", HERE, "--run", case, str(number), directory],
        env=os.environ | {"INSTRUCTIONS": str(result)}, check=True,
    )
    return int(result.read_text())


def run(case, number, directory):
    sys.path.insert(0, str(PROJECT / "tests/e2e"))
    from lab import emulator, netns
    from lab.connections import open_tunnel
    from lab.faultproxy import FaultProxy
    from lab.gateway import Gateway, upstream

    network = netns.Network()
    try:
        proxy = FaultProxy(network.internet, netns.PROXY, 3128)
        options = ("--path", "relay", *emulator.OPTIONS, "--upstream", upstream())
        if LOOSE not in case:
            options += ("--offload", "0")  # packets of 1500 bytes
        daemon = Gateway(network.router, pathlib.Path(directory), options)
        daemon.start()
        for _ in range(number if case == "connection" else 1):
            near, connection = open_tunnel(network.client, proxy, netns.SERVER, 4000)
            far = connection.sock
            if case != "connection":
                transfer(*((far, near) if case.startswith("down") else (near, far)), number * MEGABYTE)
            far.close()
            assert near.recv(1) == b""
            near.close()
        daemon.stop()
        proxy.close()
    finally:
        network.close()


def transfer(source, destination, length):
    def send():
        block, left = bytes(1 << 17), length
        while left:
            left -= source.send(block[:left])

    sender = threading.Thread(target=send)
    sender.start()
    buffer, left = bytearray(1 << 17), length
    while left:
        got = destination.recv_into(buffer)
        assert got, "ended early"
        left -= got
    sender.join()


def committed():
    lines = COMMITTED.read_text().splitlines() if COMMITTED.exists() else []
    return {name: int(number) for name, number in (line.split() for line in lines if not line.startswith("#"))}


def write(figures):
    lines = [f"{name} {number}" for name, number in sorted((committed() | figures).items())]
    head = "# Instructions for a megabyte (10^6 bytes) and a connection, in user space; scripts/instructions-emulated --update.\n"
    COMMITTED.write_text(head + "\n".join(lines) + "\n")
    print(COMMITTED.read_text(), end="")


def compare(figures):
    failed = False
    known = committed()
    for name, number in figures.items():
        percent = (number / known[name] - 1) * 100 if name in known else float("inf")
        bad = abs(percent) > TOLERANCE and not name.endswith(LOOSE)
        failed |= bad
        print(f"{name:20} {number:8}, committed {known.get(name, 0):8}: {percent:+.1f} %{'  FAILED' if bad else ''}")
    return failed


if __name__ == "__main__":
    if sys.argv[1] == "--run":
        run(sys.argv[2], int(sys.argv[3]), sys.argv[4])
    else:
        update = sys.argv[1] == "--update"
        sys.exit(main(update, sys.argv[2 if update else 1 :]))
