"""Network namespaces and the network that every test gets for itself.

    client                     router                      internet
    10.1.0.2, 10.1.0.3         runs tcp-over-http          192.0.2.10     the proxy
    fd01::2, fd01::3           forwards                    2001:db8:c::10 the proxy
         |                     |          |                192.0.2.53     the resolver
         |   10.1.0.1, fd01::1 |          | 100.64.0.1     203.0.113.10   servers
         +------ lan ----------+          | 2001:db8:a::1  198.51.100.10
                                          |                2001:db8:5::10
                                          +----- wan ------ 100.64.0.2, 2001:db8:a::2

The router has a default route to the internet, and the internet a route back to the client, so that traffic
that leaks around the proxy gets through: a test that sees none has seen something.
"""

import contextlib
import ctypes
import errno
import itertools
import json
import os
import pathlib
import re
import select
import signal
import socket
import struct
import subprocess
import time

from lab.wait import WAIT, until

CLIENT, CLIENT_OTHER, ROUTER_LAN = "10.1.0.2", "10.1.0.3", "10.1.0.1"
CLIENT6, CLIENT6_OTHER, ROUTER_LAN6 = "fd01::2", "fd01::3", "fd01::1"
# A second machine in the same /64, behind a device of its own; only with the fixture machine6.
MACHINE6, ROUTER_MACHINE6 = "fd01::9", "fd01::98"
ROUTER_WAN, ROUTER_WAN6 = "100.64.0.1", "2001:db8:a::1"
INTERNET, INTERNET6 = "100.64.0.2", "2001:db8:a::2"
PROXY, PROXY6 = "192.0.2.10", "2001:db8:c::10"
PROXY_OTHER = "192.0.2.11"
RESOLVER = "192.0.2.53"
SERVER, SERVER6 = "203.0.113.10", "2001:db8:5::10"
SERVER_OTHER = "198.51.100.10"
# Routed to the internet, but nobody has it.
NOBODY = "203.0.113.99"

# An environment with nothing of this machine's settings, no proxy above all.
PLAIN = {"PATH": os.environ["PATH"], "HOME": "/nonexistent", "LC_ALL": "C"}

CLONE_NEWNET = 0x40000000
# <net/tcp_states.h>
SYN_SENT, CLOSE = 2, 7
# <linux/netlink.h>, <linux/netfilter/nfnetlink_conntrack.h>
NETLINK_NETFILTER, NLM_F_REQUEST, NLM_F_ACK = 12, 1, 4
CONNTRACK_DELETE = 1 << 8 | 2
NAME = re.compile(r"toh-(\d+)-\d+-\w+")
libc = ctypes.CDLL(None, use_errno=True)
numbers = itertools.count()


