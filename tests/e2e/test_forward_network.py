"""The forward path while networks change, links are small, tables are full and many come at once."""

import contextlib
import socket
import threading
import time

import pytest

from lab.capture import Capture
from lab.connections import open_tunnel
from lab.faultproxy import OK, reset
from lab.forward import HELLO, PORT, echo, handshakes, read, talk
from lab.gateway import upstream
from lab.netns import (
    CLIENT,
    CLIENT6,
    INTERNET,
    INTERNET6,
    ROUTER_WAN,
    SERVER6,
    Namespace,
    batch,
    finish_connect,
)
from lab.wait import WAIT, until

pytestmark = pytest.mark.path("forward", why="it is about the other one")

BLACK_HOLE = "table inet hole {{ chain c {{ type filter hook prerouting priority -300; tcp dport {} drop; }}; }}"


@contextlib.contextmanager
def download(client, ends, proxy):
    """Bytes that flow all the time, and all of them at the end; yields a function that waits until some have come."""
    near, connection = open_tunnel(client, proxy, ends.server)
    near.settimeout(60)
    stop, total = threading.Event(), [0, 0]

    def send():
        while not stop.is_set():
            connection.sock.sendall(bytes(10_000))
            total[0] += 10_000
            stop.wait(0.01)
        connection.sock.shutdown(socket.SHUT_WR)

    def receive():
        while data := near.recv(65536):
            total[1] += len(data)

    threads = [threading.Thread(target=work) for work in (send, receive)]
    for thread in threads:
        thread.start()

    def goes_on():
        before = total[1]
        until(lambda: total[1] > before + 100_000, "bytes go on", WAIT)

    try:
        goes_on()
        yield goes_on
    finally:
        stop.set()
        for thread in threads:
            thread.join()
        near.close()
        connection.close()
    assert total[0] == total[1]


def test_an_uplink_that_comes_and_goes(forward, client, router, ends, strays):
    """The default route, the link, and networks: each goes and comes, a transfer goes on, what is new is captured."""
    _, proxy = forward()
    number, via = ("-6", INTERNET6) if ":" in ends.server else ("-4", INTERNET)
    with download(client, ends, proxy) as goes_on:
        for _ in range(3):
            router.run("ip", number, "route", "del", "default")
            time.sleep(0.2)
            router.run("ip", number, "route", "add", "default", "via", via)
            goes_on()
        # Other networks: on the uplink, on a link of their own, and the server's own network for a moment.
        for net, device in (("198.18.7.0/24", "wan"), ("10.77.0.0/24", "lan"), ("2001:db8:77::/64", "wan")):
            kind = "-6" if ":" in net else "-4"
            router.run("ip", kind, "route", "add", net, "dev", device)
            goes_on()
            router.run("ip", kind, "route", "del", net, "dev", device)
            goes_on()
        near, connection = open_tunnel(client, proxy, ends.server, 81)
        near.sendall(b"question")
        assert read(connection.sock, 8) == b"question"
        near.close()
    strays.assert_none()


@pytest.mark.parametrize("step", ["SYN", "request", "reply", "answered"])
def test_forgotten_within_a_handshake(gateway, fault_proxy, client, router, ends, strays, hard, step):
    """`conntrack -F` before or after the proxy's answer: the client's SYN is answered in the end, and nothing leaks."""
    proxy, other = fault_proxy(ends.proxy), fault_proxy(ends.proxy, 3129)
    other.serve(echo)
    urls = [upstream(ends.proxy, port) for port in (3128, 3129)]
    gateway("--connect-timeout", "5", "--reply-timeout", "2", upstreams=urls)
    near = client.begin_connect(ends.server, 443)
    if step == "SYN":
        router.forget_connections()
    connection = proxy.accept()
    if step == "request":
        router.forget_connections()
    with contextlib.suppress(OSError, AssertionError):
        connection.read_request()
        if step == "reply":
            router.forget_connections()
        connection.send(OK)
        if step == "answered":
            router.forget_connections()
    proxy.serve(echo)
    if not finish_connect(near, 30):
        # Forgotten once it was answered: reset by what either end says, unless the daemon was not done with it.
        with contextlib.suppress(ConnectionResetError):
            if len(proxy.connections) + len(other.connections) == 1:
                connection.send(b"server's hello")
            near.sendall(HELLO)
            assert near.recv(1) == b"s"
    near.close()
    talk(client, ends, PORT)
    strays.assert_none()


