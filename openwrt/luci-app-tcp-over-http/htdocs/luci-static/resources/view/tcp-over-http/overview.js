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
	up: [],
	down: [],
	answers: {},

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
		const now = Date.now() / 1000;
		const moved = status && common.moved(status);
		const push = (line, value) => { line.push(value); line.splice(0, line.length - SAMPLES); };

		if (!status) {
			this.last = null;
			return;
		}

		if (this.last && now > this.last.at) {
			const rate = key => {
				const more = moved[key] - this.last[key];

				return (more >= 0) ? more / (now - this.last.at) : null;
			};

			push(this.up, rate('up'));
			push(this.down, rate('down'));
		}

		this.last = Object.assign({ at: now }, moved);

		status.upstreams.forEach(proxy => {
			const line = this.answers[proxy.name] = this.answers[proxy.name] || { seen: 0, line: [] };

			/* One that nobody has asked since has nothing new to say. */
			push(line.line, (proxy.opened > line.seen) ? proxy.ms_last : null);
			line.seen = proxy.opened;
		});
	},

	render: function(answers) {
		const root = E('div', { 'class': 'toh' });

		this.may = L.hasViewPermission();
		this.update(root, answers);

		/* A page that nobody sees asks nothing. */
		poll.add(() => document.hidden ? Promise.resolve()
			: this.ask().then(answers => this.update(root, answers)), INTERVAL);

		return root;
	},

	update: function(root, [ status, clients, history, settings ]) {
		const focused = root.contains(document.activeElement) && document.activeElement.getAttribute('data-key');

		this.remember(status);
		dom.content(root, [
			common.style(),
			E('h2', {}, _('TCP over HTTP')),
			this.renderSentence(status, settings),
			status ? this.renderPause(status.pauses) : '',
			status ? this.renderProxies(status) : '',
			status ? this.renderThroughput(status) : '',
			status ? this.renderClients(clients) : '',
			status ? this.renderDrops(status.dropped || {}) : '',
			status ? this.renderHistory(history) : ''
		]);

		/* The button that the keyboard was at is another one now. */
		const again = focused && root.querySelector('[data-key="%s"]'.format(CSS.escape(focused)));

		if (again)
			again.focus();
	},

	renderSentence: function(status, settings) {
		if (!status)
			return E('p', { 'class': 'toh-state toh-bad', 'aria-live': 'polite' }, [
				common.whyNot(settings), ' ',
				E('a', { 'href': L.url('admin/services/tcp-over-http/settings') }, _('Settings'))
			]);

		const works = status.upstreams.filter(proxy => proxy.state == 'ok' || proxy.state == 'holding').length;
		const words = status.draining ? _('Ends: no new connections.')
			: !works ? _('Running, but no proxy works: connections are refused.')
			: _('Running for %s; open connections: %d.').format(common.duration(status.uptime), status.upstreams.reduce((sum, proxy) => sum + proxy.flows, 0));

		return E('p', { 'class': 'toh-state toh-%s'.format(status.draining || !works ? 'bad' : 'good'), 'aria-live': 'polite' }, [ words ]);
	},

	/* For a login page: what is begun meanwhile goes out directly. */
	renderPause: function(pauses) {
		const all = pauses.some(pause => pause.client == 'all');

		return E('div', { 'class': 'cbi-section' }, [
			E('div', {}, pauses.map(pause => E('p', { 'class': 'toh-state toh-fair' }, [
				((pause.client == 'all') ? _('Paused: connections go out directly (%s left)') : _('Paused for %s: its connections go out directly (%s left)'))
					.format(...(pause.client == 'all' ? [] : [ pause.client ]), common.duration(pause.seconds_left)), ' ',
				this.renderButton('resume %s'.format(pause.client), _('Resume'), () => callResume((pause.client == 'all') ? '' : pause.client))
			]))),
			all ? '' : this.renderButton('pause', _('Pause for 10 minutes'), () => callPause('10m'))
		]);
	},

	renderProxies: function(status) {
		const chosen = status.upstreams.some(proxy => proxy.chosen);
		const willing = status.upstreams.filter(proxy => !proxy.resting && proxy.state != 'uplink_down');
		const first = !chosen && status.upstreams.length > 1 && (willing.find(proxy => proxy.uplink) || willing[0]);

		return E('div', { 'class': 'cbi-section' }, [
			E('h3', {}, _('Proxies')),
			E('p', {}, chosen ? _('You have chosen one: no other is used.')
				: _('The first that works is used.')),
			E('div', { 'class': 'toh-cards' }, status.upstreams.map(proxy => this.renderProxy(proxy, proxy === first))),
			chosen ? this.renderUse('auto', _('Choose automatically')) : ''
		]);
	},

	renderProxy: function(proxy, isFirst) {
		const state = common.state(proxy);
		const line = this.answers[proxy.name].line;
		const refusals = common.refusals(proxy);
		const hasAnswered = Object.keys(proxy).some(name => /^(opened|refused_)/.test(name) && proxy[name] > 0);

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
				E('span', {}, [ hasAnswered ? _('answers in %d ms').format(proxy.ms_mean)
					: proxy.attempts ? _('has not answered yet') : _('not asked yet') ]),
				E('span', {}, [ common.connections(proxy.flows) ]),
				this.renderMoved(proxy)
			]),
			refusals.length ? E('p', { 'class': 'toh-old' }, [
				_('Refused:'), ' ', refusals.map(([ count, words ]) => '%s (%d)'.format(words, count)).join(', ')
			]) : '',
			proxy.chosen ? '' : this.renderUse(proxy.name, _('Use this one'))
		]);
	},

	renderMoved: function(counts) {
		return E('span', { 'title': _('Sent and received') }, [ '↑ %s ↓ %s'.format(common.bytes(counts.up), common.bytes(counts.down)) ]);
	},

	renderUse: function(name, words) {
		return this.renderButton(name, words, () => callUse(name, false), '%s: %s'.format(words, name));
	},

	renderButton: function(key, words, call, label) {
		return E('button', {
			'class': 'btn cbi-button cbi-button-action',
			'data-key': key,
			'aria-label': label,
			'disabled': this.may ? null : true,
			'click': ui.createHandlerFn(this, 'handleCall', call)
		}, [ words ]);
	},

	handleCall: function(call, ev) {
		const root = dom.parent(ev.currentTarget || ev.target, '.toh');

		return call().then(reply => {
			if (!reply || !reply.done)
				ui.addNotification(null, E('p', {}, [ common.reason(reply && (reply.message || reply.error)) || _('The daemon does not answer.') ]), 'error');

			return this.ask();
		}).then(answers => this.update(root, answers));
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
		/* What the kernel itself sends to every device is no TCP, or to groups: of that there always is some. */
		const names = Object.keys(drops).filter(name => drops[name] > 0 && name != 'not_tcp' && name != 'address');

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
