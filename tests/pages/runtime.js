/* A double of LuCI's runtime in the browser, as far as our views use it and as LuCI documents it: class system and
 * require, E and dom, rpc, poll, view, ui, and of form JSONMap with named, typed and grid sections. PAGE says what is shown. */
'use strict';

String.prototype.format = function(...args) {
	const escaped = text => String(text).replace(/[&<>"']/g, c => '&#%d;'.replace('%d', c.charCodeAt(0)));

	return this.replace(/%(?:(\d+))?(?:\.(\d+))?([%sdfhqm])/g, (all, length, precision, type) => {
		if (type == '%')
			return '%';

		const value = args.shift();

		switch (type) {
		case 'd': return String(parseInt(value || 0));
		case 'f': return Number(value || 0).toFixed(precision ?? 6);
		case 'h': case 'q': return escaped(value);
		case 'm': {
			const base = +(length || 1000), units = [ '', 'K', 'M', 'G', 'T' ];
			let number = Number(value || 0), unit = 0;
			while (number > base && unit < 4)
				number /= base, unit++;
			return (unit ? number.toFixed(precision ?? 2) : String(number)) + ' ' + units[unit] + (base == 1024 && unit ? 'i' : '');
		}
		default: return String(value);
		}
	});
};

window._ = text => (PAGE.translations[text.trim().replace(/\s+/g, ' ')] || text);

const instances = new WeakMap();
const dom = {
	elem: node => node instanceof Node,
	parse: html => document.createRange().createContextualFragment(html),
	/* A plain string is HTML; in an array it is text. */
	append: (node, children) => {
		if (Array.isArray(children))
			children.forEach(child => dom.elem(child) ? node.appendChild(child)
				: child != null && child !== '' && (Array.isArray(child) ? dom.append(node, child)
				: node.appendChild(document.createTextNode(String(child)))));
		else if (dom.elem(children))
			node.appendChild(children);
		else if (children != null)
			node.innerHTML = String(children);
		return node.lastChild;
	},
	content: (node, children) => { node.replaceChildren(); return dom.append(node, children); },
	parent: (node, selector) => node.closest ? node.closest(selector) : null,
	create: (tag, attributes, children) => {
		if (Array.isArray(tag)) {
			const fragment = document.createDocumentFragment();
			tag.forEach(child => dom.append(fragment, [ child ]));
			return fragment;
		}
		if (attributes != null && (typeof attributes == 'string' || Array.isArray(attributes) || dom.elem(attributes)))
			children = attributes, attributes = {};
		const node = document.createElement(tag);
		for (const name in attributes || {}) {
			const value = attributes[name];
			if (value == null)
				continue;
			if (typeof value == 'function')
				node.addEventListener(name, value);
			else
				node.setAttribute(name, (typeof value == 'object') ? JSON.stringify(value) : value);
		}
		dom.append(node, children);
		return node;
	},
	bindClassInstance: (node, instance) => { instances.set(node, instance); return instance; },
	findClassInstance: node => { for (; node; node = node.parentNode) if (instances.has(node)) return instances.get(node); return null; },
	callClassMethod: (node, method, ...args) => { const inst = dom.findClassInstance(node); return inst && inst[method] ? inst[method](...args) : null; }
};
window.E = dom.create;

class Base {
	constructor(...args) { if (this.__init__) this.__init__(...args); }
	super(name, args) {
		const owner = this.__level || this;
		let proto = owner;
		while (proto && !Object.hasOwn(proto, name)) proto = Object.getPrototypeOf(proto);
		const above = Object.getPrototypeOf(proto), before = this.__level;
		this.__level = above;
		try { return above[name].apply(this, args || []); } finally { this.__level = before; }
	}
	static extend(properties) {
		class Derived extends this {}
		Object.assign(Derived.prototype, properties);
		return Derived;
	}
	static isSubclass(other) { return other != null && (other === this || this.isPrototypeOf(other)); }
	static instantiate(args) { return new this(...args); }
}

window.L = {
	env: PAGE,
	url: (...parts) => '/cgi-bin/luci/' + parts.join('/'),
	resource: path => '/luci-static/resources/' + path,
	resolveDefault: (value, fallback) => Promise.resolve(value).catch(() => fallback),
	toArray: value => value == null ? [] : Array.isArray(value) ? value
		: typeof value == 'object' ? [ value ] : String(value).trim() === '' ? [] : String(value).trim().split(/\s+/),
	isObject: value => value != null && typeof value == 'object',
	bind: (fn, self, ...args) => fn.bind(self, ...args),
	hasViewPermission: () => !PAGE.readonly,
	require: name => load(name)
};

/* uhttpd's /ubus: [ code, answer ], or an error if the session may not call it. */
let requests = 0;
const rpc = {
	declare: options => (...args) => {
		const params = {};
		(options.params || []).forEach((name, place) => { params[name] = args[place]; });
		return fetch('/ubus/', {
			method: 'POST',
			signal: AbortSignal.timeout((L.env.rpctimeout ?? 20) * 1000),
			body: JSON.stringify({ jsonrpc: '2.0', id: ++requests, method: 'call', params: [ PAGE.sessionid, options.object, options.method, params ] })
		}).then(response => response.json()).then(message => {
			if (message.error)
				throw new Error('RPC call to %s/%s failed with error %d: %s'.format(options.object, options.method, message.error.code, message.error.message));
			if (options.reject && message.result[0] !== 0)
				throw new Error('RPC call to %s/%s failed with ubus code %d'.format(options.object, options.method, message.result[0]));
			let result = message.result.length > 1 ? message.result[1] : message.result[0];
			for (const key in options.expect || {}) {
				const wanted = options.expect[key], kind = value => Object.prototype.toString.call(value);
				if (key != '' && result != null)
					result = result[key];
				if (result == null || kind(result) != kind(wanted))
					result = wanted;
			}
			return result;
		});
	}
};

const poll = {
	queue: [],
	add: (fn, interval) => { poll.queue.push({ fn: fn, interval: interval || 5, tick: 0 }); return true; }
};
window.setInterval(() => poll.queue.forEach(entry => {
	if (++entry.tick % entry.interval == 0 && !entry.busy)
		entry.busy = true, Promise.resolve(entry.fn()).catch(() => {}).finally(() => { entry.busy = false; });
}), 1000);

const ui = {
	createHandlerFn: (self, fn, ...args) => ev => {
		const target = ev.currentTarget;
		target.classList.add('spinning');
		target.disabled = true;
		target.blur();
		return Promise.resolve((typeof fn == 'string' ? self[fn] : fn).apply(self, args.concat(ev))).finally(() => {
			target.classList.remove('spinning');
			target.disabled = false;
		});
	},
	addNotification: (title, children, ...classes) => {
		const node = E('div', { 'class': [ 'alert-message' ].concat(classes).join(' ') }, [ title ? E('h4', {}, title) : '', children ]);
		document.querySelector('#maincontent').prepend(node);
		return node;
	},
	showModal: (title, children) => {
		ui.hideModal();
		document.body.appendChild(E('div', { 'id': 'modal_overlay', 'role': 'dialog' }, E('div', { 'class': 'modal' }, [ E('h4', {}, title) ].concat(children))));
	},
	hideModal: () => { const node = document.querySelector('#modal_overlay'); if (node) node.remove(); }
};

const view = Base.extend({
	__init__() {
		const root = document.querySelector('#view');
		Promise.resolve(this.load()).then(data => this.render(data)).then(nodes => {
			dom.content(root, nodes);
			dom.append(root, this.addFooter());
		}).catch(error => { document.body.setAttribute('data-error', String(error.stack || error)); });
	},
	load() {},
	handleSave() { return Promise.all([ ...document.querySelectorAll('.cbi-map') ].map(map => dom.callClassMethod(map, 'save'))); },
	handleSaveApply(ev) { return this.handleSave(ev); },
	handleReset() { return Promise.all([ ...document.querySelectorAll('.cbi-map') ].map(map => dom.callClassMethod(map, 'reset'))); },
	addFooter() {
		const button = (words, handler, kind) => handler ? E('button', {
			'class': 'btn cbi-button cbi-button-%s'.format(kind), 'disabled': PAGE.readonly ? true : null, 'click': ui.createHandlerFn(this, handler)
		}, [ words ]) : '';
		return E('div', { 'class': 'cbi-page-actions' }, [
			button('Save & Apply', this.handleSaveApply, 'apply'), button('Save', this.handleSave, 'save'), button('Reset', this.handleReset, 'reset')
		]);
	}
});

/* ---- form ---- */

const equal = (a, b) => JSON.stringify(a) == JSON.stringify(b);

const CHECKS = {
	port: value => /^\d+$/.test(value) && +value <= 65535,
	uciname: value => /^[a-zA-Z0-9_]+$/.test(value),
	range: (value, min, max) => /^-?\d+(\.\d+)?$/.test(value) && +value >= +min && +value <= +max
};

function valid(datatype, value) {
	const [ , name, args ] = datatype.match(/^(\w+)(?:\((.*)\))?$/);
	return CHECKS[name](value, ...(args || '').split(','));
}

class JSONConfig {
	constructor(data) {
		this.data = {};
		let count = 0;
		Object.keys(data).forEach(type => (Array.isArray(data[type]) ? data[type] : [ Object.assign(data[type], { '.name': type }) ]).forEach(item => {
			const name = item['.name'] || type + count;
			this.data[name] = Object.assign(item, { '.index': count++, '.name': name, '.type': type });
		}));
	}
	get(config, sid, option) {
		if (option == null)
			return this.data[sid];
		const value = (this.data[sid] || {})[option];
		return Array.isArray(value) ? value : value != null ? String(value) : null;
	}
	set(config, sid, option, value) { if (value == null) delete this.data[sid][option]; else this.data[sid][option] = Array.isArray(value) ? value : String(value); }
	unset(config, sid, option) { this.set(config, sid, option, null); }
	sections(config, type) { return Object.values(this.data).filter(s => s['.type'] == type).sort((a, b) => a['.index'] - b['.index']); }
	/* One whose name is taken is not added. */
	add(config, type, name) {
		const sid = name ?? type + this.sections(config, type).length;
		this.data[sid] ??= { '.name': sid, '.type': type, '.anonymous': name == null, '.index': 1 + Math.max(0, ...Object.values(this.data).map(s => s['.index'])) };
		return sid;
	}
	remove(config, sid) { delete this.data[sid]; }
	move(config, sid1, sid2, after) {
		const all = Object.values(this.data).sort((a, b) => a['.index'] - b['.index']), moved = this.data[sid1];
		const rest = all.filter(s => s != moved);
		rest.splice(rest.indexOf(this.data[sid2]) + (after ? 1 : 0), 0, moved);
		rest.forEach((s, index) => { s['.index'] = index; });
		this.state.reorder[config] = true; /* as LuCI 23.05 */
		return true;
	}
}

const JSONMap = Base.extend({
	__init__(data, title, description) {
		Object.assign(this, { title, description, config: 'json', children: [], data: new JSONConfig(data) });
	},
	section(type, ...args) { const s = new type(this, ...args); this.children.push(s); return s; },
	load() { this.children.forEach(s => s.sids().forEach(sid => s.children.forEach(o => o.load(sid)))); return Promise.resolve(); },
	render() { return this.load().then(() => this.renderContents()); },
	renderContents() {
		this.root = this.root || E('div', { 'class': 'cbi-map', 'id': 'cbi-json' });
		dom.bindClassInstance(this.root, this);
		dom.content(this.root, [ E('h2', { 'name': 'content' }, this.title), E('div', { 'class': 'cbi-map-descr' }, this.description) ]
			.concat(this.children.map(s => s.render())));
		this.checkDepends(); /* and what is valid */
		return Promise.resolve(this.root);
	},
	reset() { return this.renderContents(); },
	checkDepends() { this.children.forEach(s => s.sids().forEach(sid => s.children.forEach(o => o.check(sid)))); },
	parse() { return Promise.all(this.children.map(s => s.parse())); },
	save(cb, silent) {
		return this.parse().then(cb).then(() => this.load()).catch(error => { if (!silent) alert(error); return Promise.reject(error); }).finally(() => this.renderContents());
	}
});

const Section = Base.extend({
	option(type, ...args) { const o = new type(this.map, this, ...args); this.children.push(o); return o; },
	tab(name, title) { this.tabs = (this.tabs || []).concat([ { name, title } ]); },
	taboption(tab, ...args) { const o = this.option(...args); o.tab = tab; return o; },
	parse() { return Promise.all(this.sids().map(sid => Promise.all(this.children.map(o => o.parse(sid))))); },
	renderOptions(sid) {
		const node = E('div', { 'class': 'cbi-section-node', 'data-section-id': sid });
		if (!this.tabs)
			return dom.append(node, this.children.map(o => o.render(sid))), node;
		const panes = this.tabs.map(tab => E('div', { 'data-tab': tab.name, 'data-tab-title': tab.title },
			this.children.filter(o => o.tab == tab.name).map(o => o.render(sid))));
		const menu = E('ul', { 'class': 'cbi-tabmenu' }, this.tabs.map(tab => E('li', { 'data-tab': tab.name }, E('a', {
			'href': '#', 'click': ev => { ev.preventDefault(); show(tab.name); }
		}, [ tab.title ]))));
		const show = name => [ ...panes, ...menu.children ].forEach(pane => {
			const active = pane.getAttribute('data-tab') == name;
			if (pane.tagName == 'LI')
				pane.className = active ? 'cbi-tab' : 'cbi-tab-disabled';
			else
				pane.setAttribute('data-tab-active', active), pane.style.display = active ? '' : 'none';
		});
		dom.append(node, panes);
		show(this.tabs[0].name);
		return E([ menu, node ]);
	}
});

const NamedSection = Section.extend({
	__init__(map, sid, type, title, description) { Object.assign(this, { map, sid, sectiontype: type, title, description, children: [] }); },
	sids() { return [ this.sid ]; },
	render() {
		return E('div', { 'class': 'cbi-section', 'id': 'cbi-json-' + this.sid }, [ this.title ? E('h3', {}, this.title) : '', this.renderOptions(this.sid) ]);
	}
});

const TypedSection = Section.extend({
	__init__(map, type, title, description) { Object.assign(this, { map, sectiontype: type, title, description, children: [] }); },
	sids() { return this.map.data.sections('json', this.sectiontype).map(s => s['.name']); },
	handleAdd() { this.map.data.add('json', this.sectiontype); return this.map.save(null, true).catch(() => {}); },
	renderRow(sid) { return this.renderOptions(sid); },
	handleRemove(sid) { this.map.data.remove('json', sid); return this.map.save(null, true).catch(() => {}); },
	render() {
		return E('div', { 'class': 'cbi-section', 'id': 'cbi-json-' + this.sectiontype }, [
			E('h3', {}, this.title), E('div', { 'class': 'cbi-section-descr' }, this.description)
		].concat(...this.sids().map(sid => [
			this.addremove ? E('div', { 'class': 'cbi-section-remove right' }, E('button', {
				'class': 'btn cbi-button', 'data-section-id': sid, 'click': ui.createHandlerFn(this, 'handleRemove', sid)
			}, [ 'Delete' ])) : '',
			this.renderRow(sid)
		]), [ this.addremove ? E('div', { 'class': 'cbi-section-create' }, E('button', {
			'class': 'btn cbi-button cbi-button-add', 'click': ui.createHandlerFn(this, 'handleAdd')
		}, [ this.addbtntitle || 'Add' ])) : '' ]));
	}
});

/* As a typed one here, with handles to drag: LuCI has a table of the first few options, and a dialogue with all. */
const GridSection = TypedSection.extend({
	renderRow(sid) {
		const row = E('div', { 'data-sid': sid, 'dragover': ev => ev.preventDefault(), 'drop': ev => {
			this.map.data.move('json', ev.dataTransfer.getData('text'), sid, ev.clientY > row.getBoundingClientRect().top + row.offsetHeight / 2);
			this.map.renderContents();
		} }, [ this.renderOptions(sid) ]);
		if (this.sortable)
			row.prepend(E('button', { 'class': 'cbi-button drag-handle', 'draggable': true,
				'dragstart': ev => ev.dataTransfer.setData('text', sid) }, [ '☰' ]));
		return row;
	}
});

const Value = Base.extend({
	__init__(map, section, option, title, description) {
		Object.assign(this, { map, section, option, title, description, rmempty: true, optional: false, default: null, nodes: {}, read: {} });
	},
	value(key, words) { (this.keylist ??= []).push(String(key)); (this.vallist ??= []).push(words ?? key); },
	cbid(sid) { return 'cbid.json.%s.%s'.format(sid, this.option); },
	/* What was there at the last load: not what has been written since. */
	load(sid) { this.read[sid] = this.map.data.get('json', sid, this.option); },
	cfgvalue(sid) { return this.read[sid] ?? null; },
	validate() { return true; },
	disabled() { return (this.readonly ?? this.map.readonly) ? true : null; },
	widget(sid) {
		return E('input', {
			'type': this.password ? 'password' : 'text', 'class': 'cbi-input-%s'.format(this.password ? 'password' : 'text'), 'id': 'widget.' + this.cbid(sid),
			'placeholder': this.placeholder, 'value': this.cfgvalue(sid) ?? this.default, 'disabled': this.disabled(), 'autocomplete': 'off',
			'input': () => this.check(sid)
		});
	},
	renderWidget(sid) { return this.widget(sid); },
	formvalue(sid) { return this.nodes[sid].value; },
	problem(sid) {
		const value = this.formvalue(sid);
		const isEmpty = value === '' || value == null;
		if (isEmpty && !this.rmempty && !this.optional)
			return 'empty';
		if (!isEmpty && this.datatype && !valid(this.datatype, value))
			return 'expecting ' + this.datatype;
		const said = this.validate(sid, value);
		return said === true ? null : said;
	},
	check(sid) {
		const node = this.nodes[sid], problem = node && this.problem(sid);
		if (node && node.classList) {
			node.classList.toggle('cbi-input-invalid', !!problem);
			node.title = problem || '';
		}
		return !problem;
	},
	render(sid) {
		const node = this.nodes[sid] = this.renderWidget(sid);
		const field = E('div', { 'class': 'cbi-value', 'data-field': this.cbid(sid), 'data-name': this.option }, [
			E('label', { 'class': 'cbi-value-title', 'for': 'widget.' + this.cbid(sid) }, this.title),
			E('div', { 'class': 'cbi-value-field' }, [ node, this.description ? E('div', { 'class': 'cbi-value-description' }, this.description) : '' ])
		]);
		dom.bindClassInstance(field, this);
		return field;
	},
	parse(sid) {
		if (!this.nodes[sid])
			return Promise.resolve(); /* just added */
		if (!this.check(sid))
			return Promise.reject(new TypeError('Option "%s" contains an invalid input value.'.format(this.title)));
		const value = this.formvalue(sid);
		if (value == null || value == '')
			this.remove(sid);
		else if (!equal(value, this.cfgvalue(sid)))
			this.write(sid, value);
		return Promise.resolve();
	},
	write(sid, value) { this.map.data.set('json', sid, this.option, value); },
	remove(sid) { this.map.data.unset('json', sid, this.option); }
});

const ListValue = Value.extend({
	widget(sid) {
		const current = this.cfgvalue(sid) ?? this.default ?? '';
		const all = this.keylist.map((key, place) => [ key, this.vallist[place] ]), keys = all.filter(([ key ]) => key !== '');
		if (this.optional || keys.length < all.length)
			keys.unshift(all.find(([ key ]) => key === '') || [ '', '-- Please choose --' ]);
		return E('select', { 'class': 'cbi-input-select', 'id': 'widget.' + this.cbid(sid), 'disabled': this.disabled() },
			keys.map(([ key, words ]) => E('option', { 'value': key, 'selected': key == current ? true : null }, [ words ])));
	}
});

const Flag = Value.extend({
	widget(sid) {
		return E('input', { 'type': 'checkbox', 'id': 'widget.' + this.cbid(sid), 'disabled': this.disabled(),
			'checked': (this.cfgvalue(sid) ?? this.default) == '1' ? true : null });
	},
	formvalue(sid) { return this.nodes[sid].checked ? '1' : '0'; },
	parse(sid) {
		if (!this.nodes[sid])
			return Promise.resolve();
		const value = this.formvalue(sid);
		if (value == this.default && (this.optional || this.rmempty)) this.remove(sid); else this.write(sid, value);
		return Promise.resolve();
	}
});

const DynamicList = Value.extend({
	widget(sid) {
		const list = E('div', { 'class': 'cbi-dynlist', 'id': this.cbid(sid) });
		const add = value => {
			if (value !== '' && this.validate(sid, value) === true) {
				input.value = '';
				list.insertBefore(E('div', { 'class': 'item', 'tabindex': 0, 'data-value': value, 'click': ev => this.disabled() || ev.currentTarget.remove() }, [ value ]), input);
			}
		};
		const input = E('input', { 'type': 'text', 'class': 'cbi-input-text', 'id': 'widget.' + this.cbid(sid), 'placeholder': this.placeholder, 'disabled': this.disabled(),
			'keydown': ev => { if (ev.key == 'Enter') { ev.preventDefault(); add(input.value.trim()); } }, 'blur': () => add(input.value.trim()) });
		list.appendChild(input);
		L.toArray(this.cfgvalue(sid)).forEach(value => list.insertBefore(E('div', { 'class': 'item', 'tabindex': 0, 'data-value': value,
			'click': ev => this.disabled() || ev.currentTarget.remove() }, [ value ]), input));
		return list;
	},
	formvalue(sid) { return [ ...this.nodes[sid].querySelectorAll('.item') ].map(item => item.getAttribute('data-value')); },
	problem() { return null; }
});

const Button = Value.extend({
	widget(sid) {
		return E('button', { 'class': 'btn cbi-button cbi-button-%s'.format(this.inputstyle || 'button'), 'disabled': this.disabled(),
			'click': ui.createHandlerFn(this, ev => this.onclick(ev, sid)) }, [ this.inputtitle || this.title ]);
	},
	parse() { return Promise.resolve(); },
	check() { return true; }
});

const DummyValue = Value.extend({
	widget(sid) { return E('output', {}, this.textvalue(sid)); },
	parse() { return Promise.resolve(); },
	check() { return true; }
});

const form = { JSONMap, NamedSection, TypedSection, GridSection, Value, ListValue, Flag, DynamicList, Button, DummyValue };
const modules = { baseclass: Promise.resolve(Base), dom: Promise.resolve(dom), form: Promise.resolve(form), poll: Promise.resolve(poll),
	rpc: Promise.resolve(rpc), ui: Promise.resolve(ui), view: Promise.resolve(view) };

function load(name) {
	return modules[name] = modules[name] || fetch(L.resource(name.replace(/\./g, '/') + '.js')).then(response => response.text()).then(source => {
		const names = [], wanted = [];
		source.replace(/^'require ([\w.\-]+)(?: as (\w+))?';$/gm, (all, module, as) => {
			wanted.push(load(module));
			names.push(as || module.replace(/[^\w]/g, '_'));
		});
		return Promise.all(wanted).then(found => {
			const made = new Function('window', 'document', 'L', ...names, source + '\n//# sourceURL=' + name)(window, document, L, ...found);
			return Base.isPrototypeOf(made) ? new made() : made;
		});
	});
}

/* LuCI's status page: an include each, of which null shows nothing. */
function showInclude(name) {
	return load(name).then(include => {
		const show = () => include.load().then(data => {
			const content = include.render(data);
			if (content)
				dom.content(document.querySelector('#view'), [ E('h3', {}, include.title), content ]);
		});
		poll.add(show);
		return show();
	});
}

document.addEventListener('DOMContentLoaded', () => (PAGE.include ? showInclude(PAGE.include) : load('view.' + PAGE.view))
	.catch(error => { document.body.setAttribute('data-error', String(error.stack || error)); }));
