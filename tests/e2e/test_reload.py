"""SIGHUP: what can be is taken over without touching a connection, the rest by another run in the same process."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from lab.configured import RESTARTED
from lab.connections import assert_carries, assert_direct, assert_proxied, assert_proxied_among_others, open_tunnel
from lab.dnsservers import ELSEWHERE, Unbound, answer_to, framed, query, read_framed
from lab.faultproxy import OK
from lab.gateway import NFT_TABLE, PASSWORD, READY, TABLE, TUN, is_relayed, upstream
from lab.netns import (
    CLIENT,
    CLIENT6,
    CLIENT_OTHER,
    INTERNET,
    INTERNET6,
    PROXY,
    PROXY_OTHER,
    RESOLVER,
    ROUTER_LAN,
    SERVER,
    SERVER6,
    SERVER_OTHER,
    connecting,
    finish_connect,
)
from lab.slow_nft import SlowNft
from lab.wait import WAIT, until

pytestmark = pytest.mark.native(why="rules change, and a new run is not emulated")

FLOOD = Path(__file__).parent / "lab" / "flood.py"


def test_live(configured, proxy, fault_proxy, client, internet, leaks):
    """A transfer goes on while the proxies, the networks and the log level change; what comes then has the new ones."""
    daemon = configured.write().start()
    assert_proxied(client, proxy, SERVER)
    near, far = open_tunnel(client, proxy, SERVER, 4000)
    sent, stop = [0], threading.Event()

    def transfer():
        while not stop.is_set():
            near.sendall(b"x" * 10_000)
            sent[0] += 10_000
            got = 0
            while got < 10_000:
                got += len(far.sock.recv(10_000 - got))

    thread = threading.Thread(target=transfer)
    thread.start()
    other = fault_proxy(PROXY_OTHER)
    before = daemon.status()["upstreams"][0]
    configured.reload("INFO.*reload: changed upstream, bypass, log_level, rules; connections go on",
                      main="option log_level info\nlist bypass 198.51.100.0/24", upstreams=(upstream(PROXY_OTHER), upstream()))
    assert_proxied(client, other, SERVER)
    assert_direct(client, internet.listen(SERVER_OTHER), other)
    first, second = daemon.status()["upstreams"]
    assert first["name"].startswith(PROXY_OTHER) and first["opened"] == 1
    assert second["up"] >= before["up"] and second["flows"] == before["flows"] == 1
    assert second | {"up": 0} == before | {"up": 0}, "what is known of a proxy that stays"
    offset = len(daemon.log())
    assert_proxied(client, other, SERVER6)
    assert "DEBUG" not in daemon.log()[offset:]
    configured.reload("INFO.*reload: changed upstream, bypass, log_level, rules; connections go on",
                      main="", upstreams=(upstream(),))
    assert_proxied(client, proxy, SERVER_OTHER)
    assert "DEBUG" in daemon.log()[offset:]
    progress = sent[0]
    until(lambda: sent[0] > progress, "the transfer goes on")
    stop.set()
    thread.join()
    near.sendall(b"the end")
    assert far.sock.recv(100) == b"the end"
    near.close()
    far.close()


@pytest.mark.once(why="how proxies are chosen and asked knows no path")
def test_a_resolver_that_is_down(configured, proxy, client, internet, directory):
    """What it has said of a proxy's name stays good over a reload."""
    resolver = Unbound(internet, directory, [RESOLVER], [f"proxy.corp.example. 300 IN A {PROXY}"])
    main = f"list resolver {RESOLVER}"
    configured.write(main, upstreams=("http://proxy.corp.example:3128",)).start()
    assert_proxied(client, proxy, SERVER)
    resolver.stop()
    offset = configured.reload("changed .*; connections go on", main=f"{main}\noption reply_timeout 20",
                               upstreams=("http://proxy.corp.example:3128",))
    assert_proxied(client, proxy, SERVER_OTHER)
    configured.daemon.wait_log("proxy.corp.example: .*its last addresses stay in use", offset)


