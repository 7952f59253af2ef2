# shellcheck shell=dash disable=SC2154 # the init script loads the options
# Sourced by the init script: with `option dns`, dnsmasq asks the daemon for all names but those that it has servers
# of their own for, or only for those of `list dns_domain`. Each instance gets a file in its conf-dir, which is read
# only at a start: hence the restart. (SIGHUP rereads a servers-file, which would have to be named at a start before, and
# can neither say no-resolv nor exempt domains from rebind protection.) What its own configuration must not say meanwhile is overridden by states, since nothing of ours is
# in /etc/config.

# The files made: a line for each instance.
DNSMASQ=/var/run/tcp-over-http.dnsmasq

# Of the options that are loaded.
dnsmasq_redirect() {
	(
		# shellcheck disable=SC2034 # for config_load
		LOAD_STATE= # of which some are ours
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
	# A line that it does not take would leave the router without names and addresses.
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

# Private addresses dnsmasq would take for an attack: of these domains it is told to expect them; if it is for all
# names, its protection is off.
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

# One line for an instance: its folder and its servers, as dnsmasq takes them.
dnsmasq_instance() {
	local folder domain own server servers
	for domain in $dns_domain; do
		servers="$servers /$domain/127.0.0.1#$dns_port"
	done
	if [ -z "$servers" ]; then
		servers=" 127.0.0.1#$dns_port"
		# Of its own only those of domains: of others it would ask the one that answers first. (A state is no list,
		# and for dnsmasq's script none at all.)
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

# Where there is no `confdir`: what the file that runs the instance says; at boot there is none yet, and dnsmasq's
# script knows (until OpenWrt 23.05 one folder for all instances).
dnsmasq_folder() {
	sed -n 's/^conf-dir=//p' "/var/etc/dnsmasq.conf.$1" 2>/dev/null | grep . && return
	if grep -qF '"/tmp/dnsmasq.d"' /etc/init.d/dnsmasq; then
		echo /tmp/dnsmasq.d
	else
		echo "/tmp/dnsmasq.$1.d"
	fi
}

# At boot it has yet to start.
dnsmasq_restart() {
	procd_running dnsmasq || return 0
	/etc/init.d/dnsmasq restart
}
