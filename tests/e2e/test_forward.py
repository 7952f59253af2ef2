"""The forward path: connections that the kernel carries, whatever becomes of the daemon."""

import errno
import hashlib
import json
import signal
import socket
import threading
import time

import pytest

from lab.connections import open_tunnel
from lab.faultproxy import OK, reply
from lab.forward import read
from lab.gateway import NFT_TABLE, tables, upstream
from lab.netns import (
    CLIENT,
    CLIENT6,
    PROXY,
    PROXY6,
    ROUTER_WAN,
    ROUTER_WAN6,
    SERVER,
    SERVER6,
    SERVER_OTHER,
    finish_connect,
    with_mounts,
)
from lab.wait import WAIT, until

pytestmark = pytest.mark.path("forward", why="it is about the other one")

# By family: a server, the proxy, the client, the router's own address towards the proxy.
FAMILIES = {
    "v4": (SERVER, PROXY, CLIENT, ROUTER_WAN),
    "v6": (SERVER6, PROXY6, CLIENT6, ROUTER_WAN6),
}


@pytest.fixture(params=FAMILIES)
def ends(request):
    """A server and the proxy of its family."""
    return FAMILIES[request.param]


@pytest.fixture
def forward(gateway, fault_proxy, ends):
    """A gateway on the forward path, and its proxy."""

    def start(*options, **more):
        proxy = fault_proxy(ends[1])
        return gateway(*options, upstreams=(upstream(ends[1]),), **more), proxy

    return start


def descriptors(daemon):
    """How many sockets the daemon has."""
    listing = daemon.router.run("sh", "-c", f"ls -l /proc/{daemon.process.pid}/fd").stdout
    return listing.count("socket:")


def released(daemon):
    """Connections that conntrack knows as carried by the kernel: by the daemon's own count."""
    return daemon.status()["flows"].get("forwarded", 0)


def test_the_kernel_carries_it(forward, client, ends, leaks):
    """Both ways, without a socket of the daemon's; the proxy sees the router, not the client."""
    server, _, _, router = ends
    daemon, proxy = forward()
    before = descriptors(daemon)
    near = client.begin_connect(server, 443)
    connection = proxy.open()
    assert finish_connect(near) == 0
    assert connection.sock.getpeername()[0] == router
    assert near.getpeername()[:2] == (server, 443)
    for size in (1, 1000, 300_000):
        sent = bytes(size)
        threading.Thread(target=near.sendall, args=(sent,), daemon=True).start()
        assert read(connection.sock, size) == sent
        threading.Thread(target=connection.sock.sendall, args=(sent,), daemon=True).start()
        assert read(near, size) == sent
    assert descriptors(daemon) == before
    assert released(daemon) == 1
    near.close()
    assert connection.sock.recv(1) == b""
    connection.close()
    leaks.assert_none()


def test_bytes_of_what_has_ended_count(forward, client, router, ends):
    """In total, of the proxy and of the client: conntrack tells when it forgets a connection."""
    router.sysctl("net.netfilter.nf_conntrack_acct", 1)
    router.sysctl("net.netfilter.nf_conntrack_tcp_timeout_time_wait", 1)
    server, _, source, _ = ends
    daemon, proxy = forward()
    near, connection = open_tunnel(client, proxy, server, 443)
    for one, other in ((near, connection.sock), (connection.sock, near)):
        one.sendall(bytes(100_000))
        assert read(other, 100_000) == bytes(100_000)

    def counts():
        status, clients = daemon.status(), json.loads(daemon.command("clients", "--json").stdout)
        of_client = next(one for one in clients["clients"] if one["client"] == source)
        return [(of["up"], of["down"]) for of in (status["forwarding"], status["upstreams"][0], of_client)]

    live = counts()
    assert all(100_000 < moved < 120_000 for pair in live for moved in pair)
    near.close()
    connection.close()
    until(lambda: "dport=3128" not in router.run("cat", "/proc/net/nf_conntrack").stdout, "conntrack forgets it")
    ended = counts()
    assert all(new >= old for pair in zip(live, ended) for old, new in zip(*pair)) and ended[0] == ended[1] == ended[2]


def test_what_comes_with_the_reply_arrives(forward, client, ends):
    """Bytes in the same segment as the reply's end, as a server sends that speaks first."""
    _, proxy = forward()
    near = client.begin_connect(ends[0], 22)
    connection = proxy.open(OK + b"SSH-2.0-server\r\n")
    assert finish_connect(near) == 0
    assert read(near, 16) == b"SSH-2.0-server\r\n"
    near.sendall(b"SSH-2.0-client\r\n")
    assert read(connection.sock, 16) == b"SSH-2.0-client\r\n"


