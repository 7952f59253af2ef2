"""The relay: every byte arrives, once, in order; ends and resets arrive as what they are."""

import fcntl
import hashlib
import random
import select
import socket
import struct
import termios
import threading
import time

import pytest

from lab import faultproxy
from lab.connections import open_tunnel
from lab.faultproxy import OK
from lab.netns import WAIT, finish_connect
from lab.wait import until

MIB = 1 << 20


def sender(sock, data, half_close=True, chunk=1 << 16):
    """A started thread that sends data, and then the end."""

    def send():
        for at in range(0, len(data), chunk):
            sock.sendall(data[at:at + chunk])
        if half_close:
            sock.shutdown(socket.SHUT_WR)

    thread = threading.Thread(target=send, daemon=True)
    thread.start()
    return thread


def receive_all(sock, pause=None):
    """Everything up to the end of the stream; pause(n) is called after each n bytes."""
    received = bytearray()
    while data := sock.recv(1 << 18):
        received += data
        if pause:
            pause(len(data))
    return bytes(received)


def receive_exactly(sock, count):
    received = b""
    while len(received) < count:
        data = sock.recv(count - len(received))
        assert data, f"the end after {len(received)} of {count} bytes"
        received += data
    return received


def digest(data):
    return hashlib.sha256(data).hexdigest()


def pick(ends, direction):
    """(from, to) for a direction: up is from the client."""
    near, far = ends
    return (near, far) if direction == "up" else (far, near)


both_ways = pytest.mark.parametrize("direction", ["up", "down"])


@both_ways
def test_bulk(tunnel, direction):
    source, sink = pick(tunnel(), direction)
    data = random.Random(1).randbytes(64 * MIB)
    thread = sender(source, data)
    assert digest(receive_all(sink)) == digest(data)
    thread.join(WAIT)


def test_bulk_both_ways_at_once(tunnel):
    near, far = tunnel()
    up, down = random.Random(2).randbytes(32 * MIB), random.Random(3).randbytes(32 * MIB)
    sender(near, up), sender(far, down)
    got = {}
    threads = [
        threading.Thread(target=lambda name=name, sock=sock: got.update({name: digest(receive_all(sock))}), daemon=True)
        for name, sock in (("up", far), ("down", near))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert got == {"up": digest(up), "down": digest(down)}


@both_ways
def test_slow_reader(tunnel, direction):
    """The reader stops until everything between the ends is full, then reads in small bites."""
    source, sink = pick(tunnel(), direction)
    source.settimeout(60)
    sink.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 15)
    chunk = random.Random(4).randbytes(MIB + 1)
    full = threading.Event()
    sent, sums = [0], hashlib.sha256()

    def send():
        # No fixed amount: how much the sockets between the ends can hold is the kernel's choice.
        while not full.is_set():
            count = source.send(chunk)
            sums.update(chunk[:count])
            sent[0] += count
        source.shutdown(socket.SHUT_WR)

    thread = threading.Thread(target=send, daemon=True)
    thread.start()
    until(lambda: stands_still(source, sent), "backpressure", timeout=60)
    full.set()
    bites = [0]

    def pause(count):
        bites[0] += 1
        if bites[0] % 16 == 0:
            time.sleep(0.001)

    received = receive_all(sink, pause)
    thread.join(WAIT)
    assert len(received) == sent[0]
    assert digest(received) == sums.hexdigest()


def stands_still(sock, sent):
    """Whether a sender whose count of bytes is sent[0] gets none into its socket, and its socket none out."""

    def look():
        return sent[0], *struct.unpack("i", fcntl.ioctl(sock, termios.TIOCOUTQ, b"\0\0\0\0"))

    before = look()
    time.sleep(0.3)
    return before[1] > 0 and look() == before


@both_ways
def test_half_close(tunnel, direction):
    """One side says that it is done, the other goes on for long."""
    done, other = pick(tunnel(), direction)
    done.sendall(b"the whole question")
    done.shutdown(socket.SHUT_WR)
    assert receive_all(other) == b"the whole question"
    data = random.Random(5).randbytes(8 * MIB)
    sender(other, data)
    assert digest(receive_all(done)) == digest(data)


@both_ways
def test_close_right_after_the_last_byte(tunnel, direction):
    """Nothing is lost when the sender closes with much still on its way."""
    for seed in range(5):
        source, sink = pick(tunnel(), direction)
        data = random.Random(seed).randbytes(2 * MIB)

        def send():
            source.sendall(data)
            source.close()

        thread = threading.Thread(target=send, daemon=True)
        thread.start()
        assert digest(receive_all(sink)) == digest(data)
        thread.join(WAIT)
        sink.close()


@both_ways
def test_early_close(tunnel, direction):
    """The reader goes away in the middle: the writer hears of it instead of writing for ever."""
    source, sink = pick(tunnel(), direction)
    thread = sender(sink, b"hello", half_close=False)
    assert receive_exactly(source, 5) == b"hello"
    thread.join(WAIT)

    def drain_and_close():
        receive_exactly(sink, MIB)
        sink.close()

    closer = threading.Thread(target=drain_and_close, daemon=True)
    closer.start()
    with pytest.raises((ConnectionResetError, BrokenPipeError)):
        while True:
            source.sendall(bytes(MIB))
    closer.join(WAIT)


