# shellcheck shell=dash disable=SC2154
# A double of procd.sh: collects a service's instances, a line an item, and hands them to procd.py.

_procd_name=${initscript##*/}

_procd_call() {
	/usr/libexec/procd-call "$1" "$_procd_name" "$2" "$3"
}

_procd_open_service() {
	_procd_message=$(mktemp)
}

_procd_close_service() {
	service_triggers >>"$_procd_message"
	/usr/libexec/procd-call set "$_procd_name" <"$_procd_message"
	rm "$_procd_message"
}

procd_open_instance() {
	printf 'instance\t%s\n' "${1:-instance1}" >>"$_procd_message"
}

procd_close_instance() { :; }

# Type and values, separated by tabs. A signal is given as a number, as procd wants it.
procd_set_param() {
	local type=$1 value
	shift
	[ "$type" != reload_signal ] || set -- "$(kill -l "$1")"
	{
		printf '%s' "$type"
		for value; do printf '\t%s' "$value"; done
		echo
	} >>"$_procd_message"
}

procd_add_jail() {
	local value
	{
		printf 'jail'
		for value; do printf '\t%s' "$value"; done
		echo
	} >>"$_procd_message"
}

procd_append_param() {
	procd_set_param "+$1" "$2"
}

procd_add_reload_trigger() {
	local package
	for package; do printf 'trigger\t%s\n' "$package"; done
}

procd_running() {
	/usr/libexec/procd-call running "$1"
}

procd_send_signal() {
	/usr/libexec/procd-call signal "$1" "$2" "$(kill -l "$3")"
}
