# shellcheck shell=sh
# Sourced by ipk and apk: what a package holds, and what it says about itself. openwrt/Makefile is the source of
# the latter, Cargo.toml of the version.

PACKAGE=tcp-over-http

# A variable of openwrt/Makefile.
makefile() {
    sed -n -e ':join' -e '/\\$/{' -e 'N' -e 's/\\\n//' -e 'b join' -e '}' -e "s/^ *$1:=//p" openwrt/Makefile
}

# What a package needs, separated by spaces; on routers with firewall4, which those with nft are.
depends() {
    makefile DEPENDS | tr -s ' \t' '\n' | sed -n -e 's/^+PACKAGE_[^:]*:/+/' -e 's/^+//p' | xargs
}

package_version() {
    echo "$(version)-r$(makefile PKG_RELEASE)"
}

# The description, without its indentation.
description() {
    definition description | sed 's/^ *//'
}

# The configuration files.
conffiles() {
    definition conffiles
}

# A script that goes with what OpenWrt's own do, if there is one: postinst, postrm.
own_script() {
    definition "$1"
}

# What openwrt/Makefile defines for the package under a name.
definition() {
    sed -n "/^define .*\/$1\$/,/^endef\$/{/^define\|^endef/d;s/\\$\\$/\$/g;p}" openwrt/Makefile
}

# Lays the files of target $name out in a folder as on the router, whatever umask and owner they had.
stage() {
    # shellcheck disable=SC2154 # of whoever called
    [ -f "$DIST/$name/$PACKAGE" ] || die "$name is not built: scripts/build $name"
    mkdir -p "$1/usr/bin"
    cp -R openwrt/files/. "$1/"
    cp "$DIST/$name/$PACKAGE" "$1/usr/bin/"
    find "$1" -type d -exec chmod 0755 {} +
    find "$1" -type f -perm -u+x -exec chmod 0755 {} +
    find "$1" -type f ! -perm -u+x -exec chmod 0644 {} +
    chmod 0755 "$1/usr/bin/$PACKAGE"
    chmod 0600 "$1/etc/config/$PACKAGE" # passwords
}
