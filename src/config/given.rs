//! The values given for a section's options: as text, each with its origin.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use super::draft::Draft;
use super::error::{Fault, Origin};
use super::options::Spec;

/// The values of a section's options, in order; at most one for an option that isn't a list.
#[derive(Clone, Default)]
pub struct Given(Vec<Value>);

#[derive(Clone)]
struct Value {
    spec: &'static Spec,
    text: String,
    origin: Origin,
}

impl Given {
    /// Adds a value; the option may have others already.
    pub fn add(&mut self, spec: &'static Spec, text: String, origin: Origin) {
        self.0.push(Value { spec, text, origin });
    }

    /// Forgets the values of an option.
    pub fn clear(&mut self, option: &str) {
        self.0.retain(|value| value.spec.name != option);
    }

    /// Where an option was given; for a list, where its last value was.
    pub fn origin(&self, option: &str) -> Origin {
        let value = self.0.iter().rfind(|value| value.spec.name == option);
        value.map_or(Origin::Default, |value| value.origin)
    }

    /// Replaces the values of each option that `by` has.
    pub fn replace(&mut self, by: &Given) {
        by.0.iter().for_each(|value| self.clear(value.spec.name));
        self.0.extend_from_slice(&by.0);
    }

    /// The values of an option, or its default.
    pub fn texts(&self, spec: &'static Spec) -> Vec<&str> {
        let given = self.0.iter().filter(|value| value.spec.name == spec.name);
        let mut texts: Vec<_> = given.map(|value| value.text.as_str()).collect();
        if texts.is_empty() {
            texts.extend(spec.default.split_ascii_whitespace());
        }
        texts
    }

    /// Stores the values, and the defaults of options that have none. Skips wrong values and returns the first fault.
    pub fn store(&mut self, specs: &'static [Spec], draft: &mut Draft) -> Result<(), Fault> {
        let mut result = Ok(());
        self.0.retain(|value| {
            let stored = value.store(draft);
            let keep = stored.is_ok();
            if result.is_ok() {
                result = stored;
            }
            keep
        });
        for spec in specs {
            if self.origin(spec.name) == Origin::Default {
                for text in self.texts(spec) {
                    _ = spec.store(draft, text);
                }
            }
        }
        result
    }
}

impl Value {
    fn store(&self, draft: &mut Draft) -> Result<(), Fault> {
        self.spec.store(draft, &self.text).map_err(|reason| {
            let value = match self.spec.is_secret() {
                true => "the value".into(),
                // A terminal might act on control characters.
                false => format!("'{}'", self.text.replace(char::is_control, "?")),
            };
            (self.origin, format!("{}: {value} {reason}", self.spec.name))
        })
    }
}

/// Redacts all of it.
impl fmt::Debug for Given {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Given(..)")
    }
}
