"""Routes: what is captured, what is not, and what is left when the daemon ends, by itself or by force."""

import errno
import random
import signal
import socket
import threading
import time

import pytest

from lab.capture import Capture, LeakCapture
from lab.connections import assert_direct, assert_proxied, open_tunnel, refused, works
from lab.gateway import DEFAULT_RULES, PATH, TABLE, TUN, is_relayed
from lab.netns import (
    CLIENT,
    NOBODY,
    PROXY,
    PROXY6,
    SERVER,
    SERVER6,
    SERVER_OTHER,
    connecting,
    retransmits,
    with_mounts,
)
from lab.wait import WAIT, until


def test_auto_route_captures_forwarded(gateway, proxy, client, server, leaks):
    gateway()
    assert_proxied(client, proxy, server)
    leaks.assert_none()


def test_auto_route_captures_the_router_itself(gateway, proxy, router, server, leaks):
    gateway()
    assert_proxied(router, proxy, server)
    leaks.assert_none()


def test_auto_route_leaves_the_lan_alone(gateway, proxy, client, router, network):
    """What the main table sends elsewhere than to its default route is not captured."""
    gateway()
    lan = network.client.listen(CLIENT)
    assert_direct(router, lan, proxy)
    own = router.listen("10.1.0.1")
    assert_direct(client, own, proxy)
    local = router.listen("127.0.0.1")
    assert_direct(router, local, proxy)


@pytest.mark.native(why="it is about the rules")
def test_only_listed_routes(gateway, proxy, client, router, internet):
    gateway(routes=("--route", "203.0.113.0/24", "--route", "2001:db8:5::/48"))
    for space in (client, router):
        assert_proxied(space, proxy, SERVER)
        assert_proxied(space, proxy, SERVER6)
        assert_direct(space, internet.listen(SERVER_OTHER), proxy)


@pytest.mark.native(why="it is about the rules")
def test_no_routes_by_default(gateway, proxy, client, internet):
    """Without auto_route and list route nothing is captured; routes by hand into the TUN work."""
    gateway(routes=())
    assert_direct(client, internet.listen(SERVER), proxy)


@pytest.mark.native(why="it is about the rules")
def test_bypass(gateway, proxy, client, internet):
    gateway("--bypass", "198.51.100.0/24", "--bypass", f"{SERVER6}/128")
    assert_proxied(client, proxy, SERVER)
    for address in (SERVER_OTHER, SERVER6):
        assert_direct(client, internet.listen(address), proxy)


@pytest.mark.native(why="it is about the rules")
def test_bypass_within_a_route(gateway, proxy, client, internet):
    gateway("--bypass", f"{SERVER}/32", routes=("--route", "203.0.113.0/24"))
    assert_direct(client, internet.listen(SERVER), proxy)
    assert_proxied(client, proxy, NOBODY)


def test_no_ipv6(gateway, proxy, client, internet):
    gateway("--ipv6", "0")
    assert_proxied(client, proxy, SERVER)
    assert_direct(client, internet.listen(SERVER6), proxy)


@pytest.mark.native(why="it is about the rules")
def test_never_captures_its_own_upstream(gateway, fault_proxy, client, server, leaks):
    """The proxy itself lies behind the default route, and a list route covers it too."""
    proxy = fault_proxy()
    gateway(routes=("--auto-route", "1", "--route", "192.0.2.0/24"))
    assert_proxied(client, proxy, server)
    assert not proxy.pending()
    leaks.assert_none()


def test_other_protocols_go_direct(gateway, proxy, client, internet):
    gateway()
    sock = internet.socket(SERVER, socket.SOCK_DGRAM)
    sock.bind((SERVER, 0))
    sock.settimeout(WAIT)
    sender = client.socket(SERVER, socket.SOCK_DGRAM)
    sender.sendto(b"hello", sock.getsockname())
    assert sock.recv(100) == b"hello"
    assert client.run("ping", "-c1", "-W20", SERVER).returncode == 0
    assert client.run("ping", "-c1", "-W20", SERVER6).returncode == 0


def test_other_protocols_rejected(gateway, proxy, client, server, leaks):
    """With non_tcp 'reject' UDP gets an ICMP error at once: no browser waits for QUIC."""
    gateway("--non-tcp", "reject")
    sock = client.socket(server, socket.SOCK_DGRAM)
    sock.settimeout(WAIT)
    sock.connect((server, 443))
    sock.send(b"x" * 1200)
    with pytest.raises(OSError) as error:
        sock.recv(100)
    assert error.value.errno in (errno.ECONNREFUSED, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EACCES)
    assert_proxied(client, proxy, server)
    leaks.assert_none()


