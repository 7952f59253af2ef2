//! What the daemon reports, as data, in three forms: lines or a table for people, JSON for programs.

use std::fmt::{self, Write};

use tcp_over_http::json::Json;

/// The form in which a document is written.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// For people: see [`Layout`].
    Text,
    /// For programs: one object, in one line. Keys are never removed; new ones may be added.
    Json,
}

/// How a document looks as text.
#[derive(Default)]
pub enum Layout {
    /// A line for each subject, with its non-zero numbers.
    #[default]
    Lines,
    /// Its only list as a table with these columns.
    Table(&'static [&'static str]),
    /// Only its last field that belongs to no subject.
    Message,
}

/// A report of the daemon.
#[derive(Default)]
pub struct Document {
    layout: Layout,
    /// Fields that belong to no subject.
    daemon: Vec<Field>,
    subjects: Vec<Subject>,
}

/// A subject, or a list of subjects of one kind.
struct Subject {
    name: &'static str,
    /// For a list: what an element is called.
    element: Option<&'static str>,
    /// The fields; for a list, those of each element.
    fields: Vec<Vec<Field>>,
}

type Field = (&'static str, Value);

enum Value {
    Number(u64),
    Text(String),
    Flag(bool),
}

impl Document {
    /// Writes the document in this form.
    pub fn render(&self, form: Form) -> String {
        match form {
            Form::Text => self.to_text(),
            Form::Json => self.to_json(),
        }
    }

    /// An empty document with this layout as text.
    pub fn new(layout: Layout) -> Self {
        Self { layout, ..Self::default() }
    }

    /// The outcome of a request, in words.
    pub fn reply(is_done: bool, message: String) -> Self {
        let mut reply = Self::new(Layout::Message);
        reply.text(if is_done { "done" } else { "error" }, message);
        reply
    }

    /// Begins a subject: the fields that follow belong to it.
    pub fn subject(&mut self, name: &'static str) {
        self.subjects.push(Subject { name, element: None, fields: vec![vec![]] });
    }

    /// Begins a list of subjects.
    pub fn list(&mut self, name: &'static str, element: &'static str) {
        self.subjects.push(Subject { name, element: Some(element), fields: vec![] });
    }

    /// Begins an element of the list: the fields that follow belong to it.
    pub fn element(&mut self) {
        if let Some(list) = self.subjects.last_mut() {
            list.fields.push(vec![]);
        }
    }

    /// A number.
    pub fn number(&mut self, key: &'static str, value: u64) {
        self.push(key, Value::Number(value));
    }

    /// A text.
    pub fn text(&mut self, key: &'static str, value: String) {
        self.push(key, Value::Text(value));
    }

    /// A flag.
    pub fn flag(&mut self, key: &'static str, value: bool) {
        self.push(key, Value::Flag(value));
    }

    fn push(&mut self, key: &'static str, value: Value) {
        let fields = self.subjects.last_mut().and_then(|subject| subject.fields.last_mut());
        fields.unwrap_or(&mut self.daemon).push((key, value));
    }

    fn to_text(&self) -> String {
        match self.layout {
            Layout::Lines => self.to_lines(),
            Layout::Table(columns) => self.to_table(columns),
            Layout::Message => self.daemon.last().map(|(_, value)| format!("{value}\n")).unwrap_or_default(),
        }
    }

    fn to_table(&self, columns: &[&str]) -> String {
        let mut rows = vec![columns.iter().map(|&column| column.to_owned()).collect::<Vec<_>>()];
        for fields in self.subjects.last().iter().flat_map(|list| &list.fields) {
            let cell = |&column: &&str| match fields.iter().find(|(key, _)| *key == column) {
                Some((key, Value::Flag(true))) => (*key).to_owned(),
                Some((_, Value::Flag(false))) | None => "-".to_owned(),
                Some((_, value)) => value.to_string(),
            };
            rows.push(columns.iter().map(cell).collect());
        }
        let mut out = String::new();
        for row in &rows {
            for (index, cell) in row.iter().enumerate() {
                let width = rows.iter().filter_map(|row| row.get(index)).map(String::len).max();
                let width = width.filter(|_| index + 1 < row.len()).unwrap_or_default();
                _ = write!(out, "{cell:width$}{}", if index + 1 < row.len() { "  " } else { "\n" });
            }
        }
        out
    }

    fn to_lines(&self) -> String {
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

/// Leaves out what is 0, false or empty.
fn write_phrase(out: &mut String, fields: &[Field]) {
    let begin = out.len();
    for (key, value) in fields {
        match value {
            Value::Number(0) | Value::Flag(false) => continue,
            Value::Text(text) if text.is_empty() => continue,
            _ => {}
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
        match value {
            Value::Text(value) => json.key(key).string(value),
            value => json.key(key).literal(value),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Document {
        let mut status = Document::default();
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
    fn as_a_table() {
        let mut table = Document::new(Layout::Table(&["name", "resting", "opened"]));
        table.subjects = sample().subjects;
        table.subjects.pop();
        let expected = "name  resting  opened\na     resting  2\nb\"\\   -        2\n";
        assert_eq!(table.render(Form::Text), expected);
    }

    #[test]
    fn replies() {
        let reply = Document::reply(false, "no".to_owned());
        assert_eq!(reply.render(Form::Text), "no\n");
        assert_eq!(reply.render(Form::Json), "{\"error\":\"no\"}\n");
    }

    #[test]
    fn empty_lists() {
        let mut status = Document::default();
        status.number("a", 1);
        status.list("upstreams", "upstream");
        assert_eq!(status.render(Form::Json), "{\"a\":1,\"upstreams\":[]}\n");
        assert_eq!(status.render(Form::Text), "a:        1\n");
    }
}