@pytest.mark.parametrize("options", ["option ipv6 0", "option ipv6 1"])
def test_tables_that_are_replaced_are_not_lost(configured, proxy, client, directory, options):
    """The daemon does not take its own replacement for somebody else's deletion, however much it replaces."""
    many = directory / "many"
    many.write_text("".join(f"{100 + number // 65536}.{number // 256 % 256}.{number % 256}.0/25\n" for number in range(10_000)))
    daemon = configured.write(options).start()
    for number in range(3):
        lines = f"{options}\nlist bypass 198.51.100.{number}\nlist bypass_file {many}"
        configured.reload("reload: .*connections go on", main=lines)
    assert_proxied(client, proxy, SERVER)
    configured.reload("reload: .*connections go on", main=options)
    assert_proxied(client, proxy, SERVER)
    assert "deleted from outside" not in daemon.log()


@pytest.mark.once(why="the configuration knows no path")
def test_nothing_changed(configured, proxy, client):
    daemon = configured.write().start()
    pid = daemon.status()
    configured.reload("INFO.*reload: nothing has changed")
    assert_proxied(client, proxy, SERVER)
    assert daemon.status()["uptime"] >= pid["uptime"]


@pytest.mark.once(why="the configuration knows no path")
@pytest.mark.parametrize("text, error", [
    ("config tcp-over-http main\n\toption mtu '12'\n", r"config:2:13: mtu: '12'"),
    ("config tcp-over-http main\n\toption auto_rout '1'\n", r"config:2:9: unknown option"),
    ("config tcp-over-http main\n", "no upstream"),
    ("nonsense", r"config:1:1: "),
    (None, "config: No such file"),
], ids=["value", "option", "no upstream", "syntax", "no file"])
def test_bad_file(configured, proxy, client, text, error):
    """The error says where; nothing changes; a good file heals it."""
    daemon = configured.write().start()
    configured.path.unlink()
    if text is not None:
        configured.path.write_text(text)
    configured.reload(rf"ERROR.*reload: .*{error}.*nothing is changed")
    assert_proxied(client, proxy, SERVER)
    configured.reload("reload: changed connect; connections go on", main="option connect early")
    assert daemon.running()


@pytest.mark.once(why="the configuration knows no path")
def test_secrets_are_not_shown(configured, proxy, client):
    """A changed password is a changed upstream; the log is looked through at the end of every test."""
    configured.write().start()
    configured.reload("reload: changed upstream; connections go on", upstreams=(upstream(user="me"),))
    near = client.begin_connect(SERVER, 80)
    connection = proxy.accept_request()
    assert connection.header("proxy-authorization") and PASSWORD not in configured.daemon.log()
    near.close()


def test_connect_mode(configured, proxy, client):
    """A SYN that is held when the mode changes is released all the same; then connections are accepted at once, and back."""
    configured.write().start()
    held = client.begin_connect(SERVER, 80)
    first = proxy.accept_request()
    configured.reload("changed connect;", main="option connect early")
    assert connecting(held)
    early = client.connect(SERVER, 80)
    second = proxy.accept_request()
    configured.reload("changed connect;", main="")
    for connection, near in ((first, held), (second, early)):
        connection.send(OK)
        assert finish_connect(near) == 0
        near.sendall(b"question")
        assert connection.sock.recv(100) == b"question"
    late = client.begin_connect(SERVER, 80)
    proxy.accept_request()
    assert connecting(late)


def test_dial_limits(configured, proxy, client):
    daemon = configured.write("option max_dials 1").start()
    first = client.begin_connect(SERVER, 80)
    one = proxy.accept_request()
    second = client.begin_connect(SERVER, 81, source=CLIENT_OTHER)
    until(lambda: daemon.status()["dropped"]["too_many_dials"], "the second is dropped")
    configured.reload("changed max_dials;", main="option max_dials 2")
    two = proxy.accept_request()  # when the client tries again
    for connection, near in ((one, first), (two, second)):
        connection.send(OK)
        assert finish_connect(near) == 0


