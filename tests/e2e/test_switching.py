"""Several proxies: chosen by hand, failing over by themselves, coming back."""

import errno
import json
import os
import socket
import threading
import time

import pytest

from lab.faultproxy import OK, reply
from lab.gateway import PASSWORD, upstream
from lab.netns import PROXY, PROXY_OTHER, SERVER, SERVER6
from lab.wait import WAIT, until

FIRST, SECOND = f"{PROXY}:3128", f"{PROXY_OTHER}:3128"
BOTH = (upstream(), upstream(PROXY_OTHER))
# Drops what comes to the first proxy, without a word.
BLACK_HOLE = f"table inet hole {{ chain in {{ type filter hook input priority 0; ip daddr {PROXY} drop; }}; }}"


@pytest.fixture
def pair(fault_proxy):
    """Two proxies that open everything and say which one they are."""
    return [fault_proxy(address).serve(lambda connection, name=name: connection.send(OK + name))
            for address, name in ((PROXY, b"1"), (PROXY_OTHER, b"2"))]


def who(client, server=SERVER):
    """Which proxy a new connection leads through, and the connection."""
    near = client.connect(server, 80)
    return near.recv(1), near


def proxy_of(client, server=SERVER):
    name, near = who(client, server)
    near.close()
    return name


def is_open(near, sent=b""):
    near.setblocking(False)
    try:
        near.send(sent)
        return near.recv(1) != b""
    except BlockingIOError:
        return True
    except OSError:
        return False


def states(daemon):
    return [one["state"] for one in json.loads(daemon.command("upstreams", "--json").stdout)["upstreams"]]


def history(daemon):
    changes = json.loads(daemon.command("upstreams", "--history", "--json").stdout)["history"]
    return [(change["upstream"], change["change"]) for change in changes]


