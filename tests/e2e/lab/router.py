"""The package on a router: a root file system with what OpenWrt has (openwrt/, doubles), the zones of its firewall,
and the package in it as its ipk has it.

    client     lan - br-lan \\
                             router - wan   internet
    visitor  guest - br-guest /
"""

import contextlib
import os
import pathlib
import shutil
import signal
import socket
import tarfile
import threading
import time

from lab import netns
from lab.gateway import DEFAULT_RULES, PATH, PROJECT, TABLE, TUN, binary, upstream
from lab.netns import RESOLVER, ROUTER_LAN, ROUTER_LAN6, Namespace, batch, command
from lab.wait import WAIT, until

DOUBLES = pathlib.Path(__file__).parent / "openwrt"
SERVICE = "/etc/init.d/tcp-over-http"
CONFIG = "etc/config/tcp-over-http"
RUN = "run/tcp-over-http"
VISITOR, VISITOR6 = "10.2.0.2", "fd02::2"

# Those of busybox's applets that scripts might want and OpenWrt has. (Debian's ash finds others, too: that scripts
# do without what OpenWrt lacks is for tests/package to see.)
APPLETS = """
    ash awk basename cat chmod chown cmp cp cut date dd dirname du echo egrep env expr false find flock fold grep gunzip
    gzip head hexdump hostid id kill killall less ln logger ls lock md5sum mkdir mkfifo mktemp mount mv nc netstat
    nslookup passwd pgrep pidof ping printf ps pwd readlink rm rmdir sed seq sh sha256sum sleep sort strings sync tail
    tar tee test touch tr true uname uniq wc wget which xargs yes zcat
""".split()


def pack(directory):
    """The package of the binary under test, as scripts/ipk makes it."""
    (directory / "x86_64").mkdir(parents=True)
    program = directory / "x86_64/tcp-over-http"
    command("strip", "-o", program, binary())
    # How small it gets is not the question here, and zopfli takes a minute for a debug build.
    quick = directory / "bin/zopfli"
    quick.parent.mkdir()
    quick.write_text('#!/bin/sh\n[ "$1" = --i1 ] && exec gzip -1nc "$3"\nexec gzip -1nk "$1"\n')
    quick.chmod(0o755)
    path = f"{quick.parent}:{os.environ['PATH']}"
    command(PROJECT / "scripts/ipk", "x86_64", env=os.environ | {"DIST": str(directory), "PATH": path})
    return next(program.parent.glob("*.ipk"))


