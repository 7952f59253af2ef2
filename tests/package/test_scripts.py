"""The scripts for the router, as far as reading them tells."""

import os
import pathlib
import re
import subprocess

import pytest

FILES = pathlib.Path(__file__).resolve().parents[2] / "openwrt/files"
SCRIPTS = sorted(
    path for path in FILES.rglob("*") if path.is_file() and re.match(rb"#!/bin/sh|# shellcheck shell", path.read_bytes())
)
# What OpenWrt's busybox has not, and what it never had.
LACKING = """
    timeout stat realpath nproc install comm sha1sum base64 od nohup diff getopt pkill bash python3 perl jq curl ip6tables
    iptables
""".split()


@pytest.fixture(params=SCRIPTS, ids=lambda path: str(path.relative_to(FILES)))
def script(request):
    return request.param


def test_there_are_scripts():
    assert len(SCRIPTS) >= 4


def test_stock_applets_are_enough(script):
    code = "\n".join(line for line in script.read_text().splitlines() if not line.lstrip().startswith("#"))
    assert not re.findall(rf"(?<![\w/$-])({'|'.join(LACKING)})(?![\w=.-])", code)
    # busybox's sleep takes whole seconds.
    assert not re.search(r"\bsleep \d*\.", code)


def test_values_come_from_the_program(script):
    """`config --shell` knows defaults and what is valid; of the configuration uci would tell neither."""
    assert not re.search(r"config_get(_bool)? \w+ main\b|uci (-q )?get tcp-over-http", script.read_text())


def test_ash_reads_it(script):
    subprocess.run(["busybox", "ash", "-n", script], check=True)


def test_includes_of_the_firewall_match_nothing_while_nothing_runs():
    includes = sorted(FILES.glob("usr/share/nftables.d/**/*.nft"))
    assert len(includes) == 3
    for path in includes:
        # nft takes only a pattern that matches no file.
        assert re.fullmatch(r'include "/var/run/tcp-over-http/\w+\*\.nft"\n', path.read_text()), path


def test_rpcd_finds_what_the_init_script_says():
    """`rc list` reads the first 11 lines, for these three (rpcd's rc.c)."""
    head = (FILES / "etc/init.d/tcp-over-http").read_text().splitlines()[:10]
    for line in ("START=18", "STOP=10", "USE_PROCD=1"):
        assert line in head


def test_the_makefile_installs_all_files_with_their_modes(tmp_path):
    """And no file twice, nor under another name."""
    text = (FILES.parent / "Makefile").read_text()
    install = text.split("define Package/tcp-over-http/install\n")[1].split("endef")[0]
    modes = {"BIN": 0o755, "CONF": 0o600, "DATA": 0o644}
    found = {}
    for kind, source, target in re.findall(r"\$\(INSTALL_(BIN|CONF|DATA)\) \./files/(\S+) \$\(1\)/(\S+)", install):
        assert source.rpartition("/")[0] + "/" == target
        assert source not in found and re.search(rf"\$\(INSTALL_DIR\).* \$\(1\)/{target.rstrip('/')}( |$)", install, re.M)
        found[source] = modes[kind]
    wanted = {
        path.relative_to(FILES).as_posix(): 0o755 if os.access(path, os.X_OK) else 0o644
        for path in FILES.rglob("*") if path.is_file()
    }
    assert found == wanted | {"etc/config/tcp-over-http": 0o600}


def test_nothing_is_kept_twice():
    """sysupgrade keeps conffiles by itself."""
    kept = (FILES / "lib/upgrade/keep.d/tcp-over-http").read_text().split()
    text = (FILES.parent / "Makefile").read_text()
    assert not set(kept) & set(text.split("/conffiles\n")[1].split("endef")[0].split())
