# shellcheck shell=dash disable=SC2154 # the init script loads the options
# Sourced by the init script: makes the rules that fw4 includes (by our files in /usr/share/nftables.d), and removes
# them with the service. They are not on flash; without them the includes match nothing.
#
# Not as procd's service data, which fw4 would read by itself: such rules come after its limit for SYNs (25 a second
# to the router itself, and fw4 takes all proxied connections for such), and can't put the device into a zone.

FIREWALL=/var/run/tcp-over-http

# Uses the options that are loaded.
firewall_open() {
	command -v fw4 >/dev/null || return 0
	mkdir -p "$FIREWALL"
	local part changed=0
	for part in input forward zone; do
		"firewall_$part" >"$FIREWALL/$part.new"
		cmp -s "$FIREWALL/$part.new" "$FIREWALL/$part.nft" || changed=1
	done
	if [ "$changed" = 0 ]; then
		rm "$FIREWALL"/*.new
		return 0
	fi
	# A bad include would leave the router without a firewall.
	if ! firewall_frame | nft -c -f -; then
		logger -t "$NAME" -p daemon.err "the firewall does not take the rules for the device"
		rm "$FIREWALL"/*.new
		return 1
	fi
	for part in input forward zone; do
		mv "$FIREWALL/$part.new" "$FIREWALL/$part.nft"
	done
	# They stay even if fw4 fails because of something else: once that is mended, its reload includes them.
	firewall_reload && return
	logger -t "$NAME" -p daemon.err "the firewall fails its check (fw4 check): it stays as it was, and captured traffic is refused until it is mended and reloaded"
	return 1
}

firewall_close() {
	[ -e "$FIREWALL/input.nft" ] || return 0
	rm "$FIREWALL"/*.nft
	rmdir "$FIREWALL" 2>/dev/null
	firewall_reload
}

# Not at boot, when fw4 has not started yet, nor if it is stopped.
firewall_reload() {
	[ -e /var/run/fw4.state ] || return 0
	fw4 -q check && fw4 -q reload
}

# Accepts what comes from the device for the listener, before anything else in fw4's chain.
firewall_input() {
	echo "iifname \"$tun\" ip daddr ${address%/*} tcp dport $listen_port accept"
	[ "$ipv6" = 0 ] || echo "iifname \"$tun\" ip6 daddr ${address6%/*} tcp dport $listen_port accept"
}

# Accepts what comes from the device for clients: answers to what was captured.
firewall_forward() {
	echo "iifname \"$tun\" accept"
}

# Treats the device as one of the zone `wan`: whoever may use that zone is proxied, and whoever a rule keeps out of it
# is not. Only these three chains name the zone's devices; its masquerading is not affected.
firewall_zone() {
	cat <<EOF
chain accept_to_$zone {
	oifname "$tun" accept
}
chain reject_to_$zone {
	oifname "$tun" jump handle_reject
}
chain drop_to_$zone {
	oifname "$tun" drop
}
EOF
}

# As much of fw4's ruleset as is needed to check our rules.
firewall_frame() {
	cat <<EOF
table inet tcp_over_http_check {
	chain handle_reject {
		reject
	}
	chain input {
		include "$FIREWALL/input.new"
	}
	chain forward {
		include "$FIREWALL/forward.new"
	}
	include "$FIREWALL/zone.new"
}
EOF
}
