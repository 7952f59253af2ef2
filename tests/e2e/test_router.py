"""The package on a router with OpenWrt's default firewall: from installation and boot to removal."""

import contextlib
import itertools
import json
import os
import re
import signal
import socket
import threading
import time
from pathlib import Path

import pytest

from lab.capture import LeakCapture
from lab.connections import assert_carries, open_tunnel
from lab.dnsservers import Unbound, dig
from lab.gateway import NFT_TABLE, PATH, PROJECT, TABLE, TUN, upstream
from lab.netns import (
    CLIENT,
    CLIENT_OTHER,
    PROXY,
    PROXY6,
    RESOLVER,
    ROUTER_LAN,
    ROUTER_WAN,
    SERVER,
    SERVER6,
    command,
    finish_connect,
    literal,
)
from lab.router import CONFIG, Router, pack
from lab.servers import WebServer
from lab.wait import WAIT, until

pytestmark = pytest.mark.native(why="the router starts the daemon itself")

REFUSED = "curl: (7)"
# fw4 lets 25 SYNs a second through, after the first 50.
AT_ONCE = 150


@pytest.fixture(scope="session")
def package(tmp_path_factory):
    return pack(tmp_path_factory.mktemp("dist"))


@pytest.fixture
def box(network, directory, package):
    """A running router with the package installed; what is configured and booted then is up to the test."""
    router = Router(network, directory)
    try:
        router.install(package)
        yield router
    finally:
        router.close()


@pytest.fixture
def web(internet, directory):
    """Servers of both families."""
    root = directory / "www"
    root.mkdir()
    (root / "page").write_text("the page\n")
    servers = {address: WebServer(internet, address, root) for address in (SERVER, SERVER6)}
    yield servers
    for server in servers.values():
        server.close()


@pytest.fixture
def fetch(web):
    """A function that gets a page from a server: whether it did; and what curl says if not."""

    def get(space, address, *options):
        url = f"http://{literal(address)}:{web[address].port}/page"
        command = ("curl", "-sS", "-m", "10", "--noproxy", "*", *options, url)
        result = space.run(*command, check=False, env={"PATH": os.environ["PATH"]})
        return result.stdout == "the page\n", result.stderr

    return get


def assert_fetched(fetch, space):
    """Pages of both families arrive; that they came through the proxy, or did not, is for others to say."""
    for address in (SERVER, SERVER6):
        assert fetch(space, address) == (True, ""), address


def assert_refused(fetch, space, leaks):
    for address in (SERVER, SERVER6):
        got, error = fetch(space, address)
        assert not got and REFUSED in error, (address, error)
    leaks.assert_none()


@pytest.mark.once(why="the service's scripts know no path")
def test_installed_it_does_nothing(box, client, fetch):
    box.boot()
    assert box.pid() == 0
    assert_fetched(fetch, client)  # by nobody
    assert TUN not in box.nft()


def test_everybody_who_may_use_wan_is_proxied(box, honest, client, leaks, fetch):
    box.serve()
    assert_fetched(fetch, client)
    assert_fetched(fetch, box.guest)
    leaks.assert_none()
    # NET_BIND_SERVICE, NET_ADMIN, NET_RAW and SYS_RESOURCE, nothing else that root may.
    status = (box.root / f"proc/{box.pid()}/status").read_text()
    assert int(re.search(r"CapEff:\s*(\w+)", status)[1], 16) & ~(1 << 10 | 1 << 12 | 1 << 13 | 1 << 24) == 0
    # Whom a rule keeps from wan it keeps from the proxy, too.
    assert fetch(client, SERVER, "--interface", CLIENT_OTHER)[0] is False
    # The firewall still protects the router itself.
    assert box.guest.connect_errno("10.2.0.1", 22) != 0


def test_many_at_once_are_no_flood(box, honest, client, web, leaks):
    """fw4 takes 25 SYNs a second for the router itself; proxied connections are none of these."""
    box.serve("option max_dials_per_client '512'")
    sockets = [client.begin_connect(SERVER, web[SERVER].port) for _ in range(AT_ONCE)]
    for sock in sockets:
        assert finish_connect(sock) == 0
        sock.close()
    # A dropped SYN would have been repeated, and connected a second later.
    assert "counter packets 0 bytes 0 drop" in box.space.run("nft", "list", "chain", "inet", "fw4", "syn_flood").stdout
    leaks.assert_none()


def test_quic_is_refused_at_once(box, honest, client, leaks):
    box.serve()
    for address in (SERVER, SERVER6):
        with client.socket(address, socket.SOCK_DGRAM) as sock:
            sock.settimeout(WAIT)
            sock.connect((address, 443))
            sock.send(b"initial")
            with pytest.raises(OSError) as refused:
                sock.recv(1)
            assert not isinstance(refused.value, TimeoutError), address
    leaks.assert_none()


def test_a_forwarded_port_is_not_captured(box, honest, client, internet):
    listener = client.listen(CLIENT, 8080)
    box.serve()
    for action in ("reload", "restart"):
        near = internet.connect(ROUTER_WAN, 8080)
        far, _ = listener.accept()
        assert_carries(near, far)
        box.run("/etc/init.d/firewall", action)


