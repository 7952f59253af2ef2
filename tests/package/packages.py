"""What the tests of packages share: a package made of a stand-in for the binary, and how to look into one."""

import gzip
import io
import os
import pathlib
import re
import shutil
import subprocess
import tarfile

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
FILES = ROOT / "openwrt/files"
EPOCH = 1700000000
BINARY = b"\x7fELF" + bytes(range(256)) * 64
CONFIG = "etc/config/tcp-over-http"
OWN_SCRIPT = '[ -n "${IPKG_INSTROOT}" ] || [ ! -x /etc/init.d/rpcd ] || /etc/init.d/rpcd reload'
ARCHS = ["mips_24kc", "mips_4kec"]


def pack(script, dist, project=ROOT, **environment):
    """Packs a stand-in for the MIPS binary; gives what was printed."""
    (dist / "mips").mkdir(parents=True, exist_ok=True)
    (dist / "mips/tcp-over-http").write_bytes(BINARY)
    env = os.environ | {"DIST": str(dist), "SOURCE_DATE_EPOCH": str(EPOCH)} | environment
    command = [project / "scripts" / script, "mips"]
    return subprocess.run(command, env=env, check=True, capture_output=True, text=True).stdout


def version():
    return re.search(r'^version = "(.*)"$', (ROOT / "Cargo.toml").read_text(), re.M)[1]


def package_version():
    return version() + "-r1"


def makefile(name):
    """What openwrt/Makefile says."""
    return re.search(rf"^{name}:=(.*)$", (ROOT / "openwrt/Makefile").read_text(), re.M)[1]


def members(data):
    """A gzipped tar: what is in it, in order, and the uncompressed bytes."""
    plain = gzip.decompress(data)
    archive = tarfile.open(fileobj=io.BytesIO(plain))
    return {info.name: (info, info.isfile() and archive.extractfile(info).read()) for info in archive}, plain


def parts(package):
    outer, _ = members(package.read_bytes())
    assert list(outer) == ["./debian-binary", "./data.tar.gz", "./control.tar.gz"]
    assert outer["./debian-binary"][1] == b"2.0\n"
    return outer["./data.tar.gz"][1], outer["./control.tar.gz"][1]


def expected_files():
    files = {path.relative_to(FILES).as_posix(): path for path in FILES.rglob("*") if path.is_file()}
    contents = {name: (0o755 if os.access(path, os.X_OK) else 0o644, path.read_bytes()) for name, path in files.items()}
    contents[CONFIG] = (0o600, files[CONFIG].read_bytes())
    contents["usr/bin/tcp-over-http"] = (0o755, BINARY)
    return contents


def apk_tool(*arguments, **keywords):
    command = [os.environ.get("APK", "apk"), *arguments]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, **keywords).stdout


def has_apk_tool():
    try:
        return bool(re.match(r"apk-tools [3-9]", apk_tool("--version")))
    except (OSError, subprocess.CalledProcessError):
        return False


needs_apk_tool = pytest.mark.skipif(not has_apk_tool(), reason="needs apk-tools 3")
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: files belong to it, and scripts run in a root folder")


def mkpkg_stand_in(folder):
    """Shows what the real one would have packed."""
    apk = folder / "apk"
    apk.write_text("""#!/bin/sh
[ "$1" != --version ] || exec echo "apk-tools 3.0.5, compiled for x86_64."
while [ $# -gt 0 ]; do
    case $1 in
    --info) echo "info $2" ;;
    --script) echo "script ${2%%:*}"; cat "${2#*:}" ;;
    --files) files=$2; (cd "$2" && find . -type f -exec stat -c '%n %a %u %g %Y' {} + | sort) ;;
    --output) output=$2 ;;
    esac
    shift
done >"$0.args"
tar -C "$files" -cf "$output.tar" .
cp "$0.args" "$output"
""")
    apk.chmod(0o755)
    return apk


class Root:
    """A root folder with what the package depends on, and an apk that changes it."""

    def __init__(self, folder):
        self.path = folder / "root"
        base = folder / "base"
        for name in ["bin", "lib", "tmp", "etc/init.d"]:
            (base / name).mkdir(parents=True)
        shutil.copy(shutil.which("busybox"), base / "bin/busybox")
        (base / "bin/sh").symlink_to("busybox")
        log = 'echo "{0} $pkgname ${{PKG_UPGRADE:-}}" >>/tmp/log'
        (base / "lib/functions.sh").write_text("".join(
            f"{name}() {{ {log.format(name)}; }}\n" for name in ["add_group_and_user", "default_postinst", "default_prerm"]
        ))
        (base / "etc/init.d/rpcd").write_text('#!/bin/sh\necho "rpcd $1" >>/tmp/log\n')
        (base / "etc/init.d/rpcd").chmod(0o755)
        packages = [self.package(folder, "base-files", "--files", base)]
        packages += [self.package(folder, name) for name in
                     ["kmod-tun", "nftables", "kmod-nft-dup-inet", "kmod-nf-conntrack-netlink"]]
        self.apk("--initdb", "add", *packages)

    @staticmethod
    def package(folder, name, *arguments):
        package = folder / f"{name}-1-r1.apk"
        info = [f"--info={field}" for field in (f"name:{name}", "version:1-r1", f"arch:{ARCHS[0]}")]
        apk_tool("mkpkg", *info, *arguments, "--output", package)
        return package

    def apk(self, *arguments, trusted=True):
        """Gives what the scripts of packages did. With trusted=False only what is signed is taken."""
        (self.path / "tmp").mkdir(parents=True, exist_ok=True)
        (self.path / "tmp/log").write_text("")
        trust = ["--allow-untrusted"] if trusted else []
        apk_tool("--root", self.path, "--arch", ARCHS[0], *trust, "--no-network", "--no-cache",
                 "--repositories-file", "/dev/null", *arguments)
        return (self.path / "tmp/log").read_text().splitlines()

    def files(self):
        """But for apk's own."""
        paths = {path.relative_to(self.path).as_posix(): path for path in self.path.rglob("*") if path.is_file()}
        return {name: path for name, path in paths.items() if not re.match("(lib|etc)/apk/(?!packages)|dev/", name)}
