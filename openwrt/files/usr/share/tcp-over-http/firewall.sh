# shellcheck shell=dash disable=SC2154 # the init script loads the options
# Sourced by the init script: what fw4 includes (from the files of ours in /usr/share/nftables.d) is made, and gone
# when the service is. Nothing of it is on flash, and without it the includes match nothing.
#
# Not as procd's service data, which fw4 would read by itself: such rules come behind its limit for SYNs (25 a second
# to the router itself, which for it all proxied connections are), and can't say what zone the device is in.

FIREWALL=/var/run/tcp-over-http

# Of the options that are loaded.
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
	# They stay also if fw4 fails on something else: once that is mended, its reload takes them, too.
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

# At boot fw4 has yet to start, and where it is stopped it stays so.
firewall_reload() {
	[ -e /var/run/fw4.state ] || return 0
	fw4 -q check && fw4 -q reload
}

# What comes from the device, for the listener, in front of all else in fw4's chain.
firewall_input() {
	echo "iifname \"$tun\" ip daddr ${address%/*} tcp dport $listen_port accept"
	[ "$ipv6" = 0 ] || echo "iifname \"$tun\" ip6 daddr ${address6%/*} tcp dport $listen_port accept"
}

# What comes from the device for a client are the answers to what was captured.
firewall_forward() {
	echo "iifname \"$tun\" accept"
}

# What goes to the device goes out: whoever may use the zone `wan` may be proxied, and whoever a rule keeps from it
# may not. Only these three chains say what the zone's devices are; its masquerading stays its own.
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

# As much of fw4's ruleset as it takes to check ours.
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
