"""Forwarded connections in the kernel's flowtable, as fw4's `flow_offloading` has it. Not every kernel has one:
`scripts/e2e-kernel` boots one that has."""

import random
import threading
import time

import pytest

from lab.connections import open_tunnel
from lab.forward import echo, read, talk
from lab.netns import finish_connect

pytestmark = pytest.mark.path("forward", why="it is about the other one")


@pytest.fixture(autouse=True)
def flowtable(router):
    """What fw4 makes of `flow_offloading '1'`."""
    done = router.run("nft", "-f", "-", input="""
table inet fw4 {
    flowtable ft { hook ingress priority filter; devices = { lan, wan }; }
    chain forward {
        type filter hook forward priority filter; policy accept;
        meta l4proto { tcp, udp } flow add @ft
    }
}""", check=False)
    if done.returncode:
        pytest.skip(f"no flowtable in this kernel: {done.stderr.splitlines()[0]}")


def offloaded(router):
    """How many of conntrack's entries to the proxy the flowtable has."""
    lines = router.run("cat", "/proc/net/nf_conntrack").stdout.splitlines()
    return sum("[OFFLOAD]" in line and "sport=3128" in line for line in lines)


def test_takes_released_connections(forward, client, router, ends, strays):
    """Bytes both ways, with nobody but the flowtable on their way, also while the daemon is gone."""
    daemon, proxy = forward()
    near, connection = open_tunnel(client, proxy, ends.server, 443)
    blob = random.Random(1).randbytes(2_000_000)

    def move():
        for one, other in ((near, connection.sock), (connection.sock, near)):
            threading.Thread(target=one.sendall, args=(blob,), daemon=True).start()
            assert read(other, len(blob)) == blob

    move()
    assert offloaded(router) == 1
    daemon.kill()
    move()
    near.close()
    assert connection.sock.recv(1) == b""
    connection.close()
    strays.assert_none()


def test_leaves_handshakes_alone(forward, client, router, ends, strays):
    """The client repeats its SYN while the proxy has yet to answer: the flowtable must not take its answer to the client."""
    _, proxy = forward()
    near = client.begin_connect(ends.server, 443)
    connection = proxy.accept_request()
    time.sleep(3.5)  # two repetitions: the kernel has no other clock for them
    assert offloaded(router) == 0
    threading.Thread(target=echo, args=(connection,), daemon=True).start()
    assert finish_connect(near, 30) == 0
    assert read(near, 14) == b"server's hello"
    near.sendall(b"x" * 5000)
    assert read(near, 5000) == b"x" * 5000
    assert offloaded(router) == 1
    near.close()
    strays.assert_none()


def test_a_port_used_again(forward, client, ends, router, strays):
    _, proxy = forward()
    proxy.serve(echo)
    for _ in range(3):
        talk(client, ends, 40_100)
    strays.assert_none()