class Router:
    """A router that has not booted yet. Commands run in its namespace and its root, with stock applets only."""

    def __init__(self, network, directory):
        self.network = network
        self.space = network.router
        self.directory = directory
        self.root = directory / "root"
        self.log_path = directory / "router.log"
        self.procd = None
        self.mounts = []
        self.make_root()
        self.make_networks()
        self.start_procd()

    def make_root(self):
        """The machine's own file system below, everything of the router's on top and in memory."""
        memory = self.directory / "memory"
        for folder in (memory, self.root):
            folder.mkdir()
        self.mount("-t", "tmpfs", "tmpfs", memory)
        for folder in ("upper", "work"):
            (memory / folder).mkdir()
        layers = f"lowerdir=/,upperdir={memory}/upper,workdir={memory}/work"
        self.mount("-t", "overlay", "overlay", "-o", layers, self.root)
        self.mount("-t", "proc", "proc", self.root / "proc")
        for folder in ("dev", "tmp", "run"):
            self.mount("-t", "tmpfs", "tmpfs", self.root / folder)
        for device in ("null", "zero", "random", "urandom", "net/tun"):
            path = self.root / "dev" / device
            path.parent.mkdir(exist_ok=True)
            os.mknod(path, os.stat(f"/dev/{device}").st_mode, os.stat(f"/dev/{device}").st_rdev)
        self.log_socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.log_socket.bind(str(self.root / "dev/log"))
        self.logged = []
        # All the time: whoever writes to a full socket waits.
        self.collector = threading.Thread(target=self.collect, daemon=True)
        self.collector.start()
        self.run_dir = self.root / "run"
        for folder in ("etc/config", "etc/rc.d", "usr/lib/opkg/info", "run/lock", "router/bin"):
            (self.root / folder).mkdir(parents=True, exist_ok=True)
        shutil.copytree(DOUBLES, self.root, dirs_exist_ok=True)
        applets = self.root / "router/bin"
        for name in APPLETS:
            (applets / name).symlink_to("/usr/bin/busybox")
        for name in ("nft", "fw4", "dnsmasq"):
            (applets / name).symlink_to(f"/usr/sbin/{name}")
        for name in ("jsonfilter", "ubus", "uci"):
            (applets / name).symlink_to(f"/usr/bin/{name}")
        (self.root / "etc/resolv.conf").unlink(missing_ok=True)
        (self.root / "etc/resolv.conf").write_text("nameserver 127.0.0.1\n")
        uplink = self.root / "tmp/resolv.conf.d/resolv.conf.auto"
        uplink.parent.mkdir()
        uplink.write_text(f"# Interface wan\nnameserver {RESOLVER}\n")
        shell = self.root / "usr/bin/sh"
        shell.unlink()
        shell.symlink_to("busybox")

    def make_networks(self):
        """br-lan in the place of the router's side of the LAN, which is down until the network starts; a guest network."""
        self.space.run("ip", "link", "set", "lan", "down")
        self.space.run("ip", "addr", "flush", "dev", "lan")
        self.guest = Namespace(f"toh-{os.getpid()}-{next(netns.numbers)}-guest")
        self.network.namespaces.append(self.guest)
        for bridge in ("br-lan", "br-guest"):
            self.space.run("ip", "link", "add", bridge, "type", "bridge")
        for key in ("net.ipv6.conf.all.accept_dad", "net.ipv6.conf.default.accept_dad"):
            self.guest.sysctl(key, 0)
        self.space.run("ip", "link", "add", "guest", "type", "veth", "peer", "name", "guest", "netns", self.guest.name)
        for device, bridge in (("lan", "br-lan"), ("guest", "br-guest")):
            self.space.run("ip", "link", "set", device, "master", bridge)
        batch(self.guest, f"addr add {VISITOR}/24 dev guest", f"addr add {VISITOR6}/64 dev guest nodad", "link set guest up")
        self.network.internet.run("ip", "route", "add", "10.2.0.0/24", "via", netns.ROUTER_WAN)
        self.network.internet.run("ip", "-6", "route", "add", "fd02::/64", "via", netns.ROUTER_WAN6)

    def mount(self, *arguments):
        command("mount", *arguments)
        self.mounts.append(arguments[-1])

    def run(self, *argv, check=True, **options):
        """Runs a command as the router's shell would."""
        env = {"PATH": "/router/bin", "HOME": "/"} | options.pop("env", {})
        return self.space.run("/usr/sbin/chroot", self.root, *argv, check=check, env=env, **options)

    def service(self, action, check=True, **options):
        """What the init script does with an action."""
        return self.run(SERVICE, action, check=check, **options)

    def install(self, package):
        """As opkg: the files, then postinst."""
        members = {name: self.directory / "ipk" / name for name in ("data.tar.gz", "control.tar.gz")}
        with tarfile.open(package) as outer:
            outer.extraction_filter = getattr(tarfile, "data_filter", None)  # Python before 3.11.4 knows none
            outer.extractall(self.directory / "ipk")
        command("tar", "-C", self.root, "--keep-directory-symlink", "-xzf", members["data.tar.gz"])
        with tarfile.open(members["data.tar.gz"]) as data:
            self.files = [info.name.removeprefix(".") for info in data if not info.isdir()]
        info = self.root / "usr/lib/opkg/info"
        with tarfile.open(members["control.tar.gz"]) as control:
            for member in control:
                if member.isfile():
                    target = info / f"tcp-over-http.{member.name.removeprefix('./')}"
                    target.write_bytes(control.extractfile(member).read())
                    target.chmod(member.mode)
        (info / "tcp-over-http.list").write_text("\n".join(self.files) + "\n")
        self.script("postinst")

    def remove(self):
        """As opkg: prerm, the files but configurations that were changed, postrm."""
        self.script("prerm")
        for name in self.files:
            if name != f"/{CONFIG}":
                (self.root / name.lstrip("/")).unlink()
        self.script("postrm")

    def script(self, name, **env):
        path = self.root / f"usr/lib/opkg/info/tcp-over-http.{name}"
        if path.exists():
            self.run(f"/usr/lib/opkg/info/{path.name}", env=env)

    def configure(self, *lines, upstreams=(upstream(),), enabled=1):
        """Writes the configuration: everything captured, on the path that the tests are run on."""
        options = [f"option enabled '{enabled}'", "option auto_route '1'", "option log_level 'debug'", *lines]
        if not any("option path" in line for line in lines):
            options.append(f"option path '{PATH}'")
        options += [f"list upstream '{url}'" for url in upstreams]
        text = "config tcp-over-http 'main'\n" + "".join(f"\t{line}\n" for line in options)
        # As uci does: another file in the place of the old one.
        new = self.root / f"{CONFIG}.new"
        new.write_text(text)
        new.rename(self.root / CONFIG)

    def serve(self, *lines, **more):
        """Configures and boots, and waits for the daemon."""
        self.configure(*lines, **more)
        self.boot()
        self.wait_ready()

    def start_procd(self):
        log = open(self.log_path, "ab")
        env = {"PATH": "/router/bin", "RUST_BACKTRACE": "1"}
        self.procd = self.space.popen(
            "/usr/sbin/chroot", self.root, "/procd.py", "/run/procd.sock", env=env, stdout=log, stderr=log
        )
        until((self.run_dir / "procd.sock").exists, "procd listens")

    def boot(self, network=True):
        """What rc.d says, in its order, then the network (S20), before which there is not even a loopback."""
        self.space.run("ip", "link", "set", "lo", "down")
        scripts = {path.name: path for path in (self.root / "etc/rc.d").iterdir()}
        scripts |= {"S19dnsmasq": None, "S19firewall": None}
        for name in sorted(scripts):
            self.run(f"/etc/init.d/{name[3:]}", "boot", check=False)
        if network:
            self.start_network()

    def start_network(self):
        """netifd's part: all rules go, and the loopback's routes before it comes up; addresses, links, hotplug, and the
        firewall anew."""
        self.space.run("ip", "link", "set", "lo", "down")
        for family in ("-4", "-6"):
            self.space.run("ip", family, "rule", "flush")
            for priority, table in (("32766", "main"), ("32767", "default")):
                self.space.run("ip", family, "rule", "add", "priority", priority, "lookup", table)
            self.space.run("ip", family, "route", "flush", "table", "all", "dev", "lo", check=False)
        self.space.run("ip", "link", "set", "lo", "up")
        self.hotplug("loopback")
        batch(
            self.space,
            f"addr replace {ROUTER_LAN}/24 dev br-lan",
            f"addr replace {ROUTER_LAN6}/64 dev br-lan nodad",
            "addr replace 10.2.0.1/24 dev br-guest",
            "addr replace fd02::1/64 dev br-guest nodad",
            *(f"link set {name} up" for name in ("lan", "guest", "br-lan", "br-guest")),
        )
        batch(self.guest, "route replace default via 10.2.0.1", "route replace default via fd02::1")
        self.network.client.run("ip", "route", "replace", "default", "via", ROUTER_LAN)
        self.network.client.run("ip", "-6", "route", "replace", "default", "via", ROUTER_LAN6)
        self.hotplug("lan")
        self.run("fw4", "-q", "reload")
        # The bridge forwards at once: no spanning tree.
        reach = lambda: self.network.client.run("ping", "-c1", "-W1", ROUTER_LAN, check=False).returncode == 0
        until(reach, "the LAN is up")

    def hotplug(self, interface, action="ifup"):
        for script in sorted((self.root / "etc/hotplug.d/iface").glob("*")):
            self.run("sh", f"/etc/hotplug.d/iface/{script.name}", env={"ACTION": action, "INTERFACE": interface})

    def log(self):
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    def collect(self):
        with contextlib.suppress(OSError):
            while message := self.log_socket.recv(65535):
                self.logged.append(message.decode(errors="replace"))

    def syslog(self):
        """What scripts have told syslog; a moment may pass until it is there."""
        return "\n".join(self.logged)

    def pid(self):
        """The daemon's process, 0 without one."""
        path = self.run_dir / "tcp-over-http.pid"
        with contextlib.suppress(FileNotFoundError, ValueError):
            pid = int(path.read_text())
            return pid if os.path.exists(f"/proc/{pid}") else 0
        return 0

    def wait_ready(self, offset=0):
        until(lambda: "listening" in self.log()[offset:], f"the daemon listens: {self.log()} {self.syslog()}")
        return self

    def nft(self):
        return self.space.run("nft", "-s", "list", "ruleset").stdout

    def traces(self):
        """What tells that the service runs, or has run and left it."""
        found = []
        for family in ("-4", "-6"):
            found += [rule for rule in self.space.ip(family, "rule") if rule["priority"] not in DEFAULT_RULES]
            found += self.space.ip(family, "route", "show", "table", TABLE, check=False)
        found += [link["ifname"] for link in self.space.ip("link") if link["ifname"] == TUN]
        found += [line for line in self.nft().splitlines() if TUN in line or "tcp_over_http" in line]
        # The names' fake addresses are for the next run.
        files = {path.name for path in self.run_dir.glob("tcp-over-http*")} - {"tcp-over-http.names"}
        return found + sorted(files)

    def close(self):
        # Wakes who receives; open it would keep /dev from being unmounted.
        self.log_socket.shutdown(socket.SHUT_RDWR)
        self.collector.join(WAIT)
        self.log_socket.close()
        if self.procd and self.procd.poll() is None:
            self.space.stop(self.procd)
        for pid in map(int, command("ip", "netns", "pids", self.space.name).stdout.split()):
            with contextlib.suppress(ProcessLookupError):
                if pid != os.getpid():
                    os.kill(pid, signal.SIGKILL)
        for mount in reversed(self.mounts):
            for _ in range(50):
                if command("umount", mount, check=False).returncode == 0:
                    break
                time.sleep(0.05)
            else:
                command("umount", "-l", mount)
