"""Brings the programs onto the machine, each by the ordinary client of its registry.

What is built is built as the user who called sudo, and kept in a cache; what fails is left out of the
comparison with the reason.
"""

import functools
import json
import os
import pwd
import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def _cache() -> Path:
    if given := os.environ.get("TOH_BENCH_CACHE"):
        return Path(given)
    own = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path("/var/cache" if os.geteuid() == 0 else own) / "tcp-over-http-bench"


CACHE = _cache()


class Missing(Exception):
    """A program can't be had here; the text says why."""


def prepare():
    """Installs what the lab itself needs and makes the cache. Raises Missing."""
    CACHE.mkdir(parents=True, exist_ok=True)
    if user := os.environ.get("SUDO_USER"):
        shutil.chown(CACHE, user)
    for program, package in (
        ("ip", "iproute2"),
        ("sysctl", "procps"),
        ("nft", "nftables"),
        ("ethtool", "ethtool"),
        ("perf", "linux-perf"),
    ):
        debian(package, program)


@functools.cache
def debian(package: str, program: str) -> Path:
    """A program of a Debian package."""
    if not _find(program):
        if not shutil.which("apt-get"):
            raise Missing(f"{program} is not installed, and there is no apt-get to install {package}")
        # So that no service is started by being installed.
        env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}
        _call(["apt-get", "update", "-q"], env)
        _call(["apt-get", "install", "-y", "-q", "--no-install-recommends", package], env)
        if package == "redsocks" and shutil.which("systemctl"):
            subprocess.run(["systemctl", "disable", "-q", "redsocks"], check=False, capture_output=True)
    return _find(program) or _missing(program)


@functools.cache
def tools() -> Path:
    """The benchmark's own proxy, server and clients."""
    manifest = ROOT / "benches/tools/Cargo.toml"
    _call(_as_user(["cargo", "build", "--release", "--locked", "--manifest-path", manifest]), _build_env())
    return _target() / "release/bench-tools"


@functools.cache
def daemon() -> Path:
    """tcp-over-http: the binary of TOH_BIN, or built from here."""
    if given := os.environ.get("TOH_BIN"):
        return Path(given).resolve()
    manifest = ROOT / "Cargo.toml"
    _call(_as_user(["cargo", "build", "--release", "--locked", "--manifest-path", manifest]), _build_env())
    return _target() / "release/tcp-over-http"


@functools.cache
def cargo(crate: str, program: str) -> Path:
    """A program of a crate of crates.io."""
    path = CACHE / "bin" / program
    if not path.exists():
        _call(_as_user(["cargo", "install", "--locked", "--root", CACHE, crate]), _build_env())
    return path


@functools.cache
def go(program: str, package: str, tags: str = "") -> Path:
    """A program of a Go module."""
    path = CACHE / "bin" / program
    if not path.exists():
        env = {**_build_env(), "GOBIN": str(path.parent), "CGO_ENABLED": "0"}
        argv = ["go", "install", "-trimpath", "-ldflags=-s -w", f"-tags={tags}", f"{package}@latest"]
        _call(_as_user(argv), env)
    return path


@functools.cache
def go_module(program: str, module: str, version: str, tags: str = "") -> Path:
    """A program that is the root of a Go module, in one version: to install it, go would ask for the list of
    all versions, which not every proxy has."""
    path = CACHE / "bin" / program
    if not path.exists():
        env = {**_build_env(), "CGO_ENABLED": "0"}
        said = _call(_as_user(["go", "mod", "download", "-json", f"{module}@{version}"]), env)
        argv = ["go", "-C", json.loads(said)["Dir"], "build", "-mod=mod", "-trimpath", "-ldflags=-s -w"]
        _call(_as_user([*argv, f"-tags={tags}", "-o", path, "."]), env)
    return path


@functools.cache
def python_with(package: str) -> Path:
    """A Python that has a package of PyPI, in an environment of its own."""
    venv = CACHE / "venv"
    python = venv / "bin/python3"
    if not python.exists():
        if (
            subprocess.run(["python3", "-c", "import ensurepip"], capture_output=True, check=False).returncode
            != 0
        ):
            _call(["apt-get", "install", "-y", "-q", "--no-install-recommends", "python3-venv"], _build_env())
        _call(_as_user(["python3", "-m", "venv", venv]), _build_env())
    if subprocess.run([python, "-c", f"import {package}"], capture_output=True, check=False).returncode != 0:
        _call(_as_user([python, "-m", "pip", "install", "-q", package]), _build_env())
    return python


def version(argv: list) -> str:
    """The first line that a program prints about itself."""
    done = subprocess.run(list(map(str, argv)), capture_output=True, text=True, timeout=20, check=False)
    lines = [line.strip() for line in (done.stdout + done.stderr).splitlines() if any(map(str.isdigit, line))]
    return lines[0] if lines else "unknown"


def go_version(binary: Path) -> str:
    """The version of the module that a Go program was built from."""
    done = subprocess.run(
        ["go", "version", "-m", binary], env=_build_env(), capture_output=True, text=True, check=False
    )
    for line in done.stdout.splitlines():
        if line.strip().startswith("mod\t"):
            _, module, release = line.split()[:3]
            return f"{module.rsplit('/', 1)[-1]} {release}"
    return "unknown"


def _target() -> Path:
    return Path(_build_env()["CARGO_TARGET_DIR"])


def _build_env() -> dict:
    """The environment of builds: sudo has cut the path that cargo and go are found on."""
    env = dict(os.environ)
    home = Path(pwd.getpwnam(os.environ.get("SUDO_USER", "root")).pw_dir)
    env["PATH"] = f"{home}/.cargo/bin:{env['PATH']}:/usr/local/go/bin:{home}/go/bin"
    env.setdefault("CARGO_TARGET_DIR", str(CACHE / "target"))
    return env


def _as_user(argv: list) -> list:
    """The command, run gently by whoever called sudo."""
    argv = ["nice", "-n", "19", *argv]
    if user := os.environ.get("SUDO_USER"):
        keep = "CARGO_TARGET_DIR,GOBIN,CGO_ENABLED,RUSTC_WORKSPACE_WRAPPER"
        return [
            "sudo",
            "-u",
            user,
            "-H",
            f"--preserve-env={keep}",
            "env",
            f"PATH={_build_env()['PATH']}",
            *argv,
        ]
    return argv


def _call(argv: list, env: dict) -> str:
    program = next((str(arg) for arg in argv if str(arg) in ("cargo", "go", "apt-get")), str(argv[0]))
    if not shutil.which(program, path=env["PATH"]):
        raise Missing(f"{program} is not installed")
    done = subprocess.run(list(map(str, argv)), env=env, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        raise Missing(f"{program}: {lines[-1].strip() if lines else done.returncode}")
    return done.stdout


def _find(program: str) -> Path | None:
    found = shutil.which(program, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
    return Path(found) if found else None


def _missing(program: str) -> Path:
    raise Missing(f"{program} is not where its package should have put it")