@pytest.mark.parametrize("action", ["reload", "restart", "stop and start"])
def test_the_firewall_comes_and_goes(box, honest, client, leaks, fetch, action):
    box.serve()
    assert_fetched(fetch, client)
    for step in action.split(" and "):
        box.run("/etc/init.d/firewall", step)
        if step == "stop":
            # Nothing protects anything now; but nothing leaks either.
            until(lambda: fetch(client, SERVER)[0], "it works without a firewall")
            leaks.assert_none()
    assert_fetched(fetch, client)
    assert_fetched(fetch, box.guest)
    leaks.assert_none()
    assert box.nft().count(f'iifname "{TUN}" ip daddr 10.45.39.1') == 1


def test_a_broken_firewall_is_left_alone(box, honest, client, fetch, leaks):
    """Another package's bad include: it must not be us who make fw4 fail on it; once it is mended, all works."""
    box.boot()
    bad = box.root / "usr/share/nftables.d/table-post/bad.nft"
    bad.write_text("chain nonsense { what }\n")
    before = box.nft()
    box.configure()
    box.service("start")
    box.wait_ready()
    assert before.startswith("table inet fw4 {") and before in box.nft()
    until(lambda: "check" in box.syslog(), "the log says why")
    if PATH == "relay":  # the kernel forwards to the proxy by the zone that it is in
        assert not fetch(client, SERVER)[0]
    bad.unlink()
    box.run("/etc/init.d/firewall", "reload")
    assert_fetched(fetch, client)
    leaks.assert_none()


@pytest.mark.once(why="the service's scripts know no path")
def test_a_zone_that_is_not_there(box, honest):
    """Whoever asks is told: nobody's connections get to the device."""
    (box.root / "etc/config/firewall").write_text("config zone\n\toption name 'wan'\n\nconfig zone\n\toption name 'lan'\n")
    program = "/usr/bin/tcp-over-http"
    box.configure()
    assert "zone" not in box.run(program, "check").stderr
    box.configure("option zone 'wwan'")
    box.boot()
    box.wait_ready()
    expected = "the firewall has no zone 'wwan'"
    assert expected in box.run(program, "check").stderr
    assert expected in box.log()
    assert expected in box.run(program, "doctor", "--target", SERVER, check=False).stdout


def test_a_killed_daemon_comes_back(box, honest, client, leaks, fetch):
    box.serve()
    assert_fetched(fetch, client)
    old = box.pid()
    os.kill(old, signal.SIGKILL)
    until(lambda: box.pid() != old, "it is gone")
    # On the forward path the firewall drops for 10 s: who comes meanwhile waits for the daemon.
    if PATH == "relay":
        for space, address in itertools.product((client, box.guest), (SERVER, SERVER6)):
            got, error = fetch(space, address)
            # On a slow machine procd, which waits five seconds, may be faster than the last of these.
            assert (not got and REFUSED in error) or box.pid() not in (0, old), (address, error)
        leaks.assert_none()
    until(lambda: box.pid() not in (0, old), "procd starts it again")
    until(lambda: fetch(client, SERVER)[0], "it works again")
    assert_fetched(fetch, client)
    leaks.assert_none()


def test_a_reload_drops_no_connection(box, fault_proxy, client, leaks):
    proxy = fault_proxy()
    box.serve()
    near, connection = open_tunnel(client, proxy, SERVER, 4000)
    old = box.pid()
    box.configure("list bypass '198.51.100.0/24'")
    box.run("/usr/libexec/procd-call", "config", "tcp-over-http")
    until(lambda: "198.51.100.0/24" in box.space.run("nft", "list", "table", "ip", NFT_TABLE).stdout, "it is bypassed")
    near.sendall(b"still")
    assert connection.sock.recv(5) == b"still"
    assert box.pid() == old
    leaks.assert_none()


def test_a_bad_configuration_does_not_end_what_runs(box, honest, client, leaks, fetch):
    box.serve()
    old = box.pid()
    box.configure("option nonsense '1'")
    for action in ("reload", "start"):
        result = box.service(action, check=False)
        assert result.returncode != 0 and "nonsense" in result.stderr, action
    until(lambda: "nonsense" in box.syslog(), "the log says what is wrong")
    assert box.pid() == old
    assert_fetched(fetch, client)
    leaks.assert_none()


DAMAGED = {
    "enabled": "\toption enabled 'ture'\n",
    # uci stops at the quote that is missing, and gives what is before it.
    "quote": "\tlist upstream 'http://192.0.2.10:3128\n\toption enabled '1'\n",
}


@pytest.mark.once(why="the service's scripts know no path")
@pytest.mark.parametrize("what", DAMAGED)
def test_a_damaged_configuration_does_not_turn_it_off(box, honest, client, leaks, fetch, what):
    box.serve()
    old = box.pid()
    (box.root / CONFIG).write_text(f"config tcp-over-http 'main'\n{DAMAGED[what]}")
    assert box.service("reload", check=False).returncode != 0
    assert box.pid() == old
    assert_fetched(fetch, client)
    leaks.assert_none()


