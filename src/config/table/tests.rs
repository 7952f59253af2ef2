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
    for spec in MAIN.iter().chain(UPSTREAM) {
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
    let (main, upstream) = (table(MAIN), table(UPSTREAM));
    let text =
        format!("{before}{BEGIN}\n{main}\nOf a section `config upstream`:\n\n{upstream}\n{END}{after}");
    hold(&path, &text);
}

/// Breaks a text into lines of a comment.
fn comment(text: &str) -> String {
    let mut out = String::new();
    let mut width = 120;
    for word in text.split(' ') {
        let fits = width + 1 + word.len() <= 104;
        out += if fits { " " } else { "\n\t# " };
        out += word;
        width = if fits { width + 1 + word.len() } else { 2 + word.len() };
    }
    out.split_off(1) + "\n"
}

/// The package's file: each option, for the first time, has its help above it, and its default.
#[test]
fn the_file_of_the_package_has_every_option_with_its_default() {
    let path = at("openwrt/files/etc/config/tcp-over-http");
    let shipped = fs::read_to_string(&path).unwrap();
    let error = Config::from_uci(&shipped).unwrap_err().to_string();
    assert!(error.starts_with("no upstream"), "{error}");

    let statement = |line: &&str| ["option ", "list ", "config "].iter().any(|word| line.starts_with(word));
    let uncommented = |line| str::trim_start(line).strip_prefix('#').filter(statement).unwrap_or(line);
    let whole = shipped.lines().map(uncommented).collect::<Vec<_>>().join("\n");
    Config::from_uci(&whole.replace("/etc/tcp-over-http/bypass", "/dev/null")).unwrap();
    let (main, upstream) = whole.split_once("\nconfig upstream").unwrap();
    for (specs, section) in [(MAIN, main), (UPSTREAM, upstream)] {
        for spec in specs {
            let keyword = if spec.is_list() { "list" } else { "option" };
            let named = format!("{keyword} {} '", spec.name);
            assert!(section.contains(&named), "{named}");
            // What a package has to decide otherwise: it is off, and captures once it is on.
            if !spec.is_list() && !spec.default.is_empty() && !["enabled", "auto_route"].contains(&spec.name)
            {
                let default = format!("{named}{}'", spec.default);
                assert!(section.contains(&default), "{default}");
            }
        }
    }

    let (mut wanted, mut specs, mut last) = (String::new(), MAIN, "");
    for line in shipped.lines() {
        let words: Vec<_> = line.trim_start().trim_start_matches('#').split(' ').collect();
        if line.starts_with("#config upstream") {
            (specs, last) = (UPSTREAM, "");
        }
        let named = |spec: &&Spec| matches!(words[0], "option" | "list") && spec.name == words[1];
        if let Some(spec) = specs.iter().find(named)
            && spec.name != last
        {
            while wanted
                .trim_end()
                .lines()
                .last()
                .is_some_and(|line| line.starts_with("\t# ") && !line.contains("---"))
            {
                wanted.truncate(wanted.trim_end().rfind('\n').unwrap() + 1);
            }
            last = spec.name;
            wanted += &comment(&match spec.value {
                Number(..) => format!("{} ({})", spec.help, values(spec)),
                _ => spec.help.to_owned(),
            });
        }
        wanted += line;
        wanted += "\n";
    }
    hold(&path, &wanted);
}
