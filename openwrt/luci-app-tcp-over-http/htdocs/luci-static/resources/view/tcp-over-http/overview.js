// SPDX-License-Identifier: MIT
'use strict';
'require dom';
'require poll';
'require rpc';
'require ui';
'require view';
'require tcp-over-http.common as common';

const callClients = rpc.declare({ object: 'tcp-over-http', method: 'clients', expect: { clients: [] } });
const callHistory = rpc.declare({ object: 'tcp-over-http', method: 'history', expect: { history: [] } });
/* Names of clients, as LuCI's own pages have them. */
const callHints = rpc.declare({ object: 'luci-rpc', method: 'getHostHints' });

const callUse = rpc.declare({ object: 'tcp-over-http', method: 'use', params: [ 'name', 'reset' ] });

const callPause = rpc.declare({ object: 'tcp-over-http', method: 'pause', params: [ 'duration' ] });
const callResume = rpc.declare({ object: 'tcp-over-http', method: 'resume', params: [ 'client' ] });

/* A sample every 5 s: five minutes. */
const INTERVAL = 5, SAMPLES = 60;

return view.extend({
	/* What earlier answers said: bytes, when, rates, and by proxy the time to answer. */
	last: null,
	at: null,
	up: [],
	down: [],
	answers: Object.create(null),

	/* A call is under way: what was asked before it is old. */
	isBusy: false,

	/* What clients are called, by address: asked once. */
	names: null,

	load: function() {
		return this.ask();
	},

	/* All at once: LuCI sends them as one request. */
	ask: function() {
		return Promise.all([
			common.status(),
			L.resolveDefault(callClients(), []),
			L.resolveDefault(callHistory(), []),
			this.names || L.resolveDefault(callHints(), {}).then(hints => this.learnNames(hints))
		]).then(answers => answers[0] ? answers.slice(0, 3)
			: L.resolveDefault(common.settings(), {}).then(settings => [ null, [], [], settings ]));
	},

	learnNames: function(hints) {
		this.names = {};

		for (const mac in hints)
			[].concat(hints[mac].ipaddrs || [], hints[mac].ip6addrs || []).forEach(ip => { this.names[ip] = hints[mac].name; });
	},

	remember: function(status) {
		if (!status) {
			this.last = null;
			return;
		}

		const now = Date.now() / 1000, moved = common.moved(status), last = this.last;
		const missed = this.at ? Math.min(SAMPLES, Math.round((now - this.at) / INTERVAL) - 1) : 0;

		/* Nothing is known of the time in which nobody asked. */
		const push = (line, value) => {
			for (let i = 0; i < missed; i++)
				line.push(null);

			line.push(value);
			line.splice(0, line.length - SAMPLES);
		};
		const rate = key => (last && now > last.at && moved[key] >= last[key]) ? (moved[key] - last[key]) / (now - last.at) : null;

		push(this.up, rate('up'));
		push(this.down, rate('down'));

		this.last = Object.assign({ at: now }, moved);
		this.at = now;

		status.upstreams.forEach(proxy => {
			const line = this.answers[proxy.name] = this.answers[proxy.name] || { seen: 0, line: [] };

			/* One that nobody has asked since has nothing new to say. */
			push(line.line, (proxy.opened > line.seen) ? proxy.ms_last : null);
			line.seen = proxy.opened;
		});
	},

	render: function(answers) {
		this.may = L.hasViewPermission();
		this.sentence = E('p', {}, [ E('span', { 'role': 'status' }), ' ', E('span') ]);
		this.body = E('div');
		this.update(answers);

		/* A page that nobody sees asks nothing. */
		poll.add(() => document.hidden ? Promise.resolve()
			: this.ask().then(answers => this.isBusy || this.update(answers)), INTERVAL);

		return E('div', { 'class': 'toh' }, [ common.style(), E('h2', {}, _('TCP over HTTP')), this.sentence, this.body ]);
	},

	update: function([ status, clients, history, settings ]) {
		const focused = this.body.contains(document.activeElement) && document.activeElement.getAttribute('data-key');

		this.remember(status);
		this.updateSentence(status, settings);
		dom.content(this.body, !status ? [] : [
			this.renderPause(status.pauses),
			this.renderProxies(status),
			this.renderThroughput(status),
			this.renderDrops(status.dropped || {}),
			this.renderHistory(history),
			this.renderClients(clients)
		]);

		/* The button that the keyboard was at is another one now. */
		if (focused)
			this.focus(focused);
	},

	focus: function(key) {
		const button = this.body.querySelector('[data-key="%s"]'.format(CSS.escape(key))) || this.body.querySelector('button');

		if (button)
			button.focus({ preventScroll: true });
	},

	/* The first words are told to who does not see them, but only when they change. */
	updateSentence: function(status, settings) {
		const [ first, second ] = this.sentence.querySelectorAll('span');
		const works = status && status.upstreams.some(proxy => proxy.state == 'ok' || proxy.state == 'holding');
		const words = !status ? common.whyNot(settings)
			: status.draining ? _('Ends: no new connections.')
			: !works ? _('Running, but no proxy works: connections are refused.')
			: _('Running.');

		this.sentence.className = 'toh-state toh-%s'.format(works && !status.draining ? 'good' : 'bad');

		if (first.textContent != words)
			dom.content(first, [ words ]);

		dom.content(second, [ !status
			? (settings.options ? E('a', { 'href': L.url('admin/services/tcp-over-http/settings') }, _('Settings')) : '')
			: _('Uptime: %s; open connections: %d.').format(common.duration(status.uptime), status.upstreams.reduce((sum, proxy) => sum + proxy.flows, 0)) ]);
	},

	/* For a login page: what is begun meanwhile goes out directly. */
	renderPause: function(pauses) {
		const all = pauses.some(pause => pause.client == 'all');

		return E('div', { 'class': 'cbi-section' }, [
			E('div', {}, pauses.map(pause => E('p', { 'class': 'toh-state toh-fair' }, [
				((pause.client == 'all') ? _('Paused: connections go out directly (%s left)') : _('Paused for %s: its connections go out directly (%s left)'))
					.format(...(pause.client == 'all' ? [] : [ pause.client ]), common.duration(pause.seconds_left)), ' ',
				this.renderButton((pause.client == 'all') ? 'pause' : 'resume %s'.format(pause.client), _('Resume'), () => callResume((pause.client == 'all') ? '' : pause.client))
			]))),
			all ? '' : E('div', {}, [
				this.renderButton('pause', _('Pause for 10 minutes'), () => callPause('10m')), ' ',
				_('New connections then go out directly, without a proxy.')
			])
		]);
	},

	renderProxies: function(status) {
		const chosen = status.upstreams.some(proxy => proxy.chosen);
		const willing = status.upstreams.filter(proxy => !proxy.resting && proxy.state != 'uplink_down');
		const first = !chosen && status.upstreams.length > 1 && (willing.find(proxy => proxy.uplink) || willing[0]);

		return E('div', { 'class': 'cbi-section' }, [
			E('h3', {}, _('Proxies')),
			E('p', {}, chosen ? _('You have chosen one: others are used only if it fails and the settings say so.')
				: _('The first that works is used.')),
			E('div', { 'class': 'toh-cards' }, status.upstreams.map(proxy => this.renderProxy(proxy, proxy === first, status.upstreams.length == 1)))
		]);
	},

	renderProxy: function(proxy, isFirst, isAlone) {
		const state = common.state(proxy);
		const line = this.answers[proxy.name].line;
		const refusals = common.refusals(proxy);

		return E('div', { 'class': 'toh-card%s'.format(proxy.chosen || isFirst ? ' chosen' : ''), 'data-proxy': proxy.name }, [
			E('h4', {}, [ proxy.name ]),
			E('p', { 'class': 'toh-state toh-%s'.format(state.grade) }, [
				proxy.why ? '%s: %s'.format(state.words, common.reason(proxy.why)) : state.words,
				proxy.seconds_left ? ' ' + _('(%s left)').format(common.duration(proxy.seconds_left)) : '',
				proxy.chosen ? E('strong', {}, ' — ' + _('chosen by you'))
					: !isFirst ? '' : ' — ' + (proxy.uplink ? _('asked first: its uplink is up') : _('asked first'))
			]),
			common.graph([ line ], SAMPLES, _('Time to answer in the last minutes')),
			E('div', { 'class': 'toh-numbers' }, [
				common.hasAnswered(proxy) ? E('span', {}, [ _('answers in %d ms').format(proxy.ms_mean) ])
					: state.grade == 'unknown' ? '' : E('span', {}, [ common.unanswered(proxy) ]),
				E('span', {}, [ common.connections(proxy.flows) ]),
				this.renderMoved(proxy)
			]),
			refusals.length ? E('p', { 'class': 'toh-old' }, [
				_('Failed:'), ' ', refusals.map(([ count, words ]) => '%s (%d)'.format(words, count)).join(', ')
			]) : '',
			proxy.chosen ? this.renderButton(proxy.name, _('Choose automatically'), () => callUse('auto', false))
				: isAlone ? ''
				: this.renderButton(proxy.name, _('Use this one'), () => callUse(proxy.name, false), '%s: %s'.format(_('Use this one'), proxy.name))
		]);
	},

	renderMoved: function(counts) {
		return E('span', { 'title': _('Sent and received') }, [ '↑ %s ↓ %s'.format(common.bytes(counts.up), common.bytes(counts.down)) ]);
	},

	renderButton: function(key, words, call, label) {
		return E('button', {
			'class': 'btn cbi-button cbi-button-action',
			'data-key': key,
			'aria-label': label,
			'disabled': this.may ? null : true,
			'click': ui.createHandlerFn(this, 'handleCall', key, call)
		}, [ words ]);
	},

	handleCall: function(key, call) {
		this.isBusy = true;

		return L.resolveDefault(call()).then(reply => {
			if (!reply || !reply.done)
				common.tell(null, common.reason(reply && (reply.message || reply.error)) || _('The daemon does not answer.'), 'error');

			return this.ask();
		}).then(answers => {
			this.isBusy = false;
			this.update(answers);

			/* LuCI has taken the keyboard away. */
			if (document.activeElement == document.body)
				this.focus(key);
		});
	},

	renderThroughput: function(status) {
		const last = line => line.length ? line[line.length - 1] || 0 : 0;
		const moved = common.moved(status);

		return E('div', { 'class': 'cbi-section toh-wide' }, [
			E('h3', {}, _('Throughput')),
			common.graph([ this.down, this.up ], SAMPLES, _('Throughput in the last five minutes')),
			E('div', { 'class': 'toh-numbers' }, [
				E('span', {}, [ _('— received: %s').format(common.rate(last(this.down))) ]),
				E('span', {}, [ _('- - sent: %s').format(common.rate(last(this.up))) ]),
				E('span', {}, [ _('peak: %s').format(common.rate(Math.max(0, ...this.down, ...this.up))) ]),
				E('span', {}, [ _('total: ↓ %s, ↑ %s').format(common.bytes(moved.down), common.bytes(moved.up)) ])
			])
		]);
	},

	renderClients: function(clients) {
		if (!clients.length)
			return '';

		const sorted = clients.slice().sort((a, b) => b.flows - a.flows || a.seconds_ago - b.seconds_ago);

		return E('div', { 'class': 'cbi-section' }, [
			E('h3', {}, _('Clients')),
			E('ul', { 'class': 'toh-clients' }, sorted.map(client => E('li', {}, [
				E('span', {}, [ E('strong', {}, [ this.names[client.client] || client.client ]), this.names[client.client] ? ' ' + client.client : '' ]),
				E('span', {}, [ common.connections(client.flows) ]),
				this.renderMoved(client),
				E('span', {}, [ _('opened: %d').format(client.opened) ]),
				E('span', {}, [ _('refused: %d').format(client.refused) ]),
				E('span', {}, [ _('%s ago').format(common.duration(client.seconds_ago)) ])
			])))
		]);
	},

	renderDrops: function(drops) {
		/* No fault: the kernel itself sends to every device what is no TCP, or to groups, and clients that wait for a proxy
		 * repeat their SYN. */
		const names = Object.keys(drops).filter(name => drops[name] > 0 && ![ 'not_tcp', 'address', 'repeated_syn' ].includes(name));

		if (!names.length)
			return '';

		return E('div', { 'class': 'cbi-section' }, [
			E('h3', {}, _('Dropped')),
			E('ul', {}, names.map(name => E('li', {}, [ '%s: %d'.format(common.drop(name), drops[name]) ])))
		]);
	},

	renderHistory: function(history) {
		if (!history.length)
			return '';

		return E('div', { 'class': 'cbi-section' }, [
			E('h3', {}, _('Last changes')),
			E('ul', {}, history.slice(-10).reverse().map(change => E('li', {}, [
				E('span', { 'class': 'toh-old' }, [ _('%s ago').format(common.duration(change.seconds_ago)) ]),
				' ', E('strong', {}, [ change.upstream ]), ' ', common.change(change.change)
			])))
		]);
	},

	handleSaveApply: null,
	handleSave: null,
	handleReset: null
});
