//! Our reading of UCI files held against libuci's: the same files taken, with the same values.
#![cfg(test)]

mod ffi;

use std::collections::BTreeMap;
use std::ffi::{CStr, c_char, c_void};
use std::path::{Path, PathBuf};
use std::{fs, ptr};

use proptest::prelude::*;
use tcp_over_http::config::uci::{self, Statement, Word};

use crate::ffi::{Element, List, Opt, uci_alloc_context, uci_free_context, uci_import};

/// A file as both see it: sections in order.
type Package = Vec<Section>;

#[derive(Debug, PartialEq)]
struct Section {
    kind: Vec<u8>,
    /// Empty for a section without a name.
    name: Vec<u8>,
    /// By key: where one goes whose kind changes differs between versions of libuci.
    options: BTreeMap<Vec<u8>, Value>,
}

#[derive(Debug, PartialEq)]
enum Value {
    String(Vec<u8>),
    List(Vec<Vec<u8>>),
}

#[test]
fn good_files_are_read_the_same() {
    for (path, file) in corpus("good") {
        let (ours, theirs) = (ours(&file), libuci(&file));
        assert!(ours.is_ok(), "{}: {:?}", path.display(), ours);
        assert_eq!(ours.ok(), theirs, "{}", path.display());
    }
}

#[test]
fn odd_files_are_read_the_same() {
    for (path, file) in corpus("odd") {
        let ours = ours(&file);
        assert!(ours.is_ok(), "{}: {:?}", path.display(), ours);
        assert_eq!(ours.ok(), libuci(&file), "{}", path.display());
    }
}

#[test]
fn bad_files_are_refused_by_both() {
    for (path, file) in corpus("bad") {
        assert!(ours(&file).is_err(), "{} is read", path.display());
        assert_eq!(libuci(&file), None, "{} is read by libuci", path.display());
    }
}

/// The pieces that files are made of, and what is between them.
const TOKENS: &[&[u8]] = &[
    b"config ",
    b"option ",
    b"list ",
    b"package ",
    b"c ",
    b"o ",
    b"l ",
    b"p ",
    b"config",
    b"option",
    b"x",
    b"main",
    b"foo",
    b"a-b",
    b"_",
    b"7",
    b"'",
    b"''",
    b"\"",
    b"\"\"",
    b"\\",
    b"\\\n",
    b"\\\r\n",
    b"'a b'",
    b"\"c'd\"",
    b"'\n'",
    b"#",
    b";",
    b"';",
    b" ",
    b" ",
    b"\t",
    b"\n",
    b"\n",
    b"\r\n",
    b"\r",
    b"\x0b",
    b"\x0c",
    b"\x01",
    b"\xff",
    b"\xc3\xa9",
    b"\n\toption a 'b'",
    b"\nconfig t 'n'\n",
    b"\nconfig t\n",
    b"\n\tlist a b\n",
    b"=",
    b"/",
];

proptest! {
    #![proptest_config(ProptestConfig { cases: 20_000, failure_persistence: None, ..ProptestConfig::default() })]

    /// Mostly refused, by both.
    #[test]
    fn any_tokens_are_read_the_same(tokens in prop::collection::vec(prop::sample::select(TOKENS), 0..24)) {
        same(&tokens.concat())?;
    }

    /// Mostly taken: random arguments in statements that are sound.
    #[test]
    fn statements_are_read_the_same(
        statements in prop::collection::vec(
            (prop::sample::select(vec!["config t ", "config ", "option k ", "option ", "list k ", "o ", "l k "]),
            prop::collection::vec(prop::sample::select(TOKENS), 0..5),
            prop::sample::select(vec!["\n", "\n", "\r\n", " # c\n", ";", "; ", " ;", ""])),
            0..8,
        ),
    ) {
        let mut file = b"config t s\n".to_vec();
        for (keyword, argument, end) in statements {
            file.extend_from_slice(keyword.as_bytes());
            file.extend(argument.concat());
            file.extend_from_slice(end.as_bytes());
        }
        same(&file)?;
    }

    /// Lines longer than libuci's buffer.
    #[test]
    fn any_text_is_read_the_same(text in "(config t\n)?([co] ?[a-z;'\"\\\\# \n]{0,80}){0,4}") {
        same(text.as_bytes())?;
    }
}

fn same(file: &[u8]) -> Result<(), TestCaseError> {
    let (ours, theirs) = (ours(file), libuci(file));
    let text = String::from_utf8_lossy(file);
    prop_assert_eq!(ours.as_ref().ok(), theirs.as_ref(), "{:?}: {:?}", text, ours);
    Ok(())
}

