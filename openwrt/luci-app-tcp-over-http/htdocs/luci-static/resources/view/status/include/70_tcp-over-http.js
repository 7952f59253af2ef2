// SPDX-License-Identifier: MIT
'use strict';
'require baseclass';
'require tcp-over-http.common as common';

return baseclass.extend({
	title: _('TCP over HTTP'),

	load: function() {
		return common.status();
	},

	render: function(status) {
		if (status === undefined)
			return null;

		/* Nothing would leave there what it was before. */
		if (!status)
			return E('p', {}, E('em', {}, _('Not running.')));

		return E('table', { 'class': 'table' }, status.upstreams.map(proxy => {
			const state = common.state(proxy);

			return E('tr', { 'class': 'tr' }, [
				E('td', { 'class': 'td left', 'width': '33%' }, [ proxy.name ]),
				E('td', { 'class': 'td left' }, [
					proxy.why ? '%s: %s'.format(state.words, common.reason(proxy.why)) : state.words,
					proxy.chosen ? ' (' + _('chosen by you') + ')' : '',
					', ', common.connections(proxy.flows)
				])
			]);
		}));
	}
});