def test_capture_changes(configured, proxy, client, internet):
    """From a few networks to all, and to none."""
    configured.write("option auto_route 0\nlist route 203.0.113.0/24").start()
    assert_proxied(client, proxy, SERVER)
    assert_direct(client, internet.listen(SERVER_OTHER), proxy)
    configured.reload("changed auto_route, route;", main="")
    assert_proxied(client, proxy, SERVER_OTHER)
    configured.reload("changed auto_route;", main="option auto_route 0")
    assert_direct(client, internet.listen(SERVER), proxy)


def test_chains_stay(configured, router):
    """A packet between a new chain, which has no rules yet, and the old one, which has none any more, would get out."""
    configured.write().start()
    # What nobody knows stays only if the table does, and so its chains.
    router.nft(f"add chain ip {NFT_TABLE} witness")
    configured.reload("connections go on", main="list bypass 198.51.100.0/24")
    configured.restart(main="option drain_timeout 0\noption mtu 1400")
    assert "chain witness" in router.run("nft", "list", "table", "ip", NFT_TABLE).stdout


def test_own_connections(configured, proxy, client, router):
    """From an address of the LAN, by a rule: what began here can't be forwarded in its own name."""
    configured.write("option local 0").start()
    router.run("ip", "route", "replace", f"{PROXY}/32", "via", INTERNET)
    router.run("ip", "route", "del", "default")
    configured.reload("changed local;", main="")
    until(lambda: router.run("ip", "rule", "show", "to", "0.0.0.0/0").stdout.count("ipproto tcp"), "rules capture")
    near, connection = open_tunnel(router, proxy, SERVER, source=ROUTER_LAN)
    assert_carries(near, connection.sock)
    near.close()
    connection.close()


def test_nft_takes_its_time(configured, proxy, client, internet, directory):
    """Connections are opened and go on meanwhile; of the changes asked for meanwhile, the last counts."""
    nft = SlowNft(directory)
    daemon = configured.write().start(env=nft.env)
    near = client.begin_connect(SERVER, 4000)
    far = proxy.open()
    assert finish_connect(near) == 0
    nft.hold.touch()
    configured.write("list bypass 198.51.100.0/24")
    daemon.signal(signal.SIGHUP)
    until(nft.waits.exists, "nft runs")
    near.sendall(b"question")
    assert far.sock.recv(100) == b"question"
    assert_proxied(client, proxy, SERVER_OTHER)
    for main in ("list bypass 192.0.2.0/24", "list bypass 203.0.113.0/24"):
        configured.write(main)
        daemon.signal(signal.SIGHUP)
    assert "reload:" not in daemon.log()
    nft.hold.unlink()
    daemon.wait_log(r"reload: changed bypass, rules;[\s\S]*reload: changed bypass, rules;")
    far.send(b"answer")
    assert near.recv(100) == b"answer"
    assert_direct(client, internet.listen(SERVER), proxy)
    assert_proxied(client, proxy, SERVER_OTHER)
    near.close()
    far.close()


def test_nft_is_missing(configured, proxy, client, internet, directory):
    """Nothing is changed then: the tables that are there would refuse what rules let go."""
    nft = SlowNft(directory)
    configured.write().start(env=nft.env)
    nft.path.unlink()
    configured.reload("ERROR.*reload: run nft", main="list bypass 198.51.100.0/24")
    assert_proxied(client, proxy, SERVER_OTHER)
    nft.be_there()
    configured.reload("INFO.*reload: ")
    assert_direct(client, internet.listen(SERVER_OTHER), proxy)
    assert_proxied(client, proxy, SERVER)


