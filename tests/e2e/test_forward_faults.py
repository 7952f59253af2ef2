"""The forward path where the network, the firewall or the kernel does its worst."""

import collections
import contextlib
import random
import re
import threading
import time

import pytest

from lab.capture import Capture
from lab.faultproxy import OK
from lab.forward import HELLO, PORT, PROMPT, all_of, echo, handshakes, read, talk
from lab.gateway import upstream
from lab.middle import FAULTS, LOSE
from lab.netns import INTERNET, INTERNET6, finish_connect
from lab.wait import until
from lab.wire import PORT as WIRE_PORT
from lab.wire import TCP, Wire

pytestmark = pytest.mark.path("forward", why="it is about the other one")

# What a fault happens to: on which link, which way, and the segment.
STEPS = {
    "client's SYN": ("lan", lambda it: it.inwards and it.flags == "S"),
    "SYN": ("wan", lambda it: not it.inwards and it.flags == "S"),
    "proxy's SYN-ACK": ("wan", lambda it: it.inwards and it.flags == "SA"),
    "request": ("wan", lambda it: not it.inwards and it.length > 0),
    "reply": ("wan", lambda it: it.inwards and it.length > 0),
    "ACK of the reply": ("wan", lambda it: not it.inwards and it.flags == "A" and it.length == 0),
    "SYN-ACK": ("lan", lambda it: not it.inwards and it.flags == "SA"),
    "client's ACK": ("lan", lambda it: it.inwards and it.flags == "A" and it.length == 0),
    "client's first data": ("lan", lambda it: it.inwards and it.length > 0),
    "its first data at the proxy": ("wan", lambda it: not it.inwards and it.length == len(HELLO)),
    "server's first data": ("lan", lambda it: not it.inwards and it.length > 0),
}


@pytest.mark.parametrize("what", FAULTS)
def test_each_step(forward, middles, client, router, ends, strays, hard, what):
    """Each packet of a handshake in turn is lost, comes twice, or is overtaken."""
    names = dict(enumerate(STEPS, PORT))
    done = collections.Counter()

    def fault(link):
        def decide(segment):
            port = segment.source if segment.inwards == (link == "lan") else segment.destination
            name = names.get(port)
            if name and STEPS[name][0] == link and STEPS[name][1](segment) and not done[name]:
                done[name] += 1
                return what
            return None

        return decide

    for link, middle in middles.items():
        middle.fault = fault(link)
    _, proxy = forward()
    proxy.serve(echo)
    failures = all_of({name: lambda port=port: talk(client, ends, port) for port, name in names.items()})
    assert not failures
    assert set(done) == set(STEPS)
    until(lambda: not handshakes(router), "no handshake is left")
    strays.assert_none()


def test_a_bad_network(forward, middles, client, ends, strays, hard):
    """A tenth of all packets each is lost, comes twice and is late, on both links."""
    chance = random.Random(1)
    for middle in middles.values():
        middle.fault = lambda segment: chance.choice(FAULTS) if chance.random() < 0.2 else None
    _, proxy = forward("--connect-timeout", "30", "--reply-timeout", "60")
    proxy.serve(echo)
    failures = all_of({port: lambda port=port: talk(client, ends, port, 3000) for port in range(PORT, PORT + 20)})
    assert not failures
    strays.assert_none()


def test_a_client_that_waits_without_its_ack(forward, middles, client, router, ends, strays):
    """Its first ACK is lost, and neither end has anything to say: it is released all the same."""
    seen = []

    def fault(segment):
        if segment.inwards and segment.flags == "A":
            seen.append(segment)
            return LOSE if len(seen) == 1 else None
        return None

    middles["lan"].fault = fault
    daemon, proxy = forward()
    near = client.begin_connect(ends.server, 443)
    connection = proxy.open()
    assert finish_connect(near) == 0
    until(lambda: daemon.status()["flows"].get("forwarded") == 1, "it is released")
    until(lambda: len(seen) > 1, "the client is asked again")
    connection.send(b"hello")
    assert read(near, 5) == b"hello"