@both_ways
def test_one_byte_writes(tunnel, direction):
    source, sink = pick(tunnel(), direction)
    source.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    data = random.Random(6).randbytes(5000)
    sender(source, data, chunk=1)
    assert receive_all(sink) == data


def test_ping_pong(tunnel):
    """Small messages go through at once: 500 there and back would take 20 s and more with delayed ACKs."""
    near, far = tunnel()
    for number in range(500):
        message = number.to_bytes(2)
        near.sendall(message)
        assert receive_exactly(far, 2) == message
        far.sendall(message)
        assert receive_exactly(near, 2) == message


@both_ways
def test_reset_is_a_reset(tunnel, direction):
    source, sink = pick(tunnel(), direction)
    source.sendall(b"x")
    assert sink.recv(1) == b"x"
    faultproxy.reset(source)
    with pytest.raises(ConnectionResetError):
        sink.recv(1)


@both_ways
def test_close_is_not_a_reset(tunnel, direction):
    source, sink = pick(tunnel(), direction)
    source.sendall(b"x")
    assert sink.recv(1) == b"x"
    source.close()
    assert sink.recv(1) == b""


@both_ways
def test_reset_after_half_close(tunnel, direction):
    """A reset arrives also when the other direction has ended before."""
    source, sink = pick(tunnel(), direction)
    sink.shutdown(socket.SHUT_WR)
    assert source.recv(1) == b""
    faultproxy.reset(source)
    with pytest.raises(ConnectionResetError):
        sink.recv(1)


@both_ways
def test_reset_after_own_half_close(gateway, proxy, client, server, direction):
    """A reset arrives also when nobody would read from who sends it any more; nothing is left of the flow."""
    daemon = gateway()
    near, connection = open_tunnel(client, proxy, server)
    source, sink = pick((near, connection.sock), direction)
    source.shutdown(socket.SHUT_WR)
    assert sink.recv(1) == b""
    faultproxy.reset(source)
    poll = select.poll()
    poll.register(sink, 0)
    assert poll.poll(WAIT * 1000)
    until(lambda: daemon.summary()["flows live"] == 0, "the flow ends")


@pytest.mark.parametrize("size", [1, 1000, 100_000])
def test_bytes_behind_the_reply(gateway, proxy, client, server, size):
    """What the server says first may come in one segment with the proxy's 200."""
    gateway()
    data = random.Random(7).randbytes(size)
    near, connection = open_tunnel(client, proxy, server, 22, answer=OK + data)
    assert receive_exactly(near, size) == data
    near.sendall(b"and now me")
    assert receive_exactly(connection.sock, 10) == b"and now me"
    connection.send(b"then you")
    assert receive_exactly(near, 8) == b"then you"


def test_reply_data_and_end_at_once(gateway, proxy, client, server):
    """The server says all it has and closes before the client even knows that it is connected."""
    gateway()
    near = client.begin_connect(server, 13)
    proxy.open(OK + b"it is late\r\n").close()
    assert finish_connect(near) == 0
    assert receive_all(near) == b"it is late\r\n"


def test_idle_connections(tunnel):
    """Hundreds of idle connections, then data on each, last one first."""
    ends = [tunnel(4000 + number) for number in range(400)]
    for number, (near, far) in reversed(list(enumerate(ends))):
        message = number.to_bytes(2)
        near.sendall(message)
        assert receive_exactly(far, 2) == message
        far.sendall(message[::-1])
        assert receive_exactly(near, 2) == message[::-1]


def test_many_at_once(tunnel):
    """Forty transfers share the gateway; each gets its own bytes."""
    count, size = 40, MIB
    ends = [tunnel(4000 + number) for number in range(count)]
    got = {}

    def read(number, far):
        got[number] = digest(receive_all(far))

    readers = [threading.Thread(target=read, args=(number, far), daemon=True) for number, (_, far) in enumerate(ends)]
    data = [random.Random(number).randbytes(size) for number in range(count)]
    for reader in readers:
        reader.start()
    for number, (near, _) in enumerate(ends):
        sender(near, data[number])
    for reader in readers:
        reader.join(60)
    assert got == {number: digest(data[number]) for number in range(count)}


def test_urgent_byte_kills_nothing(tunnel):
    """TCP's urgent data has no meaning through a proxy; the rest of the stream must survive it."""
    near, far = tunnel()
    near.sendall(b"a")
    near.send(b"!", socket.MSG_OOB)
    near.sendall(b"b")
    near.shutdown(socket.SHUT_WR)
    received = receive_all(far)
    assert received.replace(b"!", b"") == b"ab"


@both_ways
def test_bytes_behind_an_urgent_one(tunnel, direction):
    """They arrive while the connection goes on, not only at its end."""
    source, sink = pick(tunnel(), direction)
    for _ in range(3):
        source.sendall(b"a")
        assert sink.recv(10).endswith(b"a")
        source.send(b"!", socket.MSG_OOB)
        source.sendall(b"b")
        received = b""
        while not received.endswith(b"b"):
            received += sink.recv(10)
        assert received.replace(b"!", b"") == b"b"