class Namespace:
    """A named network namespace, its processes and its sockets."""

    def __init__(self, name):
        self.name = name
        self.processes = []
        command("ip", "netns", "add", name)
        self.fd = os.open(f"/run/netns/{name}", os.O_RDONLY | os.O_CLOEXEC)
        self.run("ip", "link", "set", "lo", "up")

    @contextlib.contextmanager
    def enter(self):
        """Moves the calling thread into the namespace: sockets and processes made meanwhile belong to it."""
        home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            setns(self.fd)
            yield
        finally:
            setns(home)
            os.close(home)

    def run(self, *argv, check=True, timeout=60, **options):
        """Runs a command to its end; returns its CompletedProcess with text output."""
        with self.enter():
            return command(*argv, check=check, timeout=timeout, **options)

    def popen(self, *argv, **options):
        """Starts a process that ends with the namespace at the latest."""
        with self.enter():
            process = subprocess.Popen([str(arg) for arg in argv], **options)
        self.processes.append(process)
        return process

    def ip(self, *args, check=True):
        """What `ip -json ARGS` says; an empty list if it says nothing, or fails and may."""
        result = self.run("ip", "-json", *args, check=check)
        return [] if result.returncode else json.loads(result.stdout or "[]")

    def sysctl(self, key, value):
        with self.enter():
            pathlib.Path("/proc/sys", key.replace(".", "/")).write_text(str(value))

    def nft(self, rules):
        """Loads nftables rules from text."""
        self.run("nft", "-f", "-", input=rules)

    def forget_connections(self):
        """Empties the table of connection tracking, as `conntrack -F` does."""
        with self.enter(), socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER) as sock:
            sock.settimeout(WAIT)
            sock.send(struct.pack("=LHHLL4x", 20, CONNTRACK_DELETE, NLM_F_REQUEST | NLM_F_ACK, 0, 0))
            error = -struct.unpack_from("=i", sock.recv(100), 16)[0]
        if error:
            raise OSError(error, os.strerror(error))

    def socket(self, address, kind=socket.SOCK_STREAM):
        """An unbound socket of the family of address."""
        with self.enter():
            return socket.socket(family(address), kind)

    def listen(self, address, port=0, backlog=1024):
        """A TCP listener; accept() on it gives up after WAIT seconds."""
        listener = self.socket(address)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((address, port))
        listener.listen(backlog)
        listener.settimeout(WAIT)
        return listener

    def begin_connect(self, address, port, source=None, source_port=0):
        """A TCP socket whose connect() is under way; finish_connect() tells how it ends."""
        sock = self.socket(address)
        try:
            if source:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                sock.bind((source, source_port))
            sock.setblocking(False)
            if (error := sock.connect_ex((address, port))) not in (0, errno.EINPROGRESS):
                raise OSError(error, os.strerror(error))
        except BaseException:
            sock.close()
            raise
        return sock

    def connect(self, address, port, source=None, timeout=WAIT):
        """A connected TCP socket; raises OSError as connect(2) fails."""
        sock = self.begin_connect(address, port, source)
        if error := finish_connect(sock, timeout):
            sock.close()
            raise OSError(error, os.strerror(error))
        return sock

    def connect_errno(self, address, port, source=None, timeout=WAIT):
        """The errno that connect(2) fails with; 0 for success."""
        try:
            self.connect(address, port, source, timeout).close()
        except OSError as error:
            return error.errno
        return 0

    def stop(self, process):
        """Ends one process of this namespace; returns its exit code."""
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
        if process in self.processes:
            self.processes.remove(process)
        return process.wait(WAIT)

    def close(self):
        """Ends all processes of the namespace and removes it."""
        for process in list(self.processes):
            self.stop(process)
        os.close(self.fd)
        remove(self.name)


class Network:
    """The three namespaces of the drawing above."""

    def __init__(self):
        self.namespaces = []
        try:
            self.build()
        except BaseException:
            self.close()
            raise

    def build(self):
        number = next(numbers)
        for role in ("client", "router", "internet"):
            space = Namespace(f"toh-{os.getpid()}-{number}-{role}")
            self.namespaces.append(space)
            setattr(self, role, space)
            # Long-lived defaults that depend on the machine are pinned.
            space.sysctl("net.ipv6.conf.all.accept_dad", 0)
            space.sysctl("net.ipv6.conf.default.accept_dad", 0)
        self.router.sysctl("net.ipv4.ip_forward", 1)
        self.router.sysctl("net.ipv6.conf.all.forwarding", 1)
        batch(
            self.client,
            f"link add lan type veth peer name lan netns {self.router.name}",
            f"addr add {CLIENT}/24 dev lan",
            f"addr add {CLIENT_OTHER}/24 dev lan",
            f"addr add {CLIENT6}/64 dev lan nodad",
            # Deprecated: never chosen as a source by itself.
            f"addr add {CLIENT6_OTHER}/64 dev lan nodad preferred_lft 0",
            "link set lan up",
        )
        batch(
            self.router,
            f"link add wan type veth peer name wan netns {self.internet.name}",
            f"addr add {ROUTER_LAN}/24 dev lan",
            f"addr add {ROUTER_LAN6}/64 dev lan nodad",
            f"addr add {ROUTER_WAN}/30 dev wan",
            f"addr add {ROUTER_WAN6}/64 dev wan nodad",
            "link set lan up",
            "link set wan up",
            f"route add default via {INTERNET}",
            f"route add default via {INTERNET6}",
        )
        batch(self.client, f"route add default via {ROUTER_LAN}", f"route add default via {ROUTER_LAN6}")
        batch(
            self.internet,
            f"addr add {INTERNET}/30 dev wan",
            f"addr add {INTERNET6}/64 dev wan nodad",
            "link set wan up",
            *(f"addr add {address}/32 dev lo" for address in (PROXY, PROXY_OTHER, RESOLVER, SERVER, SERVER_OTHER)),
            *(f"addr add {address}/128 dev lo nodad" for address in (PROXY6, SERVER6)),
            f"route add 10.1.0.0/24 via {ROUTER_WAN}",
            f"route add fd01::/64 via {ROUTER_WAN6}",
        )
        # A carrier that comes up may lose the first ARP or ND solicitation: repeat it after 100 ms and not a second later,
        # and give up no sooner.
        for space, devices in ((self.client, ("lan",)), (self.router, ("lan", "wan")), (self.internet, ("wan",))):
            for neighbours in (f"net.{kind}.neigh.{device}" for kind in ("ipv4", "ipv6") for device in devices):
                space.sysctl(f"{neighbours}.retrans_time_ms", 100)
                space.sysctl(f"{neighbours}.mcast_solicit", 30)
        until(lambda: self.client.run("ping", "-c1", "-W0.2", INTERNET, check=False).returncode == 0, "IPv4 works")
        until(lambda: self.client.run("ping", "-c1", "-W0.2", INTERNET6, check=False).returncode == 0, "IPv6 works")

    def close(self):
        for space in self.namespaces:
            space.close()


