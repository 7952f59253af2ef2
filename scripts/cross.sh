# shellcheck shell=sh
# Sourced by the scripts that compile for routers, behind targets.sh: what it takes.

ZIG=0.17.1
ZIGBUILD=0.24.0
# OpenWrt's own builds are on stable, without these; here they save two thirds (see scripts/size).
RUSTC_BOOTSTRAP=1
export RUSTC_BOOTSTRAP

# Start files and libc are zig's.
# shellcheck disable=SC2034 # for whoever sources this
STATIC="-C target-feature=+crt-static -C link-self-contained=no -C relocation-model=static"

# zig and cargo-zigbuild of the versions above: others make other bytes.
tools() {
    venv=$PWD/target/tools
    if [ "$("$venv/bin/python3" -m ziglang version 2>/dev/null)" != "$ZIG" ] ||
        [ "$("$venv/bin/cargo-zigbuild" --version 2>/dev/null)" != "cargo-zigbuild $ZIGBUILD" ]; then
        python3 -m venv "$venv"
        "$venv/bin/pip" --quiet install "ziglang==$ZIG" "cargo-zigbuild==$ZIGBUILD"
    fi
    PATH=$venv/bin:$PATH:$PWD/scripts
    export PATH
}

# Where rustup can't get it (a mirror without components), a tarball beside the project will do.
standard_library() {
    sysroot=$(rustc --print sysroot)/lib/rustlib/src/rust
    [ ! -f "$sysroot/library/Cargo.lock" ] || return 0
    rustup component add rust-src 2>/dev/null || true
    [ ! -f "$sysroot/library/Cargo.lock" ] || return 0
    tarball=../shared/rust-src-$(rustc --version | cut -d ' ' -f 2).tar.xz
    [ -f "$tarball" ] || die "the standard library's source is missing: rustup component add rust-src"
    mkdir -p "$sysroot"
    tar -xJf "$tarball" -C "$sysroot"
    # Its workspace names two crates that it lacks.
    for crate in coretests alloctests; do
        [ ! -f "$sysroot/library/$crate/Cargo.toml" ] || continue
        mkdir -p "$sysroot/library/$crate/src"
        printf '[package]\nname = "%s"\nversion = "0.0.0"\nedition = "2024"\n' "$crate" \
            >"$sysroot/library/$crate/Cargo.toml"
        : >"$sysroot/library/$crate/src/lib.rs"
    done
}
