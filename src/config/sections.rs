//! The sections of a file and the values in them, before anyone asks what they mean.

use alloc::borrow::ToOwned;
use alloc::string::String;
use alloc::vec::Vec;
use core::mem;

use super::uci::{self, Position, Statement, Word};

use super::UpstreamConfig;
use super::draft::Draft;
use super::error::{Fault, Origin, Problem};
use super::options::Spec;
use super::table;
use crate::http::connect::Request;

/// A file's sections.
#[derive(Default)]
pub struct Sections {
    /// `config tcp-over-http 'main'`.
    pub main: Values,
    /// Each `config upstream`, in order.
    pub upstreams: Vec<UpstreamSection>,
}

/// A section `config upstream`.
pub struct UpstreamSection {
    at: Position,
    name: Option<String>,
    values: Values,
}

/// The values of a section, in order; of an option that is no list there is one at most.
#[derive(Default)]
pub struct Values(Vec<Value>);

struct Value {
    option: &'static str,
    text: String,
    origin: Origin,
}

impl Sections {
    /// Adds what a file says.
    pub fn read(&mut self, text: &[u8]) -> Result<(), Fault> {
        // The section being read: of `upstreams`, or main.
        let mut current = None;
        for statement in uci::parse(text) {
            let statement =
                statement.map_err(|error| (Origin::File(error.at), Problem::Syntax(error.kind)))?;
            match statement {
                Statement::Package { name } if name.text == b"tcp-over-http" => {}
                Statement::Package { name } => {
                    return Err((Origin::File(name.at), Problem::Package));
                }
                Statement::Config { kind, name } => current = self.begin(kind, name)?,
                Statement::Option { key, value } => self.read_value(current, key, value, false)?,
                Statement::List { key, value } => self.read_value(current, key, value, true)?,
            }
        }
        Ok(())
    }

    /// A second section of the same name continues the first.
    fn begin(&mut self, kind: Word, name: Option<Word>) -> Result<Option<usize>, Fault> {
        let name_at = name.as_ref().map_or(kind.at, |name| name.at);
        let name = name.map(|name| lossy(&name.text));
        match kind.text.as_slice() {
            b"tcp-over-http" if name.as_deref() == Some("main") => return Ok(None),
            b"tcp-over-http" => return Err((Origin::File(name_at), Problem::MainName)),
            b"upstream" if name.as_deref() == Some("main") => {
                return Err((Origin::File(name_at), Problem::UpstreamName));
            }
            b"upstream" => {}
            other => return Err((Origin::File(kind.at), Problem::SectionType(lossy(other)))),
        }
        let known = self.upstreams.iter().position(|section| name.is_some() && section.name == name);
        Ok(Some(known.unwrap_or_else(|| {
            self.upstreams.push(UpstreamSection { at: kind.at, name, values: Values::default() });
            self.upstreams.len() - 1
        })))
    }

    fn read_value(
        &mut self,
        section: Option<usize>,
        key: Word,
        value: Word,
        list: bool,
    ) -> Result<(), Fault> {
        match section.and_then(|index| self.upstreams.get_mut(index)) {
            Some(section) => section.values.read(table::UPSTREAM, key, value, list),
            None => self.main.read(table::MAIN, key, value, list),
        }
    }
}

impl UpstreamSection {
    /// Makes it a proxy; `None` if it is disabled.
    pub fn resolve(&self, draft: &mut Draft) -> Result<Option<UpstreamConfig>, Fault> {
        self.values.store(table::UPSTREAM, draft)?;
        let draft = mem::take(&mut draft.upstream);
        let at = Origin::File(self.at);
        let host = draft.host.ok_or((at, Problem::NoHost))?;
        let credentials = match (&draft.username, &draft.password) {
            (Some(username), password) => Some((username.as_str(), password.as_deref().unwrap_or_default())),
            (None, None) => None,
            (None, Some(_)) => return Err((at, Problem::NoUsername)),
        };
        let name = match &self.name {
            Some(name) => name.clone(),
            None => UpstreamConfig::default_name(&host, draft.port),
        };
        let request =
            Request::new(credentials, &draft.headers).map_err(|error| (at, Problem::Request(error)))?;
        let upstream = UpstreamConfig { name, host, port: draft.port, request };
        Ok(draft.enabled.then_some(upstream))
    }
}

impl Values {
    /// Takes one statement of a file, as libuci does: an empty option changes nothing, `option`
    /// replaces and `list` adds.
    fn read(&mut self, specs: &'static [Spec], key: Word, value: Word, list: bool) -> Result<(), Fault> {
        let Some(spec) = specs.iter().find(|spec| spec.name.as_bytes() == key.text) else {
            return Err((Origin::File(key.at), Problem::Option(lossy(&key.text))));
        };
        if list && !spec.is_list() {
            return Err((Origin::File(key.at), Problem::NoList(spec.name)));
        }
        if !list && value.text.is_empty() {
            return Ok(());
        }
        let origin = Origin::File(value.at);
        let Ok(text) = String::from_utf8(value.text) else {
            return Err((origin, Problem::NotUtf8(spec.name)));
        };
        if !list {
            self.clear(spec.name);
        }
        self.add(spec.name, text, origin);
        Ok(())
    }

    /// Adds a value; there may be others of the same option.
    pub fn add(&mut self, option: &'static str, text: String, origin: Origin) {
        self.0.push(Value { option, text, origin });
    }

    /// Forgets the values of an option.
    pub fn clear(&mut self, option: &str) {
        self.0.retain(|value| value.option != option);
    }

    /// Where an option was given; for a list, the last of it.
    pub fn origin(&self, option: &str) -> Origin {
        let value = self.0.iter().rfind(|value| value.option == option);
        value.map_or(Origin::Default, |value| value.origin)
    }

    /// The options and their texts.
    pub fn into_given(self) -> Vec<(&'static str, String)> {
        self.0.into_iter().map(|value| (value.option, value.text)).collect()
    }

    /// Stores the defaults, then the values.
    pub fn store(&self, specs: &'static [Spec], draft: &mut Draft) -> Result<(), Fault> {
        self.store_but(specs, draft, Err)
    }

    /// Stores the defaults, then the values that are right.
    pub fn store_valid(&self, specs: &'static [Spec], draft: &mut Draft) {
        _ = self.store_but(specs, draft, |_| Ok(()));
    }

    fn store_but(
        &self,
        specs: &'static [Spec],
        draft: &mut Draft,
        wrong: fn(Fault) -> Result<(), Fault>,
    ) -> Result<(), Fault> {
        let with_default = specs.iter().filter(|spec| !spec.default.is_empty());
        let defaults = with_default.map(|spec| (spec.name, spec.default, Origin::Default));
        let values = self.0.iter();
        let values = values.map(|value| (value.option, value.text.as_str(), value.origin));
        for (option, text, origin) in defaults.chain(values) {
            let Some(spec) = specs.iter().find(|spec| spec.name == option) else {
                continue;
            };
            if let Err(reason) = spec.store(draft, text) {
                let value = (!spec.is_secret()).then(|| text.to_owned());
                let problem = Problem::Value { option, value, reason };
                wrong((origin, problem))?;
            }
        }
        Ok(())
    }
}

fn lossy(text: &[u8]) -> String {
    String::from_utf8_lossy(text).into_owned()
}
