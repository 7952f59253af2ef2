"""The kill switch: what others do to policy rules lets nothing out, with a daemon or without."""

import contextlib
import errno
import re
import signal
import socket
import threading
import time

import pytest

from lab.capture import LeakCapture
from lab.connections import assert_carries, assert_proxied, open_tunnel
from lab.gateway import DEFAULT_RULES, NFT_TABLE, PATH, TUN, upstream
from lab.netns import CLIENT6, INTERNET6, PROXY, PROXY6, SERVER, SERVER6, SERVER_OTHER, finish_connect
from lab.slow_nft import SlowNft
from lab.wait import until
from lab.wire import TCP, IPv6, Wire

pytestmark = pytest.mark.native(why="it is about the rules")

# Listener's port, and a NAT source of the TUN's subnet.
LISTENER, NAT_SOURCE, OWN6 = 12345, "fd45:39::7", "fd45:39::1"


class Traffic:
    """Connections without end, from a namespace to servers of both families; none is waited for."""

    def __init__(self, space):
        self.space, self.begun, self.stopped = space, 0, threading.Event()
        self.thread = threading.Thread(target=self.go_on, daemon=True)
        self.thread.start()

    def go_on(self):
        while not self.stopped.is_set():
            for address in (SERVER, SERVER6, SERVER_OTHER):
                with contextlib.suppress(OSError):
                    self.space.begin_connect(address, 1000 + self.begun % 5000).close()
                self.begun += 1
            time.sleep(0.003)

    def wait(self, count=60):
        """Until so many more have begun."""
        until(lambda end=self.begun + count: self.begun >= end, "traffic goes on")

    def close(self):
        self.stopped.set()
        self.thread.join()


@pytest.fixture(params=["client", "router"])
def traffic(request, network, internet):
    """Traffic, of which all that leaves is seen: that is asserted."""
    control = LeakCapture(network, [(PROXY, 3128), (PROXY6, 3128)])
    traffic = Traffic(getattr(network, request.param))
    until(lambda: len(control.packets()) >= 10, "the capture sees what leaves")
    control.close()
    yield traffic
    traffic.close()


def test_tables_that_are_flushed(configured, proxy, network, client, router, directory):
    """While they are put back nothing gets out: neither what begins nor what NAT has led to the proxy so far."""
    nft = SlowNft(directory)
    daemon = configured.write().start(env=nft.env)
    near = client.begin_connect(SERVER, 4000)
    far = proxy.open()
    assert finish_connect(near) == 0
    leaks = LeakCapture(network, [(PROXY, 3128), (PROXY6, 3128)], also="icmp or icmp6")
    nft.hold.touch()
    router.run("nft", "flush", "ruleset")
    until(nft.waits.exists, "nft runs")
    begun = [client.begin_connect(server, 4001) for server in (SERVER, SERVER6)]
    for server in (SERVER, SERVER6):
        client.socket(server, socket.SOCK_DGRAM).sendto(b"QUIC", (server, 443))
    near.sendall(b"question")
    # What is sent later has got out, and so what was sent before would have.
    for server in (SERVER, SERVER6):
        client.run("ping", "-c", "1", "-W", "5", server)
    nft.hold.unlink()
    daemon.wait_log("deleted from outside: restored")
    assert far.sock.recv(100) == b"question"
    for _ in begun:
        proxy.open()
    for connection in begun:
        assert finish_connect(connection) == 0
        connection.close()
    assert "blackhole" not in router.run("ip", "rule").stdout + router.run("ip", "-6", "rule").stdout
    leaks.assert_none()
    leaks.close()
    near.close()
    far.close()


def test_tables_that_cannot_be_put_back_at_once(configured, proxy, client, router, directory):
    """Once they are there, by whatever comes next, nothing stands in for them any more."""
    nft = SlowNft(directory)
    daemon = configured.write().start(env=nft.env)
    nft.path.unlink()
    router.run("nft", "flush", "ruleset")
    daemon.wait_log("ERROR.*deleted from outside")
    nft.be_there()
    router.run("ip", "address", "add", "10.9.0.1/24", "dev", "wan")
    assert_proxied(client, proxy, SERVER)
    until(lambda: "blackhole" not in router.run("ip", "rule").stdout, "the rules are gone")


