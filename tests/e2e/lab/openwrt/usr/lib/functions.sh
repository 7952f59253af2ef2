# shellcheck shell=dash disable=SC1090
# A double of OpenWrt's functions.sh: configurations become variables CONFIG_section_option, with LOAD_STATE those of
# /var/state in their place.

LOAD_STATE=1

config_load() {
	eval "$(/usr/libexec/uci-load "$1" ${LOAD_STATE:+/var/state})"
}

config_get() {
	eval "$1=\${CONFIG_$2_$3:-\$4}"
}

config_get_bool() {
	local _value
	config_get _value "$2" "$3" "$4"
	case "$_value" in
	1 | on | true | yes | enabled) _value=1 ;;
	0 | off | false | no | disabled) _value=0 ;;
	*) _value=$4 ;;
	esac
	eval "$1=$_value"
}

# Of a list only: of an option there are no items.
config_list_foreach() {
	local _item _items
	eval "_items=\$CONFIG_$1_$2_ITEMS"
	for _item in $_items; do
		"$3" "$_item"
	done
}

config_foreach() {
	local _section
	for _section in $CONFIG_SECTIONS; do
		eval "[ \"\$CONFIG_${_section}_TYPE\" = \"$2\" ]" || continue
		"$1" "$_section"
	done
}

uci_set_state() {
	[ $# = 4 ] || return 0
	mkdir -p /var/state
	echo "$1.$2.$3='$4'" >>"/var/state/$1"
}

uci_revert_state() {
	sed -i "/^$1\.$2\.$3=/d" "/var/state/$1"
}

# What packages' scripts call; $1 is the script's name, as opkg gives it. The package's own part comes first.
default_postinst() {
	_package "$1"
	[ ! -e "$_info.postinst-pkg" ] || (. "$_info.postinst-pkg")
	[ "$PKG_UPGRADE" = 1 ] || _init_scripts enable
	_init_scripts start
}

default_prerm() {
	_package "$1"
	[ "$PKG_UPGRADE" = 1 ] || _init_scripts disable
	_init_scripts stop
}

_package() {
	local name=${1##*/}
	_info=/usr/lib/opkg/info/${name%.*}
}

_init_scripts() {
	grep '^/etc/init.d/' "$_info.list" | while read -r script; do
		"$script" "$1" </dev/null
	done
}
