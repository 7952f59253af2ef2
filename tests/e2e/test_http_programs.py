"""Plain HTTP as requests in absolute form: the programs and proxies that people use."""

import base64
import gzip
import hashlib
import http.server
import os
import random
import shutil
import struct
import threading

import pytest

from lab.dnsservers import NAME, PORT, RECORDS, Unbound, dig
from lab.gateway import upstream
from lab.netns import PLAIN, literal
from lab.proxies import Apache, Privoxy, Squid, StrictSquid, Tinyproxy
from lab.servers import DualServer
from lab.wait import until

ALWAYS = ("--http-relay", "always")
DATA = random.Random(1).randbytes(8 << 20)
HASH = hashlib.sha256(DATA).hexdigest()
PAGE = b"<title>page</title>" + b"".join(b"<img src=/image%d>" % number for number in range(20))
# The smallest picture there is.
GIF = base64.b64decode("R0lGODlhAQABAAAAACH5BAEKAAEALAAAAAABAAEAAAICTAEAOw==")
CHECKS = {
    "/hotspot-detect.html": b"<HTML><HEAD><TITLE>Success</TITLE></HEAD><BODY>Success</BODY></HTML>",
    "/connecttest.txt": b"Microsoft Connect Test",
}


class Handler(http.server.BaseHTTPRequestHandler):
    """GET answers with what it was asked for, or with DATA behind /data and /chunked; POST with the hash of what came."""

    protocol_version = "HTTP/1.1"
    repeat = 1

    def log_message(self, *args):
        pass

    def do_GET(self):
        self.path = self.path.replace("/./", "/")
        self.server.paths.append(self.path)
        if self.path == "/chunked":
            self.chunked()
        elif self.path == "/long":
            self.send_response(200)
            self.send_header("Content-Length", str(self.server.repeat * len(DATA)))
            self.end_headers()
            for _ in range(self.server.repeat):
                self.wfile.write(DATA)
        elif self.path == "/generate_204":
            self.send_response(204)
            self.end_headers()
        elif self.path == "/407":
            self.send_response(407)
            self.send_header("Proxy-Authenticate", 'Digest realm="r", nonce="n"')
            self.send_header("Content-Length", "0")
            self.end_headers()
        elif self.path == "/socket":
            self.socket()
        else:
            kind = "image/gif" if self.path.startswith("/image") else "text/html"
            pages = CHECKS | {"/data": DATA, "/page": PAGE} | self.server.pages
            if self.path.startswith("/repo/") and self.path not in pages:
                return self.send_error(404)
            default = GIF if kind == "image/gif" else f"{self.path} {self.headers['Host']}\n".encode()
            self.reply(pages.get(self.path, default), kind)

    do_HEAD = do_GET

    def do_POST(self):
        received = hashlib.sha256()
        left = int(self.headers.get("Content-Length", 0))
        if self.headers.get("Transfer-Encoding") == "chunked":
            while size := int(self.rfile.readline().split(b";")[0], 16):
                self.take(size, received)
                self.rfile.readline()
            self.rfile.readline()
        self.take(left, received)
        self.reply(received.hexdigest().encode())

    def take(self, size, received):
        while size:
            piece = self.rfile.read(min(size, 1 << 18))
            received.update(piece)
            size -= len(piece)

    def chunked(self):
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for _ in range(self.server.repeat):
            for at in range(0, len(DATA), 100_000):
                piece = DATA[at : at + 100_000]
                self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
        self.wfile.write(b"0\r\n\r\n")

    def reply(self, body, kind="text/plain"):
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def socket(self):
        """Echoes WebSocket messages (RFC 6455), unmasked, until one is empty."""
        magic = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
        accept = base64.b64encode(hashlib.sha1(self.headers["Sec-WebSocket-Key"].encode() + magic).digest())
        self.send_response(101)
        for name, value in ("Upgrade", "websocket"), ("Connection", "Upgrade"), ("Sec-WebSocket-Accept", accept.decode()):
            self.send_header(name, value)
        self.end_headers()
        while length := struct.unpack(">H", self.rfile.read(2))[0] & 127:
            mask, body = self.rfile.read(4), self.rfile.read(length)
            self.wfile.write(struct.pack(">BB", 0x81, length) + bytes(a ^ mask[n % 4] for n, a in enumerate(body)))
        self.close_connection = True


@pytest.fixture
def web(internet, server):
    """A web server on port 80 of the server: .host is what stands for it in a URL."""
    with internet.enter():
        daemon = DualServer((server, 80), Handler)
    daemon.paths, daemon.pages, daemon.repeat, daemon.host = [], {}, 1, literal(server)
    threading.Thread(target=daemon.serve_forever, args=(0.05,), daemon=True).start()
    yield daemon
    daemon.shutdown()
    daemon.server_close()


def curl(client, *args):
    return client.run("curl", "-sS", "--fail", "--max-time", "60", "-g", *args, env=PLAIN).stdout


