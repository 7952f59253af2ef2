//! The syntax of OpenWrt's config files, read as libuci's `file.c` reads it in strict mode: a file
//! that one takes the other takes, with the same values. Held against it in `tests/libuci`.
//!
//! # Theory of operation
//! A line holds statements: a keyword (`package`, `config`, `option`, `list`, or its first letter)
//! and its arguments. An argument is made of pieces without space between: bare, `'...'` (nothing
//! is special inside) and `"..."` (a backslash keeps the next byte). Both kinds of quotes run over
//! the ends of lines; a backslash before one joins two lines. `#` starts a comment, also in the
//! middle of a bare word.
//!
//! libuci works in one buffer that it overwrites as it reads, and some of that shows. These quirks are kept, since a
//! file has to mean what `uci show` says:
//! - `;` ends a statement, but after a bare word it hides the rest of the line: the word's end mark overwrites it. It
//!   doesn't if a quote or backslash in the word made the word shorter.
//! - After `;` another statement must follow, not the end of the line.
//! - One empty argument too many is not an error.
//! - An `option` with an empty value changes nothing; that is left to the reader of statements.
//!
//! One thing differs: what libuci makes of a NUL byte depends on the sizes of its buffer, so here it is an error. Two
//! more checks of libuci need all sections and are left to the reader: a second section of the same name continues the
//! first, and must be of the same type.

use alloc::vec::Vec;
use core::fmt;

const BAD_NAME: &str = "a name has only letters, digits and _";

/// Reads a whole file; the iterator ends after the first error.
pub fn parse(input: &[u8]) -> Statements<'_> {
    Statements { input, pos: 0, end: 0, line_start: 0, line: 0, in_line: false, in_section: false }
}

/// Whether a configuration file of fw4 has a zone of this name.
pub fn has_zone(file: &[u8], zone: &str) -> bool {
    let mut is_zone = false;
    parse(file).map_while(Result::ok).any(|statement| {
        match statement {
            Statement::Config { kind, .. } => is_zone = kind.text == b"zone",
            Statement::Option { key, value } => {
                return is_zone && key.text == b"name" && value.text == zone.as_bytes();
            }
            _ => {}
        }
        false
    })
}

/// One statement of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Statement {
    /// `package NAME`: libuci checks the name and ignores it when it loads a file of that name.
    Package {
        /// Letters, digits, `_` and `-`.
        name: Word,
    },
    /// `config TYPE [NAME]`: begins a section.
    Config {
        /// Printable ASCII without space.
        kind: Word,
        /// Letters, digits and `_`.
        name: Option<Word>,
    },
    /// `option KEY VALUE`.
    Option {
        /// Letters, digits and `_`.
        key: Word,
        /// Any bytes but NUL; none if it was left out.
        value: Word,
    },
    /// `list KEY VALUE`: adds an item.
    List {
        /// Letters, digits and `_`.
        key: Word,
        /// Any bytes but NUL; none if it was left out.
        value: Word,
    },
}

/// An argument, without its quotes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Word {
    /// The bytes; no encoding is promised.
    pub text: Vec<u8>,
    /// Where it begins.
    pub at: Position,
}

/// A place in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    /// Line, from 1.
    pub line: usize,
    /// Byte in the line, from 1.
    pub column: usize,
}

/// Why a file is no config file, and where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Error {
    /// What is wrong.
    pub what: &'static str,
    /// Where: the word, or the quote that isn't closed.
    pub at: Position,
}

/// The statements of a file, in order.
#[derive(Clone, Debug)]
pub struct Statements<'a> {
    input: &'a [u8],
    pos: usize,
    /// Offset after the line being read and its LF.
    end: usize,
    line_start: usize,
    line: usize,
    /// Whether more statements may follow in this line.
    in_line: bool,
    in_section: bool,
}

impl Iterator for Statements<'_> {
    type Item = Result<Statement, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        let result = self.statement().transpose();
        if let Some(Err(_)) = result {
            self.input = &[];
            (self.pos, self.end, self.in_line) = (0, 0, false);
        }
        result
    }
}