def test_sigterm_leaves_nothing(gateway, proxy, client, server):
    daemon = gateway()
    assert_proxied(client, proxy, server)
    assert daemon.leftovers()
    daemon.stop()  # checks the rules, routes, devices and the exit code


@pytest.mark.native(why="it is about the rules")
def test_ended_while_it_starts(gateway):
    """SIGTERM as soon as there is a rule: whatever the start has got to, nothing stays."""
    daemon = gateway(ready=False)
    until(lambda: len(daemon.leftovers()) > 1, "a beginning")
    daemon.signal(signal.SIGTERM)
    assert daemon.wait() == 0
    daemon.assert_clean()


@pytest.mark.native(why="it is about the rules")
def test_ended_by_an_address_that_cannot_be_set(gateway, router):
    """As in a container whose /proc/sys is read-only, and IPv6 off for new devices: nothing stays."""
    router.sysctl("net.ipv6.conf.default.disable_ipv6", 1)
    read_only = with_mounts("mount -t proc proc /proc && mount -o remount,ro,bind /proc")
    daemon = gateway("--on-failure", "direct", ready=False, prefix=read_only)
    assert daemon.wait() == 1
    assert "address" in daemon.log()
    daemon.assert_clean()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_end_it(gateway, number):
    daemon = gateway()
    daemon.signal(number)
    assert daemon.wait() == 0
    daemon.assert_clean()


@pytest.mark.native(why="it is about the rules")
def test_foreign_rules_survive(gateway, router):
    """Rules and routes of others stay as they are."""
    router.run("ip", "rule", "add", "priority", "1500", "to", "10.77.0.0/16", "lookup", "77")
    router.run("ip", "route", "add", "10.77.0.0/16", "dev", "lan", "table", "77")
    before = router.ip("rule", "show"), router.ip("route", "show", "table", "all")
    daemon = gateway()
    daemon.signal(signal.SIGTERM)
    assert daemon.wait() == 0
    assert (router.ip("rule", "show"), router.ip("route", "show", "table", "all")) == before


@pytest.mark.native(why="it is about the rules")
@pytest.mark.parametrize("space", ["client", "router"])
def test_killed_and_blocking(gateway, proxy, network, internet, server, leaks, space):
    """After a crash captured traffic fails and does not leak."""
    space = getattr(network, space)
    listener = internet.listen(server)
    daemon = gateway("--on-failure", "block")
    assert_proxied(space, proxy, server)
    daemon.kill()
    assert refused(space, server, listener.getsockname()[1])
    leaks.assert_none()
    daemon.start()
    assert_proxied(space, proxy, server)
    leaks.assert_none()


def test_killed_and_direct(gateway, proxy, client, internet, server):
    """After a crash captured traffic goes direct, if so wished."""
    listener = internet.listen(server)
    daemon = gateway("--on-failure", "direct")
    assert_proxied(client, proxy, server)
    daemon.kill()
    assert_direct(client, listener, proxy)
    daemon.start()
    assert_proxied(client, proxy, server)


def relayed_only(server):
    """For what is different by nature where the kernel forwards: test_forward has that."""
    if not is_relayed(server):
        pytest.skip("the kernel forwards it, whatever becomes of the daemon")


@pytest.mark.native(why="it is about the rules")
def test_killed_with_live_connections(gateway, proxy, client, server, leaks):
    """Connections of a killed daemon are reset, at the latest once it is back, and do not leak before."""
    relayed_only(server)
    daemon = gateway()
    near, far = open_tunnel(client, proxy, server)
    daemon.kill()
    assert far.sock.recv(1) == b""
    with pytest.raises(OSError):
        near.sendall(b"x")
        daemon.start()
        near.recv(1)
    leaks.assert_none()


def test_restart_many_times(gateway, proxy, client, server):
    """Each start finds what a crash has left, and ends up with the same rules."""
    daemon = gateway()
    rules = daemon.router.ip("rule", "show")
    for _ in range(5):
        daemon.kill()
        daemon.start()
        assert daemon.router.ip("rule", "show") == rules
    assert_proxied(client, proxy, server)


