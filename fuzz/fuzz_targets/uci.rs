//! Any bytes: no panic, every position is in the file, and what was read can be written and read again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tcp_over_http::config::uci::{self, Position, Statement, Word};

fuzz_target!(|file: &[u8]| {
    let mut written = Vec::new();
    let mut read = Vec::new();
    let mut ended = false;
    for statement in uci::parse(file) {
        assert!(!ended, "a statement behind an error");
        match statement {
            Ok(statement) => {
                for word in write(&statement, &mut written) {
                    assert_in(file, word.at);
                    read.push(word.text.clone());
                }
            }
            Err(error) => {
                assert_in(file, error.at);
                ended = true;
            }
        }
    }
    let mut again = Vec::new();
    let again_read: Vec<_> = uci::parse(&written)
        .flat_map(|statement| {
            let statement = statement.expect("what is written can be read");
            write(&statement, &mut again)
                .into_iter()
                .map(|word| word.text.clone())
                .collect::<Vec<_>>()
        })
        .collect();
    assert_eq!(read, again_read);
    assert_eq!(written, again);
});

/// Appends the statement, quoted; returns its words.
fn write<'a>(statement: &'a Statement, to: &mut Vec<u8>) -> Vec<&'a Word> {
    let (keyword, words) = match statement {
        Statement::Package { name } => ("package", vec![name]),
        Statement::Config { kind, name } => ("config", std::iter::once(kind).chain(name).collect()),
        Statement::Option { key, value } => ("option", vec![key, value]),
        Statement::List { key, value } => ("list", vec![key, value]),
    };
    to.extend(keyword.as_bytes());
    for word in &words {
        to.extend(b" '");
        for &byte in &word.text {
            match byte {
                b'\'' => to.extend(b"'\\''"),
                byte => to.push(byte),
            }
        }
        to.push(b'\'');
    }
    to.push(b'\n');
    words
}

fn assert_in(file: &[u8], at: Position) {
    let line = file
        .split(|&byte| byte == b'\n')
        .nth(at.line - 1)
        .expect("the line is in the file");
    assert!(
        (1..=line.len() + 1).contains(&at.column),
        "{at} is not in a line of {}",
        line.len()
    );
}