impl Statements<'_> {
    fn statement(&mut self) -> Result<Option<Statement>, Error> {
        let (keyword, at) = loop {
            if !self.in_line {
                if !self.next_line()? {
                    return Ok(None);
                }
                self.skip(is_space);
                self.in_line = true;
            }
            self.skip(is_blank);
            let (start, at) = (self.pos, self.here());
            self.skip(|c| !is_blank(c));
            match self.input.get(start..self.pos).unwrap_or_default() {
                [] | [b'#', ..] => self.in_line = false,
                word => break (word, at),
            }
        };
        let list = match keyword {
            b"p" | b"package" => return self.package().map(Some),
            b"c" | b"config" => return self.config().map(Some),
            b"o" | b"option" => false,
            b"l" | b"list" => true,
            _ => {
                return Err(Error { what: "expected package, config, option or list", at });
            }
        };
        if !self.in_section {
            return Err(Error { what: "no section before this", at });
        }
        let key = required(self.word()?, BAD_NAME, is_name)?;
        let value = self.word()?;
        self.end_statement()?;
        Ok(Some(if list { Statement::List { key, value } } else { Statement::Option { key, value } }))
    }

    fn package(&mut self) -> Result<Statement, Error> {
        let name = required(self.word()?, BAD_NAME, |c| is_name(c) || c == b'-')?;
        self.end_statement()?;
        Ok(Statement::Package { name })
    }

    fn config(&mut self) -> Result<Statement, Error> {
        let kind =
            required(self.word()?, "a section's type has only printable ASCII", |c| c.is_ascii_graphic())?;
        let name = self.word()?;
        let name = if name.text.is_empty() { None } else { Some(required(name, BAD_NAME, is_name)?) };
        self.end_statement()?;
        self.in_section = true;
        Ok(Statement::Config { kind, name })
    }

    fn end_statement(&mut self) -> Result<(), Error> {
        let extra = self.word()?;
        if extra.text.is_empty() {
            return Ok(());
        }
        Err(Error { what: "too many arguments", at: extra.at })
    }

    /// The next argument; empty if there is none in this statement.
    fn word(&mut self) -> Result<Word, Error> {
        self.skip(is_space);
        let mut word = Word { text: Vec::new(), at: self.here() };
        if self.peek() == Some(b';') {
            self.pos += 1;
            return Ok(word);
        }
        // Whether libuci's copy of the word is by now shorter than what it has read.
        let mut shorter = false;
        loop {
            match self.peek() {
                None => break,
                Some(b'#') => self.pos = self.end,
                Some(b';') => {
                    if !shorter {
                        self.pos = self.end;
                    }
                    break;
                }
                Some(quote @ (b'\'' | b'"')) => {
                    shorter = true;
                    self.quoted(quote, &mut word.text)?;
                }
                Some(b'\\') => {
                    shorter = true;
                    self.escaped(&mut word.text)?;
                }
                Some(byte) => {
                    word.text.push(byte);
                    self.pos += 1;
                }
            }
            if self.peek().is_some_and(is_space) {
                self.pos += 1;
                break;
            }
        }
        Ok(word)
    }

    fn quoted(&mut self, quote: u8, text: &mut Vec<u8>) -> Result<(), Error> {
        let at = self.here();
        self.pos += 1;
        loop {
            match self.peek() {
                None => {
                    if !self.next_line()? {
                        return Err(Error { what: "this quote is never closed", at });
                    }
                }
                Some(byte) if byte == quote => {
                    self.pos += 1;
                    return Ok(());
                }
                Some(b'\\') if quote == b'"' => self.escaped(text)?,
                Some(byte) => {
                    text.push(byte);
                    self.pos += 1;
                }
            }
        }
    }

    /// A backslash and the byte after it; a line end after it vanishes.
    fn escaped(&mut self, text: &mut Vec<u8>) -> Result<(), Error> {
        self.pos += 1;
        match self.input.get(self.pos..self.end).unwrap_or_default() {
            [] | b"\n" | b"\r\n" => {
                self.pos = self.end;
                self.next_line()?;
            }
            [byte, ..] => {
                text.push(*byte);
                self.pos += 1;
            }
        }
        Ok(())
    }

    /// Goes to the next line; false if there is none.
    fn next_line(&mut self) -> Result<bool, Error> {
        let rest = self.input.get(self.end..).unwrap_or_default();
        if rest.is_empty() {
            return Ok(false);
        }
        let length = rest.iter().position(|&c| c == b'\n').map_or(rest.len(), |lf| lf + 1);
        self.pos = self.end;
        self.line_start = self.end;
        self.line += 1;
        let nul = rest.iter().take(length).position(|&c| c == 0);
        self.end += length;
        match nul {
            None => Ok(true),
            Some(offset) => {
                self.pos += offset;
                Err(Error { what: "NUL byte", at: self.here() })
            }
        }
    }

    fn skip(&mut self, what: fn(u8) -> bool) {
        while self.peek().is_some_and(what) {
            self.pos += 1;
        }
    }

    /// The next byte of this line.
    fn peek(&self) -> Option<u8> {
        self.input.get(self.pos..self.end)?.first().copied()
    }

    fn here(&self) -> Position {
        let line = self.input.get(self.line_start..self.end).unwrap_or_default();
        // Not after the LF: that would be the next line.
        let last = line.strip_suffix(b"\n").unwrap_or(line).len();
        Position { line: self.line, column: (self.pos - self.line_start).min(last) + 1 }
    }
}

