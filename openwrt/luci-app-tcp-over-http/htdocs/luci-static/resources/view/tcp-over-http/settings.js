// SPDX-License-Identifier: MIT
'use strict';
'require dom';
'require form';
'require rpc';
'require ui';
'require view';
'require tcp-over-http.common as common';

const CONFIG = 'tcp-over-http';

/* The configuration is read without its secrets, so not through uci, and written through it: staged, checked by the
 * daemon, and committed, by which procd has the daemon reload it. */
const callAdd = rpc.declare({ object: 'uci', method: 'add', params: [ 'config', 'type', 'name', 'values' ], expect: { section: '' }, reject: true });
const callSet = rpc.declare({ object: 'uci', method: 'set', params: [ 'config', 'section', 'values' ], reject: true });
const callDelete = rpc.declare({ object: 'uci', method: 'delete', params: [ 'config', 'section', 'options' ], reject: true });
const callDeleteSection = rpc.declare({ object: 'uci', method: 'delete', params: [ 'config', 'section' ], reject: true });
const callRename = rpc.declare({ object: 'uci', method: 'rename', params: [ 'config', 'section', 'name' ], reject: true });
const callOrder = rpc.declare({ object: 'uci', method: 'order', params: [ 'config', 'sections' ], reject: true });
const callRevert = rpc.declare({ object: 'uci', method: 'revert', params: [ 'config' ] });
const callCommit = rpc.declare({ object: 'uci', method: 'commit', params: [ 'config' ], reject: true });
const callCheck = rpc.declare({ object: 'tcp-over-http', method: 'check' });

/* What stands for a secret. */
const SECRET = '***';

/* What uci calls a section without a name. */
const NAMELESS = /^cfg[0-9a-f]{6,}$/;

/* What is found with each option; its type, default and range are the daemon's to tell. */
const FIRST = [
	[ 'enabled', _('Enabled'), _('Off: nothing is proxied, and no daemon runs.') ],
	[ 'dns', _('DNS'), _('Who answers what clients ask: as before; the router, with fake addresses, so that only the proxy resolves names; or resolvers asked through the proxy.') ]
];

const PROXY = [
	[ 'host', _('Host'), _('Name or address of the proxy.') ],
	[ 'port', _('Port'), _('TCP port of the proxy.') ],
	[ 'username', _('User'), _('If the proxy wants a login.') ],
	[ 'password', _('Password'), _('It never leaves the router: an empty field leaves it as it is.') ]
];

const PROXY_MORE = [
	[ 'enabled', _('Enabled'), _('Off: as if this proxy were not there.') ],
	[ 'auth', _('Login'), _('How user and password are sent: as they are, only as hashes, or as hashes once the proxy offers it.') ],
	[ 'header', _('Header fields'), _('Sent with every CONNECT, as NAME: VALUE.') ],
	[ 'connect_header_host', _('Host header'), _("Sent with every CONNECT in place of the target's name, for proxies that go by it.") ],
	[ 'uplink', _('Uplinks'), _('Interfaces, or names of Wi-Fi networks, on which this proxy is asked first.') ]
];

/* On and off in the table, all else in the dialogue; the table tells which connections it is about, and what becomes of them. */
const RULE = [
	[ 'enabled', _('Enabled'), _('Off: as if this rule were not there.') ]
];

const MATCHES = [
	[ 'domain', _('Domains'), _('These and all below them; with a = in front, this name only. Needs DNS by fake addresses.') ],
	[ 'domain_file', _('Domains in these files'), _('One domain a line; # begins a comment.') ],
	[ 'dest', _('Networks'), _('Or to these addresses or networks.') ],
	[ 'dest_file', _('Networks in these files'), _('One network a line; # begins a comment.') ],
	[ 'port', _('Ports'), _('And to these, as 443 or 8000-8999; none: all.') ],
	[ 'client', _('Clients'), _('And from these addresses, networks or MAC addresses; none: all.') ],
	[ 'interface', _('Devices'), _('And from behind these, as br-lan; none: all.') ]
];

const OUTCOMES = [
	[ 'upstream', _('Proxy'), _('This one is asked, and no other.') ],
	[ 'direct', _('Directly'), _('No proxy is asked.') ],
	[ 'reject', _('Refused'), _('The client hears so at once.') ]
];

