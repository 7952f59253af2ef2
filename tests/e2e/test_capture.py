"""What is captured and what is exempt: selection, answers to connections from outside, and what is refused while
no daemon runs."""

import contextlib
import errno
import signal
import socket

import pytest

from lab.connections import assert_carries, assert_direct, assert_proxied, open_tunnel, refused
from lab.gateway import NFT_TABLE, PATH, is_relayed, tables, upstream
from lab.netns import (
    CLIENT,
    CLIENT6,
    CLIENT6_OTHER,
    CLIENT_OTHER,
    ROUTER_WAN,
    ROUTER_WAN6,
    SERVER,
    SERVER6,
    SERVER_OTHER,
    retransmits,
)
from lab.wait import WAIT, until

pytestmark = pytest.mark.native(why="it is about the rules")


def test_only_these_clients(gateway, proxy, client, internet):
    gateway("--client", f"{CLIENT}/32", "--client", f"{CLIENT6}/128")
    for server, other in ((SERVER, CLIENT_OTHER), (SERVER6, CLIENT6_OTHER)):
        assert_proxied(client, proxy, server)
        assert_direct(client, internet.listen(server), proxy, source=other)


def test_only_this_device(gateway, proxy, client, router, internet):
    gateway("--interface", "lan", "--local", "0")
    for server in (SERVER, SERVER6):
        assert_proxied(client, proxy, server)
        assert_direct(router, internet.listen(server), proxy)


def test_only_these_ports(gateway, proxy, client, internet):
    gateway("--port", "80", "--port", "7000-7999")
    assert_proxied(client, proxy, SERVER, 7500)
    assert_direct(client, internet.listen(SERVER, 6999), proxy)


@pytest.mark.parametrize("local", ["0", "1"])
def test_a_proxy_in_the_lan(gateway, fault_proxy, client, internet, server, local):
    """What it sends itself must not come back to it."""
    own, other = (CLIENT6, CLIENT6_OTHER) if ":" in server else (CLIENT, CLIENT_OTHER)
    proxy = fault_proxy(own, space=client)
    gateway("--local", local, upstreams=(upstream(own),))
    near, _ = open_tunnel(client, proxy, server, source=other)
    listener = internet.listen(server, 80)
    far = client.connect(server, 80, source=own)
    listener.accept()[0].close()
    assert not proxy.pending()
    near.close()
    far.close()


@pytest.mark.parametrize("options", [("--client", "10.1.0.2", "--client", "fd01::2"), ("--port", "80")], ids=["client", "port"])
def test_refused_is_what_was_selected(gateway, proxy, client, internet, server, options):
    """When the daemon is gone: that, and nothing else."""
    other = CLIENT6_OTHER if ":" in server else CLIENT_OTHER
    daemon = gateway(*options)
    assert_proxied(client, proxy, server)
    daemon.kill()
    assert refused(client, server)
    if options[0] == "--client":
        listener = internet.listen(server, 80)
        client.connect(server, 80, source=other).close()
        listener.accept()[0].close()
    else:
        assert_direct(client, internet.listen(server, 6999), proxy)


def test_bypass_file(gateway, proxy, client, internet, directory):
    path = directory / "bypass"
    path.write_text(f"# those\n{SERVER_OTHER}\n{SERVER6}/128\n" + "".join(f"11.{n // 250}.{n % 250}.0/24\n" for n in range(5000)))
    gateway("--bypass-file", path)
    assert_proxied(client, proxy, SERVER)
    for address in (SERVER_OTHER, SERVER6):
        assert_direct(client, internet.listen(address), proxy)


def test_quic_of_the_router_itself(gateway, router, server):
    gateway()
    sock = router.socket(server, socket.SOCK_DGRAM)
    sock.settimeout(WAIT)
    sock.connect((server, 443))
    sock.send(b"q")
    with pytest.raises(ConnectionRefusedError):
        sock.recv(100)


@pytest.mark.parametrize("size", [100, 1200, 1400])
@pytest.mark.parametrize("options", [(), ("--port", "80")], ids=["all", "port"])
def test_quic_is_refused_at_once(gateway, proxy, client, internet, server, size, options):
    """A browser's connected socket learns of it by its first packet, and takes TCP."""
    gateway(*options)
    sock = client.socket(server, socket.SOCK_DGRAM)
    sock.settimeout(WAIT)
    sock.connect((server, 443))
    sock.send(b"q" * size)
    with pytest.raises(OSError) as error:
        sock.recv(100)
    assert error.value.errno == errno.ECONNREFUSED
    # Other UDP goes on.
    far = internet.socket(server, socket.SOCK_DGRAM)
    far.bind((server, 4443))
    far.settimeout(WAIT)
    sock = client.socket(server, socket.SOCK_DGRAM)
    sock.sendto(b"hello", (server, 4443))
    assert far.recv(100) == b"hello"


@pytest.mark.parametrize("non_tcp", ["direct", "reject"])
def test_quic_may_go(gateway, proxy, client, internet, server, non_tcp):
    gateway("--quic", "direct", "--non-tcp", non_tcp)
    far = internet.socket(server, socket.SOCK_DGRAM)
    far.bind((server, 443))
    far.settimeout(WAIT)
    client.socket(server, socket.SOCK_DGRAM).sendto(b"hello", (server, 443))
    assert far.recv(100) == b"hello"


@pytest.fixture(params=["ipv4", "ipv6"])
def inbound(request, network):
    """Ways in from the internet: a port of the router's that is forwarded to the client, and one of its own."""
    four = request.param == "ipv4"
    source, router, client = (SERVER_OTHER, ROUTER_WAN, CLIENT) if four else (SERVER6, ROUTER_WAN6, CLIENT6)
    ip, to = ("ip", client) if four else ("ip6", f"[{client}]")
    network.router.nft(
        f"table {ip} forward {{ chain in {{ type nat hook prerouting priority dstnat;"
        f" iifname wan tcp dport 8080 dnat to {to}:80; }}; }}"
    )
    return source, router, network.client.listen(client, 80), network.router.listen(router, 22)


