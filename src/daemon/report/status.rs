//! What the daemon tells about itself: as text for people and the log, as JSON for programs.

use std::fmt::{self, Write};

use tcp_over_http::capture::Path;
use tcp_over_http::config::Config;
use tcp_over_http::flow::State;
use tcp_over_http::rewrite;

use crate::gateway::Gateway;
use crate::kernel::conntrack;
use crate::report::json::Json;
use crate::upstream::stats::Stats;

/// What a status is written as.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// A line for each subject, with those of its numbers that aren't 0.
    Text,
    /// One object, in one line. Keys are never removed; new ones may come.
    Json,
}

/// How the daemon is, at one moment.
#[derive(Default)]
pub struct Status {
    /// What belongs to no subject.
    daemon: Vec<Field>,
    subjects: Vec<Subject>,
}

/// A subject, or a list of subjects of one kind.
struct Subject {
    name: &'static str,
    /// What one of a list is called.
    element: Option<&'static str>,
    /// Of a list, of each element.
    fields: Vec<Vec<Field>>,
}

type Field = (&'static str, Value);

enum Value {
    Number(u64),
    Text(String),
    Flag(bool),
}

impl Status {
    /// Asks everybody.
    pub fn new(gateway: &Gateway, config: &Config) -> Self {
        let rewriter = gateway.rewriter().borrow();
        let counters = rewriter.counters();
        let totals = gateway.totals();
        let mut status = Self::default();
        status.text("version", env!("CARGO_PKG_VERSION").to_owned());
        status.number("uptime", gateway.uptime().as_secs());
        status.text("path", gateway.path().to_string());
        status.flag("draining", rewriter.is_draining());

        status.subject("flows");
        status.number("max", config.max_flows.into());
        let states = [
            ("held", State::Held),
            ("opening", State::Opening),
            ("live", State::Live),
            ("closing", State::Closing),
        ];
        for (name, state) in states {
            status.number(name, rewriter.count(state).into());
        }
        status.number("opened", counters.flows);
        status.number("forwarded", totals.forwarded);
        status.number("refused", totals.refused);
        status.number("yielded", totals.yielded);
        status.number("looped", totals.looped);
        status.number("from_lan", totals.from_lan);

        if gateway.path() == Path::Forward {
            let mut entries = conntrack::forwarded(config.mark).unwrap_or_default();
            entries.retain(|entry| entry.is_live);
            let bytes = |way: usize| entries.iter().map(|entry| entry.bytes[way]).sum();
            status.subject("forwarding");
            status.number("live", entries.len() as u64);
            status.number("up", bytes(0));
            status.number("down", bytes(1));
        }

        status.subject("bytes");
        status.number("up", totals.moved.up);
        status.number("down", totals.moved.down);

        status.subject("tun");
        status.text("name", config.tun.clone());
        status.number("packets", counters.packets);
        status.number("bytes", counters.bytes);
        status.number("forwarded", counters.forwarded);
        status.number("rejected", counters.rejected);
        status.number("write_errors", gateway.tun().write_errors());

        status.subject("listener");
        let (families, tests) = gateway.self_test().results();
        for (family, is_reachable) in families {
            status.flag(family, is_reachable);
        }
        status.number("tests", tests.into());

        status.list("upstreams", "upstream");
        let upstreams = gateway.upstreams();
        for (index, proxy) in upstreams.proxies().iter().enumerate() {
            let stats = proxy.stats.get();
            status.element();
            status.text("name", proxy.name.clone());
            status.flag("resting", upstreams.is_resting(index));
            status.number("attempts", stats.attempts.into());
            status.number("opened", stats.opened.into());
            for (name, count) in Stats::REFUSED.iter().zip(stats.refused) {
                status.number(name, count.into());
            }
            status.number("unreachable", stats.unreachable.into());
            status.number("timed_out", stats.timed_out.into());
            status.number("bad_reply", stats.bad_reply.into());
            status.number("retried", stats.retried.into());
            status.number("ms_shortest", stats.shortest.into());
            status.number("ms_mean", stats.mean());
            status.number("ms_last", stats.last.into());
        }

        if let Some(dns) = gateway.dns() {
            let counters = dns.counters();
            status.subject("dns");
            status.number("queries", counters.queries.into());
            status.number("local", counters.local.into());
            status.number("cached", counters.cached.into());
            status.number("forwarded", counters.forwarded.into());
            status.number("failed", counters.failed.into());
            status.number("limited", counters.limited.into());
            status.number("names", dns.names().into());
            status.number("time", counters.time.into());
        }

        status.subject("dropped");
        for (name, count) in rewrite::DropReason::NAMES.iter().zip(counters.dropped) {
            status.number(name, count);
        }
        status
    }

    /// Writes it.
    pub fn render(&self, form: Form) -> String {
        match form {
            Form::Text => self.to_text(),
            Form::Json => self.to_json(),
        }
    }

    /// Begins a subject: the fields that follow are its.
    fn subject(&mut self, name: &'static str) {
        self.subjects.push(Subject { name, element: None, fields: vec![vec![]] });
    }

    /// Begins a list of subjects.
    fn list(&mut self, name: &'static str, element: &'static str) {
        self.subjects.push(Subject { name, element: Some(element), fields: vec![] });
    }

    /// Begins an element of the list: the fields that follow are its.
    fn element(&mut self) {
        if let Some(list) = self.subjects.last_mut() {
            list.fields.push(vec![]);
        }
    }

    fn number(&mut self, key: &'static str, value: u64) {
        self.push(key, Value::Number(value));
    }

    fn text(&mut self, key: &'static str, value: String) {
        self.push(key, Value::Text(value));
    }

    fn flag(&mut self, key: &'static str, value: bool) {
        self.push(key, Value::Flag(value));
    }

    fn push(&mut self, key: &'static str, value: Value) {
        let fields = self.subjects.last_mut().and_then(|subject| subject.fields.last_mut());
        fields.unwrap_or(&mut self.daemon).push((key, value));
    }

    fn to_text(&self) -> String {
        let mut out = String::new();
        for (key, value) in &self.daemon {
            if !matches!(value, Value::Flag(false)) {
                write_label(&mut out, key);
                _ = writeln!(out, "{value}");
            }
        }
        for subject in &self.subjects {
            for fields in &subject.fields {
                write_label(&mut out, subject.element.unwrap_or(subject.name));
                write_phrase(&mut out, fields);
                out.push('\n');
            }
        }
        out
    }

    fn to_json(&self) -> String {
        let mut json = Json::default();
        json.open('{');
        write_fields(&mut json, &self.daemon);
        for Subject { name, element, fields } in &self.subjects {
            json.key(name);
            if element.is_some() {
                json.open('[');
            }
            for fields in fields {
                json.open('{');
                write_fields(&mut json, fields);
                json.close('}');
            }
            if element.is_some() {
                json.close(']');
            }
        }
        json.close('}');
        json.finish()
    }
}

/// Strings are not quoted.
impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::Number(value) => value.fmt(f),
            Self::Text(value) => value.fmt(f),
            Self::Flag(value) => value.fmt(f),
        }
    }
}