const TABS = [
	[ 'traffic', _('What goes through it'), [
		[ 'auto_route', _('All connections'), _('Proxies everything that would go to the internet.') ],
		[ 'route', _('Only these networks'), _('Proxies what goes to these networks, if not all is.') ],
		[ 'bypass', _('But not these networks'), _('What goes there never goes through the proxy.') ],
		[ 'bypass_file', _('Nor the networks in these files'), _('One network a line; # begins a comment.') ],
		[ 'http_relay', _('Plain HTTP'), _('Carried as requests in place of tunnels: where the proxy refuses tunnels to such a port, always, or never.') ],
		[ 'http_port', _('Ports of plain HTTP'), _('As 80 or 8000-8080.') ],
		[ 'port', _('Only these ports'), _('As 443 or 8000-8999; none: all ports.') ],
		[ 'interface', _('Only from these devices'), _('As br-lan; none: from all.') ],
		[ 'client', _('Only these clients'), _('Addresses or networks; none: all clients.') ],
		[ 'client_bypass', _('But not these clients'), _('Their connections never go through the proxy.') ],
		[ 'local', _('The router itself'), _("Proxies the router's own connections, too.") ],
		[ 'to_proxy', _('To the proxy itself'), _("What clients send to a proxy's own port: left alone, or refused.") ],
		[ 'quic', _('QUIC'), _('UDP to port 443: refused, so that browsers take TCP at once, or left alone.') ],
		[ 'non_tcp', _('What is not TCP'), _('Left alone, or refused.') ],
		[ 'ping', _('Pings'), _('Of what is proxied: refused, or answered by the router.') ],
		[ 'on_failure', _('Without the daemon'), _('What happens to proxied traffic while the daemon does not run: it is refused, or goes out directly.') ],
		[ 'pause', _('Allow pauses'), _('Clients may be let out directly for a while, for example to log in to a network, even if traffic is refused without the daemon.') ],
		[ 'ipv6', _('IPv6'), _('Off: IPv6 is not proxied at all.') ],
		[ 'zone', _('Firewall zone'), _('Whoever may use this zone is proxied.') ]
	] ],
	[ 'names', _('DNS'), [
		[ 'direct_domain', _('Direct domains'), _('These and all below them are resolved and connected to directly.') ],
		[ 'direct_server', _('Resolvers for direct domains'), _('Addresses, with or without a port.') ],
		[ 'dns_domain', _('Only these domains'), _('Only these and all below them are asked of the daemon; none: all names.') ],
		[ 'dns_server', _('Resolvers behind the proxy'), _('Asked through the proxy, if DNS is to be resolved that way.') ],
		[ 'dns_hijack', _('Hijack DNS'), _('What clients ask other resolvers is answered here, too.') ],
		[ 'resolver', _("Resolvers of the proxies' names"), _("None: the router's own.") ],
		[ 'fakeip_range', _('Fake IPv4 addresses'), _('A network that nobody uses.') ],
		[ 'fakeip_range6', _('Fake IPv6 addresses'), _('A network that nobody uses.') ],
		[ 'fakeip_names', _('Fake addresses at once'), _('So many names may have one at the same time.') ],
		[ 'fakeip_file', _('File of fake addresses'), _('Kept over a restart, so that clients need not ask again.') ],
		[ 'dns_port', _('DNS port'), _('On the router itself.') ]
	] ],
	[ 'proxies', _('Several proxies'), [
		[ 'upstream', _('More proxies'), _('As http://USER:PASSWORD@HOST:PORT, in one line each; asked before those above.') ],
		[ 'pin_fallback', _('When the chosen one fails'), _('On: the others are asked then. Off: connections are refused.') ],
		[ 'hedge_delay', _('Ask the next one as well'), _('Once a proxy has taken this long, and three times as long as usual; 0: only once it has failed.') ],
		[ 'probe_interval', _('Test them while idle'), _('How often; 0: never, which wakes no modem.') ],
		[ 'connect_timeout', _('Connect timeout'), _('For one address of a proxy.') ],
		[ 'reply_timeout', _('Reply timeout'), _("For the proxy's answer to CONNECT.") ],
		[ 'connect', _('When clients are connected'), _('Once the proxy has connected, so that failures are seen as such, or at once, which is faster.') ]
	] ],
	[ 'expert', _('Expert'), [
		[ 'path', _('Path'), _('How connections get to the proxy: forwarded by the kernel, relayed by the daemon, or whichever works here.') ],
		[ 'log_level', _('Log level'), _('The least severe messages that are logged.') ],
		[ 'max_flows', _('Most connections'), _('More are refused.') ],
		[ 'max_dials', _('Most connections being opened'), _('Requests to proxies under way; the oldest makes room.') ],
		[ 'max_dials_per_client', _('Most of them for one client'), _('Its oldest makes room.') ],
		[ 'keepalive', _('Keepalive'), _('Idle time before a connection is probed; 0: never.') ],
		[ 'drain_timeout', _('Drain timeout'), _('How long connections may go on when the daemon is stopped.') ],
		[ 'pipe_size', _('Pipe size'), _('More is faster over long distances, and takes memory.') ],
		[ 'tun', _('TUN device'), _('Its name.') ],
		[ 'mtu', _('MTU'), _('Of the TUN device.') ],
		[ 'offload', _('Segmentation offload'), _('Packets of up to 64 KiB on the TUN device; off if a kernel gets them wrong.') ],
		[ 'address', _('IPv4 address'), _('Of the TUN device; the rest of its network is used, too.') ],
		[ 'address6', _('IPv6 address'), _('Of the TUN device, likewise.') ],
		[ 'listen_port', _('Listener port'), _('On these addresses.') ],
		[ 'table', _('Routing table'), _('Its number; nothing else may use it.') ],
		[ 'mark', _('Firewall mark'), _('Of connections to the proxy; 0: none.') ],
		[ 'rule_priority', _('Rule priority'), _('Of the first of the routing rules; the others follow.') ],
		[ 'status_socket', _('Status socket'), _('Where the daemon tells its status.') ]
	] ]
];