fn required(word: Word, bad: &'static str, good: fn(u8) -> bool) -> Result<Word, Error> {
    let what = match word.text.iter().position(|&c| !good(c)) {
        None if !word.text.is_empty() => return Ok(word),
        None => "an argument is missing",
        Some(_) => bad,
    };
    Err(Error { what, at: word.at })
}

/// What ends a keyword.
fn is_blank(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t')
}

/// `isspace` of the C locale.
fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t'..=b'\r')
}

fn is_name(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_'
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.line, self.column)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.at, self.what)
    }
}

impl core::error::Error for Error {}

#[cfg(test)]
mod tests {
    use super::*;
    use std::string::{String, ToString};

    #[test]
    fn words_know_where_they_begin() {
        let input = b"\n  config\tt 'n'\n\toption k 'a\nb'; list l \"c\"\n";
        let word = |text: &str, line, column| Word { text: text.into(), at: Position { line, column } };
        let expected = [
            Statement::Config { kind: word("t", 2, 10), name: Some(word("n", 2, 12)) },
            Statement::Option { key: word("k", 3, 9), value: word("a\nb", 3, 11) },
            Statement::List { key: word("l", 4, 10), value: word("c", 4, 12) },
        ];
        let statements: Result<Vec<_>, _> = parse(input).collect();
        assert_eq!(statements.as_deref(), Ok(&expected[..]));
    }

    #[test]
    fn errors_say_where() {
        for (input, expected) in [
            ("config t\nfoo", "2:1: expected package, config, option or list"),
            ("\n option a b", "2:2: no section before this"),
            ("config t\noption a b  cd", "2:13: too many arguments"),
            ("config t\noption 'a.b' c", "2:8: a name has only letters, digits and _"),
            ("config t n-m", "1:10: a name has only letters, digits and _"),
            ("config 'a b'", "1:8: a section's type has only printable ASCII"),
            ("config t\noption\ta x'b\nc", "2:11: this quote is never closed"),
            ("config t\n  option  \n", "2:11: an argument is missing"),
            ("config t\noption ''", "2:8: an argument is missing"),
            ("config t 'n';\n", "1:14: expected package, config, option or list"),
            ("config t\n# a\0", "2:4: NUL byte"),
        ] {
            let error = parse(input.as_bytes()).find_map(Result::err);
            let text = error.map(|error| error.to_string());
            assert_eq!(text.as_deref(), Some(expected), "{input:?}");
        }
    }

    #[test]
    fn nothing_comes_behind_an_error() {
        let mut statements = parse(b"config t\nfoo\nconfig u\n");
        assert!(matches!(statements.next(), Some(Ok(Statement::Config { .. }))));
        assert!(matches!(statements.next(), Some(Err(_))));
        assert_eq!(statements.next(), None);
        assert_eq!(statements.next(), None);
    }

    #[test]
    fn a_semicolon_behind_a_bare_word_hides_the_line() {
        let input = b"config t; foo\noption a b; foo\noption c 'd'; option e 'f'\n";
        let values: Vec<_> = parse(input)
            .filter_map(|statement| match statement {
                Ok(Statement::Option { value, .. }) => String::from_utf8(value.text).ok(),
                Ok(_) => None,
                Err(error) => Some(error.to_string()),
            })
            .collect();
        assert_eq!(values, ["b", "d", "f"]);
    }
}
