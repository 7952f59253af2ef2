# shellcheck shell=sh
# Sourced by ipk and apk: what a package holds, and what it says about itself. Its Makefile is the source of the
# latter, Cargo.toml of the version.

# The daemon, for each architecture; the functions below are about it until page is called.
PACKAGE=tcp-over-http
MAKEFILE=openwrt/Makefile

# Its page in LuCI, one package for all: the argument is the package manager's word for all.
page() {
    PACKAGE=luci-app-tcp-over-http
    MAKEFILE=openwrt/$PACKAGE/Makefile
    name=all
    # shellcheck disable=SC2034 # for whoever called
    archs=$1
}

# A variable of the Makefile.
makefile() {
    sed -n -e ':join' -e '/\\$/{' -e 'N' -e 's/\\\n//' -e 'b join' -e '}' -e "s/^ *$1:=//p" "$MAKEFILE"
}

# What a package needs, separated by spaces; on routers with firewall4, which those with nft are.
depends() {
    {
        makefile DEPENDS
        makefile LUCI_DEPENDS
    } | tr -s ' \t' '\n' | sed -n -e 's/^+PACKAGE_[^:]*:/+/' -e 's/^+//p' | xargs
}

package_version() {
    echo "$(version)-r$(makefile PKG_RELEASE)"
}

# The description, without its indentation.
description() {
    definition description | sed 's/^ *//'
    makefile LUCI_DESCRIPTION
}

section() {
    if [ "$name" = all ]; then echo luci; else makefile SECTION; fi
}

url() {
    sed -n 's/^ *URL:=//p' openwrt/Makefile
}

# The configuration files.
conffiles() {
    definition conffiles
}

# A script that goes with what OpenWrt's own do, if there is one: postinst, postrm.
own_script() {
    if [ "$name" = all ]; then
        # As luci.mk has it.
        cat <<'EOF'
#!/bin/sh
[ -n "${IPKG_INSTROOT}" ] || {
	rm -f /tmp/luci-indexcache*
	rm -rf /tmp/luci-modulecache/
	[ ! -x /etc/init.d/rpcd ] || /etc/init.d/rpcd reload
}
exit 0
EOF
    else
        definition "$1"
    fi
}

# What the Makefile defines for the package under a name.
definition() {
    sed -n "/^define .*\/$1\$/,/^endef\$/{/^define\|^endef/d;s/\\$\\$/\$/g;p}" "$MAKEFILE"
}

# Lays the files of target $name out in a folder as on the router, whatever umask and owner they had.
stage() {
    if [ "$name" = all ]; then stage_page "$1"; else stage_daemon "$1"; fi
    find "$1" -type d -exec chmod 0755 {} +
    find "$1" -type f -perm -u+x -exec chmod 0755 {} +
    find "$1" -type f ! -perm -u+x -exec chmod 0644 {} +
    [ "$name" = all ] || chmod 0600 "$1/etc/config/$PACKAGE" # passwords
}

stage_daemon() {
    [ -f "$DIST/$name/$PACKAGE" ] || die "$name is not built: scripts/build $name"
    mkdir -p "$1/usr/bin"
    cp -R openwrt/files/. "$1/"
    cp "$DIST/$name/$PACKAGE" "$1/usr/bin/"
    chmod u+x "$1/usr/bin/$PACKAGE"
}

# As luci.mk lays it out; but with the languages, which are packages of their own there.
stage_page() {
    i18n=$1/usr/lib/lua/luci/i18n
    mkdir -p "$1/www" "$i18n"
    cp -R "openwrt/$PACKAGE/htdocs/." "$1/www/"
    cp -R "openwrt/$PACKAGE/root/." "$1/"
    python3 scripts/translations de "$i18n/tcp-over-http.de.lmo"
    python3 scripts/translations zh_Hans "$i18n/tcp-over-http.zh-cn.lmo"
}
