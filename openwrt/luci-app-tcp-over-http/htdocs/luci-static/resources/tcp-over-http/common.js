// SPDX-License-Identifier: MIT
'use strict';
'require baseclass';
'require rpc';
'require ui';

/* What the pages share: the calls, the daemon's words in the reader's language, and graphs.
 *
 * E() takes a string for HTML, and one in a list for text: what comes from the router is in lists. */

const callStatus = rpc.declare({ object: 'tcp-over-http', method: 'status' });
const callSettings = rpc.declare({ object: 'tcp-over-http', method: 'settings' });
const callDoctor = rpc.declare({ object: 'tcp-over-http', method: 'doctor', params: [ 'target', 'candidate', 'job' ], reject: true });

/* Of a proxy: what it is called, and how good that is. */
const STATES = {
	ok: [ _('works'), 'good' ],
	resting: [ _('set aside'), 'bad' ],
	confirming: [ _('is being tested'), 'fair' ],
	holding: [ _('answers again'), 'fair' ],
	uplink_down: [ _('uplink down'), 'bad' ]
};

const REASONS = {
	'uplink down': _('uplink down'),
	'cannot be reached': _('cannot be reached'),
	'does not answer': _('does not answer'),
	'closed, or spoke no HTTP': _('closed, or spoke no HTTP'),
	'407: refuses the credentials': _('407: refuses the credentials'),
	'no answer to CONNECT': _('no answer to CONNECT'),
	'refused': _('refused'),
	'answers again': _('answers again'),
	'ok': _('works'),
	'uplink up': _('uplink up'),
	'silent: connections reset': _('silent: connections reset'),
	'chosen': _('chosen'),
	'no longer chosen': _('no longer chosen'),
	"nothing may go directly (on_failure 'block'): to pause, set option pause '1'":
		_('Pauses are not allowed yet: Settings, What goes through it, Allow pauses.')
};

const DROPS = {
	malformed: _('malformed packets'),
	fragment: _('fragments'),
	extension: _('packets with IPv6 extensions'),
	ipv6_off: _('IPv6 packets, though IPv6 is off'),
	unexpected: _('packets that do not fit their connection'),
	unknown_flow: _('packets of no known connection'),
	rate_limited: _('answers over the rate limit'),
	table_full: _('connections over the limit'),
	too_many_dials: _('too many connections being opened at once'),
	too_many_dials_of_client: _('too many connections being opened at once by one client'),
	draining: _('connections begun while the daemon was stopping')
};

const REFUSALS = {
	refused_403: _('403: the target is not allowed'),
	refused_407: _('407: user or password is wrong'),
	refused_4xx: _('4xx: refused'),
	refused_5xx: _('5xx: the target cannot be reached'),
	refused_other: _('an answer of another kind'),
	unreachable: _('the proxy cannot be reached'),
	timed_out: _('no answer in time'),
	bad_reply: _('closed, or spoke no HTTP')
};

function svg(tag, attributes, children) {
	const node = document.createElementNS('http://www.w3.org/2000/svg', tag);

	for (const name in attributes)
		node.setAttribute(name, attributes[name]);

	(children || []).forEach(child => node.appendChild(child));

	return node;
}