def test_a_reply_in_pieces(forward, client, ends):
    _, proxy = forward()
    near = client.begin_connect(ends[0], 443)
    connection = proxy.accept()
    connection.read_request()
    for byte in OK:
        connection.send(bytes([byte]))
    assert finish_connect(near) == 0
    near.sendall(b"question")
    assert read(connection.sock, 8) == b"question"


def test_a_long_request(forward, client, ends):
    """More than one segment of it, by a header of 3,000 bytes (and credentials)."""
    daemon, proxy = forward()
    daemon.stop()
    config = daemon.log_path.parent / "long"
    config.write_text(
        "config tcp-over-http main\nconfig upstream long\n"
        f"\toption host '{ends[1]}'\n\toption port 3128\n\tlist header 'X-Long: {'a' * 3000}'\n"
    )
    daemon.options = tuple(it for it in daemon.options if not str(it).startswith("http://"))
    daemon.options = (*(it for it in daemon.options if it != "--upstream"), "--config", config)
    daemon.start()
    near = client.begin_connect(ends[0], 443)
    connection = proxy.open()
    assert b"X-Long: " + b"a" * 3000 in connection.request
    assert finish_connect(near) == 0
    near.sendall(b"question")
    assert read(connection.sock, 8) == b"question"


def test_refused_by_the_proxys_machine(gateway, client, ends):
    """Nobody listens at the proxy's address: the same error as on every path."""
    gateway(upstreams=(upstream(ends[1], port=9),))
    assert client.connect_errno(ends[0], 443) == errno.ENETUNREACH


@pytest.mark.parametrize("status, expected", [(502, errno.ECONNREFUSED), (503, errno.EHOSTUNREACH)])
def test_a_refusal_leaves_nothing(forward, client, ends, status, expected):
    """The client learns why, the proxy is reset, and the same port may be used again at once."""
    _, proxy = forward()
    near = client.begin_connect(ends[0], 443)
    port = near.getsockname()[1]
    connection = proxy.accept()
    connection.read_request()
    connection.send(reply(status))
    assert finish_connect(near) == expected
    with pytest.raises(ConnectionResetError):
        while connection.sock.recv(1000):
            pass
    near.close()
    again = client.begin_connect(ends[0], 443, ends[2], port)
    proxy.open()
    assert finish_connect(again) == 0


def test_the_next_proxy_within_the_same_syn(gateway, fault_proxy, client):
    """The first one hangs up: its connection is gone, and the next has the same client's port."""
    first, second = fault_proxy(port=3128), fault_proxy(port=3129)
    gateway(upstreams=(upstream(port=3128), upstream(port=3129)))
    near = client.begin_connect(SERVER, 443)
    connection = first.accept()
    connection.read_request()
    connection.close()
    far = second.open()
    assert finish_connect(near) == 0
    near.sendall(b"question")
    assert read(far.sock, 8) == b"question"




def test_several_servers_from_one_port(gateway, proxy, client):
    gateway()
    port = 40_000
    near = [client.begin_connect(server, 443, CLIENT, port) for server in (SERVER, SERVER_OTHER)]
    far = {}
    for _ in near:
        connection = proxy.accept()
        connection.read_request()
        far[connection.target] = connection
    for server, sock in reversed(list(zip((SERVER, SERVER_OTHER), near, strict=True))):
        connection = far[f"{server}:443"]
        connection.send(OK)
        assert finish_connect(sock) == 0
        sock.sendall(server.encode())
        assert read(connection.sock, len(server)) == server.encode()