def test_a_client_that_resets(forward, client, router, ends, strays):
    """A reset while the proxy is asked: the proxy hears of it, and nothing of the handshake stays."""
    daemon, proxy = forward()
    wire = Wire(client, router, ends.server)
    wire.send(wire.ip() / TCP(sport=WIRE_PORT, dport=443, flags="S", seq=1000))
    connection = proxy.accept_request()
    wire.send(wire.ip() / TCP(sport=WIRE_PORT, dport=443, flags="R", seq=1001))
    connection.sock.settimeout(PROMPT)
    with pytest.raises(ConnectionResetError):
        connection.sock.recv(1)
    assert not handshakes(router)
    assert daemon.status()["flows"]["held"] == 0
    strays.assert_none()


def test_a_request_that_is_lost_with_its_client(forward, middles, client, router, internet, ends, strays):
    """The proxy has yet to get the request when its client gives up: it is reset all the same."""

    def half_open():
        return internet.run("ss", "-Htan", "state", "syn-recv").stdout

    middles["wan"].fault = lambda segment: None if segment.inwards or set(segment.flags) & set("SR") else LOSE
    forward()
    wire = Wire(client, router, ends.server)
    wire.send(wire.ip() / TCP(sport=WIRE_PORT, dport=443, flags="S", seq=1000))
    until(half_open, "the proxy has the SYN")
    wire.send(wire.ip() / TCP(sport=WIRE_PORT, dport=443, flags="R", seq=1001))
    until(lambda: not half_open(), "the proxy is reset", PROMPT)
    assert not handshakes(router)
    strays.assert_none()


@pytest.mark.parametrize("then", ["silent", "answers"])
def test_killed_within_a_handshake(forward, client, router, ends, strays, hard, then):
    """The SYN that the client repeats asks the next run for the server, and not for the proxy itself."""
    daemon, proxy = forward()
    near = client.begin_connect(ends.server, 443, ends.client, PORT)
    first = proxy.accept_request()
    daemon.kill()
    daemon.start()
    if then == "answers":
        with contextlib.suppress(OSError):  # it may have been reset by now
            first.send(OK + b"too late")
    second = proxy.open()
    assert second.target == first.target
    assert finish_connect(near) == 0
    near.sendall(b"question")
    assert read(second.sock, 8) == b"question"
    second.send(b"answer")
    assert read(near, 6) == b"answer"
    strays.assert_none()


def test_a_late_answer(gateway, fault_proxy, client, router, ends, strays, hard):
    """The first proxy answers after it was given up: nothing of it gets to the client, nothing bears its address."""
    first, second = (fault_proxy(ends.proxy, port) for port in (3128, 3129))
    gateway("--reply-timeout", "1", upstreams=[upstream(ends.proxy, port) for port in (3128, 3129)])
    # It does not hear that it was given up.
    router.nft("table inet deaf { chain c { type filter hook postrouting priority 400; "
               "tcp dport 3128 tcp flags rst drop; }; }")
    seen = Capture(router, "wan", f"src host {ends.client}")
    near = client.begin_connect(ends.server, 443)
    late = first.accept_request()
    connection = second.accept_request()
    late.send(OK + b"from the first")
    connection.send(OK)
    assert finish_connect(near) == 0
    connection.send(b"from the second")
    assert read(near, 15) == b"from the second"
    time.sleep(1)
    assert not seen.packets()
    seen.close()


