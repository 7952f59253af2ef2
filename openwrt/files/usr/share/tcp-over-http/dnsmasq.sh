# shellcheck shell=dash
# Sourced by the init script: with `option dns`, dnsmasq asks the daemon for all names but those that it has servers
# of their own for. Each instance gets a file in its conf-dir, which is read only at a start.

# The files made, and the instances whose rebind protection is off.
DNSMASQ=/var/run/tcp-over-http.dnsmasq

# Of the configuration that is loaded.
dnsmasq_redirect() {
	local dns dns_port
	config_get dns main dns off
	config_get dns_port main dns_port 5453
	(
		config_load dhcp
		[ "$dns" = off ] || config_foreach dnsmasq_instance dnsmasq
	) >"$DNSMASQ.new"
	if cmp -s "$DNSMASQ.new" "$DNSMASQ"; then
		rm "$DNSMASQ.new"
		return 0
	fi
	dnsmasq_undo
	[ ! -s "$DNSMASQ.new" ] || mv "$DNSMASQ.new" "$DNSMASQ"
	rm -f "$DNSMASQ.new"
	[ ! -e "$DNSMASQ" ] || while read -r section folder dns dns_port; do
		mkdir -p "$folder"
		printf 'no-resolv\nserver=127.0.0.1#%s\n' "$dns_port" >"$folder/$NAME.conf"
		# The fake addresses of IPv6 are private ones, which it would take for an attack. A state: nothing of
		# it is in /etc/config.
		[ "$dns" != fakeip ] || uci_set_state dhcp "$section" rebind_protection 0
	done <"$DNSMASQ"
	dnsmasq_restart
}

dnsmasq_restore() {
	[ -e "$DNSMASQ" ] || return 0
	dnsmasq_undo
	dnsmasq_restart
}

dnsmasq_undo() {
	[ -e "$DNSMASQ" ] || return 0
	while read -r section folder dns _; do
		rm -f "$folder/$NAME.conf"
		[ "$dns" != fakeip ] || uci_revert_state dhcp "$section" rebind_protection
	done <"$DNSMASQ"
	rm "$DNSMASQ"
}

# One line for an instance. Where there is no `confdir`, the folder is what the file that runs it says, or at boot
# what the next one will.
dnsmasq_instance() {
	local folder
	config_get folder "$1" confdir
	[ -n "$folder" ] || folder=$(sed -n 's/^conf-dir=//p' "/var/etc/dnsmasq.conf.$1" 2>/dev/null)
	folder=${folder:-/tmp/dnsmasq.$1.d}
	echo "$1 ${folder%%,*} $dns $dns_port"
}

# At boot it has yet to start.
dnsmasq_restart() {
	procd_running dnsmasq || return 0
	/etc/init.d/dnsmasq restart
}