def test_first_page_comes(gateway, client, internet, web, directory, leaks):
    """squid's default: the first refusal is nobody's failure, and from then on nobody is refused."""
    squid = StrictSquid(internet, directory)
    gateway()
    for path in ("/first", "/second"):
        assert curl(client, f"http://{web.host}{path}") == f"{path} {web.host}\n"
    until(lambda: squid.log().count("MISS/200") == 2, "squid's log")
    assert squid.log().count("CONNECT") == 1
    leaks.assert_none()


@pytest.mark.parametrize("kind", [StrictSquid, Tinyproxy, Privoxy, Apache], ids=lambda kind: kind.__name__.lower())
def test_bodies_both_ways(kind, gateway, client, internet, web, directory, leaks):
    kind(internet, directory)
    gateway(*ALWAYS)
    (directory / "data").write_bytes(DATA)
    post = ["--data-binary", f"@{directory}/data", f"http://{web.host}/"]
    ways = [], ["-0"], ["-H", "Expect: 100-continue"], ["-H", "Transfer-Encoding: chunked"]
    for more in ways[:3] if kind is Privoxy else ways:  # which takes no more than 4 MiB of chunks
        assert curl(client, *more, *post) == HASH, more
    for path, more in ("/data", []), ("/chunked", []), ("/chunked", ["-0"]):
        curl(client, *more, "-o", str(directory / "got"), f"http://{web.host}{path}")
        assert (directory / "got").read_bytes() == DATA, path
    curl(client, "-I", f"http://{web.host}/data")
    output = curl(client, "-v", "--stderr", "-", *(f"http://{web.host}/{n}" for n in range(5)))
    assert [f"/{n} {web.host}" in output for n in range(5)] == [True] * 5
    assert output.count("Connected to") == 1
    leaks.assert_none()


@pytest.mark.long
@pytest.mark.parametrize("framing", ["chunked", "length"])
def test_a_gigabyte(gateway, client, internet, web, directory, framing):
    """Up and down. squid 5.7 gives up such an upload of a known length, also without us."""
    (StrictSquid if framing == "chunked" else Apache)(internet, directory)
    gateway(*ALWAYS)
    web.repeat = 128
    wanted = hashlib.sha256()
    with open(directory / "data", "wb") as file:
        for _ in range(web.repeat):
            wanted.update(DATA)
            file.write(DATA)
    url = f"http://{web.host}"
    more = ["-H", "Transfer-Encoding: chunked"] if framing == "chunked" else []
    assert curl(client, *more, "-T", f"{directory}/data", "-X", "POST", url + "/") == wanted.hexdigest()
    curl(client, "-o", str(directory / "data"), f"{url}/{'chunked' if framing == 'chunked' else 'long'}")
    got = hashlib.sha256()
    with open(directory / "data", "rb") as file:
        while piece := file.read(1 << 20):
            got.update(piece)
    assert got.digest() == wanted.digest()


def test_wget(gateway, client, internet, web, directory):
    """Pages and what they need, on connections that go on."""
    StrictSquid(internet, directory)
    gateway()
    client.run("wget", "-q", "-e", "robots=off", "-T", "30", "-p", "-P", directory, f"http://{web.host}/page", env=PLAIN)
    assert sorted(web.paths) == sorted(["/page", *(f"/image{number}" for number in range(20))])


def test_apt(gateway, client, internet, web, directory):
    """A repository, with the pipelining that apt is known for."""
    StrictSquid(internet, directory)
    gateway()
    packages = b"".join(b"Package: toh-%d\nVersion: 1\nArchitecture: all\nFilename: toh\nSize: 1\n\n" % n for n in range(99))
    files = {"Packages": packages, "Packages.gz": gzip.compress(packages)}
    sums = "".join(f" {hashlib.sha256(data).hexdigest()} {len(data)} {name}\n" for name, data in files.items())
    release = f"Date: Sat, 28 Nov 2020 00:00:00 UTC\nSHA256:\n{sums}".encode()
    web.pages |= {f"/repo/{name}": data for name, data in files.items()} | {"/repo/Release": release}
    (directory / "apt" / "lists" / "partial").mkdir(parents=True)
    (directory / "apt" / "sources.list").write_text(f"deb [trusted=yes] http://{web.host}/repo ./\n")
    options = {"Dir::Etc::sourcelist": "sources.list", "Dir::Etc": f"{directory}/apt", "Dir::State": f"{directory}/apt",
               "Dir::State::status": "/dev/null", "Dir::Cache": f"{directory}/apt", "APT::Sandbox::User": "root",
               "Acquire::Languages": "none", "Dir::Etc::sourceparts": "-", "Dir::Etc::parts": "-"}
    argv = [word for name, value in options.items() for word in ("-o", f"{name}={value}")]
    client.run("apt-get", *argv, "update", env=PLAIN)
    listed = client.run("apt-cache", *argv, "pkgnames", env=PLAIN).stdout.split()
    assert len([name for name in listed if name.startswith("toh-")]) == 99


