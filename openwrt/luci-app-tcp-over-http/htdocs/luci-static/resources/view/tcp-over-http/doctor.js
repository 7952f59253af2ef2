// SPDX-License-Identifier: MIT
'use strict';
'require dom';
'require ui';
'require view';
'require tcp-over-http.common as common';

/* Of no use to a stranger: networks that are everybody's, and those of our own device. */
const LOCAL = /^(10\.|127\.|169\.254\.|192\.168\.|172\.(1[6-9]|2\d|3[01])\.|198\.1[89]\.|0\.|255\.|fd|fc|fe80|::1$|::$)/i;

return view.extend({
	/* Who and where the proxies are, as the configuration has it; addresses are found without it. */
	known: function(sections) {
		const words = [].concat(...(sections || []).map(section => [].concat(L.toArray(section.username),
			[ ...L.toArray(section.host), ...L.toArray(section.upstream) ].map(url => url.replace(/^.*[/@]/, '').replace(/:\d*$/, '')))));

		return words.filter(word => word && !/^[\d.]+$|:/.test(word))
			.map(word => new RegExp('(?<![\\w.-])' + word.replace(/[^\w-]/g, '\\$&') + '(?![\\w-])', 'gi'));
	},

	/* Without what a forum need not know: addresses of the internet; names, hosts and users of proxies; the target. */
	blank: function(lines, target, sections) {
		const proxies = [], known = this.known(sections);

		return lines.map(line => line.replace(/(?<![\w-])upstream (\S+?)(?=:? |:$|$)/, (all, name) => {
			if (!proxies.includes(name))
				proxies.push(name);

			return 'upstream #%d'.format(proxies.indexOf(name) + 1);
		}).replace(/\/\/[^/\s@]+@/g, '//***@')
			.replace(/\b\d{1,3}(\.\d{1,3}){3}\b/g, ip => LOCAL.test(ip) ? ip : 'x.x.x.x')
			.replace(/(?<![\w:])(?:[0-9a-f]{0,4}:){2,7}[0-9a-f]{0,4}(?![\w:])/gi, ip => LOCAL.test(ip) ? ip : 'x::x')
			.split(target).join('TARGET'))
			.map(line => known.reduce((text, word) => text.replace(word, '***'), line)).join('\n') + '\n';
	},

	render: function() {
		const may = L.hasViewPermission();

		const run = E('button', {
			'class': 'btn cbi-button cbi-button-action important',
			'disabled': may ? null : true,
			'click': ui.createHandlerFn(this, 'handleRun')
		}, _('Run'));

		this.output = E('div');
		this.target = E('input', {
			'type': 'text', 'class': 'cbi-input-text', 'id': 'toh-target', 'value': 'example.com', 'disabled': may ? null : true,
			'keydown': ev => { if (ev.key == 'Enter') run.click(); }
		});

		return E('div', {}, [
			common.style(),
			E('h2', {}, _('Doctor')),
			E('p', {}, _('Looks for what goes wrong in practice, and says what to do. It takes a few seconds, with a silent proxy half a minute.')),
			E('p', {}, [
				E('label', { 'for': 'toh-target' }, _('A host that the proxies should reach:')), ' ', this.target, ' ', run
			]),
			this.output
		]);
	},

	handleRun: function() {
		const target = this.target.value.trim() || 'example.com';
		const summary = E('p', { 'role': 'status' }), findings = E('ul', { 'class': 'toh-findings' });
		const show = lines => lines.slice(findings.children.length).forEach(line => findings.appendChild(common.finding(line)));

		dom.content(this.output, [ summary, findings ]);
		dom.content(summary, E('em', { 'class': 'spinning' }, _('Running…')));

		return Promise.all([ common.doctor(target, false, show), L.resolveDefault(common.settings(), {}) ]).then(([ lines, settings ]) => {
			const text = E('textarea', { 'class': 'toh-copy', 'rows': lines.length + 1, 'readonly': true, 'aria-label': _('As text') },
				[ this.blank(lines, target, settings.sections) ]);
			const copied = E('span', { 'role': 'status' });

			dom.content(summary, common.verdict(lines));
			dom.append(this.output, [
				E('h3', {}, _('For a forum')),
				E('p', {}, _('Without public addresses, and without hosts, users and names of proxies.')),
				text,
				E('p', {}, [ E('button', { 'class': 'btn cbi-button', 'click': () => this.copy(text, copied) }, _('Copy')), ' ', copied ])
			]);
		}).catch(() => dom.content(summary, E('span', { 'class': 'toh-state toh-bad' }, _('The doctor does not answer.'))));
	},

	/* The clipboard proper is for https only, which few routers have. */
	copy: function(text, copied) {
		text.focus();
		text.select();
		dom.content(copied, document.execCommand('copy') ? _('Copied.')
			: _('The browser does not let the page copy: the text is selected.'));
	},

	handleSaveApply: null,
	handleSave: null,
	handleReset: null
});
