# shellcheck shell=sh
# Sourced by the other scripts: where things are, whoever calls them.

cd "$(dirname "$0")/.." || exit 1

# sudo hides the toolchain of who called it.
if ! command -v cargo >/dev/null && [ -n "${SUDO_USER:-}" ]; then
    caller_home=$(getent passwd "$SUDO_USER" | cut -d: -f6)
    export PATH="$caller_home/.cargo/bin:$PATH"
    export CARGO_HOME="${CARGO_HOME:-$caller_home/.cargo}" RUSTUP_HOME="${RUSTUP_HOME:-$caller_home/.rustup}"
fi
# squid, sshd and friends are not in everybody's PATH.
export PATH="$PATH:/usr/local/sbin:/usr/sbin:/sbin"

# Where setup puts Python packages that the system's Python does not have.
VENV=target/test-venv
python() {
    if [ -x "$VENV/bin/python" ]; then "$VENV/bin/python" "$@"; else python3 "$@"; fi
}

need_root() {
    if [ "$(id -u)" != 0 ]; then
        echo "$0 needs root, for network namespaces: sudo $0" >&2
        exit 2
    fi
}

# What root has built belongs to who called sudo.
give_back() {
    if [ -n "${SUDO_UID:-}" ]; then
        chown -Rh "$SUDO_UID:${SUDO_GID:-$SUDO_UID}" target fuzz/target 2>/dev/null || true
    fi
}