def test_terminated_while_nft_runs(configured, proxy, client, directory):
    """Whatever the reload would have done, nothing is left."""
    nft = SlowNft(directory)
    daemon = configured.write().start(env=nft.env)
    nft.hold.touch()
    configured.write("list bypass 198.51.100.0/24")
    daemon.signal(signal.SIGHUP)
    until(nft.waits.exists, "nft runs")
    daemon.signal(signal.SIGTERM)
    daemon.wait_log("ending;")
    nft.hold.unlink()
    daemon.stop()


def assert_same_process(daemon, mtu):
    """The process goes on under its name, and nothing open has come along."""
    pid = daemon.process.pid
    assert daemon.running()
    with open(f"/proc/{pid}/comm") as comm:
        assert comm.read().strip() == "tcp-over-http"
    daemon.status()  # behind its start
    files = open_files(pid)
    assert files.count("/dev/net/tun") == 1
    with open(f"/proc/{pid}/status") as status:
        masks = {line.split(":")[0]: int(line.split()[1], 16) for line in status if line.startswith("Sig") and "/" not in line}
    taken = signal.SIGHUP, signal.SIGINT, signal.SIGUSR1, signal.SIGTERM
    assert masks["SigBlk"] == sum(1 << (number - 1) for number in taken)
    assert daemon.router.ip("link", "show", TUN)[0]["mtu"] == mtu
    return len(files)


def open_files(pid):
    """What a process has open."""
    files = []
    for number in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            files.append(os.readlink(f"/proc/{pid}/fd/{number}"))
    return files


@pytest.mark.parametrize("on_failure", ["block", "direct"])
def test_another_run(configured, proxy, client, server, leaks, on_failure):
    """A changed MTU: connections get drain_timeout, then another run serves; nothing leaks meanwhile, either way."""
    lines = f"option on_failure {on_failure}\noption drain_timeout 1"
    daemon = configured.write(lines).start()
    fresh = assert_same_process(daemon, 1500)
    assert_proxied(client, proxy, server)
    near, far = open_tunnel(client, proxy, server)
    stop = threading.Event()
    threads = [threading.Thread(target=knock, args=(space, stop, server)) for space in (client, daemon.router)]
    for thread in threads:
        thread.start()
    try:
        for mtu in (1400, 1450):
            configured.restart(main=f"{lines}\noption mtu {mtu}")
    finally:
        stop.set()
        for thread in threads:
            thread.join()

    def has_no_more_files():
        while proxy.pending():
            pass  # who knocks has a socket
        return assert_same_process(daemon, 1450) <= fresh

    until(has_no_more_files, "as many files as at first")
    if is_relayed(server):
        with pytest.raises(ConnectionResetError):
            near.recv(100)
    else:
        far.send(b"as if nothing were")
        assert near.recv(100) == b"as if nothing were"
    near.close()
    far.close()
    assert_proxied_among_others(client, proxy, server, 80)
    leaks.assert_none()
    daemon.stop()


def knock(space, stop, server):
    """Connects again and again, as clients do that get no answer."""
    while not stop.is_set():
        sock = space.socket(server)
        sock.settimeout(0.02)
        with contextlib.suppress(OSError):
            sock.connect((server, 8080))
        sock.close()


# Rules that take long to go through, so that they change while some packets are halfway.
LONG = "".join(f"config rule\nlist port {port}\noption direct 1\n" for port in range(20_000, 21_000))


@pytest.mark.parametrize("on_failure", ["block", "direct"])
def test_packets_on_their_way_while_another_run_starts(configured, client, router, leaks, on_failure):
    """One may have met the tables of before where it came in, and meet the next on its way out."""
    lines = f"option on_failure {on_failure}\noption drain_timeout 0\noption log_level debug"
    configured.write(f"{lines}\n{LONG}").start()
    with flooding(client, router):
        for number in range(4):
            configured.restart(main=f"{lines}\noption mtu {1400 + number}\n{LONG}")
    leaks.assert_none()


