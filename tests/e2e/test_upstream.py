"""What upstream proxies may do, and must not be able to do to us."""

import base64
import errno
import hashlib
import random
import threading
import time

import pytest

from lab.connections import assert_carries, assert_proxied, open_tunnel
from lab.faultproxy import OK, reply
from lab.gateway import PASSWORD, PATH, upstream
from lab.netns import NOBODY, PROXY, PROXY6, PROXY_OTHER, RESOLVER, SERVER, connecting, finish_connect, retransmits
from lab.proxies import HonestProxy
from lab.servers import Resolver
from lab.wait import WAIT, until

BASIC = "Basic " + base64.b64encode(f"me:{PASSWORD}".encode()).decode()


@pytest.mark.once(why="how proxies are chosen and asked knows no path")
def test_request(gateway, proxy, client, server):
    """The request is a complete HTTP/1.1 CONNECT with nothing that a proxy could stumble over."""
    gateway()
    near = client.begin_connect(server, 8443)
    connection = proxy.accept()
    request = connection.read_request()
    authority = connection.target
    assert authority == (f"[{server}]:8443" if ":" in server else f"{server}:8443")
    assert request.startswith(f"CONNECT {authority} HTTP/1.1\r\n".encode())
    assert connection.header("host") == authority
    assert connection.header("proxy-authorization") is None
    connection.send(OK)
    assert finish_connect(near) == 0
    assert_carries(near, connection.sock)


@pytest.mark.once(why="how proxies are chosen and asked knows no path")
@pytest.mark.parametrize("wants", [
    b"HTTP/1.0 200 OK\r\n\r\n",
    b"HTTP/1.1 200\r\n\r\n",
    b"HTTP/1.1 202 Accepted\r\nVia: 1.1 somewhere\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n",  # RFC 9110 section 9.3.6: to be ignored in a 2xx
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
    b"HTTP/1.1 200 OK\r\n" + b"".join(b"X-Filler-%d: yes\r\n" % number for number in range(60)) + b"\r\n",
    b"HTTP/1.1 200 OK\r\nX-Long: " + b"x" * 3000 + b"\r\n\r\n",
    b"HTTP/1.1 200 OK\nServer: bare newlines\n\n",
], ids=["1.0", "no reason", "202", "length", "chunked", "60 headers", "long header", "bare LF"])
def test_replies_that_open(gateway, proxy, client, wants):
    gateway()
    near, connection = open_tunnel(client, proxy, SERVER, answer=wants)
    assert_carries(near, connection.sock)


@pytest.mark.once(why="how proxies are chosen and asked knows no path")
@pytest.mark.parametrize("answer", [
    b"SSH-2.0-OpenSSH_9.2\r\n",
    b"\x15\x03\x01\x00\x02\x02\x46",
    b"HTTP/1.1 two hundred\r\n\r\n",
    b"HTTP/1.1 200 OK\r\n" + b"X-Endless: x\r\n" * 100_000,
    b"HTTP/1.1 " + b"9" * 100_000,
    b"\0" * 10_000,
    b"\r\n" * 10_000,
], ids=["ssh", "tls alert", "word status", "endless headers", "endless status", "zeros", "newlines"])
def test_garbage(gateway, proxy, client, answer):
    """Garbage fails this connection, at once, and no other."""
    daemon = gateway()
    near = client.begin_connect(SERVER, 80)
    connection = proxy.accept_request()
    try:
        connection.send(answer)
        connection.close()
    except OSError:
        pass  # the gateway has had enough
    assert finish_connect(near) != 0
    assert_proxied(client, proxy, SERVER)
    assert daemon.running()


@pytest.mark.once(why="how proxies are chosen and asked knows no path")
def test_reply_cut_at_every_byte(gateway, proxy, client):
    """A reply in two pieces, cut anywhere, opens; a reply that ends anywhere before its end fails."""
    gateway()
    answer = b"HTTP/1.1 200 OK\r\nA: b\r\n\r\n"
    for cut in range(1, len(answer)):
        near = client.begin_connect(SERVER, 80)
        connection = proxy.accept_request()
        connection.send(answer[:cut])
        assert connecting(near), cut
        connection.send(answer[cut:] + b"hello")
        assert finish_connect(near) == 0, cut
        assert near.recv(5) == b"hello", cut
        near.close()
        near = client.begin_connect(SERVER, 80)
        connection = proxy.accept_request()
        connection.send(answer[:cut])
        connection.close()
        assert finish_connect(near) != 0, cut
        near.close()


