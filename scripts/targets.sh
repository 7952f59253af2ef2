# shellcheck shell=sh
# Sourced by the scripts that build for routers: the list of targets, and where results go.

cd "$(dirname "$0")/.." || exit 1
umask 022

# Binaries and packages, a folder a target.
DIST=${DIST:-target/dist}

# A release is the same bytes wherever and whenever it is made: every date is the commit's.
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || echo 0)}
export SOURCE_DATE_EPOCH

die() {
    echo "${0##*/}: $*" >&2
    exit 1
}

# The names of all targets.
targets() {
    awk '!/^#/ && NF { print $1 }' scripts/targets
}

# Sets triple, qemu, tier and archs of the target that is named.
target() {
    # shellcheck disable=SC2046 # one word a column, the rest are architectures
    set -- "$1" $(awk -v name="$1" '!/^#/ && $1 == name { $1 = ""; print }' scripts/targets)
    [ $# -ge 5 ] || die "no target '$1' ($(targets | xargs))"
    # shellcheck disable=SC2034 # for whoever called
    triple=$2 qemu=$3 tier=$4
    shift 4
    # shellcheck disable=SC2034
    archs=$*
}

# The version as Cargo.toml has it.
version() {
    sed -n 's/^version = "\(.*\)"$/\1/p' Cargo.toml | head -n 1
}

# The names of the targets that are built.
built() {
    for each in $(targets); do
        [ ! -f "$DIST/$each/tcp-over-http" ] || echo "$each"
    done | grep . || die "nothing is built: scripts/build"
}