const MAIN = FIRST.concat(...TABS.map(([ tab, title, options ]) => options));

const CHOICES = {
	'dns.off': _('as before'),
	'dns.fakeip': _('fake addresses'),
	'dns.proxy': _('resolvers through the proxy'),
	'auth.basic': _('Basic'),
	'auth.digest': _('Digest'),
	'auth.auto': _('as the proxy offers'),
	'http_relay.auto': _('where tunnels are refused'),
	'http_relay.always': _('always'),
	'http_relay.never': _('never'),
	'to_proxy.direct': _('left alone'),
	'to_proxy.reject': _('refused'),
	'quic.reject': _('refused'),
	'quic.direct': _('left alone'),
	'non_tcp.reject': _('refused'),
	'non_tcp.direct': _('left alone'),
	'ping.reject': _('refused'),
	'ping.answer': _('answered'),
	'on_failure.block': _('refused'),
	'on_failure.direct': _('goes out directly'),
	'connect.honest': _('once the proxy has connected'),
	'connect.early': _('at once'),
	'path.auto': _('automatic'),
	'path.forward': _('forwarded'),
	'path.relay': _('relayed')
};

const UNITS = { seconds: _('seconds'), ms: _('milliseconds'), bytes: _('bytes'), KiB: _('KiB') };

function isOff(value) {
	return /^(0|no|off|false|disabled)$/.test(value);
}

function unmask() {
	return _('Type what %s stands for: the page does not know it.').format(SECRET);
}

function equal(a, b) {
	return JSON.stringify(a) == JSON.stringify(b);
}