@pytest.mark.parametrize("first", ["black hole", "reset", "closed", "half an answer"])
def test_failover_within_one_syn(gateway, fault_proxy, client, router, internet, ends, strays, hard, first):
    """Whatever the first proxy does, the second gets the client: with the same port, and nothing of the first stays."""
    bad, good = (fault_proxy(ends.proxy, port) for port in (3129, 3128))
    if first == "black hole":
        internet.nft(BLACK_HOLE.format(3129))
    urls = [upstream(ends.proxy, port) for port in (3129, 3128)]
    patience = {"black hole": ("--connect-timeout", "1"), "half an answer": ("--reply-timeout", "2")}
    gateway(*patience.get(first, ()), "--hedge-delay", "0", upstreams=urls)
    near = client.begin_connect(ends.server, 443, ends.client, PORT)
    if first != "black hole":
        connection = bad.accept_request()
        if first == "reset":
            connection.reset()
        elif first == "closed":
            connection.close()
        else:
            connection.send(b"HTTP/1.1 200 ")
    connection = good.open()
    assert connection.sock.getpeername()[:2] == (ends.router, PORT)
    assert finish_connect(near) == 0
    near.sendall(b"question")
    assert read(connection.sock, 8) == b"question"
    near.close()
    assert connection.sock.recv(1) == b""
    connection.close()
    assert not handshakes(router)


def test_a_port_used_again_at_once(forward, client, ends, strays, hard):
    """One port for 20 connections after each other, ended by either side, or by a reset."""
    _, proxy = forward()
    for number in range(20):
        near, connection = open_tunnel(client, proxy, ends.server, 443, ends.client, PORT)
        near.sendall(b"question")
        assert read(connection.sock, 8) == b"question"
        if number % 3 == 0:
            reset(near)
        elif number % 3 == 1:
            reset(connection.sock)
            with pytest.raises(ConnectionResetError):
                near.recv(1)
        else:
            connection.close()
            assert near.recv(1) == b""
            near.close()
        near.close()
        connection.close()
    strays.assert_none()


def test_two_thousand_at_once(forward, client, ends, strays, hard):
    """More than may be held at a time: all get through, and none gets another's bytes."""
    _, proxy = forward("--max-dials", "4096", "--max-dials-per-client", "4096", "--max-flows", "8192", log_level="info")
    proxy.listener.listen(4096)

    def handler(connection):
        connection.send(OK)
        connection.send(f"{connection.target} {connection.sock.getpeername()[1]}\n".encode())
        connection.close()

    proxy.serve(handler)
    socks = [client.begin_connect(ends.server, 1000 + number, ends.client, 20_000 + number) for number in range(2000)]
    for number, sock in enumerate(socks):
        assert finish_connect(sock, 60) == 0
        text = b""
        while not text.endswith(b"\n"):
            text += read(sock, 1)
        target, port = text.split()
        assert target.endswith(f":{1000 + number}".encode())
        assert int(port) == 20_000 + number
        sock.close()
    strays.assert_none()


def test_a_silent_proxy_is_flooded(forward, client, router, ends, strays):
    """512 dials are held, and more SYNs come; when the proxy speaks again all is as before."""
    daemon, proxy = forward("--reply-timeout", "3", "--max-dials", "512", log_level="info")
    socks = [client.begin_connect(ends.server, 443) for _ in range(1500)]
    until(lambda: daemon.status()["flows"]["held"] >= 100, "dials are held")
    for sock in socks:
        sock.close()
    until(lambda: daemon.status()["flows"]["held"] == 0, "none is held", 40)
    assert not handshakes(router)
    while proxy.pending():
        pass
    proxy.serve(echo)
    talk(client, ends, PORT)
    strays.assert_none()


def test_packets_of_ours_are_dropped(forward, client, router, ends, strays):
    """What a full table of connections does: ours do not leave. Nobody gets around the proxy, and all is well after."""
    _, proxy = forward("--connect-timeout", "1")
    proxy.serve(echo)
    talk(client, ends, PORT)
    router.nft("table inet full { chain c { type filter hook output priority -199; ct state new drop; }; }")
    assert client.connect_errno(ends.server, 443, timeout=30) != 0
    router.run("nft", "delete", "table", "inet", "full")
    talk(client, ends, PORT + 1)
    strays.assert_none()