def test_restarted_with_a_bad_configuration_it_goes_on(box, honest, client, leaks, fetch):
    """What could not start again is not ended; whoever asks for it is told."""
    box.serve()
    old = box.pid()
    box.configure("option nonsense '1'")
    result = box.service("restart", check=False)
    assert result.returncode != 0 and "nonsense" in result.stderr
    assert box.pid() == old
    assert_fetched(fetch, client)
    box.configure()
    offset = len(box.log())
    assert box.service("restart").returncode == 0
    box.wait_ready(offset)
    assert box.pid() != old
    until(lambda: fetch(client, SERVER)[0], "it works again")
    leaks.assert_none()


@pytest.mark.once(why="the service's scripts know no path")
def test_a_start_with_another_configuration_is_a_reload(box, honest, client, fetch):
    box.serve()
    offset = len(box.log())
    box.configure("option keepalive '30'")
    box.service("start")
    until(lambda: "reload: changed keepalive" in box.log()[offset:], "the daemon has been told")


def test_a_network_restart_changes_nothing_for_a_daemon(box, honest, client, fetch):
    """Nor does it apply what was written meanwhile, be it valid or not."""
    box.serve("option auto_route '0'", "list route '192.88.99.0/24'")
    for line in ("option auto_route '1'", "option nonsense '1'"):
        box.configure(line)
        box.run("sh", "/etc/hotplug.d/iface/05-tcp-over-http", env={"ACTION": "ifup", "INTERFACE": "loopback"})
        assert fetch(client, SERVER)[0]
        assert "CONNECT" not in honest.log()


@pytest.mark.once(why="the service's scripts know no path")
def test_the_uplink_decides_whom_auto_asks(box):
    """Interfaces that are up, and the network that the router is a client of, not one that it offers; also for a daemon that
    comes later."""
    section = "\nconfig upstream '{}'\n\toption host '192.0.2.{}'\n"
    extra = section.format("usual", 20) + section.format("office", 21) + "\tlist uplink 'The Office'\n"
    extra += section.format("modem", 22) + "\tlist uplink 'wwan'\n"
    told = box.root / "tmp/ubus"
    told.mkdir(parents=True)

    def network(**up):
        interfaces = [{"interface": name, "up": name in up} | ({"l3_device": up.get(name)} if up.get(name) else {})
                      for name in ("loopback", "lan", "wlan", "wwan")]
        (told / "network.interface").write_text(json.dumps({"interface": interfaces}))
        (told / "iwinfo.phy0-sta0").write_text(json.dumps({"ssid": "The Office", "mode": "Client"}))
        (told / "iwinfo.phy1-ap0").write_text(json.dumps({"ssid": "The Office", "mode": "Master"}))
        box.hotplug("wwan", "ifup" if up else "ifdown")

    def first():
        return json.loads(box.run("/usr/bin/tcp-over-http", "uplinks", "--json").stdout)["done"].split()[3]

    box.serve()
    (box.root / CONFIG).write_text((box.root / CONFIG).read_text().replace("\tlist upstream", "\t#") + extra)
    offset = len(box.log())
    box.service("reload")
    until(lambda: "reload: changed" in box.log()[offset:], "the daemon knows")
    network(lan="phy1-ap0")
    assert first() == "usual"
    network(wlan="phy0-sta0")
    assert first() == "office" and "new connections use office first" in box.log()
    network(wwan="wwan0")
    assert first() == "modem"
    ready = len(box.log())
    box.service("restart")
    box.wait_ready(ready)
    assert first() == "modem", "told before it was there"
    network()
    assert first() == "usual"
    box.service("stop")
    assert not list(box.run_dir.glob("*.uplinks*"))


@pytest.mark.parametrize("action", ["stop", "disable"])
def test_a_network_restart_blocks_nothing_that_no_daemon_takes(box, honest, client, fetch, action):
    box.configure()
    if action == "stop":
        box.boot()
        box.wait_ready()
    box.service(action)
    if action == "disable":
        box.boot()
    box.run("sh", "/etc/hotplug.d/iface/05-tcp-over-http", env={"ACTION": "ifup", "INTERFACE": "loopback"})
    assert not box.traces()
    assert fetch(client, SERVER)[0]


@pytest.mark.once(why="the service's scripts know no path")
def test_a_bad_configuration_at_boot_refuses_all(box, client, leaks, fetch):
    box.configure("option nonsense '1'")
    box.boot()
    until(lambda: "nonsense" in box.syslog(), "the log says what is wrong")
    assert_refused(fetch, client, leaks)
    # Once it is mended, the change is enough.
    box.configure(upstreams=())
    box.service("stop")


# Where the kernel keeps what is ours.
NUMBERS = "option table '8000'", "option rule_priority '2000'"


