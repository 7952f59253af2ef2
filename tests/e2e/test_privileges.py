"""What is left to the daemon, and to programs that it runs, once it is set up."""

import ctypes
import os
import shutil
import sys

import pytest

from lab.connections import assert_proxied
from lab.dnsservers import PORT, dig
from lab.gateway import NFT_TABLE, TUN
from lab.netns import SERVER
from lab.wait import until

# Root's own: no capability is needed to write them.
PRECIOUS = ("/etc/passwd", "/proc/sys/kernel/core_pattern")
# landlock_create_ruleset(2), which tells its version with this flag.
LANDLOCK = ctypes.CDLL(None).syscall(444, None, 0, 1)


# prctl(2): PR_GET_SECCOMP is refused where there is none.
HAS_SECCOMP = ctypes.CDLL(None).prctl(21, 0, 0, 0, 0) >= 0

CHANGES = [*(f": >>{file}" for file in PRECIOUS), f"kill -0 {os.getpid()}"]
# What root's UID, or anybody, may do without a capability that the daemon keeps.
CALLS = [
    "unshare -U true",
    "chmod 644 /etc/passwd",
    f"{sys.executable} -ISc 'import socket; socket.socket(socket.AF_PACKET, socket.SOCK_RAW)'",
    # io_uring_setup(2): EFAULT, where it is looked at.
    f"{sys.executable} -ISc 'import ctypes; c = ctypes.CDLL(None, use_errno=True)\n"
    "c.syscall(425, 1, None); assert ctypes.get_errno() == 14'",
]


@pytest.fixture
def spy(directory):
    """Stands for nft, and tries beforehand what it may: its environment, and what it has found each time."""

    def stand(attempts):
        folder, said = directory / "bin", directory / "said"
        folder.mkdir()
        program = folder / "nft"
        tried = "\n".join(f'if ({attempt}) 2>&-; then found="$found opens"; else found="$found refused"; fi'
                          for attempt in attempts)
        program.write_text(f"""#!/bin/sh
found=
{tried}
echo $found >>{said}
exec {shutil.which("nft")} "$@"
""")
        program.chmod(0o755)
        env = {"PATH": f"{folder}:{os.environ['PATH']}"}
        return env, lambda: said.read_text().splitlines() if said.exists() else []

    return stand


@pytest.mark.native(why="it is about the kernel")
@pytest.mark.skipif(LANDLOCK < 6, reason="this kernel's Landlock doesn't have all of it")
def test_nothing_of_others_is_changed(configured, proxy, client, router, directory, spy):
    """Neither once it is set up nor in a run that takes its place; what is its own is, and what it restores."""
    env, said = spy(CHANGES)
    names = directory / "names"
    lines = f"option dns fakeip\noption fakeip_file {names}\noption drain_timeout 0"
    daemon = configured.write(lines).start(env=env)
    assert said()[0] == "opens opens opens"  # at the start: the test can fail
    for restart in (False, True):
        if restart:
            configured.restart(main=f"{lines}\noption mtu 1400")
            names.unlink()  # the first run's, at its end
        before, offset = len(said()), len(daemon.log())
        router.run("nft", "delete", "table", "ip", NFT_TABLE)
        router.run("sh", "-c", f"echo 0 >/proc/sys/net/ipv4/conf/{TUN}/rp_filter")
        router.run("ip", "link", "set", TUN, "down")
        daemon.wait_log("deleted from outside: restored", offset)
        until(lambda: router.run("cat", f"/proc/sys/net/ipv4/conf/{TUN}/rp_filter").stdout == "2\n", "it is set again")
        assert set(said()[before:]) == {"refused refused refused"}
        assert_proxied(client, proxy, SERVER)
        dig(router, "127.0.0.1", f"{restart}.corp.example", port=PORT)
    daemon.stop()
    assert names.exists()


@pytest.mark.native(why="it is about the kernel")
@pytest.mark.skipif(not HAS_SECCOMP, reason="this kernel has no filters of calls")
def test_no_other_calls_are_made(configured, proxy, client, router, spy):
    """What is needed for nothing is refused, to programs that are run, too, and in a run that takes its place."""
    env, said = spy(CALLS)
    daemon = configured.write("option drain_timeout 0").start(env=env)
    assert said()[0].endswith("opens opens")  # at the start: the test can fail
    for restart in (False, True):
        if restart:
            configured.restart(main="option drain_timeout 0\noption mtu 1400")
        before, offset = len(said()), len(daemon.log())
        router.run("nft", "delete", "table", "ip", NFT_TABLE)
        daemon.wait_log("deleted from outside: restored", offset)
        assert set(said()[before:]) == {"refused refused refused refused"}
        assert_proxied(client, proxy, SERVER)
