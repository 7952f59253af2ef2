"""Programs that people use, unchanged, through the gateway: curl, wget, ssh, git, iperf3, nmap."""

import hashlib
import json
import xml.etree.ElementTree

import pytest

from lab.gateway import is_relayed
from lab.netns import PLAIN, SERVER, command, literal
from lab.proxies import Tinyproxy
from lab.servers import Iperf, Sshd, WebServer, random_file
from lab.wait import until

MIB = 1 << 20


@pytest.fixture
def web_root(directory):
    root = directory / "www"
    root.mkdir()
    return root


@pytest.mark.parametrize("tls", [False, True], ids=["http", "https"])
@pytest.mark.parametrize("program", ["curl", "wget"])
def test_download(gateway, honest, client, internet, server, directory, web_root, leaks, program, tls):
    wanted = random_file(web_root / "file", 20 * MIB)
    web = WebServer(internet, server, web_root, tls=tls, directory=directory)
    gateway()
    url = f"{'https' if tls else 'http'}://{literal(server)}:{web.port}/file"
    got = directory / "got"
    trust = {"curl": "--cacert", "wget": "--ca-certificate"}[program]
    options = [trust, web.certificate] if tls else []
    options += {"curl": ["-sS", "-m", "60", "-o", got], "wget": ["-q", "-T", "60", "-O", got]}[program]
    client.run(program, *options, url, env=PLAIN)
    assert hashlib.sha256(got.read_bytes()).hexdigest() == wanted
    web.close()
    leaks.assert_none()


def test_parallel_https(gateway, honest, client, internet, directory, web_root, leaks):
    """A page with many parts."""
    for number in range(40):
        (web_root / f"part{number}").write_text(f"this is part {number}")
    web = WebServer(internet, SERVER, web_root, tls=True, directory=directory)
    gateway()
    result = client.run(
        "curl", "-sS", "-m", "60", "-Z", "--parallel-max", "40", "--cacert", web.certificate,
        f"https://{SERVER}:{web.port}/part[0-39]", env=PLAIN,
    )
    for number in range(40):
        assert f"this is part {number}" in result.stdout
    web.close()
    leaks.assert_none()


def test_ssh(gateway, honest, client, internet, server, directory, leaks):
    """The server speaks first; some MB go each way and are the same at the other end."""
    sshd = Sshd(internet, server, directory / "ssh")
    gateway()
    data = directory / "data"
    wanted = random_file(data, 8 * MIB)
    with open(data, "rb") as file:
        result = client.run("ssh", *sshd.options, "sha256sum", stdin=file, env=PLAIN)
    assert result.stdout.split()[0] == wanted
    got = directory / "got"
    with open(got, "wb") as file:
        client.run("ssh", *sshd.options, f"cat {data}", stdout=file, env=PLAIN)
    assert hashlib.sha256(got.read_bytes()).hexdigest() == wanted
    leaks.assert_none()


def test_git_clone(gateway, honest, client, internet, server, directory, web_root, leaks):
    """git clone over https."""
    work, bare = directory / "work", web_root / "project.git"
    git = ["git", "-c", "user.name=Test", "-c", "user.email=test@example.net"]
    command(*git, "init", "-q", "-b", "main", work)
    random_file(work / "blob", 3 * MIB)
    command(*git, "-C", work, "add", ".")
    command(*git, "-C", work, "commit", "-q", "-m", "one")
    command(*git, "clone", "-q", "--bare", work, bare)
    command(*git, "-C", bare, "update-server-info")
    web = WebServer(internet, server, web_root, tls=True, directory=directory)
    gateway()
    clone = directory / "clone"
    client.run(
        "git", "-c", f"http.sslCAInfo={web.certificate}", "clone", "-q",
        f"https://{literal(server)}:{web.port}/project.git", clone, env=PLAIN,
    )
    assert (clone / "blob").read_bytes() == (work / "blob").read_bytes()
    web.close()
    leaks.assert_none()


