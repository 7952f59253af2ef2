"""Plain HTTP through a proxy that refuses CONNECT to port 80: carried as requests in absolute form."""

import hashlib
import http.server
import random
import socket
import threading

import pytest

from lab.gateway import upstream
from lab.netns import RESOLVER, SERVER, SERVER6, literal
from lab.proxies import StrictSquid
from lab.servers import DualServer, Resolver
from lab.wait import WAIT, until

DATA = random.Random(1).randbytes(8 << 20)


class Handler(http.server.BaseHTTPRequestHandler):
    """GET answers with what it was asked for and DATA behind /data, POST with the hash of what came."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def do_GET(self):
        body = DATA if self.path == "/data" else f"{self.path} {self.headers['Host']}\n".encode()
        if self.path == "/chunked":
            self.send_response(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            for at in range(0, len(DATA), 100_000):
                piece = DATA[at : at + 100_000]
                self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
            self.wfile.write(b"0\r\n\r\n")
            return
        self.reply(body)

    do_HEAD = do_GET

    def do_POST(self):
        received = hashlib.sha256()
        if self.headers.get("Transfer-Encoding") == "chunked":
            while size := int(self.rfile.readline().split(b";")[0], 16):
                received.update(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
        else:
            received.update(self.rfile.read(int(self.headers["Content-Length"])))
        self.reply(received.hexdigest().encode())

    def reply(self, body):
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


@pytest.fixture
def web(internet, server):
    """A web server on port 80 of the server."""
    with internet.enter():
        daemon = DualServer((server, 80), Handler)
    threading.Thread(target=daemon.serve_forever, args=(0.05,), daemon=True).start()
    yield f"[{server}]" if ":" in server else server
    daemon.shutdown()
    daemon.server_close()


def curl(client, *args):
    return client.run("curl", "-sS", "--fail", "--max-time", "30", "-g", *args).stdout


def test_first_page_comes(gateway, client, internet, web, directory, leaks):
    """The first refusal is nobody's failure, and from then on nobody is refused."""
    squid = StrictSquid(internet, directory)
    daemon = gateway()
    for path in ("/first", "/second"):
        assert curl(client, f"http://{web}{path}") == f"{path} {web}\n"
    until(lambda: squid.log().count("MISS/200") == 2, "squid's log")
    assert squid.log().count("CONNECT") == 1
    assert "refuses CONNECT to port 80" in daemon.log()
    leaks.assert_none()


def test_bodies_both_ways(gateway, client, internet, web, directory):
    StrictSquid(internet, directory)
    gateway("--http-relay", "always")
    (directory / "data").write_bytes(DATA)
    hashed = hashlib.sha256(DATA).hexdigest()
    post = ["--data-binary", f"@{directory}/data", f"http://{web}/"]
    assert curl(client, *post) == hashed
    assert curl(client, "-H", "Transfer-Encoding: chunked", *post) == hashed
    for path in ("/data", "/chunked"):
        curl(client, "-o", str(directory / "got"), f"http://{web}{path}")
        assert (directory / "got").read_bytes() == DATA, path


def test_requests_follow_one_another(gateway, client, internet, web, server, directory):
    """One connection of the client's: keep-alive, HEAD, pipelining, and an end."""
    StrictSquid(internet, directory)
    gateway("--http-relay", "always")
    output = curl(client, "-v", "--stderr", "-", *(f"http://{web}/{n}" for n in range(5)))
    assert [f"/{n} {web}" in output for n in range(5)] == [True] * 5
    assert output.count("Connected to") == 1
    near = client.connect(server, 80)
    request = f"{{}} /{{}} HTTP/1.1\r\nHost: {web}\r\n{{}}\r\n"
    near.sendall("".join([request.format("GET", "a", ""), request.format("HEAD", "b", ""),
                          request.format("GET", "c", "Connection: close\r\n")]).encode())
    received = b""
    while piece := near.recv(4096):
        received += piece
    assert received.count(b"HTTP/1.1 200") == 3
    assert received.endswith(f"/c {web}\n".encode()) and f"/a {web}\n".encode() in received