@pytest.mark.once(why="how proxies are chosen and asked knows no path")
def test_reply_byte_by_byte(gateway, proxy, client):
    gateway()
    near = client.begin_connect(SERVER, 80)
    connection = proxy.accept_request()
    for byte in OK:
        assert connecting(near)
        connection.send(bytes([byte]))
    assert finish_connect(near) == 0
    assert_carries(near, connection.sock)


@pytest.mark.once(why="how proxies are chosen and asked knows no path")
def test_interim_reply(gateway, proxy, client):
    """A 1xx comes before the answer (RFC 9110 section 15.2)."""
    gateway()
    near, connection = open_tunnel(client, proxy, SERVER, answer=b"HTTP/1.1 100 Continue\r\n\r\n" + OK)
    assert_carries(near, connection.sock)


def test_closes_before_the_reply(gateway, proxy, client):
    gateway()
    near = client.begin_connect(SERVER, 80)
    for _ in range(2):
        proxy.accept_request().close()
    assert finish_connect(near) != 0


def test_resets_before_the_reply(gateway, proxy, client):
    gateway()
    near = client.begin_connect(SERVER, 80)
    for _ in range(2):
        proxy.accept().reset()
    assert finish_connect(near) != 0


def test_closes_after_the_reply(gateway, proxy, client, server):
    gateway()
    near = client.begin_connect(server, 80)
    proxy.open().close()
    assert finish_connect(near) == 0
    assert near.recv(1) == b""


def test_resets_after_the_reply(gateway, proxy, client, server):
    gateway()
    near = client.begin_connect(server, 80)
    proxy.open().reset()
    error = finish_connect(near)
    if error == 0:
        with pytest.raises(ConnectionResetError):
            near.recv(1)


@pytest.mark.once(why="how proxies are chosen and asked knows no path")
def test_never_answers(gateway, proxy, client):
    """One connection waits for an answer that never comes; others don't wait for it."""
    gateway("--reply-timeout", "10")
    stuck = client.begin_connect(SERVER, 80)
    proxy.accept_request()
    for _ in range(10):
        assert_proxied(client, proxy, SERVER, 81)
    assert finish_connect(stuck) == errno.EHOSTUNREACH


def test_client_gone_ends_the_dial(gateway, proxy, client):
    """A tunnel whose client has closed is closed too."""
    gateway()
    near, connection = open_tunnel(client, proxy, SERVER)
    near.close()
    assert connection.sock.recv(1) == b""


def test_proxy_killed_and_restarted(gateway, client, internet, directory):
    """A transfer ends with its proxy; the next works as soon as the proxy is back."""
    server = internet.listen(SERVER, 80)
    proxy = HonestProxy(internet, directory)
    gateway()

    def transfer_one():
        near = client.connect(SERVER, 80)
        far, _ = server.accept()
        far.settimeout(WAIT)
        return near, far

    near, far = transfer_one()

    def flood():
        try:
            while True:
                far.sendall(bytes(1 << 20))
        except OSError:
            pass

    thread = threading.Thread(target=flood, daemon=True)
    thread.start()
    for _ in range(32):
        assert near.recv(1 << 16)
    proxy.process.kill()
    proxy.process.wait(WAIT)
    try:
        while near.recv(1 << 20):
            pass
    except ConnectionResetError:
        pass  # a FIN or a RST: as the dead proxy's kernel has it
    thread.join(WAIT)
    assert client.connect_errno(SERVER, 80) == errno.ENETUNREACH
    (directory / "again").mkdir()
    HonestProxy(internet, directory / "again")
    near, far = transfer_one()
    data = random.Random(1).randbytes(1 << 20)
    threading.Thread(target=lambda: (far.sendall(data), far.close()), daemon=True).start()
    received = hashlib.sha256()
    while piece := near.recv(1 << 16):
        received.update(piece)
    assert received.digest() == hashlib.sha256(data).digest()


