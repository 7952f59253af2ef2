"""What is left to the daemon, and to programs that it runs, once it is set up."""

import ctypes
import os
import shutil

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


@pytest.fixture
def spy(directory):
    """Stands for nft, and tries beforehand what it may: its environment, and what it has found each time."""
    folder, said = directory / "bin", directory / "said"
    folder.mkdir()
    program = folder / "nft"
    program.write_text(f"""#!/bin/sh
found=
for file in {" ".join(PRECIOUS)}; do
    if (: >>"$file") 2>/dev/null; then found="$found opens"; else found="$found refused"; fi
done
if kill -0 {os.getpid()} 2>/dev/null; then found="$found opens"; else found="$found refused"; fi
echo $found >>{said}
exec {shutil.which("nft")} "$@"
""")
    program.chmod(0o755)
    env = {"PATH": f"{folder}:{os.environ['PATH']}"}
    return env, lambda: said.read_text().splitlines() if said.exists() else []


@pytest.mark.native(why="it is about the kernel")
@pytest.mark.skipif(LANDLOCK < 6, reason="this kernel's Landlock doesn't have all of it")
def test_nothing_of_others_is_changed(configured, proxy, client, router, directory, spy):
    """Neither once it is set up nor in a run that takes its place; what is its own is, and what it restores."""
    env, said = spy
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
        router.run("sh", "-c", f"echo 0 >/proc/sys/net/ipv4/conf/{TUN}/accept_local")
        router.run("ip", "link", "set", TUN, "down")
        daemon.wait_log("deleted from outside: restored", offset)
        until(lambda: router.run("cat", f"/proc/sys/net/ipv4/conf/{TUN}/accept_local").stdout == "1\n", "it is set again")
        assert set(said()[before:]) == {"refused refused refused"}
        assert_proxied(client, proxy, SERVER)
        dig(router, "127.0.0.1", f"{restart}.corp.example", port=PORT)
    daemon.stop()
    assert names.exists()
