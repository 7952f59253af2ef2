//! What the daemon says of itself: as text for people and the log, as JSON for programs.

use std::fmt::{self, Write};

use tcp_over_http::flow::State;
use tcp_over_http::rewrite;

use crate::gateway::Gateway;
use crate::upstream::proxy::Stats;
use tcp_over_http::config::Config;

/// What a report is written as.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// A line for each subject; of a subject's numbers those that aren't 0.
    Text,
    /// One object, in one line. Keys are never taken away; new ones may come.
    Json,
}

/// Tells how the daemon is.
pub fn report(gateway: &Gateway, config: &Config, form: Form) -> String {
    let rewriter = gateway.rewriter().borrow();
    let counters = rewriter.counters();
    let totals = gateway.totals();
    let mut report = Report::new(form);
    report.text("version", &env!("CARGO_PKG_VERSION"));
    report.number("uptime", gateway.uptime().as_secs());
    report.text("path", &rewriter.settings().path);
    report.flag("draining", rewriter.is_draining());

    report.begin("flows");
    report.number("max", config.max_flows.into());
    let states = [
        ("held", State::Held),
        ("opening", State::Opening),
        ("live", State::Live),
        ("closing", State::Closing),
    ];
    for (name, state) in states {
        report.number(name, rewriter.flows.count(state) as u64);
    }
    report.number("opened", counters.flows);
    report.number("refused", totals.refused);
    report.end();

    report.begin("bytes");
    report.number("up", totals.moved.up);
    report.number("down", totals.moved.down);
    report.end();

    report.begin("tun");
    report.text("name", &config.tun);
    report.number("packets", counters.packets);
    report.number("bytes", counters.bytes);
    report.number("forwarded", counters.forwarded);
    report.number("rejected", counters.rejected);
    report.number("write_errors", gateway.tun().write_errors());
    report.end();

    report.begin("listener");
    let (families, tests) = gateway.listener_test().results();
    for (family, reachable) in families {
        report.flag(family, reachable);
    }
    report.number("tests", tests.into());
    report.end();

    report.begin_list("upstreams");
    for proxy in gateway.upstreams().proxies() {
        let stats = proxy.stats.get();
        report.begin("upstream");
        report.text("name", &proxy.name);
        report.flag("resting", proxy.is_resting());
        report.number("attempts", stats.attempts.into());
        report.number("opened", stats.opened.into());
        for (name, count) in Stats::REFUSED.iter().zip(stats.refused) {
            report.number(name, count.into());
        }
        report.number("unreachable", stats.unreachable.into());
        report.number("timed_out", stats.timed_out.into());
        report.number("bad_reply", stats.bad_reply.into());
        report.number("ms_shortest", stats.shortest.into());
        report.number("ms_mean", stats.mean());
        report.number("ms_last", stats.last.into());
        report.end();
    }
    report.end_list();

    if let Some(dns) = gateway.dns() {
        let counters = dns.counters();
        report.begin("dns");
        report.number("queries", counters.queries.into());
        report.number("local", counters.local.into());
        report.number("cached", counters.cached.into());
        report.number("forwarded", counters.forwarded.into());
        report.number("failed", counters.failed.into());
        report.number("names", dns.names().into());
        report.end();
    }

    report.begin("dropped");
    for (name, count) in rewrite::Drop::NAMES.iter().zip(counters.dropped) {
        report.number(name, count);
    }
    report.end();
    report.finish()
}

/// A report in the making: subjects, which have numbers, words and flags, and lists of subjects.
struct Report {
    form: Form,
    out: String,
    /// Within a subject.
    nested: bool,
    /// Within a list.
    listed: bool,
    /// Nothing stands yet where a comma would have to follow.
    first: bool,
}

impl Report {
    fn new(form: Form) -> Self {
        let out = if form == Form::Json { "{" } else { "" };
        Self { form, out: out.to_owned(), nested: false, listed: false, first: true }
    }

    fn number(&mut self, key: &str, value: u64) {
        match self.form {
            Form::Text if self.nested && value == 0 => {}
            Form::Text if self.nested => self.item(format_args!("{value} {key}")),
            _ => self.value(key, format_args!("{value}")),
        }
    }

