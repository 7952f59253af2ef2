"""The uplink: its address changes, its neighbours, and what is there instead of one."""

import contextlib
import errno
import socket
import threading
import time

import pytest

from lab.connections import assert_carries, assert_proxied, open_tunnel
from lab.dnsservers import dig, query
from lab.faultproxy import OK
from lab.gateway import PATH, READY, TUN, upstream
from lab.netns import (
    INTERNET,
    INTERNET6,
    NOBODY,
    PROXY,
    PROXY6,
    ROUTER_WAN,
    ROUTER_WAN6,
    SERVER,
    SERVER6,
    SERVER_OTHER,
    finish_connect,
)
from lab.wait import until

# By the family of the way to the proxy: the proxy, the router's address towards it, another one, the next hop.
WAYS = {
    "v4": (PROXY, f"{ROUTER_WAN}/30", "100.64.0.6/29", INTERNET),
    "v6": (PROXY6, f"{ROUTER_WAN6}/64", "2001:db8:a::7/64", INTERNET6),
}
# Behind the internet, and nobody's.
NOBODY6 = "2001:db8:5::99"
# What a reset may take, as against the minutes that the kernel repeats.
SOON = 8


@pytest.fixture(params=WAYS)
def way(request):
    return WAYS[request.param]


@pytest.fixture
def renumber(network, way):
    """A function: the router's address on the uplink goes, and another comes."""
    _, old, new, hop = way

    def change(new=new):
        router, number = network.router, "-6" if ":" in hop else "-4"
        router.run("ip", "addr", "del", old, "dev", "wan")
        router.run("ip", "addr", "add", new, "dev", "wan", *(["nodad"] if ":" in hop else []))
        router.run("ip", number, "route", "replace", "default", "via", hop)
        network.internet.run("ip", number, "route", "replace", new.split("/")[0], "dev", "wan")

    return change


def test_another_address_of_the_uplink(gateway, fault_proxy, client, server, way, renumber):
    """What went through the old one is reset on both sides of the gateway, soon; new connections work."""
    proxy = fault_proxy(way[0])
    gateway(upstreams=(upstream(way[0]),))
    near, _ = open_tunnel(client, proxy, server)
    renumber()
    if PATH == "forward" and (":" in server) == (":" in way[0]):
        near.sendall(b"anyone there?")  # it is the kernel that forgets, and says so when asked
    near.settimeout(SOON)
    with pytest.raises(ConnectionResetError):
        near.recv(1)
    near.close()
    assert_proxied(client, proxy, server, 81)


def test_a_dial_while_the_address_changes(gateway, fault_proxy, client, server, way, renumber):
    """The proxy is asked again from the new one: the client does not wait for what can't come."""
    proxy = fault_proxy(way[0])
    gateway(upstreams=(upstream(way[0]),))
    near = client.begin_connect(server, 80)
    proxy.accept_request()
    renumber()
    proxy.accept(SOON).read_request()
    proxy.connections[-1].send(OK)
    assert finish_connect(near) == 0
    assert_carries(near, proxy.connections[-1].sock)


def test_an_address_that_comes_back(gateway, fault_proxy, client, server, way, renumber):
    """Within a second, as when a lease is renewed: relayed connections go on."""
    if PATH == "forward" and (":" in server) == (":" in way[0]):
        pytest.skip("the kernel's NAT is quicker to forget")
    proxy = fault_proxy(way[0])
    gateway(upstreams=(upstream(way[0]),))
    near, connection = open_tunnel(client, proxy, server)
    renumber(way[1])
    near.settimeout(3)
    with pytest.raises(TimeoutError):
        near.recv(1)
    near.settimeout(20)
    assert_carries(near, connection.sock)


def absorb(internet, address):
    """What comes back to the internet for an address ends there."""
    family = "ip6" if ":" in address else "ip"
    internet.nft(
        "table inet absorb { chain in { type filter hook prerouting priority raw;"
        f" iifname wan {family} daddr {address} drop; }}; }}"
    )