def test_nothing_of_the_daemon_is_needed(forward, client, ends, leaks):
    """A download across kill -9, a start, a reload and a restart: no byte is lost."""
    daemon, proxy = forward("--leave-blocked")
    near = client.begin_connect(ends[0], 443)
    connection = proxy.open()
    assert finish_connect(near) == 0
    sent, received, stop = hashlib.sha256(), hashlib.sha256(), threading.Event()
    total = [0, 0]

    def send():
        block = bytes(range(256)) * 64
        while not stop.is_set():
            connection.sock.sendall(block)
            sent.update(block)
            total[0] += len(block)
            stop.wait(0.002)
        connection.sock.shutdown(socket.SHUT_WR)

    def receive():
        while data := near.recv(65536):
            received.update(data)
            total[1] += len(data)

    threads = [threading.Thread(target=work) for work in (send, receive)]
    for thread in threads:
        thread.start()

    def flows_on():
        before = total[1]
        until(lambda: total[1] > before + 200_000, "bytes go on", WAIT)

    flows_on()
    daemon.kill()
    flows_on()
    daemon.start()
    flows_on()
    offset = len(daemon.log())
    daemon.signal(signal.SIGHUP)
    daemon.wait_log("reload", offset)
    flows_on()
    daemon.signal(signal.SIGTERM)
    assert daemon.wait() == 0
    flows_on()
    daemon.options = tuple(it for it in daemon.options if it != "--leave-blocked")
    daemon.start()
    flows_on()
    stop.set()
    for thread in threads:
        thread.join(WAIT)
    assert total[0] == total[1] and sent.digest() == received.digest()
    leaks.assert_none()


def test_refused_while_it_is_gone(forward, client, ends, leaks):
    """After kill -9 no new connection leaves around the proxy."""
    daemon, proxy = forward()
    daemon.kill()
    near = client.begin_connect(ends[0], 443)
    near.close()
    assert not proxy.waits()
    leaks.assert_none()


def test_a_firewall_that_forgets(forward, client, router, ends, leaks):
    """`conntrack -F`: a connection ends with a reset, and none of its packets goes to the server."""
    _, proxy = forward()
    near = client.begin_connect(ends[0], 443)
    connection = proxy.open()
    assert finish_connect(near) == 0
    router.forget_connections()
    with pytest.raises(ConnectionResetError):
        near.sendall(b"anyone there?")
        near.recv(1)
    leaks.assert_none()
    connection.close()


def test_a_reset_of_what_the_firewall_has_forgotten(forward, client, router, ends, leaks):
    """A proxy that does not answer is reset in the client's name: that must not go to the server instead."""
    _, proxy = forward("--reply-timeout", "1")
    near = client.begin_connect(ends[0], 443)
    proxy.accept_request()
    router.forget_connections()
    assert finish_connect(near) == errno.EHOSTUNREACH
    leaks.assert_none()


def test_a_connection_that_was_there_before(gateway, fault_proxy, client, internet, leaks):
    """A direct one is reset, and its port may be used again at once: through the proxy."""
    far = internet.listen(SERVER, 443)
    near = client.begin_connect(SERVER, 443, CLIENT, 40_000)
    assert finish_connect(near) == 0
    accepted, _ = far.accept()
    proxy = fault_proxy()
    gateway()
    with pytest.raises(ConnectionResetError):
        near.sendall(b"anyone there?")
        near.recv(1)
    near.close()
    accepted.close()
    near = client.begin_connect(SERVER, 443, CLIENT, 40_000)
    connection = proxy.open()
    assert finish_connect(near) == 0
    near.sendall(b"question")
    assert read(connection.sock, 8) == b"question"
    far.close()


def test_tables_come_back(forward, client, router, ends):
    """A firewall that deletes them gets them back; a live connection goes on."""
    _, proxy = forward()
    near = client.begin_connect(ends[0], 443)
    connection = proxy.open()
    assert finish_connect(near) == 0
    before = tables(router)
    # Somebody else has NAT as well, as routers do: what is translated stays so.
    router.nft("table ip n { chain c { type nat hook postrouting priority srcnat; }; }\n"
               "table ip6 n { chain c { type nat hook postrouting priority srcnat; }; }")
    for family in ("ip", "ip6"):
        router.run("nft", "delete", "table", family, NFT_TABLE)
    until(lambda: tables(router) == before, "both tables are back")
    near.sendall(b"question")
    assert read(connection.sock, 8) == b"question"


def test_a_proxy_by_name(gateway, proxy, client, router, internet, directory):
    """Its first connection is relayed, since the firewall has yet to learn the address; the next is forwarded."""
    hosts = directory / "hosts"
    hosts.write_text(f"{PROXY} proxy.test\n")
    daemon = gateway(upstreams=(upstream("proxy.test"),), prefix=with_mounts(f"mount --bind {hosts} /etc/hosts"))
    deadline = time.monotonic() + WAIT
    while not released(daemon):
        assert time.monotonic() < deadline, "the firewall does not learn it"
        near = client.begin_connect(SERVER, 443)
        connection = proxy.open()
        assert finish_connect(near) == 0
        near.sendall(b"question")
        assert read(connection.sock, 8) == b"question"
        near.close()
        connection.close()
