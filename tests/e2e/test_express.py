"""The express path: what it needs and what becomes of a gateway without it, its firewall tables, its sockets."""

import errno
import re
import shutil
import socket

import pytest

from lab.connections import assert_proxied, open_tunnel, works
from lab.gateway import NFT_TABLE, TUN, tables
from lab.netns import CLIENT, CLIENT6, finish_connect, literal
from lab.wait import until
from lab.wire import TCP, Wire

pytestmark = pytest.mark.path("express", why="it is about the other one")

# A firewall that lets nothing into the router but what it knows.
REJECTING = f"""
table inet filter {{
    chain input {{
        type filter hook input priority filter; policy accept;
        iifname "{TUN}" reject
    }}
}}"""

NO_NFT = {"PATH": "/nonexistent"}


def delivers(router):
    """Whether rules of the express path are there."""
    return any("chain deliver" in rules for rules in tables(router))


def without_nft(router):
    return {"env": NO_NFT}


def with_rejecting_input(router):
    router.nft(REJECTING)
    return {}


def with_no_mark(router):
    return {"options": ("--mark", "0"), "routes": ()}


NOT_HERE = [
    (without_nft, "run nft"),
    (with_rejecting_input, "firewall's input"),
    (with_no_mark, "needs a mark"),
]


@pytest.mark.parametrize("prepare, reason", NOT_HERE)
def test_auto_falls_back(gateway, proxy, router, prepare, reason):
    """Where the express path doesn't work, rewriting does: chosen with the reason said, and nothing left of the other."""
    more = prepare(router)
    daemon = gateway("--path", "auto", *more.pop("options", ()), ready=False, **more)
    daemon.wait_log("listening")
    assert reason in daemon.log()
    assert re.search(r"(?i)rewrite path", daemon.log())
    assert not delivers(router)
    daemon.stop()


@pytest.mark.parametrize("prepare, reason", NOT_HERE)
def test_express_or_nothing(gateway, router, prepare, reason):
    """Asked for by name and not to be had: a clear error, and nothing stays."""
    more = prepare(router)
    daemon = gateway("--path", "express", "--on-failure", "direct", *more.pop("options", ()), ready=False, **more)
    assert daemon.wait() == 1
    assert "ERROR" in daemon.log() and reason in daemon.log()
    daemon.assert_clean()


def test_failed_start_blocks(gateway, proxy, client, router, server, leaks):
    """With on_failure 'block' a start that fails at the self-test refuses what it was to capture."""
    router.nft(REJECTING)
    daemon = gateway(ready=False)
    assert daemon.wait() == 1
    assert client.connect_errno(server, 80) != 0
    leaks.assert_none()


def test_auto_chooses_express(gateway, proxy, client, router, server):
    daemon = gateway("--path", "auto")
    assert_proxied(client, proxy, server)
    assert all(tables(router))
    assert daemon.summary()["tun packets"] < 10


@pytest.mark.parametrize("how", [("flush", "ruleset"), ("delete", "table")])
def test_tables_deleted_from_outside(gateway, proxy, client, router, server, leaks, how):
    """Restored; what lives lives on, and nothing goes around the proxy meanwhile."""
    daemon = gateway()
    before = tables(router)
    near, far = open_tunnel(client, proxy, server)
    for _ in range(3):
        offset = len(daemon.log())
        family = "ip6" if ":" in server else "ip"
        router.run("nft", *how, *((family, NFT_TABLE) if how[0] == "delete" else ()))
        near.sendall(b"question")
        early = client.begin_connect(server, 81)
        daemon.wait_log("deleted from outside: restored", offset)
        assert far.sock.recv(100) == b"question"
        far.send(b"answer")
        assert near.recv(100) == b"answer"
        # Opened or, in the gap, refused.
        proxy.open().close()
        finish_connect(early)
        early.close()
        assert tables(router) == before
        until(lambda: works(client, proxy, server), "new connections work")
    leaks.assert_none()


def test_while_the_tables_are_gone(gateway, proxy, client, router, server, leaks, directory):
    """No rules, and no way to put them back: what is released is refused, what lives is not forwarded."""
    nft = directory / "nft"
    nft.symlink_to(shutil.which("nft"))
    daemon = gateway(env={"PATH": str(directory)})
    near, _ = open_tunnel(client, proxy, server)
    nft.unlink()
    router.run("nft", "flush", "ruleset")
    daemon.wait_log("deleted from outside: run nft")
    near.sendall(b"question")
    late = client.begin_connect(server, 81)
    proxy.open()
    assert finish_connect(late) != 0
    leaks.assert_none()
    nft.symlink_to(shutil.which("nft"))