def test_upstream_over_ipv6(gateway, fault_proxy, client, server, leaks):
    proxy = fault_proxy(PROXY6)
    gateway(upstreams=[upstream(PROXY6)])
    assert_proxied(client, proxy, server)
    leaks.assert_none()


NAME = "proxy.toh.test"


@pytest.fixture
def resolver(internet):
    resolver = Resolver(internet, RESOLVER, {
        NAME: [PROXY],
        "two." + NAME: [PROXY_OTHER, PROXY],
        "dead." + NAME: [NOBODY, PROXY],
        "six." + NAME: [PROXY6],
    })
    yield resolver
    resolver.close()


@pytest.mark.once(why="how proxies are chosen and asked knows no path")
def test_upstream_by_name(gateway, proxy, client, resolver):
    gateway("--resolver", RESOLVER, upstreams=[upstream(NAME)])
    assert_proxied(client, proxy, SERVER)
    assert resolver.queries


@pytest.mark.once(why="how proxies are chosen and asked knows no path")
def test_upstream_by_name_over_ipv6(gateway, fault_proxy, client, resolver):
    proxy = fault_proxy(PROXY6)
    gateway("--resolver", f"{RESOLVER}:53", upstreams=[upstream("six." + NAME)])
    assert_proxied(client, proxy, SERVER)


@pytest.mark.once(why="how proxies are chosen and asked knows no path")
@pytest.mark.parametrize("name", ["two." + NAME, "dead." + NAME], ids=["first refuses", "first is dead"])
def test_upstream_with_a_dead_address(gateway, proxy, client, resolver, name):
    gateway("--resolver", RESOLVER, "--connect-timeout", "1", upstreams=[upstream(name)])
    assert_proxied(client, proxy, SERVER)


@pytest.mark.once(why="how proxies are chosen and asked knows no path")
def test_unknown_name(gateway, client, resolver):
    """A name that does not exist is a proxy that can't be reached, and no reason to end."""
    daemon = gateway("--resolver", RESOLVER, upstreams=[upstream("nowhere.toh.test")])
    assert client.connect_errno(SERVER, 80) == errno.ENETUNREACH
    assert daemon.running()


@pytest.mark.once(why="how proxies are chosen and asked knows no path")
def test_resolver_comes_later(gateway, proxy, client, internet):
    """Started without a working resolver (boot before the WAN is up), works once there is one."""
    gateway("--resolver", RESOLVER, "--connect-timeout", "1", upstreams=[upstream(NAME)])
    assert client.connect_errno(SERVER, 80) == errno.ENETUNREACH
    resolver = Resolver(internet, RESOLVER, {NAME: [PROXY]})
    proxy.serve(lambda connection: connection.send(OK))
    try:
        until(lambda: client.connect_errno(SERVER, 80) == 0, "the name resolves", interval=0.2)
    finally:
        resolver.close()


@pytest.mark.once(why="how proxies are chosen and asked knows no path")
@pytest.mark.parametrize("first", [PROXY_OTHER, NOBODY], ids=["refuses", "is dead"])
def test_second_upstream(gateway, proxy, client, first):
    gateway("--connect-timeout", "1", upstreams=[upstream(first), upstream()])
    assert_proxied(client, proxy, SERVER)


@pytest.mark.once(why="how proxies are chosen and asked knows no path")
def test_first_upstream_comes_first(gateway, proxy, fault_proxy, client):
    other = fault_proxy(PROXY_OTHER)
    gateway(upstreams=[upstream(), upstream(PROXY_OTHER)])
    assert_proxied(client, proxy, SERVER)
    assert not other.pending()


@pytest.mark.once(why="how proxies are chosen and asked knows no path")
def test_refusal_is_final(gateway, proxy, fault_proxy, client):
    """What a proxy says of the server holds: the second is not asked for another opinion."""
    other = fault_proxy(PROXY_OTHER)
    gateway(upstreams=[upstream(), upstream(PROXY_OTHER)])
    near = client.begin_connect(SERVER, 80)
    proxy.open(reply(502)).close()
    assert finish_connect(near) == errno.ECONNREFUSED
    assert not other.pending()