def ask(daemon, request):
    """What the status socket answers, as a program asks it."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(WAIT)
        sock.connect(str(daemon.status_socket))
        sock.sendall(request.encode())
        answer = b""
        while piece := sock.recv(1 << 16):
            answer += piece
    return json.loads(answer.partition(b"\0")[2])


@pytest.mark.parametrize("reset", [False, True], ids=["keep", "reset"])
def test_use_under_load(gateway, pair, client, server, reset):
    """New connections go where they are told from one moment to the next; the others go on, or end."""
    daemon = gateway(upstreams=BOTH)
    old = [who(client, server) for _ in range(40)]
    assert {name for name, _ in old} == {b"1"}
    said = daemon.command("use", SECOND, "--reset" if reset else "--keep").stdout
    assert said == f"new connections use {SECOND}" + ("; 40 others reset\n" if reset else "\n")
    new = [who(client, server) for _ in range(40)]
    assert {name for name, _ in new} == {b"2"}
    if reset:
        # Whose connection the kernel has forwarded learns of it when it says something.
        until(lambda: not any(is_open(near, b"?") for _, near in old), "they have ended")
    else:
        assert all(is_open(near) for _, near in old)
    assert all(is_open(near) for _, near in new)
    told = daemon.status()["upstreams"]
    assert [one["chosen"] for one in told] == [False, True]
    assert [one["flows"] for one in told] == [0 if reset else 40, 40]
    daemon.command("use", "auto")
    assert proxy_of(client, server) == b"1"
    for _, near in old + new:
        near.close()


@pytest.mark.once(why="how proxies are chosen and asked knows no path")
def test_use_says_what_is_wrong(gateway, pair, client):
    daemon = gateway(upstreams=BOTH)
    wrong = daemon.command("use", "nowhere", check=False)
    assert wrong.returncode == 1 and not wrong.stdout
    assert wrong.stderr == f"no upstream is named 'nowhere'; there are: {FIRST}, {SECOND}\n"
    wrong = daemon.command("use", "nowhere", "--json", check=False)
    assert wrong.returncode == 1 and json.loads(wrong.stdout).keys() == {"error"}
    assert daemon.command("use", check=False).returncode == 2
    assert proxy_of(client) == b"1"
    daemon.stop()
    gone = daemon.command("use", SECOND, check=False)
    assert gone.returncode == 1 and "no daemon answers at" in gone.stderr


@pytest.mark.once(why="how proxies are chosen and asked knows no path")
@pytest.mark.native(why="new runs")
def test_a_choice_is_kept(configured, pair, client, directory):
    """Over reload, restart and a new start; the file is there only while there is a choice."""
    kept = directory / "config.upstream"
    daemon = configured.write(upstreams=BOTH).start()
    daemon.command("use", SECOND)
    assert kept.read_text() == f"{SECOND}\n"
    written = kept.stat().st_mtime_ns
    daemon.command("use", SECOND)
    configured.reload("reload: changed reply_timeout", main="option reply_timeout 20", upstreams=BOTH)
    assert proxy_of(client) == b"2"
    configured.restart(main="option mtu 1400", upstreams=BOTH)
    assert proxy_of(client) == b"2"
    daemon.stop()
    daemon.start()
    assert proxy_of(client) == b"2" and kept.stat().st_mtime_ns == written
    # Its upstream goes, and comes back.
    configured.reload("reload: changed upstream", main="option mtu 1400", upstreams=BOTH[:1])
    assert proxy_of(client) == b"1"
    configured.reload("reload: changed upstream", main="option mtu 1400", upstreams=BOTH)
    assert proxy_of(client) == b"2"
    daemon.command("use", "auto")
    assert not kept.exists() and proxy_of(client) == b"1"


@pytest.mark.once(why="how proxies are chosen and asked knows no path")
def test_a_choice_that_cannot_be_written(configured, pair, client, directory):
    """Said once; it holds until the end."""
    daemon = configured.write(upstreams=BOTH).start()
    (directory / "config.upstream").mkdir()
    for name in (SECOND, FIRST, SECOND):
        daemon.command("use", name)
    assert proxy_of(client) == b"2"
    assert daemon.log().count("holds until the end") == 1


@pytest.mark.once(why="how proxies are chosen and asked knows no path")
@pytest.mark.parametrize("fallback", ["0", "1"])
def test_the_chosen_one_is_dead(gateway, pair, client, fallback):
    """Clients are refused, unless there is a fallback: nobody but its owner takes a choice back."""
    dead = f"{PROXY}:1"
    daemon = gateway("--pin-fallback", fallback, upstreams=(*BOTH, f"http://{dead}"))
    daemon.command("use", dead)
    for _ in range(3):
        if fallback == "1":
            assert proxy_of(client) == b"1"
        else:
            assert client.connect_errno(SERVER, 80) == errno.ENETUNREACH
    assert [one["attempts"] for one in daemon.status()["upstreams"]][1] == 0


@pytest.mark.once(why="how proxies are chosen and asked knows no path")
def test_a_proxy_dies_while_others_work(gateway, pair, client):
    """Only its own connections end. New ones go to the next without a word."""
    daemon = gateway(upstreams=BOTH)
    old = [who(client)[1] for _ in range(100)]
    daemon.command("use", SECOND)
    others = [who(client)[1] for _ in range(100)]
    daemon.command("use", "auto")
    pair[0].close()
    until(lambda: not any(is_open(near) for near in old), "they end with their proxy")
    waits = []
    for _ in range(20):
        begun = time.monotonic()
        assert proxy_of(client) == b"2"
        waits.append(time.monotonic() - begun)
    assert all(is_open(near) for near in others)
    assert states(daemon) == ["resting", "ok"] and history(daemon)[-1] == (FIRST, "rests: cannot be reached")
    assert daemon.status()["upstreams"][0]["attempts"] == 101, "no other client has tried it"
    print("waits", sorted(waits))
    for near in others:
        near.close()


@pytest.mark.once(why="how proxies are chosen and asked knows no path")
def test_a_black_hole(gateway, pair, client, internet):
    """Clients wait no longer than the hedge delay, and only until the proxy is found out."""
    daemon = gateway("--connect-timeout", "3", upstreams=BOTH)
    assert proxy_of(client) == b"1"
    internet.nft(BLACK_HOLE)
    waits = []
    while states(daemon)[0] == "ok":
        begun = time.monotonic()
        assert proxy_of(client) == b"2"
        waits.append(time.monotonic() - begun)
        assert len(waits) < 100
    begun = time.monotonic()
    assert proxy_of(client) == b"2"
    print("waits", sorted(waits), "then", time.monotonic() - begun)
    # The last may have come when it was found out by then.
    assert min(waits[:-1]) >= 0.3
    assert history(daemon)[-1] == (FIRST, "rests: does not answer")


@pytest.mark.once(why="how proxies are chosen and asked knows no path")
def test_the_password_has_changed(gateway, fault_proxy, client):
    """407 to configured credentials: the next proxy is asked within the same SYN, and the first one rests."""
    answer = [OK + b"1"]
    first = fault_proxy(PROXY).serve(lambda connection: connection.send(answer[0]))
    fault_proxy(PROXY_OTHER).serve(lambda connection: connection.send(OK + b"2"))
    daemon = gateway(upstreams=(upstream(user="me"), upstream(PROXY_OTHER)))
    assert proxy_of(client) == b"1"
    answer[0] = b'HTTP/1.1 407 Auth\r\nProxy-Authenticate: Basic realm="x"\r\nContent-Length: 0\r\n\r\n'
    for _ in range(5):
        assert proxy_of(client) == b"2"
    assert len(first.connections) == 2
    one = daemon.status()["upstreams"][0]
    assert one["state"] == "resting" and one["why"] == "407: refuses the credentials" and one["refused_407"] == 1
    for command in (("status",), ("upstreams",), ("upstreams", "--json"), ("upstreams", "--history"), ("clients",)):
        assert PASSWORD not in daemon.command(*command).stdout


@pytest.mark.once(why="how proxies are chosen and asked knows no path")
@pytest.mark.parametrize("status", [403, 502, 503, 504])
def test_a_status_blames_nobody(gateway, fault_proxy, pair, client, status):
    daemon = gateway(upstreams=BOTH[::-1])
    pair[1].close()
    other = fault_proxy(PROXY_OTHER).serve(lambda connection: connection.send(reply(status)))
    for _ in range(5):
        assert client.connect_errno(SERVER, 22) != 0
    assert states(daemon) == ["ok", "ok"] and len(other.connections) == 5


@pytest.mark.once(why="how proxies are chosen and asked knows no path")
def test_all_are_dead(gateway, client, server):
    """Clients are refused; the first proxy that is back serves them at once."""
    dead = [f"http://{PROXY}:{port}" for port in (1, 2)]
    daemon = gateway(upstreams=(*dead, upstream()))
    for _ in range(3):
        assert client.connect_errno(server, 80) == errno.ENETUNREACH
    assert states(daemon) == ["resting"] * 3


@pytest.mark.once(why="how proxies are chosen and asked knows no path")
def test_comes_back_from_the_dead(gateway, client, fault_proxy):
    gateway(upstreams=BOTH)
    for _ in range(3):
        assert client.connect_errno(SERVER, 80) == errno.ENETUNREACH
    fault_proxy(PROXY_OTHER).serve(lambda connection: connection.send(OK + b"2"))
    assert proxy_of(client) == b"2"


@pytest.mark.once(why="how proxies are chosen and asked knows no path")
@pytest.mark.native(why="changes routes under the daemon's own")
def test_the_uplink_is_down(gateway, pair, client, router):
    """Nobody is to blame; all goes on as soon as there is a route again."""
    daemon = gateway(upstreams=BOTH)
    assert proxy_of(client) == b"1"
    route = router.run("ip", "-4", "route", "show", "default").stdout.split()
    router.run("ip", "-4", "route", "del", "default")
    assert client.connect_errno(SERVER6, 80) == errno.ENETUNREACH
    assert states(daemon) == ["uplink_down", "uplink_down"]
    daemon.wait_log(r"WARN.*uplink down")
    router.run("ip", "-4", "route", "add", *route)
    assert proxy_of(client, SERVER6) == b"1" and states(daemon)[0] == "ok"
    told = [what for _, what in history(daemon)]
    assert "uplink down" in told and "uplink up" in told and not any("rests" in what for what in told)


@pytest.mark.once(why="how proxies are chosen and asked knows no path")
def test_a_connect_that_hangs_is_overtaken(gateway, client, fault_proxy, internet):
    """One lost packet: the second proxy serves, and the first is not blamed, since it does answer."""
    fault_proxy(PROXY).serve(lambda connection: connection.send(OK + b"1"))
    fault_proxy(PROXY_OTHER).serve(lambda connection: connection.send(OK + b"2"))
    daemon = gateway(upstreams=BOTH)
    assert proxy_of(client) == b"1"
    internet.nft(BLACK_HOLE)
    assert proxy_of(client) == b"2"
    internet.run("nft", "delete", "table", "inet", "hole")
    until(lambda: daemon.status()["upstreams"][0]["opened"] == 2, "it has been confirmed")
    assert proxy_of(client) == b"1" and states(daemon) == ["ok", "ok"]


@pytest.mark.once(why="how proxies are chosen and asked knows no path")
def test_ten_thousand_switches(gateway, pair, client):
    """No file, no memory and no connection is left behind."""
    daemon = gateway(upstreams=BOTH, log_level="info")
    kept = who(client)[1]

    def held():
        pid = daemon.process.pid
        with open(f"/proc/{pid}/statm") as file:
            return len(os.listdir(f"/proc/{pid}/fd")), int(file.read().split()[1]) * 4

    for number in range(200):
        assert ask(daemon, f"use {(FIRST, SECOND)[number % 2]}")["done"]
    files, memory = held()
    for number in range(10_000):
        assert ask(daemon, f"use {(FIRST, SECOND)[number % 2]}")["done"]
    until(lambda: held()[0] <= files, "no file is left")
    assert held()[1] <= memory + 200, "KiB"
    assert is_open(kept) and proxy_of(client) == b"2"
    kept.close()


@pytest.mark.once(why="how proxies are chosen and asked knows no path")
def test_two_hundred_switch_at_once(gateway, pair, client):
    daemon = gateway(upstreams=BOTH)
    done = []

    def one(number):
        done.append(ask(daemon, f"use {(FIRST, SECOND)[number % 2]} reset").get("done") is not None)

    threads = [threading.Thread(target=one, args=(number,)) for number in range(200)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    # Of too many at once some are told the status; what is done is what was last asked for.
    assert done.count(True) >= 16 and set(done) <= {True, False}
    daemon.command("use", SECOND)
    assert proxy_of(client) == b"2"


@pytest.mark.once(why="how proxies are chosen and asked knows no path")
def test_clients_are_counted(gateway, pair, client):
    daemon = gateway(upstreams=BOTH)
    near = who(client)[1]
    near.sendall(b"12345")
    told = lambda: json.loads(daemon.command("clients", "--json").stdout)["clients"]
    one = until(lambda: [one for one in told() if one["up"] == 5 and one["down"] == 1], "its bytes")[0]
    assert (one["client"], one["flows"], one["opened"], one["refused"]) == ("10.1.0.2", 1, 1, 0)
    near.close()
    pair[0].connections[0].close()
    one = until(lambda: [one for one in told() if not one["flows"]], "its end")[0]
    assert (one["up"], one["down"]) == (5, 1)
    table = daemon.command("clients").stdout.splitlines()
    assert table[0].split() == ["client", "flows", "opened", "refused", "up", "down", "seconds_ago"]
    assert table[1].startswith("10.1.0.2  0")
    assert SERVER not in daemon.command("clients", "--json").stdout


@pytest.mark.once(why="how proxies are chosen and asked knows no path")
@pytest.mark.long
def test_comes_back_after_a_while(gateway, pair, client, fault_proxy, capture, router):
    """Nothing is sent to a proxy that rests while no client dials; then a confirmation, 30 s, and it is the first."""
    daemon = gateway(upstreams=BOTH)
    assert proxy_of(client) == b"1"
    pair[0].close()
    assert proxy_of(client) == b"2"
    again = fault_proxy(PROXY).serve(lambda connection: connection.send(OK + b"1"))
    time.sleep(12)
    assert not again.connections, "a probe while nobody dials"
    assert states(daemon) == ["confirming", "ok"]
    assert proxy_of(client) == b"2"
    until(lambda: states(daemon)[0] == "holding", "it has answered")
    begun = time.monotonic()
    assert len(again.connections) == 1 and again.connections[0].target == f"{SERVER}:80"
    while proxy_of(client) == b"2":
        time.sleep(0.5)
    assert states(daemon)[0] == "ok"
    assert 28 < time.monotonic() - begun < 33
    assert [what for _, what in history(daemon)] == ["rests: cannot be reached", "answers again", "ok"]


@pytest.mark.once(why="how proxies are chosen and asked knows no path")
@pytest.mark.long
def test_silent_sessions_are_reset(gateway, pair, client, internet):
    """A proxy that has dropped off the net: after three confirmations its connections are not left to hang."""
    daemon = gateway("--connect-timeout", "1", "--keepalive", "0", upstreams=BOTH)
    old = [who(client)[1] for _ in range(5)]
    internet.nft(BLACK_HOLE)
    begun = time.monotonic()
    while any(is_open(near) for near in old):
        assert time.monotonic() < begun + 120
        assert proxy_of(client) == b"2"
        time.sleep(0.5)
    print("after", time.monotonic() - begun)
    assert time.monotonic() > begun + 60
    assert (FIRST, "silent: connections reset") in history(daemon)


@pytest.mark.once(why="how proxies are chosen and asked knows no path")
@pytest.mark.long
def test_a_flapping_proxy(gateway, pair, client, fault_proxy):
    """Up and down every few seconds: clients are served all the time, and switched rarely."""
    daemon = gateway(upstreams=BOTH)
    pair[0].close()
    names = ""
    for _ in range(12):
        flapping = fault_proxy(PROXY).serve(lambda connection: connection.send(OK + b"1"))
        for _ in range(10):
            names += proxy_of(client).decode()
            time.sleep(0.2)
        flapping.close()
        for _ in range(10):
            names += proxy_of(client).decode()
            time.sleep(0.2)
    print(names, history(daemon))
    assert names.count("12") + names.count("21") <= 3


@pytest.mark.native(why="new runs")
def test_the_uplink_decides_whom_auto_asks(configured, pair, client):
    """Told through a file beside the socket, before or while a daemon runs; without a match all is as usual."""
    section = f"option log_level debug\nconfig upstream far\noption host {PROXY_OTHER}\noption port 3128\n"
    section += "list uplink 'My Hotel'\nlist uplink wwan\n"
    daemon = configured.write(section).start()
    file = daemon.status_socket.with_name(daemon.status_socket.name + ".uplinks")

    def tell(*names):
        file.write_text("".join(f"{name}\n" for name in names))
        return json.loads(daemon.command("uplinks", "--json").stdout)["done"]

    assert proxy_of(client) == b"1"
    assert tell("lan", "My Hotel") == "new connections use far first"
    assert proxy_of(client) == b"2"
    assert [one["uplink"] for one in json.loads(daemon.command("upstreams", "--json").stdout)["upstreams"]] == [False, True]
    daemon.command("use", FIRST)
    assert proxy_of(client) == b"1", "whoever is chosen is"
    daemon.command("use", "auto")
    configured.reload("reload: changed keepalive", main=f"option keepalive 30\n{section}")
    assert proxy_of(client) == b"2"
    assert tell("Hotel", "wwan2") == f"new connections use {FIRST} first"
    assert proxy_of(client) == b"1"
    tell("wwan")
    configured.restart(main=f"option keepalive 30\noption mtu 1400\n{section}")
    assert proxy_of(client) == b"2"