@pytest.mark.path("forward", why="routes lead them into the TUN on the other")
@pytest.mark.parametrize("on_failure", ["block", "direct"])
def test_own_packets_on_their_way_while_another_run_starts(configured, router, leaks, on_failure):
    """The same for what the router itself sends, also what conntrack calls invalid."""
    lines = f"option on_failure {on_failure}\noption drain_timeout 0\noption log_level info"
    configured.write(f"{lines}\n{LONG}").start()
    with flooding(router):
        for number in range(2):
            configured.restart(main=f"{lines}\noption mtu {1400 + number}\n{LONG}")
    leaks.assert_none()


# Ways to capture the flood.
CAPTURING = [
    "list interface lan",
    f"list client {CLIENT}\nlist client {CLIENT6}",
    "list client 10.1.0.0/16\nlist client fd01::/64",
    f"list interface lan\nlist client_bypass {CLIENT_OTHER}",
    "list port 1-1000",
    "option non_tcp reject",
    "option local 0",
    "option auto_route 0\nlist route 203.0.113.0/24\nlist route 2001:db8::/32",
    "list bypass 198.51.100.0/24",
    "",
]


@pytest.mark.parametrize("on_failure", ["block", "direct"])
def test_packets_on_their_way_while_rules_change(configured, client, router, leaks, on_failure):
    """Before and behind each change they are captured."""
    lines = f"option on_failure {on_failure}\noption pause 1\noption log_level debug"
    daemon = configured.write(f"{lines}\n{LONG}").start()
    with flooding(client, router):
        for main in CAPTURING:
            configured.reload("reload: .*connections go on", main=f"{lines}\n{main}\n{LONG}")
        for family, gateway in (("-4", INTERNET), ("-6", INTERNET6)):
            for change in ("del", "add"):
                offset = len(daemon.log())
                router.run("ip", family, "route", change, "default", "via", gateway)
                daemon.wait_log("uplinks: devices", offset)
        daemon.command("pause", "10m", "--client", CLIENT_OTHER)
        until(lambda: "expires" in router.run("nft", "list", "set", "ip", NFT_TABLE, "paused").stdout, "another client pauses")
        daemon.command("resume")
        until(lambda: "expires" not in router.run("nft", "list", "set", "ip", NFT_TABLE, "paused").stdout, "its pause is over")
    leaks.assert_none()


@contextlib.contextmanager
def flooding(space, router=None):
    """From a client to the router, or from the router itself."""
    hardware = router.ip("link", "show", "lan")[0]["address"] if router else "-"
    flood = space.popen(sys.executable, FLOOD, hardware, SERVER, SERVER6, stdout=subprocess.PIPE)
    assert flood.stdout.readline() == b"ready\n"
    yield
    space.stop(flood)


@pytest.mark.path("forward", why="it is about the test handshake")
def test_a_start_in_a_flood(configured, client, router, leaks):
    """What a client sends is not in the way of the test handshake, in the TUN's queue."""
    daemon = configured.write().start()
    with flooding(client, router):
        for _ in range(5):
            daemon.kill()
            daemon.start()
    leaks.assert_none()


def test_another_run_has_other_numbers(configured, proxy, client, leaks):
    """Device, table, priority and mark change: nothing of the old ones is left, and nothing leaks on the way."""
    daemon = configured.write("option drain_timeout 0").start()
    stop = threading.Event()
    thread = threading.Thread(target=knock, args=(client, stop, SERVER))
    thread.start()
    other = "option drain_timeout 0\noption tun toh7\noption table 9000\noption rule_priority 1200\noption mark 0x51000000"
    configured.restart(main=other)
    stop.set()
    thread.join()
    assert_proxied_among_others(client, proxy, SERVER, 80)
    router = daemon.router
    for family in ("-4", "-6"):
        rules = router.ip(family, "rule", "show")
        assert not [rule for rule in rules if 900 <= rule["priority"] < 1000]
        assert not router.ip(family, "route", "show", "table", TABLE, check=False)
    assert "tcp_over_http_toh0" not in router.run("nft", "list", "tables").stdout
    leaks.assert_none()
    configured.restart(main="option drain_timeout 0")  # what the fixture looks for at the end
    daemon.stop()