def test_crash_leaves_tables_that_the_next_start_replaces(gateway, proxy, client, router, server, leaks):
    daemon = gateway()
    before = tables(router)
    assert all(before)
    daemon.kill()
    assert all(tables(router))
    router.run("nft", "add", "rule", "ip", NFT_TABLE, "deliver", "counter")
    daemon.start()
    assert tables(router) == before
    assert_proxied(client, proxy, server)
    leaks.assert_none()


def test_crash_then_rewriting(gateway, proxy, client, router, server, leaks):
    """Of a crashed run on the express path the other leaves nothing."""
    gateway().kill()
    assert all(tables(router))
    daemon = gateway("--path", "rewrite")
    assert not delivers(router)
    assert_proxied(client, proxy, server)
    leaks.assert_none()
    daemon.stop()


def test_data_after_a_crash(gateway, proxy, client, server, leaks):
    """Packets of a connection whose socket died with the daemon are reset or refused."""
    daemon = gateway()
    near, _ = open_tunnel(client, proxy, server)
    daemon.kill()
    with pytest.raises(OSError):
        for _ in range(10):
            near.sendall(b"x" * 1000)
            near.recv(1)
    leaks.assert_none()


def test_port_used_again(gateway, proxy, client, server):
    """A client may connect from the same port again right after the server has closed first (TIME_WAIT with us)."""
    gateway()
    port = 0
    for _ in range(20):
        near = client.socket(server)
        near.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        near.bind((CLIENT6 if ":" in server else CLIENT, port))
        port = near.getsockname()[1]
        near.setblocking(False)
        # Free once the end of the connection before is acknowledged.
        until(lambda: near.connect_ex((server, 80)) == errno.EINPROGRESS, "the port is free")
        connection = proxy.open()
        assert finish_connect(near) == 0
        connection.send(b"bye")
        connection.close()
        assert near.recv(10) == b"bye" and near.recv(10) == b""
        near.close()


def test_syn_repeated(gateway, proxy, client, router, server):
    """A SYN sent again after the release is answered again, and is no new connection."""
    wire = Wire(client, router, server)
    gateway()
    syn = wire.ip() / TCP(sport=33333, dport=80, flags="S", seq=1000)
    wire.send(syn)
    connection = proxy.open()
    first = wire.receive(lambda tcp: tcp.flags == "SA")
    for _ in range(3):
        wire.send(syn)
        assert wire.receive(lambda tcp: tcp.flags == "SA").seq == first.seq
    base = {"sport": 33333, "dport": 80}
    wire.send(wire.ip() / TCP(**base, flags="A", seq=1001, ack=first.seq + 1))
    connection.send(b"answer")
    wire.receive(lambda tcp: bytes(tcp.payload).startswith(b"answer"))
    assert not proxy.pending()


def test_strict_filters(gateway, proxy, client, router, server, leaks):
    """rp_filter is strict on the LAN, and looks up with the mark."""
    router.sysctl("net.ipv4.conf.lan.rp_filter", 1)
    router.sysctl("net.ipv4.conf.lan.src_valid_mark", 1)
    router.sysctl("net.ipv4.conf.all.src_valid_mark", 1)
    gateway()
    assert_proxied(client, proxy, server)
    assert_proxied(router, proxy, server)
    leaks.assert_none()


@pytest.mark.parametrize("priority", ["raw", "mangle", "filter"])
def test_others_marks(gateway, proxy, client, router, server, leaks, priority):
    """Marks in the lower bits, as pbr and mwan3 set them before or after us, come through to the router's input."""
    router.nft(f"""
table inet others {{
    chain prerouting {{
        type filter hook prerouting priority {priority}
        iifname "lan" meta mark set meta mark | 0x100
    }}
    chain input {{
        type filter hook input priority filter
        iifname "lan" tcp dport 80 meta mark & 0x00ffffff != 0x100 drop
    }}
}}""")
    gateway()
    assert_proxied(client, proxy, server)
    leaks.assert_none()


def test_client_network_gone(gateway, proxy, client, router, server, leaks):
    """What the server still sends to a client whose network is gone does not leave by the default route."""
    gateway()
    _near, far = open_tunnel(client, proxy, server)
    router.run("ip", "link", "set", "lan", "down")
    far.send(b"x" * 1000)
    client = CLIENT6 if ":" in server else CLIENT
    until(
        lambda: re.search(r"(unacked|notsent|backoff|lost):", router.run("ss", "-tinH", "dst", literal(client)).stdout),
        "the kernel has tried to send",
    )
    leaks.assert_none()