@pytest.mark.parametrize("request_", [
    b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: x\r\n X: folded\r\n\r\n",
    b"GET http://192.0.2.99/ HTTP/1.1\r\nHost: 192.0.2.99\r\n\r\n",
    b"GET / HTTP/1.1\nHost: x\n\n",
], ids=["lengths", "fold", "host", "lf"])
def test_nothing_is_smuggled(gateway, client, internet, web, server, directory, request_):
    """What two readers could take for different requests gets a 400, and the proxy sees nothing of it."""
    squid = StrictSquid(internet, directory)
    gateway("--http-relay", "always")
    near = client.connect(server, 80)
    near.sendall(request_)
    assert near.recv(4096).startswith(b"HTTP/1.1 400 ")
    assert near.recv(4096) == b""
    near.close()
    assert "GET" not in squid.log() and "POST" not in squid.log()


def test_names_are_asked_for_if_they_belong_to_the_address(gateway, client, internet, server, proxy):
    """Host goes along if it resolves to the address that the client has connected to; else it is pinned."""
    resolver = Resolver(internet, RESOLVER, {"www.toh.test": [SERVER, SERVER6], "other.toh.test": [RESOLVER]})
    gateway("--http-relay", "always", "--resolver", RESOLVER)
    pinned = literal(server)
    for host, asked in ("www.toh.test", "www.toh.test"), ("other.toh.test", pinned), (f"{pinned}:80", pinned):
        near = client.connect(server, 80)
        near.sendall(f"GET / HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
        head = proxy.accept().sock.recv(4096)
        assert head == f"GET http://{asked}/ HTTP/1.1\r\nHost: {asked}\r\n\r\n".encode()
        near.close()
    resolver.close()


def test_what_is_no_http_is_reset(gateway, client, internet, web, server, directory):
    StrictSquid(internet, directory)
    gateway("--http-relay", "always")
    near = client.connect(server, 80)
    near.sendall(b"SSH-2.0-OpenSSH_9.9\r\n")
    with pytest.raises(ConnectionResetError):
        near.recv(100)


def test_digest_goes_along(gateway, client, internet, web, directory):
    """Nonces are given, counted, and replaced, on the way of requests as on that of tunnels."""
    squid = StrictSquid(internet, directory, user="me", scheme="digest")
    gateway("--http-relay", "always", upstreams=[upstream(user="me")])
    output = curl(client, *(f"http://{web}/{n}" for n in range(120)))
    assert output.count(web) == 120
    assert squid.log().count("/407") < 10, squid.log()


def test_never_is_never(gateway, client, internet, web, server, directory):
    StrictSquid(internet, directory)
    gateway("--http-relay", "never")
    assert client.connect_errno(server, 80) != 0


def test_an_upgrade_becomes_a_tunnel(gateway, client, internet, server, proxy):
    """101: then bytes, each side ending for itself."""
    gateway("--http-relay", "always")
    sock = client.begin_connect(server, 80)
    near = sock
    connection = proxy.accept().sock
    sock.setblocking(True)
    sock.settimeout(WAIT)
    near.sendall(b"GET /chat HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
    head = b""
    while b"\r\n\r\n" not in head:
        head += connection.recv(4096)
    assert head.startswith(b"GET http://") and b"\r\nUpgrade: websocket\r\n" in head
    connection.sendall(b"HTTP/1.1 101 Go\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nearly")
    received = b""
    while not received.endswith(b"early"):
        received += near.recv(4096)
    near.sendall(b"up")
    assert connection.recv(100) == b"up"
    near.shutdown(socket.SHUT_WR)
    assert connection.recv(100) == b""
    connection.sendall(b"down")
    assert near.recv(100) == b"down"
    connection.close()
    assert near.recv(100) == b""