@pytest.mark.parametrize("on_failure, leaves", [("block", True), ("direct", False)])
def test_another_run_that_cannot_start(configured, proxy, client, internet, on_failure, leaves):
    """The device is somebody else's: the process ends, and what is captured is refused, or isn't captured any more."""
    lines = f"option on_failure {on_failure}\noption drain_timeout 0"
    daemon = configured.write(lines).start()
    configured.reload(RESTARTED, main=f"{lines}\noption tun wan")
    assert daemon.wait() == 1
    server = internet.listen(SERVER)
    if leaves:
        assert client.connect_errno(*server.getsockname()) != 0
    else:
        assert_direct(client, server, proxy)
        daemon.assert_clean()
    daemon.command("check")


def test_terminated_while_it_drains(configured, proxy, client):
    """Who asks for the end gets it, not another run."""
    daemon = configured.write("option drain_timeout 300").start()
    _near, _ = open_tunnel(client, proxy, SERVER)
    configured.reload(RESTARTED, main="option drain_timeout 300\noption mtu 1400")
    daemon.signal(signal.SIGHUP)  # changes nothing now
    daemon.signal(signal.SIGTERM)
    daemon.wait_log("ending; connections get 300 s.*ending; connections get 300 s".replace(".*", r"[\s\S]*"))
    daemon.signal(signal.SIGTERM)
    assert daemon.wait() == 0
    daemon.assert_clean()


def test_many_hangups(configured, proxy, client):
    """However often, also while another run starts: the last file counts."""
    daemon = configured.write("option drain_timeout 0").start()
    for number in range(30):
        configured.write(f"option drain_timeout 0\noption mtu {1400 + number % 3}")
        daemon.signal(signal.SIGHUP)
    configured.write("option drain_timeout 0\noption mtu 1499")
    daemon.signal(signal.SIGHUP)
    until(lambda: mtu(daemon) == 1499, "the last file counts")
    until(lambda: READY in daemon.log().rpartition("; restarting")[2], "the last run listens")
    assert_proxied(client, proxy, SERVER)


def mtu(daemon):
    links = daemon.router.ip("link", "show", TUN, check=False)
    return links and links[0]["mtu"]


@pytest.mark.once(why="how names are answered knows no path")
def test_names_are_asked_through_the_new_proxy(configured, fault_proxy, client):
    """The connection that is kept to the resolver leads through the old one."""
    old, new = fault_proxy(), fault_proxy(PROXY_OTHER)
    main = f"option dns proxy\nlist dns_server {RESOLVER}"
    configured.write(main).start()
    sock = client.socket(ELSEWHERE, socket.SOCK_DGRAM)
    sock.settimeout(WAIT)

    def answer(connection):
        connection.send(framed(answer_to(read_framed(connection.sock), SERVER)))
        assert sock.recv(1000).endswith(socket.inet_aton(SERVER))

    sock.sendto(query("a.example"), (ELSEWHERE, 53))
    through_old = old.open()
    answer(through_old)
    sock.sendto(query("b.example"), (ELSEWHERE, 53))
    assert b"\x01b" in read_framed(through_old.sock)
    configured.reload("changed", main=f"{main}\noption reply_timeout 20")
    sock.sendto(query("0.example"), (ELSEWHERE, 53))
    answer(through_old)
    configured.reload("changed", main=main, upstreams=(upstream(PROXY_OTHER),))
    sock.sendto(query("c.example"), (ELSEWHERE, 53))
    # Who waits for an answer is asked for again.
    through_new = new.open()
    answer(through_new)
    answer(through_new)
    assert through_old.sock.recv(1000) == b"", "the old proxy is told nothing more"