def sweep(own=False):
    """Removes what test processes that were killed have left behind; with own, what this one has."""
    for name in os.listdir("/run/netns") if os.path.isdir("/run/netns") else ():
        match = NAME.fullmatch(name)
        if match and (int(match[1]) == os.getpid() if own else not os.path.exists(f"/proc/{match[1]}")):
            with contextlib.suppress(subprocess.CalledProcessError):  # another worker sweeps too
                remove(name)


def finish_connect(sock, timeout=WAIT):
    """Waits for the end of a connect() under way; returns its errno, 0 for success. The socket then blocks, with WAIT."""
    poll = select.poll()
    poll.register(sock, select.POLLOUT)
    deadline = time.monotonic() + timeout
    while True:
        assert poll.poll(max(deadline - time.monotonic(), 0) * 1000), f"connect() still hangs after {timeout:g} s"
        error = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        # An ICMP error has been seen to wake poll() a moment before SO_ERROR tells it (Linux 6.18).
        if error or tcp_state(sock) not in (SYN_SENT, CLOSE):
            sock.settimeout(WAIT)
            return error


def connecting(sock):
    """Whether the kernel has neither an answer to the SYN nor given up."""
    return tcp_state(sock) == SYN_SENT


def tcp_state(sock):
    """tcpi_state of <linux/tcp.h>."""
    return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]


def retransmits(sock):
    """How often in a row the kernel has had to repeat what it sent (tcpi_retransmits of <linux/tcp.h>)."""
    return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 3)[2]


def family(address):
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def literal(address):
    """The address as it stands in URLs and CONNECT targets."""
    return f"[{address}]" if ":" in address else address


def command(*argv, check=True, timeout=60, **options):
    """Runs a command and returns its CompletedProcess; a failure raises with its output."""
    result = subprocess.run(
        [str(arg) for arg in argv], timeout=timeout,
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True} | options,
    )
    if check and result.returncode:
        error = subprocess.CalledProcessError(result.returncode, argv, result.stdout, result.stderr)
        error.add_note(f"{result.stdout}\n{result.stderr}")
        raise error
    return result


def with_mounts(script):
    """A command's prefix: it, and nobody else, sees the file systems as this shell script has mounted them."""
    return "unshare", "-m", "sh", "-c", f'{script} && exec "$@"', "sh"


def batch(space, *lines):
    """Runs `ip` commands; the family of addresses is found by ip itself."""
    for number in (4, 6):
        wanted = [line for line in lines if ("-6" if number == 6 else "-4") == line_family(line)]
        if wanted:
            space.run("ip", f"-{number}", "-batch", "-", input="\n".join(wanted) + "\n")


def line_family(line):
    return "-6" if "::" in line else "-4"


def remove(name):
    """Kills what still runs in a namespace of ours and deletes it."""
    pids = command("ip", "netns", "pids", name, check=False).stdout.split()
    for pid in map(int, pids):
        if pid != os.getpid():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    command("ip", "netns", "del", name)


def setns(fd):
    if libc.setns(fd, CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")