@pytest.mark.path("forward", why="it is about handshakes with NAT")
@pytest.mark.parametrize("on_failure", ["block", "direct"])
def test_a_handshake_while_tables_are_gone(configured, proxy, network, client, internet, router, directory, on_failure):
    """Without NAT the request, with the password, would go to the server itself."""
    internet.nft(f"""
table ip quiet {{
    chain input {{
        type filter hook input priority 0
        ip daddr {PROXY} tcp flags & psh == psh counter drop
    }}
}}""")
    nft = SlowNft(directory)
    daemon = configured.write(f"option on_failure {on_failure}", upstreams=(upstream(user="me"),)).start(env=nft.env)
    near = client.begin_connect(SERVER, 4000)
    until(lambda: "packets 0 " not in internet.run("nft", "list", "table", "ip", "quiet").stdout, "the request is sent")
    leaks = LeakCapture(network, [(PROXY, 3128), (PROXY6, 3128)])
    nft.hold.touch()
    router.run("nft", "flush", "ruleset")
    until(nft.waits.exists, "nft runs")
    # Retransmissions are due each second.
    begun = time.monotonic()
    until(lambda: time.monotonic() > begun + 3, "some would have been sent")
    nft.hold.unlink()
    daemon.wait_log("deleted from outside: restored")
    internet.run("nft", "delete", "table", "ip", "quiet")
    assert not [packet for packet in leaks.packets() if b"CONNECT" in packet]
    if on_failure == "block":  # otherwise the client has reached the server meanwhile
        connection = proxy.open()
        assert finish_connect(near) == 0
        assert_carries(near, connection.sock)
        leaks.assert_none()
    leaks.close()
    near.close()


@pytest.mark.path("forward", why="rules stand in for tables there")
@pytest.mark.parametrize("when", ["while nft runs", "with another change", "before another change"])
def test_tables_that_are_flushed_while_others_change(configured, network, client, router, directory, when):
    """Whatever the daemon does besides, rules stand in for the tables from when it reads of it until they are back."""
    nft = SlowNft(directory)
    daemon = configured.write().start(env=nft.env)
    nft.hold.touch()
    if when == "while nft runs":
        router.run("ip", "route", "add", "10.9.0.0/24", "dev", "lan")
        until(nft.waits.exists, "nft runs")
    if when == "with another change":
        daemon.signal(signal.SIGSTOP)
        router.run("ip", "route", "add", "10.9.0.0/24", "dev", "lan")
    router.run("nft", "flush", "ruleset")
    daemon.signal(signal.SIGCONT)
    until(lambda: all("blackhole" in router.run("ip", family, "rule").stdout for family in ("-4", "-6")), "rules stand in")
    until(nft.waits.exists, "nft runs")
    leaks = LeakCapture(network, [(PROXY, 3128), (PROXY6, 3128)])
    if when == "before another change":
        # Then that family needs rules and routes.
        router.run("ip", "-6", "route", "del", "default")
        until(lambda: "uplinks: devices" in daemon.log(), "the daemon reads of it")
        router.run("ip", "-6", "route", "add", "default", "via", INTERNET6)
        until(lambda: len(re.findall("uplinks: devices", daemon.log())) == 2, "the daemon reads of it")
    with contextlib.closing(Traffic(client)) as traffic:
        traffic.wait()
    leaks.assert_none()
    leaks.close()
    nft.hold.unlink()
    until(lambda: "blackhole" not in router.run("ip", "rule").stdout, "the tables are back")
    for family in ("ip", "ip6"):
        assert "chain forwarded" in router.run("nft", "list", "table", family, NFT_TABLE).stdout


def flush_rules(router):
    """As netifd does when it loads its configuration."""
    for number in ("-4", "-6"):
        router.run("ip", number, "rule", "flush")
        for priority, table in (("32766", "main"), ("32767", "default")):
            router.run("ip", number, "rule", "add", "priority", priority, "lookup", table, check=False)


def delete_ours(router):
    for number in ("-4", "-6"):
        for rule in router.ip(number, "rule", "show"):
            if rule["priority"] not in DEFAULT_RULES:
                router.run("ip", number, "rule", "del", "priority", rule["priority"], check=False)


def blocked(gateway):
    daemon = gateway(ready=False, prefix=("true",))
    daemon.wait()
    daemon.prefix = ()
    daemon.command("block")
    return daemon


def test_a_boot_is_no_fault(gateway, proxy, client, router):
    """netifd finds the daemon there: it takes the loopback down, which has routes, and flushes the rules."""
    daemon = gateway()
    ours = lambda: [rule for rule in router.ip("-6", "rule") if rule["priority"] not in DEFAULT_RULES]
    before, offset = ours(), len(daemon.log())
    router.run("ip", "link", "set", "lo", "down")
    flush_rules(router)
    daemon.wait_log("routes were changed from outside: ", offset)
    router.run("ip", "link", "set", "lo", "up")
    until(lambda: ours() == before, "the rules are back")
    for server in (SERVER, SERVER6):
        assert_proxied(client, proxy, server)
    assert not re.search("WARN|ERROR", daemon.log()[offset:]), daemon.log()[offset:]


@pytest.mark.parametrize("how", ["blocked", "killed"])
def test_rules_are_flushed_while_no_daemon_runs(gateway, network, traffic, how):
    if how == "blocked":
        daemon = blocked(gateway)
    else:
        daemon = gateway()
        daemon.kill()
    leaks = LeakCapture(network, [])
    traffic.wait()
    for _ in range(3):
        flush_rules(network.router)
        traffic.wait()
    leaks.assert_none()
    leaks.close()
    daemon.command("unblock")


