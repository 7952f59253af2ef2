# shellcheck shell=dash
# Sourced by the init script: with `option dns`, dnsmasq asks the daemon for all names but those that it has servers
# of their own for, or only for those of `list dns_domain`. Each instance gets a file in its conf-dir, which is read
# only at a start.

# The files made, and the instances whose rebind protection is off.
DNSMASQ=/var/run/tcp-over-http.dnsmasq

# Of the configuration that is loaded.
dnsmasq_redirect() {
	local dns dns_port domains
	config_get dns main dns off
	config_get dns_port main dns_port 5453
	config_get domains main dns_domain
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
	[ ! -e "$DNSMASQ" ] || while read -r section folder dns dns_port domains; do
		mkdir -p "$folder"
		dnsmasq_servers >"$folder/$NAME.conf"
		[ "$dns" != fakeip ] || [ -n "$domains" ] || uci_set_state dhcp "$section" rebind_protection 0
	done <"$DNSMASQ"
	dnsmasq_restart
}

# Who is asked for what. The fake addresses of IPv6 are private ones, which dnsmasq would take for an attack: it is
# told to expect them of the domains, and of all names by a state, since nothing of that is in /etc/config.
dnsmasq_servers() {
	local domain
	[ -n "$domains" ] || printf 'no-resolv\nserver=127.0.0.1#%s\n' "$dns_port"
	for domain in $domains; do
		printf 'server=/%s/127.0.0.1#%s\n' "$domain" "$dns_port"
		[ "$dns" != fakeip ] || printf 'rebind-domain-ok=/%s/\n' "$domain"
	done
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
	echo "$1 ${folder%%,*} $dns $dns_port $domains"
}

# At boot it has yet to start.
dnsmasq_restart() {
	procd_running dnsmasq || return 0
	/etc/init.d/dnsmasq restart
}