    fn text(&mut self, key: &str, value: &dyn fmt::Display) {
        match self.form {
            Form::Text if self.nested => self.item(format_args!("{value}")),
            Form::Text => self.value(key, format_args!("{value}")),
            Form::Json => {
                let text = value.to_string().replace('\\', "\\\\").replace('"', "\\\"");
                self.value(key, format_args!("\"{text}\""));
            }
        }
    }

    fn flag(&mut self, key: &str, value: bool) {
        match self.form {
            Form::Text if !value => {}
            Form::Text if self.nested => self.item(format_args!("{key}")),
            _ => self.value(key, format_args!("{value}")),
        }
    }

    /// Begins a subject. In a list, only the text names it.
    fn begin(&mut self, key: &str) {
        match self.form {
            Form::Json if self.listed => self.item(format_args!("{{")),
            Form::Json => self.value(key, format_args!("{{")),
            Form::Text => self.label(key),
        }
        self.nested = true;
        self.first = true;
    }

    fn end(&mut self) {
        self.out.push_str(match (self.form, self.first) {
            (Form::Json, _) => "}",
            (Form::Text, true) => "none\n",
            (Form::Text, false) => "\n",
        });
        self.nested = false;
        self.first = false;
    }

    fn begin_list(&mut self, key: &str) {
        if self.form == Form::Json {
            self.value(key, format_args!("["));
            self.first = true;
        }
        self.listed = true;
    }

    fn end_list(&mut self) {
        if self.form == Form::Json {
            self.out.push(']');
            self.first = false;
        }
        self.listed = false;
    }

    fn finish(mut self) -> String {
        if self.form == Form::Json {
            self.out.push_str("}\n");
        }
        self.out
    }

    /// A key and a value: in JSON anywhere, in text on a line.
    fn value(&mut self, key: &str, value: fmt::Arguments) {
        match self.form {
            Form::Json => self.item(format_args!("\"{key}\":{value}")),
            Form::Text => {
                self.label(key);
                _ = writeln!(self.out, "{value}");
            }
        }
    }

    /// One of several, behind a comma.
    fn item(&mut self, item: fmt::Arguments) {
        if !self.first {
            self.out.push_str(if self.form == Form::Json { "," } else { ", " });
        }
        self.first = false;
        _ = self.out.write_fmt(item);
    }

    /// What stands at the beginning of a line.
    fn label(&mut self, key: &str) {
        _ = write!(self.out, "{key}: ");
        for _ in key.len()..LABEL {
            self.out.push(' ');
        }
    }
}

/// The width of the text's first column.
const LABEL: usize = "draining".len();

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(form: Form) -> String {
        let mut report = Report::new(form);
        report.text("version", &"1");
        report.flag("draining", false);
        report.begin_list("upstreams");
        for name in ["a", r#"b"\"#] {
            report.begin("upstream");
            report.text("name", &name);
            report.number("opened", 2);
            report.number("unreachable", 0);
            report.flag("resting", name == "a");
            report.end();
        }
        report.end_list();
        report.begin("dropped");
        report.number("malformed", 0);
        report.end();
        report.finish()
    }

    #[test]
    fn text() {
        let expected = "version:  1\n\
                        upstream: a, 2 opened, resting\n\
                        upstream: b\"\\, 2 opened\n\
                        dropped:  none\n";
        assert_eq!(sample(Form::Text), expected);
    }

    #[test]
    fn json() {
        let expected = concat!(
            r#"{"version":"1","draining":false,"#,
            r#""upstreams":[{"name":"a","opened":2,"unreachable":0,"resting":true},"#,
            r#"{"name":"b\"\\","opened":2,"unreachable":0,"resting":false}],"#,
            r#""dropped":{"malformed":0}}"#,
            "\n"
        );
        assert_eq!(sample(Form::Json), expected);
    }

    #[test]
    fn empty_lists() {
        let mut report = Report::new(Form::Json);
        report.begin_list("upstreams");
        report.end_list();
        report.number("a", 1);
        assert_eq!(report.finish(), "{\"upstreams\":[],\"a\":1}\n");
    }
}