def test_all_that_a_client_asks_for_is_refused_at_once(gateway, client, router, server, leaks):
    """The kernel sends it one error a second; a reset tells each of its connections."""
    daemon = blocked(gateway)
    begun = time.monotonic()
    assert {client.connect_errno(server, 1000 + number, timeout=5) for number in range(100)} == {errno.ECONNREFUSED}
    assert time.monotonic() - begun < 5
    # What has been nearby and is gone, though its tables have it still, goes nowhere else.
    net = "fd09::/64" if ":" in server else "10.9.0.0/24"
    router.run("ip", "route", "add", net, "dev", "lan")
    daemon.command("block")
    router.run("ip", "route", "del", net, "dev", "lan")
    assert client.connect_errno("fd09::1" if ":" in server else "10.9.0.1", 80, timeout=2) != 0
    leaks.assert_none()
    daemon.command("unblock")


def test_rules_are_deleted_again_and_again(gateway, proxy, network, traffic, server):
    """Beside a daemon that puts them back, as fast as they can be deleted."""
    proxy.serve(lambda connection: connection.close())
    gateway()
    leaks = LeakCapture(network, [(PROXY, 3128), (PROXY6, 3128)])
    for delete in [delete_ours, flush_rules] * 5:
        delete(network.router)
        traffic.wait(15)
    leaks.assert_none()
    leaks.close()


def test_live_connections_do_not_leak(gateway, proxy, client, router, server, leaks):
    """Whatever becomes of them when the rules go."""
    gateway()
    ends = [open_tunnel(client, proxy, server, 2000 + number) for number in range(4)]
    for _ in range(10):
        delete_ours(router)
        for near, _ in ends:
            with contextlib.suppress(OSError):
                near.sendall(bytes(3000))
    leaks.assert_none()
    if PATH == "relay":
        until(lambda: any(rule["priority"] not in DEFAULT_RULES for rule in router.ip("rule")), "rules are back")
    for near, connection in ends:
        near.close()
        connection.close()


def test_block_follows_the_network(gateway, client, router):
    """Before there is any network, nothing is known to be nearby; told again, it is."""
    router.run("ip", "link", "set", "lan", "down")
    daemon = blocked(gateway)
    router.run("ip", "link", "set", "lan", "up")
    router.run("ip", "route", "replace", "10.9.0.0/24", "dev", "lan")
    daemon.command("block")
    listing = router.run("nft", "list", "table", "ip", f"tcp_over_http_{TUN}").stdout
    assert "10.9.0.0/24" in listing
    daemon.command("unblock")


def test_block_beside_a_daemon_that_starts(gateway, proxy, client, router, leaks):
    """What refuses until a daemon runs comes a moment after the daemon's own tables, in their place."""
    daemon = blocked(gateway)
    listing = {family: router.run("nft", "list", "table", family, NFT_TABLE).stdout for family in ("ip", "ip6")}
    daemon.command("unblock")
    daemon = gateway()
    assert_proxied(client, proxy, SERVER)
    offset = len(daemon.log())
    # It reads of all of it at once: there are tables in the end.
    daemon.signal(signal.SIGSTOP)
    router.nft("".join(f"delete table {family} {NFT_TABLE}\n{text}" for family, text in listing.items()))
    daemon.signal(signal.SIGCONT)
    daemon.wait_log("deleted from outside: restored", offset)
    for server in (SERVER, SERVER6):
        assert_proxied(client, proxy, server)
    leaks.assert_none()


def test_tables_of_another_version(gateway, proxy, client, router):
    """Their chains and sets are other ones by the same names, and can't stay."""
    for family in ("ip", "ip6"):
        chain = "chain forwarded { type filter hook forward priority 5; }"
        router.nft(f"table {family} {NFT_TABLE} {{\n{chain}\nset paused {{ type inet_service; }}\n}}")
    gateway()
    for server in (SERVER, SERVER6):
        assert_proxied(client, proxy, server)


def test_nobody_else_has_the_tuns_address(gateway, proxy, client, router, capture):
    """From the LAN it would look like an answer of the listener, and be passed on to another client."""
    gateway()
    wire = Wire(client, router, SERVER6)
    its, others = (capture(router, TUN, f"ip6 src {source} and dst {NAT_SOURCE}") for source in (OWN6, CLIENT6))
    segment = TCP(sport=LISTENER, dport=7, flags="A", seq=1)
    wire.send(IPv6(src=OWN6, dst=NAT_SOURCE) / segment)
    wire.send(IPv6(src=CLIENT6, dst=NAT_SOURCE) / segment)
    until(others.packets, "what others send gets there")
    assert not its.packets()
    assert_proxied(client, proxy, SERVER)