@pytest.mark.parametrize("before", [(), (*NUMBERS, "option nonsense '1'")], ids=["restart", "bad at boot"])
def test_other_numbers(box, honest, client, leaks, fetch, before):
    """What refused traffic under the old ones goes when a daemon has others."""
    box.configure(*before)
    box.boot()
    if not before:
        box.wait_ready()
    offset = len(box.log())
    box.configure(*NUMBERS)
    box.service("start" if before else "restart")
    box.wait_ready(offset)
    assert_fetched(fetch, client)
    leaks.assert_none()
    assert not [rule for rule in box.space.ip("rule") if 900 <= rule["priority"] < 1000]
    assert not box.space.ip("route", "show", "table", TABLE, check=False)
    box.service("stop")
    assert box.traces() == []


@pytest.mark.once(why="the service's scripts know no path")
def test_a_file_that_is_there_later(box, honest, client, leaks, fetch):
    """As on a disk that is mounted after the start: nobody has to do anything."""
    box.configure("list bypass_file '/mnt/list'")
    box.boot()
    until(lambda: "/mnt/list" in box.syslog(), "the log says what is wrong")
    assert_refused(fetch, client, leaks)
    path = box.root / "mnt/list"
    path.parent.mkdir(exist_ok=True)
    path.write_text("192.88.99.0/24\n")
    box.wait_ready()
    assert_fetched(fetch, client)
    leaks.assert_none()


@pytest.mark.once(why="the service's scripts know no path")
@pytest.mark.parametrize("line", ["option max_flows '0xx'", "option mark '1 2'", "option drain_timeout 'soon'"])
def test_a_number_that_is_none(box, client, leaks, fetch, line):
    """The script goes on to what keeps traffic from leaking."""
    box.configure(line)
    box.boot()
    until(lambda: line.split()[1] in box.syslog(), "the log says which")
    assert_refused(fetch, client, leaks)


@pytest.mark.once(why="the service's scripts know no path")
def test_refused_from_the_first_moment(box, honest, client, leaks, fetch):
    """No daemon: a program that can't be started is what boot looks like for as long as it takes to start one."""
    box.configure()
    program = box.root / "usr/bin/tcp-over-http"
    program.rename(program.with_suffix(".real"))
    program.write_text('#!/bin/sh\n[ "$1" != run ] || exec sleep 1000\nexec /usr/bin/tcp-over-http.real "$@"\n')
    program.chmod(0o755)
    box.boot()
    assert_refused(fetch, client, leaks)
    assert_refused(fetch, box.guest, leaks)


@pytest.mark.once(why="the service's scripts know no path")
def test_a_network_restart_while_no_daemon_runs(box, network, honest, client, fetch):
    """netifd deletes all rules: nothing gets out before the hotplug script puts them back, the router's own neither."""
    control = LeakCapture(network, [(PROXY, 3128), (PROXY6, 3128)])
    box.boot()
    assert_fetched(fetch, client)
    assert control.packets()
    control.close()
    box.configure("option nonsense '1'")
    box.service("start")
    leaks = LeakCapture(network, [(PROXY, 3128), (PROXY6, 3128)])
    stopped, begun = threading.Event(), [0]

    def go_on():
        while not stopped.is_set():
            for space in (client, network.router, box.guest):
                for address in (SERVER, SERVER6):
                    with contextlib.suppress(OSError):
                        space.begin_connect(address, 80).close()
                    begun[0] += 1
            time.sleep(0.005)

    thread = threading.Thread(target=go_on)
    thread.start()
    for _ in range(3):
        box.start_network()
    stopped.set()
    thread.join()
    assert begun[0] > 100
    leaks.assert_none()
    leaks.close()
    # What is nearby is reached as ever.
    listener = client.listen(CLIENT, 8000)
    assert network.router.connect_errno(CLIENT, 8000) == 0
    listener.close()


def test_direct_lets_out_what_no_daemon_takes(box, honest, client, fetch):
    box.serve("option on_failure 'direct'")
    assert_fetched(fetch, client)
    old = box.pid()
    box.procd.send_signal(signal.SIGSTOP)  # it would start another one, which resets what runs directly
    os.kill(old, signal.SIGKILL)
    until(lambda: ") Z " in Path(f"/proc/{old}/stat").read_text(), "it is gone")
    until(lambda: fetch(client, SERVER)[0], "its last sign of life is forgotten")  # on the forward path, ten seconds
    assert_fetched(fetch, client)  # by nobody
    box.procd.send_signal(signal.SIGCONT)


def test_restart_refuses_meanwhile(box, honest, client, leaks, fetch):
    box.serve()
    old = box.pid()
    box.service("restart")
    until(lambda: fetch(client, SERVER)[0], "it works again")
    assert box.pid() != old
    assert_fetched(fetch, client)
    leaks.assert_none()


def test_shutdown_refuses(box, honest, client, leaks, fetch):
    box.serve()
    box.service("shutdown")
    until(lambda: box.pid() == 0, "it ends")
    assert_refused(fetch, client, leaks)