def exchange(internet, source, address, port, listener):
    """A connection from outside works both ways."""
    near = internet.connect(address, port, source=source)
    far, _ = listener.accept()
    assert_carries(far, near)
    near.close()
    far.close()


def test_connections_from_outside(gateway, proxy, network, inbound, server):
    """Port forwards and services of the router work on, and all else is captured as ever."""
    source, router, forwarded, service = inbound
    daemon = gateway()
    exchange(network.internet, source, router, 8080, forwarded)
    exchange(network.internet, source, router, 22, service)
    assert not proxy.pending()
    assert_proxied(network.client, proxy, server)
    assert_proxied(network.router, proxy, server)
    # Who takes the tables away gets them back, each: the first may be back before the second is gone.
    before = tables(network.router)
    for family in ("ip", "ip6"):
        network.router.run("nft", "delete", "table", family, NFT_TABLE)
    daemon.wait_log("table was deleted from outside: restored")
    until(lambda: tables(network.router) == before, "both tables are back")
    exchange(network.internet, source, router, 8080, forwarded)
    exchange(network.internet, source, router, 22, service)
    assert_proxied(network.client, proxy, server)


@pytest.mark.parametrize("space", ["client", "router"])
def test_the_firewall_forgets_who_began(gateway, proxy, network, server, leaks, space):
    """What answers a client after that looks like the beginning of a connection from outside, and isn't."""
    if PATH == "forward" and (space == "router" or not is_relayed(server)):
        pytest.skip("what NAT leads ends there: test_a_firewall_that_forgets")
    daemon, space = gateway(), getattr(network, space)
    near, connection = open_tunnel(space, proxy, server)
    for _ in range(2):
        network.router.forget_connections()
        connection.send(b"answer")
        assert near.recv(100) == b"answer"
        near.sendall(b"question")
        assert connection.sock.recv(100) == b"question"
    daemon.kill()
    with contextlib.suppress(OSError):
        near.sendall(b"to whom?")
    assert refused(space, server)
    leaks.assert_none()
    near.close()
    connection.close()


def test_connections_from_outside_while_it_is_gone(gateway, proxy, network, inbound, server, leaks):
    """Port forwards work on. Services of the router do where no rules capture: the kernel finds a way back before it asks the
    firewall."""
    source, router, forwarded, service = inbound
    daemon = gateway()
    daemon.kill()
    assert refused(network.client, server)
    leaks.assert_none()
    exchange(network.internet, source, router, 8080, forwarded)
    if PATH == "relay":
        near = network.internet.begin_connect(router, 22, source)
        until(lambda: retransmits(near), "no answer comes")
        near.close()
    else:
        exchange(network.internet, source, router, 22, service)
    daemon.start()
    exchange(network.internet, source, router, 22, service)


@pytest.mark.path("relay", why="forwarding needs nft")
def test_without_nft_more_is_captured(gateway, proxy, network, inbound, server, directory):
    """The answers are refused then, and the daemon says so; nothing else changes."""
    source, router, *_ = inbound
    daemon = gateway(env={"PATH": str(directory)})
    assert "answers to connections from outside are captured" in daemon.log()
    near = network.internet.begin_connect(router, 22, source)
    until(lambda: retransmits(near), "no answer comes")
    near.close()
    assert_proxied(network.client, proxy, server)


def test_blocked_until_it_runs(gateway, proxy, network, client, internet, server, leaks):
    """From boot on: before the daemon runs, while it starts again, after it was told to end, until `unblock`."""
    listener = internet.listen(server, 80)
    daemon = gateway(ready=False, prefix=("true",))
    daemon.wait()
    daemon.prefix = ()
    daemon.command("block")
    for space in (client, network.router):
        assert refused(space, server)
    leaks.assert_none()
    daemon.options = ("--leave-blocked", *daemon.options)
    for number in (signal.SIGTERM, signal.SIGKILL):
        daemon.start()
        daemon.options = daemon.options[1:]
        daemon.command("block")
        daemon.options = ("--leave-blocked", *daemon.options)
        assert_proxied(client, proxy, server)
        daemon.signal(number)
        daemon.wait()
        assert refused(client, server)
        leaks.assert_none()
    daemon.options = daemon.options[1:]
    daemon.command("unblock")
    daemon.assert_clean()
    assert_direct(client, listener, proxy)


def test_nothing_is_blocked_if_traffic_may_go(gateway, proxy, client, internet, server):
    daemon = gateway("--on-failure", "direct", ready=False, prefix=("true",))
    daemon.wait()
    daemon.prefix = ()
    daemon.command("block")
    daemon.assert_clean()
    assert_direct(client, internet.listen(server), proxy)


def test_unblock_reads_what_it_can(gateway, proxy, directory, network):
    """A configuration that has become wrong does not keep anybody blocked."""
    path = directory / "config"
    path.write_text("config tcp-over-http main\noption auto_route 1\noption table 7480\nlist upstream http://a\n")
    daemon = gateway("--config", path, ready=False, prefix=("true",))
    daemon.wait()
    daemon.prefix = ()
    daemon.options = ("--config", path)
    daemon.command("block")
    assert daemon.leftovers()
    path.write_text("config tcp-over-http main\noption auto_route 1\noption mtu nonsense\n")
    assert daemon.command("check", check=False).returncode == 1
    daemon.command("unblock")
    daemon.assert_clean()
