"""Servers on the internet side: TLS and plain web servers, sshd, iperf3, a resolver."""

import contextlib
import functools
import hashlib
import http.server
import os
import random
import socket
import ssl
import struct
import threading

from lab.netns import command
from lab.wait import until


class WebServer:
    """Serves a directory over HTTP, or over TLS with a self-made certificate (.certificate to trust)."""

    def __init__(self, space, address, root, tls=False, directory=None):
        self.address = address
        handler = functools.partial(QuietHandler, directory=str(root))
        with space.enter():
            self.server = DualServer((address, 0), handler)
        self.port = self.server.server_address[1]
        self.certificate = None
        if tls:
            self.certificate, key = certificate(directory or root, address)
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(self.certificate, key)
            # The handshake belongs to the connection's thread.
            self.server.socket = context.wrap_socket(self.server.socket, server_side=True, do_handshake_on_connect=False)
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True)
        self.thread.start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()


class DualServer(http.server.ThreadingHTTPServer):
    """An HTTP server for either family that says nothing of clients that went away."""

    daemon_threads = True
    request_queue_size = 1024

    def __init__(self, address, handler):
        if ":" in address[0]:
            self.address_family = socket.AF_INET6
        super().__init__(address, handler)

    def server_bind(self):
        # Without HTTPServer's reverse look-up of the own name.
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = self.server_address[:2]

    def handle_error(self, request, client_address):
        pass


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass


class Sshd:
    """sshd with throwaway keys; .options is what a client needs to get in."""

    def __init__(self, space, address, directory, port=2222):
        directory.mkdir(parents=True)
        for name in ("host", "user"):
            command("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", directory / name)
        os.makedirs("/run/sshd", exist_ok=True)
        config = directory / "sshd_config"
        config.write_text(f"""
ListenAddress {'[' + address + ']' if ':' in address else address}:{port}
HostKey {directory}/host
AuthorizedKeysFile {directory}/user.pub
PidFile none
StrictModes no
UsePAM no
PasswordAuthentication no
PermitRootLogin yes
UseDNS no
""")
        kind, key, *_ = (directory / "host.pub").read_text().split()
        (directory / "known_hosts").write_text(f"[{address}]:{port} {kind} {key}\n")
        self.options = [
            "-F", "none", "-p", port, "-i", directory / "user", "-o", f"UserKnownHostsFile={directory}/known_hosts",
            "-o", "StrictHostKeyChecking=yes", "-o", "BatchMode=yes", "-o", "IdentitiesOnly=yes", f"root@{address}",
        ]
        with open(directory / "log", "wb") as log:
            self.process = space.popen("/usr/sbin/sshd", "-D", "-e", "-f", config, stdout=log, stderr=log)
        wait_port(space, address, port)


class Iperf:
    """An iperf3 server."""

    def __init__(self, space, address, port=5201):
        self.address, self.port = address, port
        self.process = space.popen("iperf3", "-s", "-B", address, "-p", port, stdout=-3, stderr=-3)
        # A connection for a probe would count as a test; ask the kernel instead.
        until(lambda: f":{port} " in space.run("ss", "-Hltn").stdout, "iperf3 listens")


class Resolver:
    """A DNS server that knows a few names: {name: [addresses]}; .queries counts what it was asked."""

    def __init__(self, space, address, names, port=53):
        self.names = names
        self.queries = []
        self.sock = space.socket(address, socket.SOCK_DGRAM)
        self.sock.bind((address, port))
        self.thread = threading.Thread(target=self.loop, daemon=True)
        self.thread.start()

    def loop(self):
        while True:
            try:
                query, client = self.sock.recvfrom(4096)
            except OSError:
                return
            if not query:
                return
            self.sock.sendto(self.answer(query), client)

    def answer(self, query):
        """The reply to a query of one question (RFC 1035 section 4.1)."""
        labels, at = [], 12
        while query[at]:
            labels.append(query[at + 1:at + 1 + query[at]].decode())
            at += query[at] + 1
        kind, = struct.unpack_from("!H", query, at + 1)
        question = query[12:at + 5]
        name = ".".join(labels).lower()
        self.queries.append((name, kind))
        wanted = {1: socket.AF_INET, 28: socket.AF_INET6}.get(kind)
        answers = b""
        count = 0
        for address in self.names.get(name, ()):
            if wanted == (socket.AF_INET6 if ":" in address else socket.AF_INET):
                data = socket.inet_pton(wanted, address)
                answers += b"\xc0\x0c" + struct.pack("!HHIH", kind, 1, 60, len(data)) + data
                count += 1
        rcode = 0 if name in self.names else 3
        return query[:2] + struct.pack("!HHHHH", 0x8180 | rcode, 1, count, 0, 0) + question + answers

    def close(self):
        with contextlib.suppress(OSError):  # not connected, and yet it wakes the thread
            self.sock.shutdown(socket.SHUT_RDWR)
        self.sock.close()
        self.thread.join(5)


def certificate(directory, address):
    """Makes a self-signed certificate for an address; returns (certificate, key) paths."""
    crt, key = directory / "tls.crt", directory / "tls.key"
    command(
        "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
        "-subj", "/CN=toh", "-addext", f"subjectAltName=IP:{address}", "-keyout", key, "-out", crt,
    )
    return crt, key


def random_file(path, size, seed=1):
    """Writes size bytes that look random; returns their SHA-256."""
    data = random.Random(seed).randbytes(size)
    path.write_bytes(data)
    return hashlib.sha256(data).hexdigest()


def wait_port(space, address, port):
    """Waits until something accepts connections."""

    def ready():
        try:
            space.connect(address, port).close()
        except OSError:
            return False
        return True

    until(ready, f"{address} port {port} accepts")