def test_an_upgrade_runs_the_new_program(box, honest, client, leaks, fetch):
    """apk puts the files in their place and says `start`; opkg stops the old one first."""
    box.serve()
    old = box.pid()
    box.service("start")
    assert box.pid() == old, "nothing has changed"
    program = box.root / "usr/bin/tcp-over-http"
    new = program.with_suffix(".new")
    new.write_bytes(program.read_bytes() + b"\0")
    new.chmod(0o755)
    new.rename(program)
    box.service("start")
    until(lambda: box.pid() not in (0, old), "procd starts the new one")
    until(lambda: fetch(client, SERVER)[0], "it works again")
    leaks.assert_none()

    box.script("prerm", PKG_UPGRADE="1")
    until(lambda: box.pid() == 0, "it ends")
    assert_refused(fetch, client, leaks)
    box.script("postinst", PKG_UPGRADE="1")
    until(lambda: fetch(client, SERVER)[0], "it works again")
    leaks.assert_none()


@pytest.mark.parametrize("how", ["stop", "disable in the configuration", "remove"])
def test_nothing_is_left_behind(box, honest, client, fetch, how):
    box.serve("option dns 'fakeip'")
    assert_fetched(fetch, client)
    until(lambda: dig(client, ROUTER_LAN, "www.corp.example", check=False), "a name has an address")
    match how:
        case "stop":
            box.service("stop")
        case "remove":
            box.remove()
        case _:
            box.configure(enabled=0)
            box.service("reload")
    assert box.pid() == 0
    assert box.traces() == []
    assert_fetched(fetch, client)  # by nobody
    # The name's address is for the next run, if there is to be one.
    assert (box.run_dir / "tcp-over-http.names").exists() == (how != "remove")
    if how == "remove":
        left = [path for path in box.files if (box.root / path.lstrip("/")).exists()]
        assert left == [f"/{CONFIG}"]


@pytest.mark.once(why="the service's scripts know no path")
@pytest.mark.parametrize("dns", ["fakeip", "proxy"])
def test_dnsmasq_asks_the_daemon(box, honest, client, internet, directory, fetch, dns):
    """Each instance, for all names but those that it knows; until the service stops."""
    # Not one that dnsmasq's rebind protection would not let pass.
    name, real = "www.corp.example", "192.88.99.7"
    unbound = Unbound(internet, directory, [RESOLVER], [f"{name}. 300 IN A {real}", f"proxy.corp.example. 300 IN A {PROXY}"])
    asked = lambda: [address for port in (53, 5300) for address in dig(client, ROUTER_LAN, name, port=port, check=False)]
    box.serve(f"option dns '{dns}'", f"list dns_server '{RESOLVER}'", upstreams=[upstream("proxy.corp.example")])
    first = until(lambda: len(both := asked()) == 2 and both, "both answer")
    if dns == "fakeip":
        assert all(address.startswith("198.1") for address in first) and len(first) == 2
        assert dig(client, ROUTER_LAN, name, "AAAA")[0].startswith("2001:2:")
    else:
        assert first == [real, real]
    # Names of the LAN stay its own; that of the proxy is nobody's but the uplink's to say.
    assert dig(client, ROUTER_LAN, "printer.lan") == ["10.1.0.9"]
    near = client.begin_connect(first[0], 22)
    target = f"{name if dns == 'fakeip' else real}:22"
    until(lambda: f"CONNECT {target}" in honest.log(), "the proxy is asked for it")
    near.close()
    assert f"{ROUTER_WAN} {name}." not in unbound.log()
    # Switched off and on at run time. The daemon starts anew; queries that it takes meanwhile are lost.
    offset = len(box.log())
    box.configure("option dns 'off'", upstreams=[upstream("proxy.corp.example")])
    box.service("reload")
    box.wait_ready(offset)
    until(lambda: asked() == [real, real], "the uplink's resolver answers")
    assert not list((box.root / "tmp").glob("**/tcp-over-http*"))
    box.configure(f"option dns '{dns}'", f"list dns_server '{RESOLVER}'", upstreams=[upstream("proxy.corp.example")])
    offset = len(box.log())
    box.service("reload")
    box.wait_ready(offset)
    until(lambda: first == asked(), "the daemon answers")
    box.service("stop")
    until(lambda: asked() == [real, real], "the uplink's resolver answers")
    assert box.traces() == []
    state = box.root / "var/state/dhcp"
    assert not state.exists() or "rebind_protection" not in state.read_text()


@pytest.mark.once(why="the service's scripts know no path")
@pytest.mark.parametrize("range6, private", [("2001:2::/64", False), ("fd45:3a::/64", True)])
def test_rebind_protection(box, honest, client, internet, range6, private):
    """Off only where fake addresses are private ones, which it would refuse."""
    box.serve("option dns 'fakeip'", f"option fakeip_range6 '{range6}'")
    prefix = range6.partition("::")[0]
    ask = lambda: [a for a in dig(client, ROUTER_LAN, "www.example", "AAAA", check=False) if a.startswith(prefix)]
    until(ask, "dnsmasq passes a fake address on")
    files = list((box.root / "var/etc").glob("dnsmasq.conf.*"))
    assert len(files) == 2 and all(("stop-dns-rebind" in file.read_text()) != private for file in files)
    box.service("stop")
    assert all("stop-dns-rebind" in file.read_text() for file in files)
    assert box.traces() == []