return baseclass.extend({
	/* null: no daemon answers; undefined: the router does not, or nobody may ask. */
	status: function() {
		return L.resolveDefault(callStatus()).then(status => status && (status.upstreams ? status : null));
	},

	settings: callSettings,

	/* Asks until the doctor has finished, who may take longer than LuCI waits for an answer; `show` gets the lines so far. */
	doctor: function(target, isCandidate, show, job) {
		return callDoctor(target, isCandidate, job).then(({ lines, job }) => {
			show(lines);

			if (job)
				return this.doctor(target, isCandidate, show, job);

			/* One that looks at nothing finds no fault. */
			if (!lines.length)
				throw new Error(_('The doctor does not answer.'));

			return lines;
		});
	},

	/* Relayed by the daemon, and forwarded by the kernel. */
	moved: function(status) {
		const forwarding = status.forwarding || { up: 0, down: 0 };

		return { up: status.bytes.up + forwarding.up, down: status.bytes.down + forwarding.down };
	},

	hasAnswered: function(proxy) {
		return Object.keys(proxy).some(name => /^(opened|refused_)/.test(name) && proxy[name] > 0);
	},

	/* The daemon takes a proxy to work until it fails: of one that has not answered yet nobody knows. */
	state: function(proxy) {
		const [ words, grade ] = (proxy.state == 'ok' && !this.hasAnswered(proxy)) ? [ this.unanswered(proxy), 'unknown' ]
			: STATES[proxy.state] || [ proxy.state, 'fair' ];

		return { words: words, grade: grade };
	},

	unanswered: function(proxy) {
		return proxy.attempts ? _('has not answered yet') : _('not asked yet');
	},

	reason: function(text) {
		return REASONS[text] || text;
	},

	/* An entry of the history, as "rests: does not answer". */
	change: function(text) {
		return text.startsWith('rests: ')
			? '%s: %s'.format(_('set aside'), this.reason(text.substring(7)))
			: this.reason(text);
	},

	drop: function(name) {
		return DROPS[name] || name;
	},

	/* What it has refused, or failed at: how often, and what that means. */
	refusals: function(proxy) {
		return Object.keys(REFUSALS).filter(name => proxy[name] > 0).map(name => [ proxy[name], REFUSALS[name] ]);
	},

	bytes: function(number) {
		return '%1024.1mB'.format(Math.round(number));
	},

	connections: function(count) {
		return _('connections: %d').format(count);
	},

	rate: function(number) {
		return '%1024.1mB/s'.format(Math.round(number));
	},

	duration: function(seconds) {
		return (seconds < 60) ? _('%d s').format(seconds)
			: (seconds < 3600) ? _('%d min').format(seconds / 60)
			: (seconds < 172800) ? _('%d h %d min').format(seconds / 3600, seconds % 3600 / 60)
			: _('%d days').format(seconds / 86400);
	},

	isOff: function(settings) {
		const main = (settings.sections || []).find(section => section['.type'] == 'tcp-over-http');

		return !!main && /^(0|no|off|false|disabled)$/.test(L.toArray(main.enabled)[0]);
	},

	/* Why no daemon answers, in words. */
	whyNot: function(settings) {
		const check = settings.check || {};

		if (!settings.options)
			return _('The router does not answer.');

		if (this.isOff(settings))
			return _('Switched off. Nothing is proxied.');

		if (check.valid === false)
			return _('Not running: the configuration has a mistake (%s).').format(check.message.join(' '));

		return _('Switched on, but no daemon answers. The doctor may know why; the system log does.');
	},

	/* Lines over time, in a common scale; each is an array with null for what is not known. What it shows is told in words. */
	graph: function(lines, length, label) {
		const top = Math.max(1, ...[].concat(...lines));
		const shapes = lines.map((line, index) => {
			let path = '', area = '';

			line.forEach((value, place) => {
				if (value == null)
					return;

				const x = 100 * (length - line.length + place) / (length - 1), y = 38 - 36 * value / top;
				const isFirst = (line[place - 1] == null), isLast = (line[place + 1] == null);

				path += '%s%.1f %.1f%s'.format(isFirst ? 'M' : 'L', x, y, isFirst ? 'h0' : '');
				area += '%s%.1f %.1f%s'.format(isFirst ? 'M%.1f 40L'.format(x) : 'L', x, y, isLast ? 'V40Z' : '');
			});

			return svg('g', { 'class': 'toh-line-%d'.format(index + 1) }, [
				svg('path', { 'd': area, 'class': 'toh-area' }),
				svg('path', { 'd': path, 'class': 'toh-line', 'vector-effect': 'non-scaling-stroke' })
			]);
		});

		return svg('svg', {
			'class': 'toh-graph', 'viewBox': '0 0 100 40', 'preserveAspectRatio': 'none', 'role': 'img', 'aria-label': label
		}, shapes);
	},

	/* A line of the doctor's: how bad, what, and what to do. */
	finding: function(line) {
		const [ , level, what ] = line.match(/^(ok|warn|FAIL)\s+(.*)$/) || [ null, 'FAIL', line ];
		const [ words, grade ] = { ok: [ _('good'), 'good' ], warn: [ _('warning'), 'fair' ], FAIL: [ _('fails'), 'bad' ] }[level];

		return E('li', { 'class': 'toh-finding' }, [
			E('span', { 'class': 'toh-state toh-%s'.format(grade) }, words), E('span', {}, [ what ])
		]);
	},

	/* How many of the doctor's lines are bad. */
	verdict: function(lines) {
		const [ bad, warned ] = [ 'FAIL', 'warn' ].map(level => lines.filter(line => line.startsWith(level)).length);

		return E('strong', {}, [ (bad || warned) ? _('Faults: %d, warnings: %d').format(bad, warned) : _('All is well.') ]);
	},

	/* One message at a time: it is on top, and who has pressed a button is further down. */
	tell: function(title, text, kind) {
		if (this.note)
			this.note.remove();

		this.note = ui.addNotification(title, E('p', {}, [ text ]), kind);
		this.note.setAttribute('role', 'alert');
		this.note.scrollIntoView({ block: 'center' });
	},

	style: function() {
		return E('link', { 'rel': 'stylesheet', 'href': L.resource('tcp-over-http/style.css') });
	}
});