@pytest.mark.native(why="it is about the rules")
def test_tun_set_down(gateway, proxy, client, router, server, leaks):
    """Set down from outside: no leak, and the daemon brings it back with its routes."""
    daemon = gateway()
    assert_proxied(client, proxy, server)
    router.run("ip", "link", "set", TUN, "down")
    until(lambda: "UP" in router.ip("link", "show", TUN)[0]["flags"], "the TUN is up again")
    if PATH == "relay":
        until(lambda: router.ip("-6" if ":" in server else "-4", "route", "show", "table", TABLE), "its routes are back")
    until(lambda: works(client, proxy, server), "connections work again")
    assert daemon.running()
    leaks.assert_none()


def test_tun_deleted(gateway, router):
    """Deleted from outside: a clear error and an exit code that makes a supervisor start it again."""
    daemon = gateway()
    router.run("ip", "link", "del", TUN)
    assert daemon.wait() not in (0, 101, -signal.SIGABRT)
    assert TUN in daemon.log().rstrip().split("\n")[-1] or "ERROR" in daemon.log()


@pytest.mark.path("relay", why="the other needs none")
@pytest.mark.native(why="it is about the rules")
def test_rules_removed_from_outside(gateway, proxy, client, router):
    """A network restart that flushes the rules is survived: they come back, or the daemon says so and ends."""
    daemon = gateway()
    rule = next(rule for rule in router.ip("rule", "show") if rule["priority"] not in (0, 32766, 32767))
    router.run("ip", "rule", "del", "priority", rule["priority"])
    until(lambda: rule in router.ip("rule", "show") or not daemon.running(), "the rule is back")


@pytest.mark.native(why="it is about the rules")
def test_a_socket_bound_to_the_uplink(gateway, router, server, leaks):
    """The kernel considers no other route for it."""
    gateway()
    sock = router.socket(server)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"wan")
    sock.settimeout(2)
    with pytest.raises(OSError):
        sock.connect((server, 80))
    sock.close()
    leaks.assert_none()


@pytest.mark.path("forward", why="on the other rules lead there")
def test_what_nat_leads_into_the_tun_goes_nowhere_else(gateway, proxy, router, server, leaks):
    """The router's own connections; no policy rule is needed, and a route for when the TUN is gone is put back."""
    daemon, family = gateway(), "-6" if ":" in server else "-4"

    def fallback():
        return router.ip(family, "route", "show", "type", "unreachable")

    assert {rule["priority"] for rule in router.ip(family, "rule", "show")} <= DEFAULT_RULES
    [route] = fallback()
    router.run("ip", family, "route", "del", "unreachable", route["dst"], "metric", route["metric"])
    until(fallback, "the route is back")
    near, _ = open_tunnel(router, proxy, server)
    daemon.kill()
    near.sendall(b"to whom?")
    assert refused(router, server), "by when TCP has repeated what it was to send"
    leaks.assert_none()


@pytest.mark.native(why="it is about the rules")
def test_wan_comes_later(gateway, proxy, client, router, server):
    """Started without any default route, as at boot; works when the WAN is up."""
    routes = router.ip("-4", "route", "show", "default") + router.ip("-6", "route", "show", "default")
    router.run("ip", "-4", "route", "del", "default")
    router.run("ip", "-6", "route", "del", "default")
    gateway("--connect-timeout", "1")
    assert client.connect_errno(server, 80) != 0
    for route in routes:
        router.run("ip", "route", "add", "default", "via", route["gateway"])
    assert_proxied(client, proxy, server)


def test_no_tun_device(gateway, directory):
    """Without the right to make a TUN: a clear error, not a trace."""
    daemon = gateway(ready=False, prefix=("setpriv", "--bounding-set", "-net_admin", "--inh-caps", "-net_admin"))
    assert daemon.wait() == 1
    assert TUN in daemon.log() or "tun" in daemon.log().lower()
    daemon.assert_clean()


def test_too_few_files(gateway):
    """Less open files allowed than max_flows needs: said at once, not at the thousandth connection."""
    limits = ("setpriv", "--bounding-set", "-sys_resource", "--inh-caps", "-sys_resource", "prlimit", "--nofile=256:256")
    daemon = gateway(ready=False, prefix=limits)
    assert daemon.wait() == 1
    assert "open files" in daemon.log() and "max_flows" in daemon.log()
    daemon.assert_clean()


