"""The packages that scripts/ipk and scripts/apk make, taken apart and compared file by file."""

import gzip
import hashlib
import json
import os
import re
import shutil
import subprocess
import tarfile

import pytest

from packages import (
    ARCHS,
    BINARY,
    CONFIG,
    EPOCH,
    FILES,
    OWN_SCRIPT,
    ROOT,
    Root,
    apk_tool,
    expected_files,
    members,
    mkpkg_stand_in,
    needs_apk_tool,
    needs_root,
    pack,
    package_version,
    parts,
    version,
)


@pytest.fixture(scope="module")
def ipk(tmp_path_factory):
    dist = tmp_path_factory.mktemp("dist")
    pack("ipk", dist)
    return dist / f"mips/tcp-over-http_{package_version()}_mips_24kc.ipk"


def test_an_ipk_holds_these_files_and_no_others(ipk):
    found, _ = members(parts(ipk)[0])
    files = {name.removeprefix("./"): (info.mode, data) for name, (info, data) in found.items() if info.isfile()}
    assert files == expected_files()
    for name, (info, _) in found.items():
        assert (info.uid, info.gid, info.mtime) == (0, 0, EPOCH), name
        assert info.isfile() or (info.isdir() and info.mode == 0o755), name


def test_an_ipk_says_what_it_is(ipk):
    data, control = parts(ipk)
    found, _ = members(control)
    modes = {"conffiles": 0o644, "control": 0o644} | dict.fromkeys(["postinst", "postinst-pkg", "postrm", "prerm"], 0o755)
    assert sorted(found) == [".", *(f"./{name}" for name in sorted(modes))]
    for name, mode in modes.items():
        info, _ = found["./" + name]
        assert (info.mode, info.uid, info.gid, info.mtime) == (mode, 0, 0, EPOCH), name
    assert found["./conffiles"][1] == f"/{CONFIG}\n".encode()
    text = found["./control"][1].decode()
    fields = dict(line.split(": ", 1) for line in text.splitlines() if not line.startswith(" "))
    assert fields["Package"] == "tcp-over-http"
    assert fields["Version"] == package_version()
    assert fields["Architecture"] == "mips_24kc"
    assert fields["Depends"] == "kmod-tun, nftables, kmod-nft-dup-inet, kmod-nf-conntrack-netlink"
    assert fields["License"] == "MIT"
    assert int(fields["Installed-Size"]) == len(gzip.decompress(data))
    assert list(fields)[-1] == "Description"
    assert text.endswith("take as long as they really do.\n")


def test_scripts_of_an_ipk_do_what_openwrt_does(ipk, tmp_path):
    found, _ = members(parts(ipk)[1])
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib/functions.sh").write_text(
        'default_postinst() { echo "postinst $#"; }\ndefault_prerm() { echo "prerm $#"; }\n'
    )
    for script in ["postinst", "prerm"]:
        path = tmp_path / script
        path.write_bytes(found["./" + script][1])
        run = lambda **env: subprocess.run(
            ["sh", path, "configure"], env=os.environ | env, check=True, capture_output=True, text=True
        ).stdout
        assert run(IPKG_INSTROOT=str(tmp_path)) == f"{script} 2\n"
        assert run(IPKG_INSTROOT="/nonexistent") == ""
    for script in ["postinst-pkg", "postrm"]:
        assert found["./" + script][1].decode() == f"#!/bin/sh\n{OWN_SCRIPT}\nexit 0\n"
    assert subprocess.run(["sh", tmp_path / "postinst"], env=os.environ | {
        "IPKG_INSTROOT": str(tmp_path), "IPKG_NO_SCRIPT": "1"}, check=True, capture_output=True).stdout == b""


def test_all_architectures_of_a_target_get_the_same(ipk):
    packages = sorted(path.name for path in ipk.parent.glob("*.ipk"))
    assert packages == [f"tcp-over-http_{package_version()}_{arch}.ipk" for arch in ARCHS]
    data = {parts(path)[0] for path in ipk.parent.glob("*.ipk")}
    assert len(data) == 1