def test_killed_at_every_point(forward, client, router, ends, strays):
    """kill -9 at 30 points of a start, with a download under way and connections all the time: nothing strays."""
    daemon, proxy = forward()
    proxy.serve(echo)
    near = client.begin_connect(ends.server, 443)
    assert finish_connect(near) == 0
    assert read(near, 14) == b"server's hello"
    stop, opened = threading.Event(), [0]

    def hammer():
        while not stop.is_set():
            sock = client.begin_connect(ends.server, 443)
            try:
                if finish_connect(sock, 3) == 0:
                    sock.sendall(HELLO)
                    opened[0] += 1
            except (OSError, AssertionError):
                pass
            sock.close()

    threads = [threading.Thread(target=hammer) for _ in range(4)]
    for thread in threads:
        thread.start()
    begun = time.monotonic()
    daemon.kill()
    daemon.start()
    whole = time.monotonic() - begun
    for point in range(30):
        daemon.kill()
        daemon.start(ready=False)
        time.sleep(whole * 1.5 * point / 30)
        blob = random.Random(point).randbytes(10_000)
        near.sendall(blob)
        assert read(near, len(blob)) == blob
    daemon.kill()
    daemon.start()
    before = opened[0]
    until(lambda: opened[0] > before, "connections are opened again")
    stop.set()
    for thread in threads:
        thread.join()
    strays.assert_none()
    # What strays is seen.
    near.close()
    daemon.stop()
    client.connect_errno(ends.server, 9)
    assert strays.packets()


BALANCE = """
table inet balance {
    set one { type inet_service; flags dynamic; }
    set two { type inet_service; flags dynamic; }
    chain balance {
        meta mark & 0x3f00 == 0 ct mark & 0x3f00 == 0x0100 meta mark set meta mark & 0xffffc0ff | 0x0100
        meta mark & 0x3f00 == 0 ct mark & 0x3f00 == 0x0200 meta mark set meta mark & 0xffffc0ff | 0x0200
        meta mark & 0x3f00 == 0 numgen random mod 2 == 0 meta mark set meta mark & 0xffffc0ff | 0x0100
        meta mark & 0x3f00 == 0 meta mark set meta mark & 0xffffc0ff | 0x0200
        meta mark & 0x3f00 == 0x0100 ct mark set ct mark & 0xffffc0ff | 0x0100
        meta mark & 0x3f00 == 0x0200 ct mark set ct mark & 0xffffc0ff | 0x0200
    }
    chain pre {
        type filter hook prerouting priority mangle
        iifname lan jump balance
        iifname lan meta mark set meta mark & 0xff00ffff | 0x00050000
    }
    chain out {
        type route hook output priority mangle
        oifname wan meta l4proto tcp jump balance
    }
    chain post {
        type filter hook postrouting priority 400
        tcp dport 3128 meta mark & 0x3f00 == 0x0100 add @one { tcp sport }
        tcp dport 3128 meta mark & 0x3f00 == 0x0200 add @two { tcp sport }
        iifname lan tcp dport 3128 meta mark & 0x00ff0000 != 0x00050000 counter
    }
}"""


@pytest.mark.parametrize("order", ["before", "after"])
def test_marks_of_others(forward, client, router, ends, order):
    """mwan3's and pbr's marks: each connection keeps the uplink that it was given, from its first packet to its last."""
    number, via = ("-6", INTERNET6) if ":" in ends.proxy else ("-4", INTERNET)
    for mark in (1, 2):
        router.run("ip", number, "route", "add", "default", "via", via, "table", 100 + mark)
        router.run("ip", number, "rule", "add", "pref", 2000 + mark, "fwmark", f"{mark:#x}00/0x3f00", "lookup", 100 + mark)
    if order == "before":
        router.nft(BALANCE)
    _, proxy = forward("--hedge-delay", "0")  # each by its own port, also where the machine is busy
    if order == "after":
        router.nft(BALANCE)
    proxy.serve(echo)
    ports = set(range(PORT, PORT + 30))
    failures = {}
    for first in (PORT, PORT + 15):  # more at once look like a loop, for which the proxy is asked by a port of our own
        half = range(first, first + 15)
        failures |= all_of({port: lambda port=port: talk(client, ends, port) for port in half})
    listing = router.run("nft", "list", "table", "inet", "balance").stdout
    for mark in (1, 2):
        router.run("ip", number, "rule", "del", "pref", 2000 + mark)
    assert not failures
    one, two = (set(map(int, re.findall(r"\d{5}", part.split("}")[0]))) for part in listing.split("elements = {")[1:3])
    assert one and two and one | two == ports
    assert not one & two, "these have changed their uplink"
    assert "counter packets 0 " in listing
