"""Real DNS servers and clients, each with its smallest configuration, in a namespace."""

import socket
import struct

from lab.netns import PLAIN, SERVER, SERVER6, with_mounts
from lab.wait import WAIT, until

# The daemon's own resolver.
PORT = 5453
# A resolver that clients ask on their own; nobody in these networks has the address.
ELSEWHERE, ELSEWHERE6 = "8.8.8.8", "2001:4860:4860::8888"
# What the resolver beyond the proxy knows.
NAME = "www.corp.example"
RECORDS = [
    f"{NAME}. 300 IN A {SERVER}",
    f"{NAME}. 300 IN AAAA {SERVER6}",
    "v4.corp.example. 300 IN A 203.0.113.10",
    'text.corp.example. 300 IN TXT "hello"',
    *(f'big.corp.example. 300 IN TXT "{number:03}{"x" * 200}"' for number in range(20)),
    "corp.example. 300 IN MX 10 mail.corp.example.",
    "corp.example. 300 IN SOA ns.corp.example. root.corp.example. 1 3600 600 86400 60",
]


class Unbound:
    """A resolver that knows the given records: ["www.corp.example. 300 IN A 203.0.113.10", ...], and nothing else.

    .log() tells what it was asked: "query: ADDRESS NAME TYPE CLASS".
    """

    def __init__(self, space, directory, addresses, records, name="unbound", extra=""):
        self.space, self.addresses = space, addresses
        self.directory = directory / name
        self.directory.mkdir()
        self.log_path = self.directory / "log"
        lines = "\n".join(f"    local-data: '{record}'" for record in records)
        interfaces = "\n".join(f"    interface: {address}" for address in addresses)
        config = self.directory / "unbound.conf"
        config.write_text(f"""
server:
    username: ""
    chroot: ""
    directory: "{self.directory}"
    pidfile: "{self.directory}/pid"
    use-syslog: no
    logfile: "{self.log_path}"
    log-queries: yes
    log-replies: no
    do-daemonize: no
    num-threads: 1
    module-config: "iterator"
    access-control: 0.0.0.0/0 allow
    access-control: ::/0 allow
    so-rcvbuf: 0
    outgoing-num-tcp: 10
    incoming-num-tcp: 100
    edns-buffer-size: 1232
    max-udp-size: 1232
    local-zone: "." static
    local-zone: "corp.example." static
{interfaces}
{lines}
{extra}
remote-control:
    control-enable: no
""")
        self.process = space.popen("unbound", "-d", "-p", "-c", config, env=PLAIN, stdout=-3, stderr=-3)
        until(lambda: "start of service" in self.log(), "unbound serves")

    def log(self):
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    def queries(self):
        """What it was asked: [(name, type)]."""
        parts = [line.split() for line in self.log().splitlines() if " info: " in line and line.endswith(" IN")]
        return [(part[-3].rstrip(".").lower(), part[-2]) for part in parts]

    def stop(self):
        self.space.stop(self.process)


class Dnsmasq:
    """dnsmasq as a router has it: in front of us, on its LAN addresses."""

    def __init__(self, space, directory, addresses, servers, extra=("--log-queries",)):
        self.space = space
        log_path = directory / "dnsmasq.log"
        options = [f"--listen-address={address}" for address in addresses] + [f"--server={server}" for server in servers]
        with open(log_path, "ab") as log:
            self.process = space.popen(
                "dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--no-resolv", "--no-hosts", "--bind-interfaces",
                "--except-interface=lo", "--user=root", "--pid-file", "--log-facility=-", *options, *extra,
                env=PLAIN, stdout=log, stderr=log,
            )
        self.log_path = log_path
        until(lambda: "started" in self.log_path.read_text(errors="replace"), "dnsmasq serves")

    def stop(self):
        self.space.stop(self.process)


def dig(space, server, name, kind="A", *options, port=53, check=True):
    """What dig prints with +short, line by line; its status with +noall +comments and so on is the caller's. With
    check=False nothing if there is no answer, soon, for who asks again."""
    patience = WAIT if check else 2
    asking = ("dig", f"@{server}", "-p", port, f"+time={patience:g}", "+tries=1", "+short")
    result = space.run(*asking, *options, name, kind, check=check, env=PLAIN)
    lines = result.stdout.split("\n")[:-1]
    return lines if check else [line for line in lines if not line.startswith(";")]


def dig_full(space, server, name, kind="A", *options, port=53):
    """All that dig prints."""
    return space.run("dig", f"@{server}", "-p", port, f"+time={WAIT:g}", "+tries=1", *options, name, kind, env=PLAIN).stdout


def with_resolver(directory, *servers, options=""):
    """A command's prefix: it finds these servers in /etc/resolv.conf, and nothing in /etc/hosts."""
    conf = directory / f"resolv-{len(list(directory.iterdir()))}.conf"
    conf.write_text("".join(f"nameserver {server}\n" for server in servers) + (f"options {options}\n" if options else ""))
    hosts = directory / "no-hosts"
    hosts.write_text("127.0.0.1 localhost\n")
    nsswitch = directory / "nsswitch"
    nsswitch.write_text("hosts: files dns\npasswd: files\ngroup: files\n")
    return with_mounts(
        f"mount --bind {conf} /etc/resolv.conf && mount --bind {hosts} /etc/hosts && "
        f"{{ [ ! -e /etc/nsswitch.conf ] || mount --bind {nsswitch} /etc/nsswitch.conf; }}"
    )


def query(name, kind=1, number=0x1234, edns=None, flags=0x0100):
    """A query's bytes (RFC 1035 section 4.1), with edns = (size, dnssec_ok) an OPT record."""
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split(".") if label)
    message = struct.pack("!HHHHHH", number, flags, 1, 0, 0, 1 if edns else 0) + labels + b"\0" + struct.pack("!HH", kind, 1)
    if edns:
        size, dnssec_ok = edns
        message += b"\0" + struct.pack("!HHIH", 41, size, 0x8000 if dnssec_ok else 0, 0)
    return message


def answer_to(asked, address):
    """A reply to a query, with an A record."""
    end = asked.index(b"\0", 12) + 5
    record = b"\xc0\x0c" + struct.pack("!HHIH", 1, 1, 300, 4) + socket.inet_aton(address)
    return asked[:2] + struct.pack("!HHHHH", 0x8180, 1, 1, 0, 0) + asked[12:end] + record


def rcode(reply):
    """The RCODE of a reply's bytes."""
    return reply[3] & 15


def is_truncated(reply):
    """Whether TC is set."""
    return reply[2] & 2 != 0


def framed(message):
    """A message as TCP carries it."""
    return struct.pack("!H", len(message)) + message


def read_framed(sock):
    """One message from a TCP socket."""
    data = b""
    while len(data) < 2 or len(data) < 2 + struct.unpack("!H", data[:2])[0]:
        piece = sock.recv(2 + struct.unpack("!H", data[:2])[0] - len(data) if len(data) >= 2 else 2 - len(data))
        assert piece, f"the server closed within a message: {data!r}"
        data += piece
    return data[2:]


def getaddrinfo(space, prefix, name):
    """What glibc's getaddrinfo says in a program with the prefix: a sorted list of addresses."""
    script = f"import socket; print(*sorted({{a[4][0] for a in socket.getaddrinfo({name!r}, 443, type=socket.SOCK_STREAM)}}))"
    return space.run(*prefix, "python3", "-c", script, env=PLAIN).stdout.split()