@pytest.mark.parametrize("script", ["ipk", pytest.param("apk", marks=needs_apk_tool)])
def test_a_package_is_the_same_wherever_and_whenever_it_is_made(script, tmp_path):
    here = tmp_path / "here"
    pack(script, here)
    # Another checkout, with another umask, other times, in another time zone and language.
    project = tmp_path / "a checkout elsewhere"
    project.mkdir()
    for name in ["scripts", "openwrt"]:
        shutil.copytree(ROOT / name, project / name, copy_function=shutil.copy)
    shutil.copy(ROOT / "Cargo.toml", project)
    for path in project.rglob("*"):
        path.chmod(0o700 if path.is_dir() or os.access(path, os.X_OK) else 0o600)
    old = os.umask(0o077)
    try:
        pack(script, tmp_path / "there", project, TZ="Asia/Tokyo", LC_ALL="C")
    finally:
        os.umask(old)
    packages = list(here.rglob(f"*.{script}"))
    assert len(packages) == len(ARCHS) + 1  # and the page
    for package in packages:
        assert (tmp_path / "there" / package.relative_to(here)).read_bytes() == package.read_bytes()


def test_what_is_not_built_is_not_packed(tmp_path):
    for script, arguments, message in [
        ("ipk", ["mips"], "mips is not built"),
        ("ipk", [], "nothing is built"),
        ("ipk", ["pdp11"], "no target 'pdp11'"),
        ("build", ["pdp11"], "no target 'pdp11'"),
    ]:
        env = os.environ | {"DIST": str(tmp_path)}
        result = subprocess.run([ROOT / "scripts" / script, *arguments], env=env, capture_output=True, text=True)
        assert result.returncode != 0 and message in result.stderr, (script, arguments)
    assert not list(tmp_path.rglob("*.ipk"))


def test_without_an_apk_tool_none_is_made_and_it_says_so(tmp_path):
    assert "skipped" in pack("apk", tmp_path, APK="/nonexistent/apk")
    old = tmp_path / "apk"
    old.write_text("#!/bin/sh\necho apk-tools 2.14.4, compiled for x86_64.\n")
    old.chmod(0o755)
    assert "skipped" in pack("apk", tmp_path, APK=str(old))
    assert not list(tmp_path.rglob("*.apk"))


def test_apk_mkpkg_is_given_the_same_files(tmp_path):
    if os.geteuid() != 0 and not shutil.which("fakeroot"):
        pytest.skip("needs root or fakeroot")
    apk = mkpkg_stand_in(tmp_path)
    pack("apk", tmp_path / "dist", APK=str(apk))
    packages = sorted(path.relative_to(tmp_path / "dist/mips").as_posix() for path in tmp_path.glob("dist/mips/*/*.apk"))
    assert packages == [f"{arch}/tcp-over-http-{package_version()}.apk" for arch in ARCHS]
    package = tmp_path / "dist/mips" / packages[-1]
    arguments = package.read_text()
    for line in [f"info version:{package_version()}", "info arch:mips_4kec",
                 "info depends:kmod-tun nftables kmod-nft-dup-inet kmod-nf-conntrack-netlink",
                 "script post-install", "script post-upgrade", "script pre-deinstall", "script post-deinstall",
                 "default_postinst", OWN_SCRIPT,
                 f"./{CONFIG} 600 0 0 {EPOCH}", f"./usr/bin/tcp-over-http 755 0 0 {EPOCH}"]:
        assert line in arguments.splitlines(), line
    with tarfile.open(f"{package}.tar") as archive:
        found = {i.name.removeprefix("./"): (i.mode, archive.extractfile(i).read()) for i in archive if i.isfile()}
    info = "lib/apk/packages/tcp-over-http."
    listing = found.pop(info + "list")[1].decode().split()
    assert listing == sorted("/" + name for name in expected_files())
    assert found.pop(info + "conffiles")[1] == f"/{CONFIG}\n".encode()
    digest = hashlib.sha256((FILES / CONFIG).read_bytes()).hexdigest()
    assert found.pop(info + "conffiles_static")[1] == f"/{CONFIG} {digest}\n".encode()
    assert found == expected_files()


