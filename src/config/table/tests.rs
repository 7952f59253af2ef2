use std::path::{Path, PathBuf};
use std::prelude::v1::*;
use std::{env, format, fs};

use super::*;
use crate::config::Config;

fn at(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// Holds a file that repeats the table against `wanted`, or writes it with `UPDATE=1 cargo test --lib table`.
fn hold(path: &Path, wanted: &str) {
    if env::var_os("UPDATE").is_some() {
        fs::write(path, wanted).unwrap();
    }
    assert!(
        fs::read_to_string(path).unwrap() == wanted,
        "{}: UPDATE=1 cargo test --lib table",
        path.display()
    );
}

#[test]
fn defaults_are_valid() {
    for spec in MAIN.iter().chain(UPSTREAM).chain(RULE) {
        for text in spec.default.split_ascii_whitespace() {
            assert_eq!(spec.store(&mut Default::default(), text), Ok(()), "{}", spec.name);
        }
    }
    let config = Config::from_uci("config tcp-over-http main\nlist upstream http://a").unwrap();
    assert_eq!((config.path, config.connect, config.quic), Default::default());
    assert_eq!((config.non_tcp, config.ping, config.on_failure), Default::default());
    assert_eq!((config.dns.mode, config.log_level), Default::default());
}

#[test]
fn the_help_of_a_choice_explains_its_words() {
    for spec in MAIN {
        let Choice(words, _) = spec.value else { continue };
        for word in words {
            assert!(spec.help.contains(word), "{}: {word}", spec.name);
        }
    }
}

#[test]
fn bounds_are_those_of_messages() {
    for spec in MAIN {
        let Number(min, max, ..) = spec.value else { continue };
        for (value, good) in
            [(Some(min), true), (Some(max), true), (min.checked_sub(1), false), (Some(max + 1), false)]
        {
            let Some(value) = value else { continue };
            let stored = spec.store(&mut Default::default(), &value.to_string());
            assert_eq!(stored.is_ok(), good, "{} {value}", spec.name);
        }
    }
}

#[test]
fn the_file_with_all_options_has_all() {
    let file = fs::read_to_string(at("tests/uci/good/all-options")).unwrap();
    let (main, upstreams) = file.split_once("\nconfig upstream").unwrap();
    for (specs, section) in [(MAIN, main), (UPSTREAM, upstreams)] {
        for spec in specs {
            let keyword = if spec.is_list() { "list" } else { "option" };
            assert!(section.contains(&format!("\t{keyword} {} '", spec.name)), "{}", spec.name);
        }
    }
}

/// What the documentation says of an option's values.
fn values(spec: &Spec) -> String {
    match spec.value {
        Bool(_) => "0, 1".to_owned(),
        Number(min, max, One, _) => format!("{min}-{max}"),
        Number(min, max, unit, _) => format!("{min}-{max} {unit}"),
        Port(_) => "port".to_owned(),
        Choice(words, _) => words.join(", "),
        _ if spec.is_list() => "list".to_owned(),
        _ => "text".to_owned(),
    }
}

fn table(specs: &[Spec]) -> String {
    let mut table = "| option | values | default | a change | meaning |\n|---|---|---|---|---|\n".to_owned();
    for spec in specs {
        let words: Vec<_> = spec.default.split(' ').filter(|word| !word.is_empty()).collect();
        let default = words.iter().map(|word| format!("`{word}`")).collect::<Vec<_>>().join(", ");
        let change = if spec.live { "live" } else { "restarts" };
        let (name, values, help) = (spec.name, values(spec), spec.help);
        table += &format!("| `{name}` | {values} | {default} | {change} | {help} |\n");
    }
    table
}

#[test]
fn the_documentation_has_the_table() {
    const BEGIN: &str = "<!-- options: begin -->\n";
    const END: &str = "<!-- options: end -->\n";
    let path = at("docs/configuration.md");
    let text = fs::read_to_string(&path).unwrap();
    let (before, rest) = text.split_once(BEGIN).unwrap();
    let (_, after) = rest.split_once(END).unwrap();
    let (main, upstream, rule) = (table(MAIN), table(UPSTREAM), table(RULE));
    let text = format!(
        "{before}{BEGIN}\n{main}\nOf a section `config upstream`:\n\n{upstream}\nOf a section `config rule`:\n\n{rule}\n{END}{after}"
    );
    hold(&path, &text);
}

/// The package's file: off, valid as it is but for a proxy and with all examples, and short: the first change through uci
/// strips its comments, and what options mean has to be said where it lasts.
#[test]
fn the_file_of_the_package_is_short_and_valid() {
    let shipped = fs::read_to_string(at("openwrt/files/etc/config/tcp-over-http")).unwrap();
    assert!(shipped.len() < 1000, "{} bytes", shipped.len());
    let error = Config::from_uci(&shipped).unwrap_err().to_string();
    assert!(error.starts_with("FILE: no upstream"), "{error}");
    assert!(shipped.contains("\toption enabled '0'\n"));

    let config = Config::from_uci(&shipped.replace("\t#", "\t").replace("\t ", "\t# ")).unwrap();
    let [bypass, direct] = config.rules.up_to_direct() else { unreachable!() };
    assert!(config.auto_route && bypass.networks.len() == 6);
    assert!(config.upstreams.len() == 1 && !direct.domains.is_empty());
}