return view.extend({
	load: function() {
		return common.settings();
	},

	render: function(settings) {
		this.root = this.root || E('div');

		this.map = null;

		if (!settings || !settings.options)
			return this.renderNone(_('The daemon does not say what can be set.'));

		if (!settings.sections)
			return this.renderNone(_('The configuration cannot be read: %s').format(settings.check.message.join(' ')));

		this.options = settings.options;
		this.read = settings.sections;
		this.main = null;
		this.old = Object.create(null);
		this.order = [];

		/* What the form changes, and what it was. */
		const data = { main: {}, upstream: [], rule: [] };

		settings.sections.forEach(section => {
			const sid = section['.name'];

			this.order.push(sid);

			if (section['.type'] == CONFIG && !this.main) {
				this.main = sid;
				this.old[sid] = this.normalise('main', section);
				data.main = this.normalise('main', section);
			}
			else if (section['.type'] == 'upstream') {
				this.old[sid] = this.normalise('upstream', section);
				data.upstream.push(Object.assign(this.normalise('upstream', section), { '.name': sid, _name: NAMELESS.test(sid) ? null : sid, password: null }));
			}
			else if (section['.type'] == 'rule' && this.options.rule) {
				this.old[sid] = this.normalise('rule', section);
				data.rule.push(Object.assign(this.normalise('rule', section), { '.name': sid }));
			}
		});

		/* Where there is none, the first is asked for. */
		if (!data.upstream.length && !data.main.upstream && L.hasViewPermission())
			data.upstream.push({ '.name': 'new-0' });

		this.map = new form.JSONMap(data, _('TCP over HTTP'), _('Carries all TCP connections of this network through an HTTP proxy.'));
		this.map.readonly = !L.hasViewPermission();
		/* Older LuCI notes here that sections have moved, as it does for uci. */
		this.map.data.state = { reorder: {} };
		this.nameNewSections(this.map.data);
		this.addSections();

		return this.map.render().then(nodes => {
			dom.content(this.root, [ common.style(), nodes ]);

			/* Once it is on the page. */
			if (settings.check.valid === false && !common.isOff(settings))
				window.setTimeout(() => this.blame({ check: settings.check, layout: this.layout(this.order) }, _('The configuration has a mistake')));

			return this.root;
		});
	},

	/* In place of a form. */
	renderNone: function(text) {
		dom.content(this.root, [ E('h2', {}, _('TCP over HTTP')), E('p', {}, [ text ]) ]);

		return this.root;
	},

	/* Without a form there is nothing to save. */
	addFooter: function() {
		return this.map ? this.super('addFooter', []) : E([]);
	},

	/* By names that none in the configuration can have: LuCI's own may be taken, and then it adds nothing. */
	nameNewSections: function(data) {
		const add = data.add;
		let count = 0;

		data.add = (config, type) => add.call(data, config, type, 'new-%d'.format(++count));
	},

	/* While a field is wrong, LuCI would add or remove a section, but not show it. */
	guard: function(s) {
		const { handleAdd, handleRemove } = s;
		const isRight = except => {
			const wrong = [ ...this.root.querySelectorAll('.cbi-input-invalid') ].find(node => !except || !dom.parent(node, except));

			if (wrong)
				this.showInvalid(wrong);

			return !wrong;
		};

		s.handleAdd = (...args) => isRight() && handleAdd.apply(s, args);
		s.handleRemove = (sid, ...args) => isRight('[data-section-id="%s"]'.format(sid)) && handleRemove.call(s, sid, ...args);
	},

	/* Lists as lists, all else as one text, words for yes and no as 1 and 0. */
	normalise: function(kind, section) {
		const values = {};

		this.options[kind].forEach(spec => {
			const value = section[spec.name];

			if (value == null)
				return;

			values[spec.name] = spec.list ? L.toArray(value)
				: (spec.type == 'bool') ? (isOff(value[0]) ? '0' : '1')
				: L.toArray(value)[0];
		});

		return values;
	},

	addSections: function() {
		let s = this.map.section(form.NamedSection, 'main', 'main', _('General'));

		FIRST.forEach(words => this.addOption(s, 'main', words));

		s = this.map.section(form.TypedSection, 'upstream', _('Proxies'), _('They are asked in this order: the first that works is used.'));
		s.anonymous = true;
		s.addremove = !this.map.readonly;
		s.addbtntitle = _('Add a proxy');
		this.guard(s);
		s.tab('proxy', _('Proxy'));
		s.tab('more', _('More'));
		this.addName(s);
		PROXY.forEach(words => this.addOption(s, 'upstream', words, 'proxy'));
		PROXY_MORE.forEach(words => this.addOption(s, 'upstream', words, 'more'));
		this.addButton(s, '_test', _('Try it'), _('As typed, before anything is saved.'), _('Test this proxy'), this.handleTest, 'proxy');
		this.addButton(s, '_up', _('Order'), '', _('Ask it earlier'), this.handleUp, 'more');

		if (this.options.rule) {
			s = this.map.section(form.GridSection, 'rule', _('Rules'), _('What becomes of certain connections: the first rule that matches counts.'));
			s.anonymous = true;
			s.addremove = s.sortable = !this.map.readonly;
			s.addbtntitle = _('Add a rule');
			s.modaltitle = _('Rule');
			s.nodescriptions = true;
			/* What is typed elsewhere would be gone after the dialogue. */
			s.addModalOptions = () => L.resolveDefault(this.parse());
			this.guard(s);
			[ ...RULE, ...MATCHES, ...OUTCOMES ].forEach(words => {
				const o = this.addOption(s, 'rule', words);

				if (o)
					o.modalonly = !(o.editable = RULE.includes(words));
			});
			this.addColumn(s, '_which', _('Connections'), rule => MATCHES.filter(([ name ]) => rule[name])
				.map(([ name, title ]) => '%s: %s'.format(title, this.shorten(L.toArray(rule[name])))).join('; ') || _('all'));
			this.addColumn(s, '_what', _('What becomes of them'), rule => OUTCOMES.filter(([ name ]) => rule[name] && rule[name] != '0')
				.map(([ name, title ]) => (name == 'upstream') ? rule[name] : title).join(', ') || '-');

			/* Dragging is for the mouse alone. */
			const up = this.addButton(s, '_up', _('Order'), '', _('Earlier'), this.handleUp);

			up.editable = true;
			up.modalonly = false;
		}

		s = this.map.section(form.NamedSection, 'main', 'main', _('More'));
		TABS.forEach(([ tab, title, options ]) => {
			s.tab(tab, title);
			options.forEach(words => this.addOption(s, 'main', words, tab));
		});

		/* What is newer than this page. */
		const known = MAIN.map(([ name ]) => name);

		this.options.main.filter(spec => !known.includes(spec.name))
			.forEach(spec => this.addOption(s, 'main', [ spec.name, spec.name, spec.help ], 'expert'));
	},

	addButton: function(s, name, title, description, words, handler, tab) {
		const o = tab ? s.taboption(tab, form.Button, name, title, description) : s.option(form.Button, name, title, description);

		o.inputtitle = words;
		o.inputstyle = 'action';
		o.readonly = this.map.readonly;
		o.onclick = (ev, sid) => handler.call(this, sid);

		return o;
	},

	/* In the table only, and only to read. */
	addColumn: function(s, name, title, text) {
		const o = s.option(form.DummyValue, name, title);

		o.modalonly = false;
		o.textvalue = sid => E('span', [ text(this.map.data.get('json', sid)) ]);
	},

	/* A few of many. */
	shorten: function(list) {
		return (list.length > 6) ? _('%s and %d more').format(list.slice(0, 5).join(', '), list.length - 5) : list.join(', ');
	},

	addName: function(s) {
		const o = s.taboption('proxy', form.Value, '_name', _('Name'), _('As rules and commands call it: letters, digits and _.'));

		o.datatype = 'uciname';
		o.placeholder = _('host and port');
		o.validate = (sid, value) => ![ 'auto', 'direct', 'main', ...this.order, ...this.proxies(sid) ].some(name => name != sid && name == value) ||
			_('This name is taken.');
	},

	/* What a proxy is called. */
	nameOf: function(sid, { _name, host, port }) {
		return _name || (this.old[sid] && !NAMELESS.test(sid) ? sid
			: host ? '%s:%s'.format(/^[^[].*:/.test(host) ? '[%s]'.format(host) : host, port || 80) : null);
	},

	/* What is in a field, also while it is being typed. By its id: many rules ask for the names of many proxies. */
	typed: function(sid, name) {
		const input = document.getElementById('widget.cbid.json.%s.%s'.format(sid, name));

		return input ? input.value : this.map.data.get('json', sid, name);
	},

	/* The names of all proxies but this one. */
	proxies: function(except) {
		const data = this.map.data;
		const sids = data.sections('json', 'upstream').map(values => values['.name']).filter(sid => sid != except);

		return L.toArray(data.get('json', 'main', 'upstream')).map(url => url.replace(/^.*[/@](?=.)|\/$/g, ''))
			.map(at => /:\d+$/.test(at) ? at : at + ':80')
			.concat(sids.map(sid => this.nameOf(sid, {
				_name: this.typed(sid, '_name'), host: this.typed(sid, 'host'), port: this.typed(sid, 'port')
			}))).filter(name => name);
	},

	/* A rule may also have a name that nobody has. */
	offerProxies: function(o) {
		const view = this;

		o.optional = true;
		o.load = function(sid) {
			const said = view.map.data.sections('json', 'rule').map(rule => rule.upstream).filter(name => name);

			this.keylist = this.vallist = null;
			this.value('', '-');
			new Set(view.proxies().concat(said)).forEach(name => this.value(name));

			return this.super('load', [ sid ]);
		};
	},

	addOption: function(s, kind, [ name, title, description ], tab) {
		const spec = this.options[kind].find(spec => spec.name == name);

		if (!spec)
			return null; /* of another version */

		const isProxy = kind == 'rule' && name == 'upstream';
		const type = spec.list ? form.DynamicList
			: (spec.type == 'bool') ? form.Flag
			: (spec.type == 'choice' || isProxy) ? form.ListValue
			: form.Value;
		const unit = spec.unit ? ' (%s, %d–%d)'.format(UNITS[spec.unit] || spec.unit, spec.min, spec.max)
			: (spec.min != null) ? ' (%d–%d)'.format(spec.min, spec.max) : '';
		const o = tab ? s.taboption(tab, type, name, title, description + unit) : s.option(type, name, title, description + unit);

		if (spec.type == 'bool')
			o.default = spec.default;
		else if (spec.type == 'choice') {
			o.optional = true;
			o.value('', _('default: %s').format(CHOICES['%s.%s'.format(name, spec.default)] || spec.default));
			spec.choices.forEach(choice => o.value(choice, CHOICES['%s.%s'.format(name, choice)] || choice));
		}
		else if (isProxy)
			this.offerProxies(o);
		else
			o.placeholder = spec.default;

		if (spec.type == 'port')
			o.datatype = 'port';
		else if (spec.type == 'number')
			o.datatype = 'range(%d,%d)'.format(spec.min, spec.max);

		if (name == 'password') {
			const { renderWidget } = o;

			o.password = true;
			o.renderWidget = (sid, ...args) => {
				o.placeholder = (this.old[sid] || {}).password ? _('unchanged') : _('none');

				return renderWidget.call(o, sid, ...args);
			};
		}

		o.validate = (sid, value) => this.validate(kind, name, sid, value);

		return o;
	},

	/* A secret can be kept, or typed. */
	validate: function(kind, name, sid, value) {
		/* A new one of which nothing is typed is not saved, if there is another. */
		if (name == 'host' && !value) {
			const isAlone = !this.proxies(sid).length && !this.field('main', 'upstream').querySelector('.item');

			if (isAlone || this.old[sid] || [ '_name', 'port', 'username' ].some(other => this.typed(sid, other)))
				return _('Name or address of the proxy.');
		}

		const old = (this.old[(kind == 'main') ? this.main : sid] || {})[name];

		return !String(value).includes(SECRET) || L.toArray(old).some(one => one == value) || unmask();
	},

	/* What is to be changed of a section: values to set, and names to delete. What nobody has set is the default;
	 * secrets that nobody has typed stay. */
	difference: function(kind, sid, values) {
		const old = this.old[sid] || {}, changes = { set: {}, unset: [] };

		this.options[kind].forEach(spec => {
			const name = spec.name;
			const simple = value => (spec.list ? !L.toArray(value).length : value == null || value === '' || value === spec.default)
				? null : spec.list ? L.toArray(value) : value;
			const value = simple(values[name]);

			if (equal(value, simple(old[name])) || (name == 'password' && value == null && values.username))
				return;

			if (value == null)
				changes.unset.push(name);
			else
				changes.set[name] = value;
		});

		return changes;
	},

	/* The form's sections as [ kind, name in the configuration (null: new), values, name in the form ], the main one first,
	 * without new ones of which nothing is typed. Rules follow when a proxy is called otherwise. */
	sections: function() {
		const data = this.map.data, renamed = Object.create(null);
		const isTyped = (kind, sid, values) => this.old[sid] || values._name || Object.keys(this.difference(kind, sid, values).set).length;

		data.sections('json', 'upstream').forEach(values => {
			const sid = values['.name'], before = this.old[sid] && this.nameOf(sid, this.old[sid]);

			if (before)
				renamed[before] = this.nameOf(sid, values) || before;
		});

		return [ [ 'main', this.main, data.get('json', 'main') || {}, 'main' ] ].concat(...[ 'upstream', 'rule' ].map(kind =>
			data.sections('json', kind).filter(values => isTyped(kind, values['.name'], values)).map(values => [
				kind, this.old[values['.name']] ? values['.name'] : null,
				(kind == 'rule' && renamed[values.upstream]) ? Object.assign({}, values, { upstream: renamed[values.upstream] }) : values,
				values['.name']
			])));
	},

	/* Stages what is to be; gives the names of the general options that change and the kinds of other sections that do, what
	 * the daemon says of it, and the form's sections in the order that they then have. With `only`, all other proxies are off. */
	stage: function(only) {
		const sections = this.sections();
		const kept = sections.map(section => section[1]).filter(sid => sid);
		const unknown = this.order.filter(sid => !this.old[sid]);
		const moved = [ 'main', 'upstream', 'rule' ].filter(kind => {
			const sids = sections.filter(section => section[0] == kind).map(section => section[1]);

			return !equal(sids, this.order.filter(sid => sids.includes(sid)));
		});
		const isMoved = moved.length > 0;
		const names = moved.filter(kind => kind != 'main'), steps = [ () => L.resolveDefault(callRevert(CONFIG)) ], order = [];

		Object.keys(this.old).filter(sid => !kept.includes(sid)).forEach(sid => {
			names.push('section');
			steps.push(() => callDeleteSection(CONFIG, sid));
		});

		sections.forEach(([ kind, sid, values, formSid ]) => {
			const changes = this.difference(kind, sid, values);

			if (only && kind == 'upstream')
				changes.set.enabled = (formSid == only) ? '1' : '0';

			if (only && kind == 'main') {
				delete changes.set.upstream;
				changes.unset = changes.unset.filter(name => name != 'upstream').concat((this.old[sid] || {}).upstream ? [ 'upstream' ] : []);
			}

			names.push(...[ ...Object.keys(changes.set), ...changes.unset ].map(name => (kind == 'main') ? name : kind));

			if (!sid) {
				steps.push(() => callAdd(CONFIG, (kind == 'main') ? CONFIG : kind, values._name || undefined, changes.set).then(added => order.push(added)));
				return;
			}

			if (Object.keys(changes.set).length)
				steps.push(() => callSet(CONFIG, sid, changes.set));

			if (changes.unset.length)
				steps.push(() => callDelete(CONFIG, sid, changes.unset));

			const name = values._name || sid;

			if (name != sid) {
				names.push(kind);
				steps.push(() => callRename(CONFIG, sid, name));
			}

			steps.push(() => order.push(name));
		});

		/* What the page does not know comes behind. */
		if (isMoved)
			steps.push(() => callOrder(CONFIG, order.concat(unknown)));

		const layout = isMoved ? sections.map(section => section[3])
			: this.layout(this.order.filter(sid => kept.includes(sid) || unknown.includes(sid)));

		return steps.reduce((before, step) => before.then(step), Promise.resolve()).then(() => callCheck()).then(check => ({
			names: names,
			layout: layout,
			check: check || { valid: false, message: [ _('The router does not answer.') ] }
		}));
	},

	/* Sections of the configuration as the form calls them. */
	layout: function(sids) {
		return sids.map(sid => (sid == this.main) ? 'main' : sid);
	},

	/* The form takes over what is typed, and reads it again, also if some of it is wrong: it compares with what it has read
	 * last. */
	parse: function() {
		return this.map.parse().finally(() => this.map.load());
	},

	/* A list is written as a whole, with its secrets, which the page does not know: gives the complaint. */
	masked: function() {
		for (const [ kind, sid, values, formSid ] of this.sections()) {
			const { set } = this.difference(kind, sid, values);
			const name = Object.keys(set).find(name => L.toArray(set[name]).some(value => String(value).includes(SECRET)));

			if (name)
				return { layout: [ formSid ], check: { section: 1, message: [ '%s: %s'.format(name, unmask()) ] } };
		}

		return null;
	},

	/* In the form, or in a row of a table. */
	field: function(sid, name) {
		return this.map.root.querySelector('[data-field="cbid.json.%s.%s"], [data-sid="%s"] > [data-name="%s"]'.format(sid, name, sid, name));
	},

	/* Puts what the daemon says to the field it is about, and on top. */
	blame: function({ check, layout }, title) {
		const text = check.message.join(' ');
		const [ , name, message ] = text.match(/^([a-z0-9_]+): (.*)$/) || [];
		const sid = layout[check.section - 1] || 'main';
		const field = name && (this.field(sid, name) || this.field(sid, '_which'));

		common.tell(title || _('Nothing was saved'), text, 'error');

		if (field) {
			(field.querySelector('.cbi-value-field') || field).appendChild(
				E('div', { 'class': 'cbi-value-description toh-fault', 'role': 'alert' }, [ message ]));
			this.show(field.querySelector('input:not([type="hidden"]), select') || field);
		}
	},

	/* With its tab, and with the keyboard at it. */
	show: function(node) {
		const tab = dom.parent(node, '[data-tab]');
		const link = tab && tab.parentNode.previousElementSibling.querySelector('[data-tab="%s"] a'.format(tab.getAttribute('data-tab')));

		if (link)
			link.click();

		node.focus();
		node.scrollIntoView({ block: 'center' });
	},

	showInvalid: function(input) {
		common.tell(null, _('First correct what is marked.'), 'error');
		input = input || this.root.querySelector('.cbi-input-invalid');

		if (input)
			this.show(input);
	},

	forgive: function() {
		this.root.querySelectorAll('.toh-fault').forEach(node => node.remove());
	},

	handleTest: function(sid) {
		this.forgive();

		return this.parse().then(() => this.masked() || this.stage(sid), () => null).then(staged => {
			if (!staged)
				return this.showInvalid();

			if (!staged.check.valid)
				return this.blame(staged);

			return common.doctor('example.com', true, () => {}).then(lines => {
				const ofProxy = lines.filter(line => /^\S+\s+upstream /.test(line));
				const told = ofProxy.length ? ofProxy : lines;

				ui.showModal(_('Test of the proxy'), [
					E('p', {}, [ common.verdict(told) ]),
					E('ul', { 'class': 'toh-findings' }, told.map(line => common.finding(line))),
					E('div', { 'class': 'right' }, [
						E('button', { 'class': 'btn cbi-button', 'click': ui.hideModal }, _('Dismiss'))
					])
				]);
			});
		}).catch(error => this.fail(error)).finally(() => L.resolveDefault(callRevert(CONFIG)));
	},

	handleUp: function(sid) {
		return this.parse().then(() => {
			const kind = this.map.data.get('json', sid)['.type'];
			const sids = this.map.data.sections('json', kind).map(values => values['.name']);
			const place = sids.indexOf(sid);

			if (place > 0)
				this.map.data.move('json', sid, sids[place - 1], false);

			return this.map.renderContents();
		}).then(() => {
			/* The button that the keyboard was at is another one now. */
			const field = this.field(sid, '_up');

			if (field)
				field.querySelector('button').focus();
		}, () => this.showInvalid());
	},

	/* As it is on the router: LuCI's own would keep what has been added, removed or moved. */
	handleReset: function() {
		return common.settings().then(settings => this.render(settings), error => this.fail(error));
	},

	fail: function(error) {
		/* LuCI has the stack in the lines below. */
		const text = String(error.message || error).split('\n')[0];

		common.tell(_('Nothing was saved'), /ubus code 4\b/.test(text)
			? _('The configuration has been changed elsewhere meanwhile: reload the page.') : text, 'error');
	},

	/* If it is no longer what the page has read: gives the complaint. Once: who saves again wants that. */
	changed: function() {
		return common.settings().then(({ sections }) => {
			const isSame = equal(sections, this.read);

			this.read = sections;

			return isSame ? null : { layout: [], check: { message: [
				_('The configuration has been changed elsewhere meanwhile. Reset shows it; saving again adds what is changed here.')
			] } };
		});
	},

	handleSaveApply: function(ev) {
		if (!this.map)
			return this.handleReset();

		this.forgive();

		return this.parse().then(() => this.masked() || this.changed().then(complaint => complaint || this.stage()), () => null).then(staged => {
			if (!staged)
				return this.showInvalid();

			if (!staged.check.valid) {
				this.blame(staged);

				return L.resolveDefault(callRevert(CONFIG));
			}

			if (!staged.names.length)
				return common.tell(null, _('Nothing has changed.'), 'info');

			return callCommit(CONFIG).then(() => this.told(staged.names));
		}).catch(error => {
			this.fail(error);

			return L.resolveDefault(callRevert(CONFIG));
		});
	},

	/* How it is once the change has had its effect, which takes a slow router a while: asks again every 2 s, for at most 20. */
	settled: function(isRestarted, tries) {
		return new Promise(resolve => window.setTimeout(resolve, 2000))
			.then(() => Promise.all([ common.status(), L.resolveDefault(common.settings(), {}) ]))
			.then(([ status, settings ]) => {
				const isThere = common.isOff(settings) ? !status : status && !(isRestarted && status.uptime > 2 * tries);

				return (isThere || tries == 10) ? [ status, settings ] : this.settled(isRestarted, tries + 1);
			});
	},

	/* Says what a change did. */
	told: function(names) {
		const restarts = this.options.main.filter(spec => !spec.live && names.includes(spec.name))
			.map(spec => (MAIN.find(([ name ]) => name == spec.name) || [ null, spec.name ])[1]);
		const words = status => (!status || names.includes('enabled')) ? _('Saved and applied.')
			: restarts.length ? _('Saved. The daemon restarts, since these have changed: %s.').format(restarts.join(', '))
			: _('Saved and applied: connections go on.');

		return this.settled(restarts.length > 0, 1)
			.then(([ status, settings ]) => {
				common.tell(null, '%s %s'.format(words(status), status ? _('It is running.') : common.whyNot(settings)), status ? 'info' : 'warning');

				return this.render(settings);
			});
	},

	handleSave: null
});
