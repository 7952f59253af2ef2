//! The sections of a file and the values in them, before those are interpreted.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::{mem, ptr};

use super::draft::Draft;
use super::error::{Fault, Origin};
use super::given::Given;
use super::options::Spec;
use super::uci::{self, Position, Statement, Word};
use super::upstream::UpstreamConfig;
use super::{table, values};
use crate::http::connect::Request;

/// Names that no upstream may have: the main section's, what `use` takes besides names, and what means no upstream.
const RESERVED: [&str; 3] = ["main", "auto", "direct"];

/// A file's sections.
#[derive(Default)]
pub struct Sections {
    /// `config tcp-over-http 'main'`.
    pub main: Given,
    /// Each `config upstream`, in order.
    pub upstreams: Vec<Section>,
    /// Each `config rule`, in order.
    pub rules: Vec<Section>,
}

/// A section `config upstream` or `config rule`.
pub struct Section {
    /// Where it begins.
    pub at: Position,
    name: Option<String>,
    /// What is in it.
    pub given: Given,
}

/// Which section: its options, and its index among sections of its kind.
type Which = (&'static [Spec], usize);

impl Sections {
    /// Adds the contents of a file. Skips wrong statements and returns the first fault; nothing after a syntax error is
    /// read.
    pub fn read(&mut self, text: &[u8]) -> Result<(), Fault> {
        let mut result = Ok(());
        // None: the section itself is wrong.
        let mut current = None;
        for statement in uci::parse(values::without_mark(text)) {
            let read = match statement {
                Err(error) => Err((Origin::File(error.at), error.what.into())),
                Ok(Statement::Package { name }) if name.text == b"tcp-over-http" => Ok(()),
                Ok(Statement::Package { name }) => {
                    Err((Origin::File(name.at), "another package's file".into()))
                }
                Ok(Statement::Config { kind, name }) => {
                    current = None;
                    self.begin(kind, name).map(|section| current = Some(section))
                }
                Ok(Statement::Option { key, value }) => self.take(current, key, value, false),
                Ok(Statement::List { key, value }) => self.take(current, key, value, true),
            };
            if result.is_ok() {
                result = read;
            }
        }
        result
    }

    /// A second section of the same name continues the first.
    fn begin(&mut self, kind: Word, name: Option<Word>) -> Result<Which, Fault> {
        let name_at = name.as_ref().map_or(kind.at, |name| name.at);
        let name = name.map(|name| lossy(&name.text));
        let (specs, sections) = match kind.text.as_slice() {
            b"tcp-over-http" if name.as_deref() == Some("main") => return Ok((table::MAIN, 0)),
            b"tcp-over-http" => {
                return Err((Origin::File(name_at), "this section's name has to be 'main'".into()));
            }
            b"upstream" => {
                if let Some(reserved) = RESERVED.iter().find(|&&reserved| name.as_deref() == Some(reserved)) {
                    return Err((Origin::File(name_at), format!("an upstream can't be named '{reserved}'")));
                }
                (table::UPSTREAM, &mut self.upstreams)
            }
            b"rule" => (table::RULE, &mut self.rules),
            other => {
                let (other, known) = (lossy(other), "tcp-over-http, upstream and rule");
                let what = format!("unknown section type '{other}' (there are {known})");
                return Err((Origin::File(kind.at), what));
            }
        };
        let known = sections.iter().position(|section| name.is_some() && section.name == name);
        let index = known.unwrap_or_else(|| {
            sections.push(Section { at: kind.at, name, given: Given::default() });
            sections.len() - 1
        });
        Ok((specs, index))
    }

    /// Takes a value as libuci does: an empty value changes nothing, `option` replaces and `list` adds.
    fn take(&mut self, section: Option<Which>, key: Word, value: Word, list: bool) -> Result<(), Fault> {
        let Some((specs, index)) = section else { return Ok(()) };
        let others = if ptr::eq(specs, table::RULE) { &mut self.rules } else { &mut self.upstreams };
        let given = match ptr::eq(specs, table::MAIN) {
            true => &mut self.main,
            false => match others.get_mut(index) {
                Some(section) => &mut section.given,
                None => return Ok(()),
            },
        };
        let is_named = |spec: &&Spec| spec.name.as_bytes() == key.text;
        let Some(spec) = specs.iter().find(is_named) else {
            return Err((Origin::File(key.at), format!("unknown option '{}'", lossy(&key.text))));
        };
        if list && !spec.is_list() {
            return Err((Origin::File(key.at), format!("{}: an option, not a list", spec.name)));
        }
        if !list && value.text.is_empty() {
            return Ok(());
        }
        let origin = Origin::File(value.at);
        let Ok(text) = String::from_utf8(value.text) else {
            return Err((origin, format!("{}: not UTF-8", spec.name)));
        };
        if !list {
            given.clear(spec.name);
        }
        given.add(spec, text, origin);
        Ok(())
    }
}

impl Section {
    /// The proxy that the section describes; `None` if it is disabled.
    pub fn resolve(mut self, draft: &mut Draft) -> Result<Option<UpstreamConfig>, Fault> {
        self.given.store(table::UPSTREAM, draft)?;
        let draft = mem::take(&mut draft.upstream);
        let at = Origin::File(self.at);
        let host = draft.host.ok_or_else(|| (at, "upstream without a host".into()))?;
        let credentials = match (&draft.username, &draft.password) {
            (Some(username), password) => Some((username.as_str(), password.as_deref().unwrap_or_default())),
            (None, None) => None,
            (None, Some(_)) => return Err((at, "upstream with a password and no username".into())),
        };
        let name = self.name.unwrap_or_else(|| UpstreamConfig::default_name(&host, draft.port));
        let mut request =
            Request::new(credentials, &draft.headers).map_err(|error| (at, format!("upstream: {error}")))?;
        request.auth = draft.auth;
        request.host = draft.header_host.map(Into::into);
        let upstream = UpstreamConfig { name, host, port: draft.port, request, uplinks: draft.uplinks };
        Ok(draft.enabled.then_some(upstream))
    }
}

fn lossy(text: &[u8]) -> String {
    String::from_utf8_lossy(text).into_owned()
}
