//! JSON (RFC 8259): a writer, and a reader that looks up single values.

use alloc::string::String;
use core::fmt::{self, Write};

/// Writes JSON in one line. The caller pairs brackets and puts a [`key`](Self::key) before each value of an object.
#[derive(Default)]
pub struct Json {
    text: String,
    /// Whether the next value needs a comma before it.
    is_behind_value: bool,
}

impl Json {
    /// Begins an object, `{`, or an array, `[`.
    pub fn open(&mut self, bracket: char) {
        self.separate();
        self.text.push(bracket);
        self.is_behind_value = false;
    }

    /// Ends an object, `}`, or an array, `]`.
    pub fn close(&mut self, bracket: char) {
        self.text.push(bracket);
        self.is_behind_value = true;
    }

    /// The name of the value that follows.
    pub fn key(&mut self, key: &str) -> &mut Self {
        self.string(key);
        self.text.push(':');
        self.is_behind_value = false;
        self
    }

    /// A string.
    pub fn string(&mut self, value: &str) {
        self.separate();
        self.text.push('"');
        for char in value.chars() {
            match char {
                '"' | '\\' => self.text.extend(['\\', char]),
                '\0'..' ' => _ = write!(self.text, "\\u{:04x}", u32::from(char)),
                _ => self.text.push(char),
            }
        }
        self.text.push('"');
    }

    /// A number, `true`, `false` or `null`.
    pub fn literal(&mut self, value: &dyn fmt::Display) {
        self.separate();
        _ = write!(self.text, "{value}");
    }

    /// The text, with a line feed at its end.
    pub fn finish(mut self) -> String {
        self.text.push('\n');
        self.text
    }

    fn separate(&mut self) {
        if self.is_behind_value {
            self.text.push(',');
        }
        self.is_behind_value = true;
    }
}

/// An object that reports an error, with a line feed at its end.
pub fn error(message: &str) -> String {
    let mut json = Json::default();
    json.open('{');
    json.key("error").string(message);
    json.close('}');
    json.finish()
}

/// The value at `path` (the keys of nested objects) as it is written. `None` if there is none, or the text is not JSON.
/// Keys are compared as they are written, so they must not contain escapes.
pub fn find<'a>(json: &'a str, path: &[&str]) -> Option<&'a str> {
    let (key, path) = path.split_first()?;
    let mut rest = json.trim_ascii_start().strip_prefix('{')?;
    loop {
        let (name, behind) = split_value(rest)?;
        let (value, behind) = split_value(behind.strip_prefix(':')?)?;
        if name.get(1..name.len() - 1) == Some(key) {
            return if path.is_empty() { Some(value) } else { find(value, path) };
        }
        rest = behind.strip_prefix(',')?;
    }
}

/// The first value, and the text after it and the following white space. Only checks where the value ends.
fn split_value(json: &str) -> Option<(&str, &str)> {
    let json = json.trim_ascii_start();
    let (mut depth, mut is_string, mut is_escaped) = (0_usize, false, false);
    for (at, byte) in json.bytes().enumerate() {
        let end = match byte {
            _ if is_escaped => {
                is_escaped = false;
                continue;
            }
            b'\\' if is_string => {
                is_escaped = true;
                continue;
            }
            b'"' => {
                is_string = !is_string;
                at + 1
            }
            _ if is_string => continue,
            b'{' | b'[' => {
                depth += 1;
                continue;
            }
            b'}' | b']' if depth > 0 => {
                depth -= 1;
                at + 1
            }
            b',' | b':' | b'}' | b']' | b' ' | b'\t' | b'\r' | b'\n' => at,
            _ => continue,
        };
        if depth == 0 && !is_string {
            let (value, behind) = json.split_at_checked(end)?;
            return (end > 0).then(|| (value, behind.trim_ascii_start()));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commas_stand_between_values() {
        let mut json = Json::default();
        json.open('{');
        json.key("list").open('[');
        json.open('{');
        json.close('}');
        json.open('[');
        json.close(']');
        json.string("x");
        json.literal(&-1);
        json.close(']');
        json.key("flag").literal(&true);
        json.close('}');
        assert_eq!(json.finish(), "{\"list\":[{},[],\"x\",-1],\"flag\":true}\n");
    }

    #[test]
    fn strings_are_escaped() {
        let mut json = Json::default();
        json.string("a\"b\\c\n\0\u{1f}\u{7f}ü/");
        assert_eq!(json.finish(), "\"a\\\"b\\\\c\\u000a\\u0000\\u001f\u{7f}ü/\"\n");
    }

    #[test]
    fn values_are_found_by_their_path() {
        let json =
            r#" { "a" : [1, {"b": 2}], "s":"b\":\\\"}", "b" : {"c":true,"d":{"e":-1.5e3}} , "z":null}"#;
        assert_eq!(find(json, &["a"]), Some(r#"[1, {"b": 2}]"#));
        assert_eq!(find(json, &["s"]), Some(r#""b\":\\\"}""#));
        assert_eq!(find(json, &["b", "c"]), Some("true"));
        assert_eq!(find(json, &["b", "d", "e"]), Some("-1.5e3"));
        assert_eq!(find(json, &["z"]), Some("null"));
        for path in [&["c"][..], &["b", "x"], &["a", "b"], &["z", "a"], &["b", "c", "d"]] {
            assert_eq!(find(json, path), None, "{path:?}");
        }
    }

    #[test]
    fn what_is_no_json_has_no_values() {
        let json = r#"{"s":"\"","b":{"c":1}}"#;
        for end in 0..json.len() - 2 {
            assert_eq!(find(&json[..end], &["b", "c"]), None, "{end}");
        }
        for text in ["", "{}", "[]", "{\"b\"}", "{\"b\":}", "{:1}", "{\"b\" 1}", "}", "\"b\":1", "{,\"b\":1}"]
        {
            assert_eq!(find(text, &["b"]), None, "{text}");
        }
    }
}