@pytest.mark.once(why="the service's scripts know no path")
def test_dnsmasq_is_left_alone(box, honest):
    """Where names are none of ours, it is not restarted for nothing."""
    box.serve()
    pids = lambda: {path.name: path.read_text() for path in box.run_dir.glob("dnsmasq.*.pid")}
    before = until(lambda: len(pids()) == 2 and pids(), "both instances run")
    offset = len(box.log())
    for action in ("reload", "start"):
        box.service(action)
    until(lambda: box.log()[offset:].count("reload: nothing has changed") == 2, "both are done")
    assert pids() == before


@pytest.mark.once(why="the service's scripts know no path")
def test_dnsmasq_asks_nobody_else(box, honest, client, internet, directory):
    """Its own servers for all names would answer as well; those for domains are still asked."""
    data = ["www.corp.example. 300 IN A 192.88.99.7", *(f"n{i}.example.com. 300 IN A 192.88.99.8" for i in range(20))]
    unbound = Unbound(internet, directory, [RESOLVER], data)
    dhcp = box.root / "etc/config/dhcp"
    own = f"config dnsmasq\n\tlist server '{RESOLVER}'\n\tlist server '/corp.example/{RESOLVER}'\n"
    dhcp.write_text(own)
    box.serve("option dns 'fakeip'", "option dns_hijack '0'")
    ask = lambda name: dig(client, ROUTER_LAN, name, check=False)
    names = [f"n{i}.example.com" for i in range(20)]
    until(lambda: ask(names[0]), "dnsmasq answers")
    # It asks all that it may now and then.
    assert all(dig(client, ROUTER_LAN, name)[0].startswith("198.1") for name in names)
    assert f"{ROUTER_WAN} n" not in unbound.log()
    assert dig(client, ROUTER_LAN, "www.corp.example") == ["192.88.99.7"]
    # Changed meanwhile: the service is told, and what it has said itself is nothing to it.
    dhcp.write_text(own.replace("corp.example", "home.example"))
    box.run("/etc/init.d/dnsmasq", "restart")
    box.service("reload")
    until(lambda: "".join(ask("www.corp.example")).startswith("198.1"), "it is a name like others")
    box.service("stop")
    assert until(lambda: ask(names[0]), "its own server answers") == ["192.88.99.8"]
    assert box.traces() == []
    assert "server" not in (box.root / "var/state/dhcp").read_text()


@pytest.mark.once(why="the service's scripts know no path")
def test_servers_that_dnsmasq_does_not_take(box, client, leaks):
    """With a bad configuration it serves on as it did: here its own, of which what is for one domain is passed on."""
    box.boot()
    (box.root / "etc/config/dhcp").write_text("config dnsmasq\n\tlist server '/corp.example/192.0.2.1#53x'\n")
    box.configure("option dns 'fakeip'")
    box.service("start")
    until(lambda: "dnsmasq does not take" in box.syslog(), "the log says so")
    assert until(lambda: dig(client, ROUTER_LAN, "printer.lan", check=False), "dnsmasq answers") == ["10.1.0.9"]


@pytest.mark.once(why="the service's scripts know no path")
def test_one_conf_dir_for_all(box, honest, client):
    """Until OpenWrt 23.05: at boot, where no instance's file tells yet."""
    script = box.root / "etc/init.d/dnsmasq"
    script.write_text(script.read_text().replace("/tmp/dnsmasq.$1.d", "/tmp/dnsmasq.d"))
    (box.root / "etc/config/dhcp").write_text("config dnsmasq\n\nconfig dnsmasq 'other'\n\toption port '5300'\n")
    box.serve("option dns 'fakeip'", "option dns_hijack '0'")
    for port in (53, 5300):
        answer = until(lambda: dig(client, ROUTER_LAN, "www.corp.example", port=port, check=False), "an instance answers")
        assert answer[0].startswith("198.1")
    box.service("stop")
    assert box.traces() == []


@pytest.mark.once(why="the service's scripts know no path")
@pytest.mark.parametrize("dns", ["fakeip", "proxy"])
def test_dnsmasq_asks_for_some_domains(box, honest, client, internet, directory, dns):
    """Those of the list come through the daemon, all others go where they went; rebind protection stays on for them."""
    blocked, other, private = "www.blocked.example", "www.corp.example", "evil.corp.example"
    data = [f"{blocked}. 300 IN A 192.88.99.7", f"{other}. 300 IN A 192.88.99.8", f"{private}. 300 IN A 10.1.0.2"]
    unbound = Unbound(internet, directory, [RESOLVER], data)
    box.serve(f"option dns '{dns}'", f"list dns_server '{RESOLVER}'", "list dns_domain 'blocked.example'")
    ask = lambda name, kind="A": dig(client, ROUTER_LAN, name, kind)
    again = lambda name: dig(client, ROUTER_LAN, name, check=False)
    assert until(lambda: again(other), "the uplink's resolver answers") == ["192.88.99.8"]
    assert f"{ROUTER_WAN} {other}." in unbound.log()
    assert ask(private) == []
    if dns == "fakeip":
        assert ask(blocked)[0].startswith("198.1")
        assert ask(blocked, "AAAA")[0].startswith("2001:2:")
    else:
        assert ask(blocked) == ["192.88.99.7"]
    assert f"{ROUTER_WAN} {blocked}." not in unbound.log()
    box.service("stop")
    assert until(lambda: again(blocked), "the uplink's resolver answers") == ["192.88.99.7"]
    assert box.traces() == []