@pytest.mark.skipif(not shutil.which("chromium"), reason="needs chromium")
def test_a_browser(gateway, client, internet, web, directory):
    """A page with images, several connections at a time."""
    StrictSquid(internet, directory)
    gateway()
    output = client.run(
        "chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--dump-dom",
        f"--user-data-dir={directory}/profile", f"http://{web.host}/page", env=PLAIN | {"HOME": str(directory)}).stdout
    assert "<title>page</title>" in output
    assert {f"/image{number}" for number in range(20)} <= set(web.paths)


@pytest.mark.native(why="rules of its own")
def test_connectivity_checks(gateway, client, router, internet, web, directory):
    """As Android, Apple and Windows send them, to fake addresses, the first one while the proxy is still to refuse."""
    StrictSquid(internet, directory)
    Unbound(internet, directory, ["127.0.0.1"], RECORDS)
    gateway("--dns", "fakeip", "--fakeip-file", directory / "names")
    address, = dig(router, "127.0.0.1", NAME, port=PORT)
    android = "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/60.0.3112.32 Safari/537.36"
    for request, status, body in [
        (f"GET /generate_204 HTTP/1.1\r\nUser-Agent: {android}\r\nHost: {NAME}\r\nConnection: Keep-Alive\r\n"
         "Accept-Encoding: gzip\r\n\r\n", b" 204 ", b""),
        (f"GET /hotspot-detect.html HTTP/1.0\r\nHost: {NAME}\r\nConnection: close\r\n"
         "User-Agent: CaptiveNetworkSupport-481.100.4 wispr\r\n\r\n", b" 200 ", CHECKS["/hotspot-detect.html"]),
        (f"GET /connecttest.txt HTTP/1.1\r\nConnection: Close\r\nUser-Agent: Microsoft NCSI\r\nHost: {NAME}\r\n\r\n",
         b" 200 ", CHECKS["/connecttest.txt"]),
    ]:
        near = client.connect(address, 80)
        near.sendall(request.encode())
        received = b""
        while not received.endswith(b"\r\n\r\n" + body) and (piece := near.recv(4096)):
            received += piece
        assert status in received.split(b"\r\n")[0] and received.endswith(b"\r\n\r\n" + body)
        near.close()


def test_websocket(gateway, client, internet, server, web, directory):
    """Through a proxy that lets it."""
    Squid(internet, directory, more="http_upgrade_request_protocols websocket allow all\n")
    gateway(*ALWAYS)
    near = client.connect(server, 80)
    key = base64.b64encode(os.urandom(16)).decode()
    near.sendall(f"GET /socket HTTP/1.1\r\nHost: {web.host}\r\nUpgrade: websocket\r\nConnection: keep-alive, Upgrade\r\n"
                 f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n\r\n".encode())
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        head += near.recv(1)
    assert head.startswith(b"HTTP/1.1 101 ") and b"\r\nSec-WebSocket-Accept: " in head
    for message in (b"hello", b"there"):
        near.sendall(struct.pack(">BB", 0x81, 0x80 | len(message)) + bytes(4) + message)
        assert near.recv(100) == struct.pack(">BB", 0x81, len(message)) + message
    near.close()


@pytest.mark.parametrize("kind", [StrictSquid, Tinyproxy, Privoxy, Apache], ids=lambda kind: kind.__name__.lower())
def test_a_407_of_a_server_says_nothing_of_the_proxy(kind, gateway, client, internet, web, directory):
    """It would rest for what anybody may say. All of these pass it on without its challenge, and so do we."""
    kind(internet, directory)
    daemon = gateway(*ALWAYS, upstreams=[upstream(user="me")])
    argv = ["curl", "-sS", "-g", "--max-time", "60", "-w", "%{http_code}", f"http://{web.host}/407"]
    assert client.run(*argv, env=PLAIN).stdout == "407"
    assert daemon.status()["upstreams"][0]["state"] == "ok"
    assert "WARN  tcp_over_http::upstream" not in daemon.log()


@pytest.mark.parametrize("scheme", ["basic", "digest"])
def test_passwords_go_along(gateway, client, internet, web, directory, scheme):
    """Nonces are given, counted, and replaced, on the way of requests as on that of tunnels."""
    squid = StrictSquid(internet, directory, user="me", scheme=scheme)
    gateway(*ALWAYS, upstreams=[upstream(user="me")])
    # With a body that has begun when the proxy asks who we are.
    (directory / "short").write_bytes(DATA[:50_000])
    short = hashlib.sha256(DATA[:50_000]).hexdigest()
    for more in ([], ["-H", "Transfer-Encoding: chunked"]):
        assert curl(client, *more, "--data-binary", f"@{directory}/short", f"http://{web.host}/") == short
    output = curl(client, *(f"http://{web.host}/{n}" for n in range(120)))
    assert output.count(web.host) == 120
    assert web.host in curl(client, f'http://{web.host}/",username="you?a\\b')
    (directory / "data").write_bytes(DATA)
    assert curl(client, "--data-binary", f"@{directory}/data", f"http://{web.host}/") == HASH
    assert squid.log().count("/407") < 10, squid.log()