@pytest.fixture(params=[NOBODY, NOBODY6], ids=["v4", "v6"])
def nobody(request, internet):
    """An address that the internet sends to the router, and takes back and drops."""
    address = request.param
    number, hop = ("-6", ROUTER_WAN6) if ":" in address else ("-4", ROUTER_WAN)
    internet.run("ip", number, "route", "add", address, "via", hop)
    absorb(internet, address)
    return address


@pytest.fixture
def rule(gateway, router):
    """A function that adds a policy rule, which goes before the gateway is looked through for what it leaves."""
    added = []

    def add(number, *rule):
        router.run("ip", number, "rule", "add", *rule)
        added.append((number, rule))

    yield add
    for number, rule in added:
        router.run("ip", number, "rule", "del", *rule)


def went_through(capture):
    """Whether a packet has gone to the router and come back."""
    return len(capture.packets()) >= 2


@pytest.mark.native(why="it is about the rules")
def test_neighbours_on_the_uplink(gateway, proxy, internet, nobody, capture):
    """They have no business with the proxy, nor with the resolver: what they send goes on as without us."""
    gateway("--dns", "fakeip")
    for kind, port, payload in ((socket.SOCK_STREAM, 443, None), (socket.SOCK_DGRAM, 53, query("www.example"))):
        seen = capture(internet, "wan", f"host {nobody} and port {port}")
        with internet.socket(nobody, kind) as near:
            near.setblocking(False)
            near.connect_ex((nobody, port))
            if payload:
                near.send(payload)
            until(lambda seen=seen: went_through(seen), "it goes through the router")
            if payload:
                with pytest.raises(BlockingIOError):
                    near.recv(1000)
    assert not proxy.pending()


@pytest.mark.native(why="it is about the rules")
def test_fake_addresses_are_none_for_neighbours(gateway, proxy, client, internet, capture):
    """Who guesses one gets nothing by it."""
    gateway("--dns", "fakeip")
    (fake,) = dig(client, SERVER, "www.corp.example")
    internet.run("ip", "route", "add", fake, "via", ROUTER_WAN)
    absorb(internet, fake)
    seen = capture(internet, "wan", f"host {fake}")
    near = internet.begin_connect(fake, 443)
    until(lambda: went_through(seen), "it goes through the router")
    near.close()
    assert not proxy.pending()
    assert_proxied(client, proxy, fake, 443)


@pytest.mark.native(why="it is about the rules")
@pytest.mark.parametrize("options", [(), ("--interface", "wan")], ids=["alone", "named"])
@pytest.mark.parametrize("which", ["near", "far"])
def test_one_arm(gateway, fault_proxy, router, internet, nobody, options, which):
    """A gateway beside the main router, to whom its default route leads: clients come from there, and the way back to
    those behind it is that route."""
    six = ":" in nobody
    proxy = fault_proxy(PROXY6 if six else PROXY)
    source = {"near": (INTERNET, INTERNET6), "far": (SERVER_OTHER, SERVER6)}[which][six]
    if not options:
        router.run("ip", "link", "del", "lan")
    gateway(*options, upstreams=(upstream(proxy.address),))
    near, connection = open_tunnel(internet, proxy, nobody, source=source)
    assert_carries(near, connection.sock)
    near.close()


@pytest.mark.native(why="it is about the rules")
def test_clients_in_a_table_of_their_own(gateway, proxy, client, router, server, leaks, rule):
    """netifd's ip4table, mwan3, pbr: the main table does not know the way back to them."""
    for number, net in (("-4", "10.1.0.0/24"), ("-6", "fd01::/64")):
        router.run("ip", number, "route", "add", net, "dev", "lan", "table", "100")
        router.run("ip", number, "route", "del", net, "dev", "lan")
        rule(number, "priority", "20000", "to", net, "lookup", "100")
    gateway()
    assert_proxied(client, proxy, server)
    proxy.close()
    assert client.connect_errno(server, 81) not in (0, 110), "a refusal gets to the client, too"
    leaks.assert_none()