def test_values_and_options_for_programs(box):
    """Whatever is in a value, a shell gets it whole."""
    box.configure("option nonsense '1'", "option max_flows '0x40'", "list port '80'", "list port '8000-8999'")
    zone = "it's $(reboot) \\ `reboot` \"\n;"
    script = 'eval "$(tcp-over-http config --shell --zone "$0")"; printf "%s|" "$zone" "$max_flows" "$port" "$tun"'
    path = {"PATH": "/usr/bin:/router/bin"}
    assert box.run("ash", "-c", script, zone, env=path).stdout == f"{zone}|64|80\n8000-8999|toh0|"
    options = json.loads(box.run("/usr/bin/tcp-over-http", "config", "--json").stdout)
    assert {option["name"] for option in options["upstream"]} >= {"host", "password"}
    mtu = next(option for option in options["main"] if option["name"] == "mtu")
    assert (mtu["type"], mtu["default"], mtu["min"], mtu["unit"], mtu["live"]) == ("number", "1500", 1280, "bytes", False)


PLUGIN = "/usr/libexec/rpcd/tcp-over-http"


def call(box, method, **arguments):
    """What a call over ubus gives, as rpcd makes it."""
    return json.loads(box.run(PLUGIN, "call", method, input=json.dumps(arguments), check=False).stdout)


def doctor(box, **arguments):
    """What it has found when it has finished."""
    found = call(box, "doctor", **arguments)
    while job := found.get("job"):
        found = call(box, "doctor", job=job)
    return found["lines"]


def test_status_for_rpcd(box, honest, client, fetch):
    methods = json.loads(box.run(PLUGIN, "list").stdout)
    assert {name for name, arguments in methods.items() if not arguments} == {
        "status", "upstreams", "history", "clients", "settings", "check"}
    for method in ("status", "upstreams", "history", "clients"):
        failed = call(box, method)
        assert set(failed) == {"error"} and "no daemon answers at /var/run/tcp-over-http.sock: " in failed["error"]
    assert "no daemon answers" in call(box, "use", name="auto")["error"]
    assert any(line.startswith("FAIL  the daemon answers") for line in doctor(box))
    box.serve()
    assert_fetched(fetch, client)
    said = call(box, "status")
    same = json.loads(box.run("/usr/bin/tcp-over-http", "status", "--json").stdout)
    assert said["path"] == PATH and set(said) == set(same)
    name = call(box, "upstreams")["upstreams"][0]["name"]
    assert call(box, "clients")["clients"][0]["opened"] >= 1
    assert call(box, "use", name=name) == {"done": f"new connections use {name}"}
    assert (box.root / "etc/tcp-over-http/upstream").read_text() == f"{name}\n"
    assert call(box, "upstreams")["upstreams"][0]["chosen"]
    assert call(box, "history")["history"][-1]["change"] == "chosen"
    for wrong in ("nowhere", "", "--help", "$(reboot)", "a b"):
        assert call(box, "use", name=wrong).keys() == {"error"}, wrong
    assert call(box, "use", name="auto", reset=True)["done"]
    assert not (box.root / "etc/tcp-over-http/upstream").exists()
    assert "set option pause" in call(box, "pause", duration="10m")["error"]
    for wrong in ({}, {"duration": "2h"}, {"duration": "--help"}, {"duration": "10m", "client": "x y"}):
        assert "error" in call(box, "pause", **wrong), wrong
    assert call(box, "resume")["error"] == call(box, "resume", client="10.1.0.2")["error"] == "there is no such pause"
    assert any(line.startswith("ok    the daemon answers") for line in doctor(box, target=SERVER))


def test_who_may_call_what(box):
    """What changes anything needs write access; what can be called can be granted, and nothing else."""
    granted = json.loads((PROJECT / "openwrt/files/usr/share/rpcd/acl.d/tcp-over-http.json").read_text())["tcp-over-http"]
    read, write = (set(granted[access]["ubus"]["tcp-over-http"]) for access in ("read", "write"))
    assert read == {"status", "upstreams", "history", "clients", "settings"} and not read & write
    assert read | write == set(json.loads(box.run(PLUGIN, "list").stdout))


SECRETS = """config tcp-over-http 'main'
	option mtu '1400'
	list upstream 'http://joe:hunter2:@192.0.2.10:3128'
	list upstream 'http://192.0.2.11'
	list bypass '10.0.0.0/8'

config upstream 'office'
	option host '192.0.2.12'
	option username 'o\'brien'
	option password 'hunter2'
	list header 'X-Key: hunter2'
"""