def assert_secret(daemon):
    """The password stands neither in the log nor in what ps shows."""
    pid = daemon.process.pid
    for name in ("cmdline", "comm"):
        with open(f"/proc/{pid}/{name}", "rb") as file:
            assert PASSWORD.encode() not in file.read(), name
    daemon.assert_sane_log()


def config_file(directory, text):
    path = directory / "tcp-over-http"
    path.write_text(text)
    path.chmod(0o600)
    return path


@pytest.mark.once(why="how proxies are chosen and asked knows no path")
def test_credentials_in_the_file(gateway, proxy, client, directory):
    path = config_file(directory, f"""
config tcp-over-http 'main'
	option auto_route '1'
	option log_level 'trace'

config upstream 'corp'
	option host '{PROXY}'
	option port '3128'
	option username 'me'
	option password '{PASSWORD}'
	list header 'X-Team: blue'
	list header 'X-Other: red'
""")
    daemon = gateway("--config", path, upstreams=(), routes=(), log_level="trace")
    near, connection = open_tunnel(client, proxy, SERVER)
    assert connection.header("proxy-authorization") == BASIC
    assert connection.header("x-team") == "blue"
    assert connection.header("x-other") == "red"
    assert_carries(near, connection.sock)
    assert_secret(daemon)


@pytest.mark.once(why="how proxies are chosen and asked knows no path")
def test_credentials_in_the_environment(gateway, proxy, client):
    daemon = gateway(upstreams=(), env={"TCP_OVER_HTTP_UPSTREAM": upstream(user="me")}, log_level="trace")
    near, connection = open_tunnel(client, proxy, SERVER)
    assert connection.header("proxy-authorization") == BASIC
    assert_carries(near, connection.sock)
    assert_secret(daemon)


@pytest.mark.once(why="how proxies are chosen and asked knows no path")
def test_wrong_password_is_logged_without_it(gateway, proxy, client):
    """A 407 is worth a warning that names the proxy and its status, and nothing secret."""
    daemon = gateway(upstreams=(), env={"TCP_OVER_HTTP_UPSTREAM": upstream(user="me")}, log_level="trace")
    near = client.begin_connect(SERVER, 80)
    proxy.open(b'HTTP/1.1 407 Auth\r\nProxy-Authenticate: Basic realm="x"\r\nContent-Length: 0\r\n\r\n')
    assert finish_connect(near) == errno.EHOSTUNREACH
    daemon.wait_log(r"WARN.*407")
    assert_secret(daemon)


@pytest.mark.once(why="how proxies are chosen and asked knows no path")
@pytest.mark.native(why="rules tell when it runs")
def test_warnings_are_limited(gateway, proxy, client):
    """A proxy that fails everything does not fill the disk."""
    daemon = gateway(log_level="warn", ready=False)
    proxy.serve(lambda connection: connection.send(reply(403)))
    until(lambda: client.connect_errno(SERVER, 22) == errno.EHOSTUNREACH, "captured and refused")
    for _ in range(300):
        assert client.connect_errno(SERVER, 22) == errno.EHOSTUNREACH
    assert 1 <= daemon.log().count("WARN") <= 60
    assert SERVER not in daemon.log(), "a client's business above DEBUG"


@pytest.mark.native(why="ports and marks are the kernel's")
@pytest.mark.once(why="how proxies are chosen and asked knows no path")
def test_ports_used_up(gateway, proxy, fault_proxy, client, router):
    """No port is left towards one proxy: nobody is blamed, and the next one, which has its own, is asked."""
    router.sysctl("net.ipv4.ip_local_port_range", "40000 40003")
    other = fault_proxy(PROXY_OTHER)
    daemon = gateway("--max-flows", "16", upstreams=(upstream(), upstream(PROXY_OTHER)))
    assert "max_flows 16: only 8 connections to the proxies" in daemon.log()
    assert "only 8 connections" in daemon.command("check").stderr
    ends = [open_tunnel(client, proxy, SERVER) for _ in range(4)]
    ends += [open_tunnel(client, other, SERVER) for _ in range(4)]
    first, second = daemon.status()["upstreams"]
    assert (first["opened"], second["opened"]) == (4, 4)
    assert not first["resting"] and not first["unreachable"]
    # Then the client tries again until there is one.
    late = client.begin_connect(SERVER, 81)
    until(lambda: retransmits(late) >= 1, "it is not answered, and not refused")
    assert connecting(late)
    near, connection = ends[0]
    near.close()
    assert connection.sock.recv(1) == b""
    assert not any(proxy["resting"] for proxy in daemon.status()["upstreams"])