def test_without_root_apk_packs_under_fakeroot_from_any_folder(tmp_path):
    for name, script in {"id": "echo 1000", "fakeroot": 'shift; FAKEROOTKEY=1 exec "$@"', "chown": ":"}.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o755)
    (tmp_path / "dist/mips").mkdir(parents=True)
    (tmp_path / "dist/mips/tcp-over-http").write_bytes(BINARY)
    env = {"DIST": str(tmp_path / "dist"), "APK": str(mkpkg_stand_in(tmp_path)), "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    subprocess.run(["./apk", "mips"], cwd=ROOT / "scripts", env=os.environ | env, check=True)
    assert len(list(tmp_path.rglob("*.apk"))) == len(ARCHS) + 1  # and the page


@needs_apk_tool
@needs_root
def test_apk_adds_upgrades_and_deletes_it(tmp_path):
    pack("apk", tmp_path / "old")
    (old,) = (tmp_path / f"old/mips/{ARCHS[0]}").glob("*.apk")
    project = tmp_path / "project"
    for name in ["scripts", "openwrt"]:
        shutil.copytree(ROOT / name, project / name)
    shutil.copy(ROOT / "Cargo.toml", project)
    for name, find, replace in [("Makefile", "PKG_RELEASE:=1", "PKG_RELEASE:=2"),
                                (f"files/{CONFIG}", "\n", "\n# Said anew.\n"),
                                ("files/etc/init.d/tcp-over-http", "\n", "\n# Done anew.\n")]:
        path = project / "openwrt" / name
        path.write_text(path.read_text().replace(find, replace, 1))
    pack("apk", tmp_path / "new", project)
    (new,) = (tmp_path / f"new/mips/{ARCHS[0]}").glob("*.apk")
    assert new.name == f"tcp-over-http-{version()}-r2.apk"
    apk_tool("verify", "--allow-untrusted", old, new)

    root = Root(tmp_path)
    before = root.files()
    postinst = ["add_group_and_user tcp-over-http ", "default_postinst tcp-over-http ", "rpcd reload"]
    assert root.apk("add", old) == postinst
    added = {name: (path.stat().st_mode & 0o7777, path.read_bytes()) for name, path in root.files().items() if name not in before}
    for name in ["list", "conffiles", "conffiles_static"]:
        assert added.pop(f"lib/apk/packages/tcp-over-http.{name}")[0] == 0o644
    assert added == expected_files()
    assert {(path.stat().st_uid, path.stat().st_gid) for path in root.files().values()} == {(0, 0)}

    config = root.path / CONFIG
    config.write_text("# Mine.\n")
    assert root.apk("add", new) == [postinst[0] + "1", postinst[1] + "1", postinst[2]]
    assert config.read_text() == "# Mine.\n"
    assert config.stat().st_mode & 0o7777 == 0o600
    assert "# Said anew." in (root.path / f"{CONFIG}.apk-new").read_text()
    assert "# Done anew." in (root.path / "etc/init.d/tcp-over-http").read_text()

    assert root.apk("del", "tcp-over-http") == ["default_prerm tcp-over-http ", "rpcd reload"]
    assert sorted(root.files()) == sorted([*before, CONFIG])
    assert config.read_text() == "# Mine.\n"


@needs_apk_tool
@needs_root
def test_apk_adds_it_from_a_repository(tmp_path):
    pack("apk", tmp_path / "dist")
    (package,) = (tmp_path / f"dist/mips/{ARCHS[0]}").glob("*.apk")
    index = package.parent / "packages.adb"
    apk_tool("mkndx", "--allow-untrusted", "--output", index, package)
    root = Root(tmp_path)
    root.apk("--repository", index, "add", "tcp-over-http")
    assert (root.path / "usr/bin/tcp-over-http").read_bytes() == BINARY


def test_the_version_is_one_that_apk_takes():
    # No v, and no dash but that of the release.
    assert re.fullmatch(r"\d+\.\d+\.\d+(_(alpha|beta|rc)\d+)?-r\d+", package_version())


def test_the_service_is_off_until_it_is_set_up():
    config = (FILES / CONFIG).read_text()
    assert "\n\toption enabled '0'\n" in config
    # No password, no proxy: whoever enables it as it is gets an error and no surprise.
    assert not re.search(r"^\s*(list upstream|config upstream)", config, re.M)


def test_a_jail_needs_no_capability_that_there_is_not():
    """ujail ends on an effective, permitted, inheritable or ambient set that a container can't have."""
    assert set(json.loads((FILES / "etc/capabilities/tcp-over-http.json").read_text())) == {"bounding"}
