# shellcheck shell=dash disable=SC2154 # the init script loads the options
# Sourced by the init script: with `option dns`, dnsmasq asks the daemon for all names except those of domains with
# servers of their own, or only for those of `list dns_domain`. Each instance gets a file in its conf-dir, and is
# restarted because it reads that only at its start. (SIGHUP rereads a servers-file, which would have to be named at an
# earlier start, and can neither say no-resolv nor exempt domains from rebind protection.) Options of its own
# configuration are overridden by states, since nothing of ours is in /etc/config.

# The list of files made: a line for each instance.
DNSMASQ=/var/run/tcp-over-http.dnsmasq

# Uses the options that are loaded.
dnsmasq_redirect() {
	(
		# shellcheck disable=SC2034 # for config_load
		LOAD_STATE= # without states, some of which are ours
		config_load dhcp
		[ "$dns" = off ] || config_foreach dnsmasq_instance dnsmasq
	) >"$DNSMASQ.new"
	if [ ! -s "$DNSMASQ.new" ]; then
		rm "$DNSMASQ.new"
		dnsmasq_restore
		return 0
	fi
	if cmp -s "$DNSMASQ.new" "$DNSMASQ"; then
		rm "$DNSMASQ.new"
		return 0
	fi
	# With a line that dnsmasq rejects, the router would be without DNS and DHCP.
	if ! dnsmasq_test; then
		logger -t "$NAME" -p daemon.err "dnsmasq does not take the servers for it: it stays as it was"
		rm "$DNSMASQ.new"
		return 1
	fi
	dnsmasq_undo
	mv "$DNSMASQ.new" "$DNSMASQ"
	while read -r section folder mode servers; do
		mkdir -p "$folder"
		dnsmasq_servers >"$folder/$NAME.$section.conf"
		dnsmasq_asks_us_for_all || continue
		uci_set_state dhcp "$section" server "$servers"
		[ "$mode" != private ] || uci_set_state dhcp "$section" rebind_protection 0
	done <"$DNSMASQ"
	dnsmasq_restart
}

# dnsmasq would take private addresses for an attack. It is told to expect them for these domains; if all names are
# asked for, its protection is off.
dnsmasq_servers() {
	local server
	! dnsmasq_asks_us_for_all || echo no-resolv
	for server in $servers; do
		echo "server=$server"
		dnsmasq_asks_us_for_all || [ "$mode" != private ] || echo "rebind-domain-ok=${server%/*}/"
	done
}

dnsmasq_test() {
	local result=1
	while read -r section folder mode servers; do
		dnsmasq_servers
	done <"$DNSMASQ.new" >"$DNSMASQ.test"
	! dnsmasq --test -C "$DNSMASQ.test" >/dev/null 2>&1 || result=0
	rm "$DNSMASQ.test"
	return "$result"
}

dnsmasq_asks_us_for_all() {
	case $servers in
	/*) return 1 ;;
	esac
}

dnsmasq_restore() {
	[ -e "$DNSMASQ" ] || return 0
	dnsmasq_undo
	dnsmasq_restart
}

dnsmasq_undo() {
	[ -e "$DNSMASQ" ] || return 0
	while read -r section folder mode servers; do
		rm -f "$folder/$NAME.$section.conf"
		dnsmasq_asks_us_for_all || continue
		uci_revert_state dhcp "$section" server
		uci_revert_state dhcp "$section" rebind_protection
	done <"$DNSMASQ"
	rm "$DNSMASQ"
}

# One line for an instance: its section, folder, mode, and servers in dnsmasq's syntax.
dnsmasq_instance() {
	local folder domain own server servers
	for domain in $dns_domain; do
		servers="$servers /$domain/127.0.0.1#$dns_port"
	done
	if [ -z "$servers" ]; then
		servers=" 127.0.0.1#$dns_port"
		# Of its own servers keep only those of domains: it would ask all others, too, and take the first answer. (A
		# state can't be a list, so dnsmasq's own script sees no servers at all.)
		config_get own "$1" server
		for server in $own; do
			case $server in
			/*) servers="$servers $server" ;;
			esac
		done
	fi
	config_get folder "$1" confdir
	[ -n "$folder" ] || folder=$(dnsmasq_folder "$1")
	echo "$1 ${folder%%,*} $(dnsmasq_mode)$servers"
}

# `private`: names get addresses of private ranges.
dnsmasq_mode() {
	case $dns,$fakeip_range,$fakeip_range6 in
	fakeip,10.* | fakeip,172.* | fakeip,192.168.* | fakeip,*,f[cd]*) echo private ;;
	*) echo public ;;
	esac
}

# Without `confdir`: the folder in the file that the instance runs with. At boot there is no such file yet; then as in
# dnsmasq's script (until OpenWrt 23.05 one folder for all instances).
dnsmasq_folder() {
	sed -n 's/^conf-dir=//p' "/var/etc/dnsmasq.conf.$1" 2>/dev/null | grep . && return
	if grep -qF '"/tmp/dnsmasq.d"' /etc/init.d/dnsmasq; then
		echo /tmp/dnsmasq.d
	else
		echo "/tmp/dnsmasq.$1.d"
	fi
}

# Not at boot, when it has not started yet.
dnsmasq_restart() {
	procd_running dnsmasq || return 0
	/etc/init.d/dnsmasq restart
}