@pytest.mark.once(why="how proxies are chosen and asked knows no path")
def test_a_proxy_that_has_no_place_just_now(gateway, proxy, client, server):
    """One that closes before it answers is asked once more before the client is refused."""
    daemon = gateway()
    near = client.begin_connect(server, 80)
    proxy.accept_request().close()
    proxy.open()
    assert finish_connect(near) == 0
    near = client.begin_connect(server, 80)
    for _ in range(2):
        proxy.accept_request().close()
    assert finish_connect(near) in (errno.ENETUNREACH, errno.EHOSTUNREACH)
    assert not proxy.pending()
    assert daemon.status()["upstreams"][0]["retried"] == 2


@pytest.mark.native(why="new runs")
def test_a_wrong_password_is_sent_once_and_a_new_one_at_once(configured, client, proxy):
    configured.write(upstreams=[upstream(user="you")]).start()
    begun = [client.begin_connect(SERVER, port) for port in (443, 22, 80)]
    proxy.open(b'HTTP/1.1 407 No\r\nProxy-Authenticate: Basic realm="r"\r\nContent-Length: 0\r\n\r\n').close()
    assert [finish_connect(near) for near in begun] == [errno.EHOSTUNREACH] * 3
    assert client.connect_errno(SERVER, 443) == errno.EHOSTUNREACH
    assert not proxy.pending()
    configured.reload("changed", upstreams=[upstream(user="me")])
    near = client.begin_connect(SERVER, 443)
    proxy.open()
    assert finish_connect(near) == 0


@pytest.mark.native(why="new runs")
def test_a_refused_password_is_sent_again_after_a_reload(configured, client, proxy):
    """Somebody may have unlocked the account."""
    configured.write(upstreams=[upstream(user="me")]).start()
    for _ in range(2):
        near = client.begin_connect(SERVER, 443)
        proxy.open(b'HTTP/1.1 407 No\r\nProxy-Authenticate: Basic realm="r"\r\nContent-Length: 0\r\n\r\n').close()
        assert finish_connect(near) == errno.EHOSTUNREACH
        assert client.connect_errno(SERVER, 443) == errno.EHOSTUNREACH
        assert not proxy.pending()
        configured.reload("reload: ")
    near = client.begin_connect(SERVER, 443)
    proxy.open()
    assert finish_connect(near) == 0


@pytest.mark.parametrize("end", ["kept", "closed"])
def test_a_connection_that_a_407_keeps_is_used_again(gateway, client, proxy, end):
    """Behind its body. Where the client's own connection is to be it, or the proxy has not kept it: a new one."""
    gateway(upstreams=[upstream(user="me")])
    near = client.begin_connect(SERVER, 443)
    connection = proxy.accept_request()
    connection.send(b'HTTP/1.1 407 No\r\nProxy-Authenticate: Digest realm="r", nonce="n"\r\nConnection: keep-alive\r\n'
                    b"Content-Length: 9000\r\n\r\n" + bytes(5000))
    if PATH == "relay":
        time.sleep(0.1)  # so that it comes in two pieces
        connection.send(bytes(4000))
        connection.request = b""
        connection.read_request()
    if end == "closed":
        connection.close()
    if end == "closed" or PATH == "forward":
        connection = proxy.accept_request()
    assert connection.header("Proxy-Authorization").startswith("Digest ")
    connection.send(OK + b"hello")
    near.setblocking(True)
    near.settimeout(WAIT)
    assert near.recv(5) == b"hello"
    assert not proxy.pending()