/// The width of the text's first column.
const COLUMN: usize = "draining: ".len();

fn write_label(out: &mut String, label: &str) {
    let end = out.len() + COLUMN;
    out.push_str(label);
    out.push_str(": ");
    while out.len() < end {
        out.push(' ');
    }
}

/// Leaves out what is 0 or false.
fn write_phrase(out: &mut String, fields: &[Field]) {
    let begin = out.len();
    for (key, value) in fields {
        if matches!(value, Value::Number(0) | Value::Flag(false)) {
            continue;
        }
        if out.len() > begin {
            out.push_str(", ");
        }
        _ = match value {
            Value::Number(value) => write!(out, "{value} {key}"),
            Value::Text(value) => out.write_str(value),
            Value::Flag(_) => out.write_str(key),
        };
    }
    if out.len() == begin {
        out.push_str("none");
    }
}

fn write_fields(json: &mut Json, fields: &[Field]) {
    for (key, value) in fields {
        json.key(key);
        match value {
            Value::Text(value) => json.string(value),
            value => json.literal(value),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Status {
        let mut status = Status::default();
        status.text("version", "1".to_owned());
        status.flag("draining", false);
        status.list("upstreams", "upstream");
        for name in ["a", r#"b"\"#] {
            status.element();
            status.text("name", name.to_owned());
            status.number("opened", 2);
            status.number("unreachable", 0);
            status.flag("resting", name == "a");
        }
        status.subject("dropped");
        status.number("malformed", 0);
        status
    }

    #[test]
    fn as_text() {
        let expected = "version:  1\n\
                        upstream: a, 2 opened, resting\n\
                        upstream: b\"\\, 2 opened\n\
                        dropped:  none\n";
        assert_eq!(sample().render(Form::Text), expected);
    }

    #[test]
    fn as_json() {
        let expected = concat!(
            r#"{"version":"1","draining":false,"#,
            r#""upstreams":[{"name":"a","opened":2,"unreachable":0,"resting":true},"#,
            r#"{"name":"b\"\\","opened":2,"unreachable":0,"resting":false}],"#,
            r#""dropped":{"malformed":0}}"#,
            "\n"
        );
        assert_eq!(sample().render(Form::Json), expected);
    }

    #[test]
    fn empty_lists() {
        let mut status = Status::default();
        status.number("a", 1);
        status.list("upstreams", "upstream");
        assert_eq!(status.render(Form::Json), "{\"a\":1,\"upstreams\":[]}\n");
        assert_eq!(status.render(Form::Text), "a:        1\n");
    }
}