@pytest.mark.once(why="the service's scripts know no path")
def test_settings_and_check_for_a_page(box):
    """Nothing secret comes out; what a session has staged is judged, and seen by nobody else."""
    text = SECRETS.replace("o\'brien", "o'\\''brien")
    (box.root / CONFIG).write_text(text)
    told = call(box, "settings")
    assert "hunter2" not in json.dumps(told)
    main, office = told["sections"]
    assert main == {".name": "main", ".type": "tcp-over-http", "mtu": ["1400"], "bypass": ["10.0.0.0/8"],
                    "upstream": ["http://joe:***@192.0.2.10:3128", "http://192.0.2.11"]}
    assert office == {".name": "office", ".type": "upstream", "host": ["192.0.2.12"], "username": ["o'brien"],
                      "password": ["***"], "header": ["X-Key: ***"]}
    assert told["check"] == {"valid": True} and {"main", "upstream", "rule"} == told["options"].keys()
    session = "0123456789abcdef" * 2
    assert call(box, "check", ubus_rpc_session=session) == {"valid": True}
    staged = box.run_dir / f"rpcd/uci-{session}/tcp-over-http"
    staged.parent.mkdir(parents=True)
    staged.write_text(text + "\toption port 'x\"y'\n")
    wrong = call(box, "check", ubus_rpc_session=session)
    assert (wrong["valid"], wrong["section"]) == (False, 2) and wrong["message"][0].startswith("port: '")
    assert any("port: '" in line for line in doctor(box, candidate=True, ubus_rpc_session=session))
    assert call(box, "settings")["check"] == {"valid": True}
    for wrong in ("option pasword 'hunter2'", "list header 'X-Key hunter2'", "list upstream 'joe:hunter2@192.0.2.10'"):
        (box.root / CONFIG).write_text(f"{text}\t{wrong}\n")
        told = call(box, "settings")
        assert not told["check"]["valid"] and "hunter2" not in json.dumps(told), wrong
    # None is not the same as none that can be read.
    (box.root / CONFIG).write_text("")
    assert call(box, "settings")["sections"] == []
    for wrong in (f"{text}\toption port '80\n", None):
        (box.root / CONFIG).write_text(wrong) if wrong else (box.root / CONFIG).unlink()
        told = call(box, "settings")
        assert told["sections"] is None and told["check"]["message"] and "hunter2" not in json.dumps(told), wrong
    # No path of another's making.
    for session in ("", "../uci", "a/b"):
        result = box.run(PLUGIN, "call", "check", input=json.dumps({"ubus_rpc_session": session}), check=False)
        assert result.returncode and not result.stdout, session
    for job in ("../uci", "XXXXXX"):
        result = box.run(PLUGIN, "call", "doctor", input=json.dumps({"job": job}), check=False)
        assert result.returncode and not result.stdout, job
    assert not list((box.root / "tmp").glob("toh-*")), "a candidate is left, with its passwords"


# What prometheus-node-exporter-lua and libubus-lua have for a collector.
EXPORTER = """
package.preload.ubus = function() return { connect = function() return { close = function() end, call = function()
  return %s end } end } end
local function one(name) return function(labels, value)
  assert(type(value) == "number", name)
  local texts = {}
  for key, text in pairs(labels or {}) do texts[#texts + 1] = key .. "=" .. text end
  table.sort(texts)
  print(name .. "{" .. table.concat(texts, ",") .. "} " .. value)
end end
function metric(name, kind, labels, value) if value then one(name)(labels, value) end return one(name) end
dofile("openwrt/files/usr/lib/lua/prometheus-collectors/tcp_over_http.lua").scrape()
"""


def as_lua(value):
    if isinstance(value, dict):
        return "{" + ",".join(f"[{json.dumps(key)}]={as_lua(one)}" for key, one in value.items()) + "}"
    if isinstance(value, list):
        return "{" + ",".join(map(as_lua, value)) + "}"
    return json.dumps(value)


@pytest.mark.once(why="the status knows no path")
def test_metrics_for_prometheus(gateway, proxy, client):
    daemon = gateway()
    _near, _ = open_tunnel(client, proxy, SERVER)
    scrape = lambda status: set(command("lua5.1", "-e", EXPORTER % as_lua(status), cwd=PROJECT).stdout.splitlines())
    told = scrape(daemon.status())
    name = f"{PROXY}:3128"
    assert told >= {"tcp_over_http_up{} 1", "tcp_over_http_flows_opened_total{} 1",
                    f"tcp_over_http_upstream_ok{{upstream={name}}} 1",
                    f"tcp_over_http_upstream_opened_total{{upstream={name}}} 1",
                    f"tcp_over_http_upstream_bytes_total{{direction=up,upstream={name}}} 0",
                    "tcp_over_http_dropped_packets_total{reason=malformed} 0"}
    assert scrape({"error": "no daemon answers"}) == {"tcp_over_http_up{} 0"}