@pytest.mark.parametrize("streams", [1, 4])
@pytest.mark.parametrize("direction", ["up", "down"])
def test_iperf3(gateway, client, internet, server, directory, leaks, direction, streams):
    """Every stream moves, in either direction: in super-packets, or without a packet through the TUN."""
    Tinyproxy(internet, directory)
    Iperf(internet, server)
    daemon = gateway(log_level="info")
    reverse = ["-R"] if direction == "down" else []
    iperf = ("iperf3", "-J", "-c", server, "-P", streams, "-t", "2", *reverse)

    def measure():
        before = daemon.summary()
        result = json.loads(client.run(*iperf, env=PLAIN).stdout)
        moved = [stream["receiver"]["bytes"] for stream in result["end"]["streams"]]
        assert len(moved) == streams and all(moved), moved
        after = daemon.summary()
        return sum(moved), *(after[f"tun {what}"] - before[f"tun {what}"] for what in ("packets", "bytes"))

    def has_super_packets():
        _, packets, size = measure()
        return size > 1500 * packets

    if is_relayed(server):
        until(has_super_packets, "super-packets, which are few on a machine that is busy with other things")
    else:
        moved, packets, _ = measure()
        assert moved > 1 << 20 and packets < 100, packets
    leaks.assert_none()


def test_without_offload(gateway, client, internet, server, directory, leaks):
    """Where the kernel gives no super-packets, packets go one by one, and nothing else changes."""
    Tinyproxy(internet, directory)
    Iperf(internet, server)
    daemon = gateway("--offload", "0", log_level="info")
    result = json.loads(client.run("iperf3", "-J", "-c", server, "-t", "1", env=PLAIN).stdout)
    assert result["end"]["sum_received"]["bytes"]
    counters = daemon.summary()
    assert 0 < counters["tun bytes"] <= 1500 * counters["tun packets"], counters
    leaks.assert_none()


# Without them nmap takes for filtered what is not answered within half a second; here a proxy has to.
PATIENT = ["--initial-rtt-timeout", "10s", "--min-rtt-timeout", "10s", "--max-rtt-timeout", "20s"]


def scan(space, server, ports, options=()):
    """{port: state} as nmap -sT sees it."""
    family = ["-6"] if ":" in server else []
    result = space.run(
        "nmap", *family, "-sT", "-Pn", "-n", "-T4", "--max-retries", "1", *options, "-p", ports, "-oX", "-", server,
        timeout=300,
    )
    tree = xml.etree.ElementTree.fromstring(result.stdout)
    states = {int(port.get("portid")): port.find("state").get("state") for port in tree.iter("port")}
    for extra in tree.iter("extraports"):
        for reason in extra.iter("extrareasons"):
            for part in (reason.get("ports") or "").split(","):
                if part:
                    low, _, high = part.partition("-")
                    states |= {port: extra.get("state") for port in range(int(low), int(high or low) + 1)}
    return states


def test_nmap(gateway, honest, client, internet, server, leaks):
    """A port scan through the gateway sees the open, closed and filtered ports that one beside the server sees."""
    opened = {22, 80, 443, 8080}
    listeners = [internet.listen(server, port) for port in opened]
    family, icmp = ("ip6", "icmpv6") if ":" in server else ("ip", "icmp")
    internet.nft(f"""
table inet filter {{
    chain input {{
        type filter hook input priority 0
        {family} daddr {server} tcp dport {{ 23, 25 }} drop
        {family} daddr {server} tcp dport {{ 110 }} reject with {icmp} admin-prohibited
        {family} daddr {server} tcp dport {{ 111 }} reject with tcp reset
    }}
}}""")
    ports = "20-30,75-85,105-115,440-446,8078-8082"
    beside = scan(internet, server, ports)
    gateway()
    through = scan(client, server, ports, PATIENT)
    assert {port for port, state in beside.items() if state == "open"} == opened
    assert {port for port, state in beside.items() if state == "filtered"} == {23, 25, 110}
    assert beside[111] == "closed"
    assert through == beside
    leaks.assert_none()
    for listener in listeners:
        listener.close()
