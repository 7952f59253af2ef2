"""The feeds that scripts/feed lays out, and what scripts/release says of a version."""

import gzip
import hashlib
import os
import re
import shutil
import subprocess

import pytest

from packages import ARCHS, BINARY, ROOT, Root, makefile, members, needs_apk_tool, needs_root, package_version, parts, version


def lay_out(folder, *options, check=True, **environment):
    """Makes feeds of a stand-in for the MIPS binary."""
    (folder / "dist/mips").mkdir(parents=True)
    (folder / "dist/mips/tcp-over-http").write_bytes(BINARY)
    env = {name: value for name, value in os.environ.items() if name not in ("OPKG_KEY", "APK_KEY")}
    env |= {"DIST": str(folder / "dist")} | environment
    command = [ROOT / "scripts/feed", *options, folder / "feed", "mips"]
    return subprocess.run(command, env=env, check=check, capture_output=True, text=True)


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    folder = tmp_path_factory.mktemp("keys")
    subprocess.run(["signify-openbsd", "-Gn", "-p", folder / "opkg.pub", "-s", folder / "opkg.sec"], check=True)
    curve = ["ecparam", "-name", "prime256v1", "-genkey", "-noout"]
    subprocess.run(["openssl", *curve, "-out", folder / "apk.key"], check=True)
    return {"OPKG_KEY": str(folder / "opkg.sec"), "APK_KEY": str(folder / "apk.key")}


@pytest.fixture(scope="module")
def feed(tmp_path_factory, keys):
    folder = tmp_path_factory.mktemp("feeds")
    # Without apk-tools it is --unsigned, and the opkg feed is signed all the same.
    lay_out(folder, "--unsigned", **keys)
    return folder / "feed"


@pytest.mark.parametrize("arch", ARCHS)
def test_an_opkg_index_tells_of_the_packages_beside_it(feed, arch):
    folder = feed / "opkg" / arch
    index = (folder / "Packages").read_text()
    assert gzip.decompress((folder / "Packages.gz").read_bytes()).decode() == index
    entries = index.removesuffix("\n\n").split("\n\n")
    told = [dict(line.split(": ", 1) for line in entry.splitlines() if not line.startswith(" ")) for entry in entries]
    assert sorted(path.name for path in folder.glob("*.ipk")) == [fields["Filename"] for fields in told]
    # The page, then the daemon.
    assert [fields["Architecture"] for fields in told] == ["all", arch]
    for entry, fields in zip(entries, told):
        package = (folder / fields["Filename"]).read_bytes()
        assert fields["SHA256sum"] == hashlib.sha256(package).hexdigest()
        assert int(fields["Size"]) == len(package)
        assert fields["Version"] == package_version()
        # All else is the package's own word, the description last.
        control = members(parts(folder / fields["Filename"])[1])[0]["./control"][1].decode()
        added = ("Filename: ", "Size: ", "SHA256sum: ")
        assert "".join(f"{line}\n" for line in entry.splitlines() if not line.startswith(added)) == control


@pytest.mark.parametrize("arch", ARCHS)
def test_an_opkg_index_is_signed(feed, keys, arch, tmp_path):
    folder = feed / "opkg" / arch
    (key,) = (path for path in (feed / "keys").iterdir() if path.suffix != ".pem")
    # As opkg's usign finds it: by the number that the signature has, too.
    assert re.fullmatch("[0-9a-f]{16}", key.name)
    verify = ["signify-openbsd", "-V", "-q", "-p", key, "-x", folder / "Packages.sig", "-m"]
    subprocess.run([*verify, folder / "Packages"], check=True)
    other = tmp_path / "Packages"
    other.write_text((folder / "Packages").read_text().replace("Size: ", "Size: 1", 1))
    assert subprocess.run([*verify, other], capture_output=True).returncode != 0


@needs_apk_tool
@needs_root
def test_apk_adds_it_from_a_signed_feed(feed, tmp_path):
    index = feed / "apk" / ARCHS[0] / "packages.adb"
    page = f"luci-app-tcp-over-http-{package_version()}.apk"
    assert sorted(path.name for path in index.parent.glob("*.apk")) == [page, f"tcp-over-http-{package_version()}.apk"]
    root = Root(tmp_path)
    add = ["--repository", index, "add", "tcp-over-http"]
    with pytest.raises(subprocess.CalledProcessError):
        root.apk(*add, trusted=False)
    (root.path / "etc/apk/keys").mkdir(parents=True, exist_ok=True)
    shutil.copy(feed / "keys/tcp-over-http.pem", root.path / "etc/apk/keys")
    root.apk(*add, trusted=False)
    assert (root.path / "usr/bin/tcp-over-http").read_bytes() == BINARY


def test_what_is_missing_is_no_release(tmp_path):
    result = lay_out(tmp_path, check=False, APK="/nonexistent/apk")
    assert result.returncode != 0
    for message in ["no OPKG_KEY", "NO APK FEED", "not a release"]:
        assert message in result.stderr, message
    assert not (tmp_path / "feed").exists()


def test_a_trial_says_what_it_lacks(tmp_path):
    result = lay_out(tmp_path, "--unsigned", APK="/nonexistent/apk")
    for message in ["no OPKG_KEY", "NO APK FEED"]:
        assert message in result.stderr, message
    files = {path.name for path in (tmp_path / "feed/opkg" / ARCHS[0]).iterdir()}
    packages = {f"tcp-over-http_{package_version()}_{ARCHS[0]}.ipk", f"luci-app-tcp-over-http_{package_version()}_all.ipk"}
    assert files == packages | {"Packages", "Packages.gz"}
    assert not (tmp_path / "feed/apk").exists()


def test_the_version_is_the_same_everywhere():
    assert makefile("PKG_VERSION") == version()
    latest = re.search(r"^## \[(.*)\] - (.*)$", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert latest[1] == version()
    assert latest[2] == "unreleased" or re.fullmatch(r"\d{4}-\d\d-\d\d", latest[2])


def test_the_feeds_own_test_wants_this_version(tmp_path):
    binary = tmp_path / "tcp-over-http"
    env = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    for says, passes in [(version(), True), ("1" + version(), False)]:
        binary.write_text(f"#!/bin/sh\necho tcp-over-http {says}\n")
        binary.chmod(0o755)
        command = [ROOT / "openwrt/test.sh", "tcp-over-http", makefile("PKG_VERSION")]
        result = subprocess.run(command, env=env, capture_output=True, text=True)
        assert (result.returncode == 0) == passes
        assert result.stdout == (f"tcp-over-http {says}\n" if passes else "")


def test_a_release_has_its_hash():
    """Written by scripts/release --prepare, which a release checks; zeros, which no archive has, before the first."""
    assert re.fullmatch("[0-9a-f]{64}", makefile("PKG_HASH"))
    if makefile("PKG_HASH") == "0" * 64:
        assert f"## [{version()}] - unreleased\n" in (ROOT / "CHANGELOG.md").read_text()
