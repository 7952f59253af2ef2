"""The status: what it tells, to whom, and that nobody who asks gets in the way."""

import os
import signal
import socket
import stat

import pytest

from lab.connections import open_tunnel
from lab.faultproxy import reply
from lab.gateway import PATH, TUN, is_relayed, upstream
from lab.netns import PROXY, PROXY_OTHER, SERVER, SERVER6, finish_connect
from lab.wait import until

UPSTREAM = {
    "name", "resting", "attempts", "opened", "refused_403", "refused_407", "refused_4xx", "refused_5xx", "refused_other",
    "unreachable", "timed_out", "bad_reply", "retried", "ms_shortest", "ms_mean", "ms_last", "ms_connect",
    "failed", "flows", "up", "down", "chosen", "state", "why", "seconds_left", "uplink",
}


def test_packets_are_counted_once(gateway, proxy, client, router, server):
    """No more of them than the kernel has given, though some were held meanwhile."""
    daemon = gateway()
    for _ in range(30):
        open_tunnel(client, proxy, server)
    counted = daemon.status()["tun"]["packets"]
    given = router.ip("-s", "link", "show", TUN)[0]["stats64"]["tx"]["packets"]
    assert (60 if is_relayed(server) else 30) <= counted <= given


def refused(client, proxy, answer):
    near = client.begin_connect(SERVER, 80)
    proxy.open(answer)
    assert finish_connect(near) != 0
    near.close()


COUNTS = ("held", "opening", "live", "closing", "opened", "forwarded", "refused", "yielded", "looped", "from_lan")
FLOWS = {"max": 4096} | dict.fromkeys(COUNTS, 0)


def test_counts_what_happens(gateway, proxy, client):
    """Flows, bytes of a relay that goes on, refusals by class, drops."""
    daemon = gateway()
    first = daemon.status()
    assert first["version"] and first["path"] == PATH and first["tun"]["name"] == TUN and not first["draining"]
    assert set(first["upstreams"][0]) == UPSTREAM
    assert first["flows"] == FLOWS

    server = SERVER if PATH == "relay" else SERVER6  # of the other family than the proxy's: relayed on both paths
    near = client.begin_connect(server, 80)
    connection = proxy.accept_request()
    assert daemon.status()["flows"]["held"] == 1
    connection.send(b"HTTP/1.1 200 OK\r\n\r\n")
    assert finish_connect(near) == 0
    near.sendall(b"question")
    assert connection.sock.recv(100) == b"question"
    connection.send(b"the answer")
    assert near.recv(100) == b"the answer"
    until(lambda: daemon.status()["bytes"] == {"up": 8, "down": 10}, "the bytes of a live relay")

    for status in (403, 404, 407, 502, 302):
        refused(client, proxy, reply(status))
    refused(client, proxy, b"SSH-2.0-OpenSSH\r\n")
    told = daemon.status()
    assert told["flows"]["live"] == 1 and told["flows"]["opened"] == 7 and told["flows"]["refused"] == 6
    assert told["flows"]["from_lan"] == 7
    one = told["upstreams"][0]
    assert one["name"] == f"{PROXY}:3128" and one["attempts"] == 7 and one["opened"] == 1 and one["bad_reply"] == 1
    for kind in ("403", "407", "4xx", "5xx", "other"):
        assert one[f"refused_{kind}"] == 1, kind
    assert one["ms_shortest"] <= one["ms_mean"] and told["uptime"] >= first["uptime"]
    assert set(told["dropped"]) >= {"malformed", "table_full", "unknown_flow"}

    near.close()
    connection.close()
    until(lambda: not daemon.status()["flows"]["live"], "the relay's end")
    assert daemon.status()["bytes"] == {"up": 8, "down": 10}


@pytest.mark.once(why="how proxies are chosen and asked knows no path")
def test_a_proxy_that_is_down(gateway, fault_proxy, client):
    other = fault_proxy(PROXY_OTHER)
    daemon = gateway(upstreams=(upstream(), upstream(PROXY_OTHER)))
    _near, _ = open_tunnel(client, other, SERVER)
    down, up = daemon.status()["upstreams"]
    assert down["unreachable"] == 1 and down["resting"] and not down["opened"]
    assert up["opened"] == 1 and not up["resting"]