@pytest.fixture
def mesh(network):
    """A client behind another router of the LAN, on a link of 1300 bytes; and a proxy behind one of the internet's."""
    space = Namespace(f"{network.client.name}-mesh")
    network.namespaces.insert(0, space)
    network.client.sysctl("net.ipv4.ip_forward", 1)
    network.client.sysctl("net.ipv6.conf.all.forwarding", 1)
    batch(
        network.client,
        f"link add mesh mtu 1300 type veth peer name mesh mtu 1300 netns {space.name}",
        "addr add 10.1.2.1/24 dev mesh",
        "addr add fd01:2::1/64 dev mesh nodad",
        "link set mesh up",
    )
    batch(
        space,
        "addr add 10.1.2.2/24 dev mesh",
        "addr add fd01:2::2/64 dev mesh nodad",
        "link set mesh mtu 1300 up",
        "route add default via 10.1.2.1",
        "route add default via fd01:2::1",
    )
    batch(network.router, f"route add 10.1.2.0/24 via {CLIENT}", f"route add fd01:2::/64 via {CLIENT6}")
    batch(network.internet, f"route add 10.1.2.0/24 via {ROUTER_WAN}", "route add fd01:2::/64 via 2001:db8:a::1")
    return space


def big(space, proxy, server, size=300_000):
    near, connection = open_tunnel(space, proxy, server, 443)
    for one, other in ((near, connection.sock), (connection.sock, near)):
        threading.Thread(target=one.sendall, args=(bytes(size),), daemon=True).start()
        assert read(other, size) == bytes(size)
    near.close()
    connection.close()


def spoil(space, device):
    """SYNs promise segments for a link of 1500 bytes whatever its own takes."""
    for number, size in (("-4", 1460), ("-6", 1440)):
        for route in space.ip(number, "route", "show", "default"):
            space.run("ip", number, "route", "change", "default", "via", route["gateway"], "dev", device, "advmss", size)


def test_a_small_link_behind_the_router(forward, mesh, ends, strays):
    """Towards the LAN: errors about segments that are too big get to the proxy."""
    spoil(mesh, "mesh")
    _, proxy = forward()
    strays.close()
    big(mesh, proxy, ends.server)


def test_a_small_link_of_a_relayed_client(gateway, proxy, mesh, router):
    """The same where a relay is the sender: an error belongs to it, and does not leave."""
    spoil(mesh, "mesh")
    gateway()
    errors = Capture(router, "wan", "icmp6")
    big(mesh, proxy, SERVER6)
    left = [packet for packet in errors.packets() if packet[40] < 128]
    errors.close()
    assert not left


def test_the_routers_own_link_is_small(forward, gateway, proxy, client, router, server):
    """The router's link to the LAN takes 1300, and the client's SYN promises more."""
    router.run("ip", "link", "set", "lan", "mtu", "1300")
    gateway()
    errors = Capture(router, "wan", "icmp or icmp6")
    big(client, proxy, server)
    left = [packet for packet in errors.packets() if packet[0] >> 4 == 6 and packet[40] < 128]
    errors.close()
    assert not left


def test_a_small_link_towards_the_proxy(gateway, fault_proxy, network, client, ends, strays):
    """A long request, and then 300,000 bytes both ways, over a link of 1300."""
    address, via, net = ("fd02::2", "fd02::1", "64") if ":" in ends.proxy else ("192.0.3.2", "192.0.3.1", "24")
    space = Namespace(f"{network.client.name}-far")
    network.namespaces.insert(0, space)
    extra = " nodad" if net == "64" else ""
    batch(network.internet, f"link add far mtu 1300 type veth peer name far mtu 1300 netns {space.name}",
          f"addr add {via}/{net} dev far{extra}", "link set far up")
    network.internet.sysctl("net.ipv4.ip_forward", 1)
    network.internet.sysctl("net.ipv6.conf.all.forwarding", 1)
    batch(space, f"addr add {address}/{net} dev far{extra}", "link set far up", f"route add default via {via}")
    spoil(space, "far")
    strays.close()
    proxy = fault_proxy(address, space=space)
    gateway(upstreams=(f"{upstream(address).replace('http://', 'http://' + 'u' * 60 + ':' + 'p' * 1500 + '@')}",))
    big(client, proxy, ends.server)
