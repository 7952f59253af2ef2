//! The sections of a file and what is given in them, before anyone asks what it means.

use alloc::string::String;
use alloc::vec::Vec;
use core::mem;

use super::draft::Draft;
use super::error::{ConfigErrorKind, Fault, Origin};
use super::given::Given;
use super::options::Spec;
use super::uci::{self, Position, Statement, Word};
use super::upstream::UpstreamConfig;
use super::{table, values};
use crate::http::connect::Request;

/// Names that no upstream may have: the main section's, and what `use` takes besides names.
const RESERVED: [&str; 2] = ["main", "auto"];

/// A file's sections.
#[derive(Default)]
pub struct Sections {
    /// `config tcp-over-http 'main'`.
    pub main: Given,
    /// Each `config upstream`, in order.
    pub upstreams: Vec<UpstreamSection>,
}

/// A section `config upstream`.
pub struct UpstreamSection {
    at: Position,
    name: Option<String>,
    given: Given,
}

/// Which section.
#[derive(Clone, Copy)]
enum Section {
    Main,
    /// The one at this place in `upstreams`.
    Upstream(usize),
}

impl Sections {
    /// Adds what a file says. Leaves out statements that are wrong, and says which was so first; behind an error of
    /// syntax nothing comes.
    pub fn read(&mut self, text: &[u8]) -> Result<(), Fault> {
        let mut result = Ok(());
        // None: one that is wrong.
        let mut current = None;
        for statement in uci::parse(values::without_mark(text)) {
            let read = match statement {
                Err(error) => Err((Origin::File(error.at), ConfigErrorKind::Syntax(error.kind))),
                Ok(Statement::Package { name }) if name.text == b"tcp-over-http" => Ok(()),
                Ok(Statement::Package { name }) => Err((Origin::File(name.at), ConfigErrorKind::Package)),
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
    fn begin(&mut self, kind: Word, name: Option<Word>) -> Result<Section, Fault> {
        let name_at = name.as_ref().map_or(kind.at, |name| name.at);
        let name = name.map(|name| lossy(&name.text));
        match kind.text.as_slice() {
            b"tcp-over-http" if name.as_deref() == Some("main") => return Ok(Section::Main),
            b"tcp-over-http" => return Err((Origin::File(name_at), ConfigErrorKind::MainName)),
            b"upstream" => {
                if let Some(reserved) = RESERVED.iter().find(|&&reserved| name.as_deref() == Some(reserved)) {
                    return Err((Origin::File(name_at), ConfigErrorKind::UpstreamName(reserved)));
                }
            }
            other => return Err((Origin::File(kind.at), ConfigErrorKind::SectionType(lossy(other)))),
        }
        let known = self.upstreams.iter().position(|section| name.is_some() && section.name == name);
        Ok(Section::Upstream(known.unwrap_or_else(|| {
            self.upstreams.push(UpstreamSection { at: kind.at, name, given: Given::default() });
            self.upstreams.len() - 1
        })))
    }

    /// Takes a value as libuci does: an empty option changes nothing, `option` replaces and `list` adds.
    fn take(&mut self, section: Option<Section>, key: Word, value: Word, list: bool) -> Result<(), Fault> {
        let (given, specs) = match section {
            None => return Ok(()),
            Some(Section::Main) => (&mut self.main, table::MAIN),
            Some(Section::Upstream(index)) => match self.upstreams.get_mut(index) {
                None => return Ok(()),
                Some(upstream) => (&mut upstream.given, table::UPSTREAM),
            },
        };
        let is_named = |spec: &&Spec| spec.name.as_bytes() == key.text;
        let Some(spec) = specs.iter().find(is_named) else {
            return Err((Origin::File(key.at), ConfigErrorKind::Option(lossy(&key.text))));
        };
        if list && !spec.is_list() {
            return Err((Origin::File(key.at), ConfigErrorKind::NoList(spec.name)));
        }
        if !list && value.text.is_empty() {
            return Ok(());
        }
        let origin = Origin::File(value.at);
        let Ok(text) = String::from_utf8(value.text) else {
            return Err((origin, ConfigErrorKind::NotUtf8(spec.name)));
        };
        if !list {
            given.clear(spec.name);
        }
        given.add(spec, text, origin);
        Ok(())
    }
}

impl UpstreamSection {
    /// Makes it a proxy; `None` if it is disabled.
    pub fn resolve(mut self, draft: &mut Draft) -> Result<Option<UpstreamConfig>, Fault> {
        self.given.store(table::UPSTREAM, draft)?;
        let draft = mem::take(&mut draft.upstream);
        let at = Origin::File(self.at);
        let host = draft.host.ok_or((at, ConfigErrorKind::NoHost))?;
        let credentials = match (&draft.username, &draft.password) {
            (Some(username), password) => Some((username.as_str(), password.as_deref().unwrap_or_default())),
            (None, None) => None,
            (None, Some(_)) => return Err((at, ConfigErrorKind::NoUsername)),
        };
        let name = self.name.unwrap_or_else(|| UpstreamConfig::default_name(&host, draft.port));
        let mut request = Request::new(credentials, &draft.headers)
            .map_err(|error| (at, ConfigErrorKind::Request(error)))?;
        request.auth = draft.auth;
        let upstream = UpstreamConfig { name, host, port: draft.port, request, uplinks: draft.uplinks };
        Ok(draft.enabled.then_some(upstream))
    }
}

fn lossy(text: &[u8]) -> String {
    String::from_utf8_lossy(text).into_owned()
}