def test_text_is_for_people_and_the_log(gateway, proxy, client):
    daemon = gateway(log_level="info")
    _near, _ = open_tunnel(client, proxy, SERVER6)  # relayed
    # The client knows of its connection before the daemon has accepted it.
    text = until(lambda: text_with(daemon, "1 live"), "the connection is live")
    assert f"upstream: {PROXY}:3128, 1 attempts, 1 opened" in text
    assert "flows:    4096 max, 1 live, 1 opened, 1 from_lan\n" in text
    offset = len(daemon.log())
    for _ in range(20):
        daemon.signal(signal.SIGUSR1)
    daemon.wait_log(r"INFO\b.*\] upstream: .* 1 opened", offset)
    daemon.wait_log(r"INFO\b.*\] dropped: ", offset)


def text_with(daemon, part):
    """The status as text, once it has this part."""
    text = daemon.command("status").stdout
    return part in text and text


def test_says_that_it_drains(gateway, proxy, client):
    daemon = gateway("--drain-timeout", "300")
    _near, _ = open_tunnel(client, proxy, SERVER6)  # relayed
    daemon.signal(signal.SIGTERM)
    until(lambda: daemon.status()["draining"], "the daemon drains")
    daemon.signal(signal.SIGTERM)


@pytest.mark.once(why="the status socket knows no path")
def test_only_its_user_may_ask(gateway, proxy):
    """From the beginning: no moment in which it is open to others (the umask does not matter either)."""
    daemon = gateway()
    mode = daemon.status_socket.stat().st_mode
    assert stat.S_ISSOCK(mode) and stat.S_IMODE(mode) == 0o600


@pytest.mark.once(why="the status socket knows no path")
def test_goes_with_the_daemon(gateway, proxy):
    """A clean end removes the socket; a crash leaves it, and the next start takes its place."""
    daemon = gateway()
    daemon.kill()
    assert daemon.status_socket.exists()
    gone = daemon.command("status", check=False)
    assert gone.returncode == 1 and "no daemon answers at" in gone.stderr and not gone.stdout
    daemon.start()
    assert daemon.status()["flows"]["opened"] == 0
    daemon.stop()
    assert not daemon.status_socket.exists()
    gone = daemon.command("status", "--json", check=False)
    assert gone.returncode == 1 and "no daemon answers at" in gone.stderr


@pytest.mark.once(why="the status socket knows no path")
@pytest.mark.parametrize("kind", ["file", "another daemon's"])
def test_takes_nobody_elses_place(gateway, proxy, directory, client, kind):
    """The daemon goes on without, and removes nothing at its end."""
    path = directory / "taken"
    if kind == "file":
        path.write_text("precious")
    else:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(path))
        listener.listen()
    daemon = gateway("--status-socket", str(path))
    daemon.wait_log(r"WARN.*status_socket .*taken: ")
    _near, _ = open_tunnel(client, proxy, SERVER)
    daemon.stop()
    assert path.exists()


@pytest.mark.once(why="the status socket knows no path")
def test_removes_only_its_own(gateway, proxy):
    daemon = gateway()
    path = daemon.status_socket
    path.unlink()
    path.write_text("precious")
    daemon.stop()
    assert path.read_text() == "precious"


@pytest.mark.once(why="the status socket knows no path")
def test_silent_clients_hold_up_nobody(gateway, proxy, client):
    """Clients that connect and neither read nor leave: no file, and no time, is kept for them."""
    daemon = gateway()
    path = daemon.status_socket
    files = lambda: len(os.listdir(f"/proc/{daemon.process.pid}/fd"))
    daemon.status()  # behind its start
    before = files()
    silent = []
    for _ in range(200):
        one = socket.socket(socket.AF_UNIX)
        one.connect(str(path))
        silent.append(one)
    until(lambda: files() == before, "no file is kept")
    assert daemon.status()["flows"]["opened"] == 0
    _near, _ = open_tunnel(client, proxy, SERVER)
    # What they were told is there when they do read.
    assert all(one.recv(1 << 20).count(b"\0") == 1 for one in silent)