def test_enough_files_when_flows_are_few(gateway, proxy, client):
    limits = ("setpriv", "--bounding-set", "-sys_resource", "--inh-caps", "-sys_resource", "prlimit", "--nofile=256:256")
    gateway("--max-flows", "16", prefix=limits)
    assert_proxied(client, proxy, SERVER)


def test_second_daemon_is_refused(gateway, proxy, client, router):
    """Two daemons with one TUN: the second says so and leaves the first alone."""
    gateway()
    second = gateway(ready=False)
    assert second.wait() == 1
    assert_proxied(client, proxy, SERVER)


def test_sigterm_drains(gateway, proxy, client, server, leaks):
    """A transfer that runs at SIGTERM ends whole; new connections are left to who comes next, and do not leak."""
    relayed_only(server)
    daemon = gateway("--drain-timeout", "300")
    near, far = open_tunnel(client, proxy, server)
    data = random.Random(1).randbytes(16 << 20)
    half = len(data) // 2
    received = bytearray()
    far.sock.settimeout(WAIT)

    def send(part):
        thread = threading.Thread(target=far.sock.sendall, args=(part,), daemon=True)
        thread.start()
        return thread

    def receive(count):
        while len(received) < count:
            piece = near.recv(1 << 18)
            assert piece, "the end too early"
            received.extend(piece)

    first = send(data[:half])
    receive(1 << 20)
    daemon.signal(signal.SIGTERM)
    daemon.wait_log("ending")
    late = client.begin_connect(server, 81)
    until(lambda: retransmits(late) or not connecting(late), "a new connection is not answered, or refused")
    assert not proxy.pending()
    leaks.assert_none()
    late.close()
    receive(half)
    first.join(WAIT)
    second = send(data[half:])
    receive(len(data))
    second.join(WAIT)
    far.sock.shutdown(socket.SHUT_WR)
    assert near.recv(1) == b""
    near.close()
    assert received == data
    assert daemon.wait() == 0
    daemon.assert_clean()


@pytest.mark.parametrize("late", [False, True], ids=["in-time", "late"])
def test_drain_is_bounded(gateway, proxy, client, server, late):
    """A connection that goes on for ever does not hold the end up, and is reset: also if the daemon was kept from
    running when it was time."""
    relayed_only(server)
    daemon = gateway("--drain-timeout", "1")
    near, _ = open_tunnel(client, proxy, server)
    daemon.signal(signal.SIGTERM)
    if late:
        daemon.wait_log("ending")
        daemon.signal(signal.SIGSTOP)
        time.sleep(1.5)
        daemon.signal(signal.SIGCONT)
    assert daemon.wait() == 0
    daemon.assert_clean()
    with pytest.raises(ConnectionResetError):
        near.recv(1)


@pytest.mark.once(why="no gateway takes part")
def test_capture_sees_direct_packets(network, client, internet, server):
    """The proof by capture can fail: of a direct connection, all packets are seen."""
    capture = LeakCapture(network, [(PROXY, 3128), (PROXY6, 3128)])
    inside = Capture(network.internet, "wan", "tcp")
    listener = internet.listen(server)
    assert_direct(client, listener)
    # What forwards may do so a moment later.
    until(lambda: len(capture.packets()) >= 4 and len(inside.packets()) >= 4, "four packets in both places")
    capture.close()
    inside.close()


@pytest.mark.native(why="it is about the rules")
@pytest.mark.parametrize("options", [(), ("--dns", "fakeip")])
def test_ipv6_is_switched_off(gateway, proxy, client, router, directory, options):
    """By sysctl, as on many routers: there is IPv4, then."""
    router.sysctl("net.ipv6.conf.all.disable_ipv6", 1)
    gateway("--path", "auto", "--fakeip-file", directory / "names", *options)
    _near, _ = open_tunnel(client, proxy, SERVER)


@pytest.mark.native(why="a new run is not emulated")
@pytest.mark.parametrize("options", [(), ("--dns", "fakeip")])
def test_a_kernel_without_ipv6(gateway, proxy, client, router, directory, options):
    """What it has not is not asked of it: what refuses and what captures are for IPv4."""
    hide = with_mounts("mount -t tmpfs none /proc/sys/net/ipv6")
    run = gateway("--path", "auto", "--fakeip-file", directory / "names", *options, prefix=hide, ready=False)
    run.command("block")
    run.wait_ready(0)
    assert {rule["priority"] for rule in router.ip("-6", "rule")} <= DEFAULT_RULES
    _near, _ = open_tunnel(client, proxy, SERVER)