@pytest.mark.native(why="it is about the rules")
@pytest.mark.parametrize("routes", [(), ("--auto-route", "1")], ids=["own", "both"])
def test_rules_of_ones_own_in_front(gateway, fault_proxy, client, router, server, leaks, rule, routes):
    """Without a priority `ip rule add` puts them there: all that comes from the LAN is led into the TUN. What the kernel
    forwards to the proxy must not be: the daemon says so."""
    proxy = fault_proxy(PROXY6 if ":" in server else PROXY)
    daemon = gateway(routes=routes, upstreams=(upstream(proxy.address),))
    for number in ("-4", "-6"):
        router.run("ip", number, "route", "add", "default", "dev", TUN, "table", "777")
        rule(number, "iif", "lan", "lookup", "777")
    if PATH == "forward":
        daemon.wait_log(f"table 777 has a route into the device for the proxy's address {proxy.address}.*throw")
        if routes and ":" not in server:  # it takes its time
            assert "warn  upstream" in daemon.command("doctor", "--target", SERVER_OTHER, check=False).stdout
        while proxy.pending():
            pass
        router.run("ip", "-6" if ":" in server else "-4", "route", "add", "throw", proxy.address, "table", "777")
    near, connection = open_tunnel(client, proxy, server)
    for _ in range(3):
        assert_carries(near, connection.sock)
    sender = threading.Thread(target=near.sendall, args=(bytes(300_000),), daemon=True)
    sender.start()
    received = 0
    while received < 300_000:
        received += len(connection.sock.recv(1 << 16))
    sender.join()
    near.close()
    assert connection.sock.recv(1) == b""
    leaks.assert_none()


@pytest.mark.parametrize("way", ["down", "up"])
def test_what_runs_directly_is_reset(gateway, client, router, internet, server, way):
    """A transfer that began before the gateway, on a router whose firewall knows who began it: soon, and not by a
    time-out."""
    router.nft("table inet tracked { chain in { type filter hook prerouting priority 0; ct state invalid counter; }; }")
    listener = internet.listen(server, 443)
    near = client.connect(server, 443)
    far, _ = listener.accept()
    sender, receiver = (far, near) if way == "down" else (near, far)
    stopped = threading.Event()

    def send():
        with contextlib.suppress(OSError):
            while not stopped.is_set():
                sender.sendall(bytes(10_000))
                time.sleep(0.01)

    thread = threading.Thread(target=send, daemon=True)
    thread.start()
    receiver.recv(1000)
    gateway()
    near.settimeout(SOON)
    with pytest.raises(OSError) as error:
        end = time.monotonic() + SOON
        while time.monotonic() < end:
            if way == "up":
                time.sleep(0.1)
                if code := near.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                    raise OSError(code, "reset")
                near.send(b"x")
            else:
                assert near.recv(1 << 20)
    assert error.value.errno in (errno.ECONNRESET, errno.EPIPE), error.value
    stopped.set()
    far.close()
    thread.join()


@pytest.mark.native(why="it is about the rules")
@pytest.mark.parametrize(
    "net, option",
    [("10.45.39.254/24", "address"), ("fd45:39::99/64", "address6"), ("198.18.7.1/24", "fakeip_range")],
    ids=["v4", "v6", "fake"],
)
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_network_that_is_ours_already(gateway, router, net, option, when):
    """A guest network of the same addresses: the log says what to set."""
    add = lambda: router.run("ip", "addr", "add", net, "dev", "lan", *(["nodad"] if ":" in net else []))
    if when == "before":
        add()
    # The forward path does not work then, and its test says so.
    daemon = gateway("--dns", "fakeip", ready=when == "after")
    if when == "after":
        assert "overlaps" not in daemon.log()
        add()
    daemon.wait_log(f"overlaps .*: set {option} to another network")
    until(lambda: READY in daemon.log() or not daemon.running(), "it runs, or has said why not")