fn corpus(kind: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../uci").join(kind);
    let files: Vec<_> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .map(|path| (path.clone(), fs::read(path).unwrap()))
        .collect();
    assert!(!files.is_empty());
    files
}

/// Does with our statements what libuci does with its own.
fn ours(file: &[u8]) -> Result<Package, String> {
    let mut package = Package::new();
    let mut current = None;
    // How often libuci has met the section of the same index. The third time it loses which one it is in
    // (`uci_set()`, list.c: `last` is not set), and refuses what would go there.
    let mut met = Vec::new();
    for statement in uci::parse(file) {
        match statement.map_err(|error| error.to_string())? {
            Statement::Package { .. } => {}
            Statement::Config { kind, name } => {
                let name = name.map(|name| name.text).unwrap_or_default();
                let known = package.iter().position(|section| !name.is_empty() && section.name == name);
                let index = known.unwrap_or(package.len());
                match package.get(index) {
                    Some(section) if section.kind != kind.text => {
                        return Err("another type".to_owned());
                    }
                    Some(_) => {}
                    None => {
                        package.push(Section { kind: kind.text, name, options: BTreeMap::new() });
                        met.push(0);
                    }
                }
                met[index] += 1;
                current = (met[index] < 3).then_some(index);
            }
            Statement::Option { key, value } => set(within(&mut package, current)?, key, value),
            Statement::List { key, value } => add(within(&mut package, current)?, key, value),
        }
    }
    Ok(package)
}

fn within(package: &mut Package, current: Option<usize>) -> Result<&mut Section, String> {
    current.and_then(|index| package.get_mut(index)).ok_or("no section".to_owned())
}

fn set(section: &mut Section, key: Word, value: Word) {
    if !value.text.is_empty() {
        section.options.insert(key.text, Value::String(value.text));
    }
}

fn add(section: &mut Section, key: Word, value: Word) {
    let items = match section.options.remove(&key.text) {
        None => vec![value.text],
        Some(Value::String(first)) => vec![first, value.text],
        Some(Value::List(mut items)) => {
            items.push(value.text);
            items
        }
    };
    section.options.insert(key.text, Value::List(items));
}

/// What libuci reads, or `None` if it refuses the file.
fn libuci(file: &[u8]) -> Option<Package> {
    assert!(!file.contains(&0), "libuci's reading of NUL depends on its buffer");
    // SAFETY: the stream reads `file`, which outlives it, and is closed once; the context and what hangs on it
    // are used by this thread alone, before they are freed. Elements begin with their list node, sections and
    // options with their element.
    unsafe {
        let stream = libc::fmemopen(file.as_ptr().cast_mut().cast::<c_void>(), file.len(), c"r".as_ptr());
        assert!(!stream.is_null());
        let context = uci_alloc_context();
        let mut package: *mut ffi::Package = ptr::null_mut();
        let failed = uci_import(context, stream, c"test".as_ptr(), &mut package, true) != 0;
        let read = (!failed).then(|| {
            nodes(&raw const (*package).sections)
                .map(|node| {
                    let section = node.cast::<ffi::Section>();
                    let name = if (*section).anonymous { Vec::new() } else { bytes((*section).e.name) };
                    let options =
                        nodes(&raw const (*section).options).map(|node| option(node.cast())).collect();
                    Section { kind: bytes((*section).kind), name, options }
                })
                .collect()
        });
        uci_free_context(context);
        libc::fclose(stream);
        read
    }
}

/// # Safety
/// `option` is one of libuci's.
unsafe fn option(option: *const Opt) -> (Vec<u8>, Value) {
    // SAFETY: the type says which member of the union is valid.
    unsafe {
        let value = if (*option).kind == ffi::UCI_TYPE_STRING {
            Value::String(bytes((*option).v.string))
        } else {
            let items = nodes((&raw const (*option).v.list).cast());
            Value::List(items.map(|node| bytes((*node.cast::<Element>()).name)).collect())
        };
        (bytes((*option).e.name), value)
    }
}

/// The nodes of a ring behind its head.
///
/// # Safety
/// `head` is the head of one of libuci's lists, which stays as it is.
unsafe fn nodes(head: *const List) -> impl Iterator<Item = *const List> {
    // SAFETY: every node of the ring is valid.
    let next = |node: *const List| unsafe { (*node).next };
    std::iter::successors(Some(next(head)), move |&node| Some(next(node)))
        .take_while(move |&node| node != head)
}

/// # Safety
/// `text` is a C string.
unsafe fn bytes(text: *const c_char) -> Vec<u8> {
    // SAFETY: as the caller says.
    unsafe { CStr::from_ptr(text) }.to_bytes().to_vec()
}
