use std::os::unix::ffi::OsStringExt;
use std::{env, fs};

use super::*;
use tcp_over_http::config::{Config, RULE_OPTIONS, UPSTREAM_OPTIONS};

fn parsed(args: &[&str]) -> Result<Command, String> {
    parse(args.iter().map(OsString::from), None)
}

/// What `run` would have with these flags and no file.
fn config(args: &[&str]) -> Config {
    let all = ["check", "--config=/dev/null", "--upstream", "http://192.0.2.1"].iter().chain(args);
    match parse(all.map(OsString::from), None) {
        Ok(Command::Check(sources)) => sources.load().unwrap(),
        _ => panic!("{args:?}"),
    }
}

#[test]
fn commands() {
    assert!(matches!(parsed(&["run"]), Ok(Command::Run(_, false))));
    assert!(matches!(parsed(&["check"]), Ok(Command::Check(_))));
    assert!(matches!(parsed(&["block"]), Ok(Command::Block(_))));
    assert!(matches!(parsed(&["unblock"]), Ok(Command::Unblock(_))));
    assert!(matches!(parsed(&["run", "--leave-blocked"]), Ok(Command::Run(_, true))));
    for (args, request, form) in [
        (&["status"][..], "status", Form::Text),
        (&["status", "--json"], "status", Form::Json),
        (&["upstreams"], "upstreams", Form::Text),
        (&["upstreams", "--json", "--history"], "history", Form::Json),
        (&["clients", "--json"], "clients", Form::Json),
        (&["use", "corp", "--config", "/dev/null"], "use corp", Form::Text),
        (&["use", "auto", "--reset"], "use auto reset", Form::Text),
        (&["pause", "90"], "pause 90", Form::Text),
        (&["pause", "10m", "--json"], "pause 600", Form::Json),
        (&["pause", "1h", "--client", "10.1.0.2"], "pause 3600 10.1.0.2", Form::Text),
        (&["resume", "--client=10.1.0.2"], "resume 10.1.0.2", Form::Text),
        (&["use", "corp", "--reset", "--keep", "--json"], "use corp", Form::Json),
    ] {
        let is_meant =
            matches!(parsed(args), Ok(Command::Ask(_, asked, as_)) if asked == request && as_ == form);
        assert!(is_meant, "{args:?}");
    }
    assert_eq!(parsed(&["use"]).err().as_deref(), Some("use needs an upstream's name, or auto"));
    assert_eq!(parsed(&["use", ""]).err().as_deref(), Some("use needs an upstream's name, or auto"));
    assert_eq!(parsed(&["use", "--reset"]).err().as_deref(), Some("use needs an upstream's name, or auto"));
    assert_eq!(parsed(&["use", "a", "b"]).err().as_deref(), Some("argument 3 is not an option"));
    assert_eq!(parsed(&["status", "--reset"]).err().as_deref(), Some("unknown option --reset"));
    assert!(matches!(parsed(&["config", "--shell", "--mtu", "1400"]), Ok(Command::Shell(_))));
    assert!(matches!(parsed(&["config", "--json"]), Ok(Command::Options)));
    assert!(matches!(parsed(&["doctor"]), Ok(Command::Doctor(_, target)) if target == TARGET));
    assert!(matches!(parsed(&["doctor", "--target", "a"]), Ok(Command::Doctor(_, target)) if target == "a"));
    for help in [
        &["--help"][..],
        &["-h"],
        &["help"],
        &["run", "--help"],
        &["config"],
        &["check", "-h"],
        &["use", "--help"],
        &["use", "a", "-h"],
        &["run", "--mtu", "1", "--help"],
    ] {
        assert!(matches!(parsed(help), Ok(Command::Help)), "{help:?}");
    }
    assert!(matches!(parsed(&["--version"]), Ok(Command::Version)));
    assert_eq!(Version.to_string(), format!("tcp-over-http {}", env!("CARGO_PKG_VERSION")));
}

#[test]
fn flags() {
    assert_eq!(config(&["--listen-port", "1"]).listen_port, 1);
    assert_eq!(config(&["--listen-port=1"]).listen_port, 1);
    assert_eq!(config(&["--listen-port=1", "--listen-port", "2"]).listen_port, 2);
    assert_eq!(
        config(&["--bypass=10.0.0.0/8", "--bypass", "::/0"]).rules.up_to_direct()[0].networks.len(),
        2
    );
    assert!(config(&["--auto-route"]).auto_route);
    assert!(config(&["--auto-route", "--mtu", "1400"]).auto_route);
    assert!(config(&["--auto-route", "1"]).auto_route);
    assert!(!config(&["--auto-route", "0"]).auto_route);
    assert!(!config(&["--auto-route", "--auto-route=off"]).auto_route);
    assert_eq!(config(&["--upstream=http://a:1"]).upstreams.len(), 2);
}

#[test]
fn every_option_has_a_flag_and_a_line_of_help() {
    let help = Help.to_string();
    for spec in OPTIONS {
        let flag = format!("--{}", spec.name.replace('_', "-"));
        assert!(matches!(parsed(&["run", &flag, "1"]), Ok(Command::Run(_, false))), "{flag}");
        assert!(help.contains(&format!("\n  {flag} ")), "{flag}");
    }
}

#[test]
fn the_variable_is_used() {
    let variable = Some(OsString::from("http://a http://b"));
    let args = ["run", "--config", "/dev/null"].map(OsString::from);
    let Ok(Command::Run(sources, _)) = parse(args.into_iter(), variable) else { panic!() };
    assert_eq!(sources.load().unwrap().upstreams.len(), 2);
}

#[test]
fn usage_errors() {
    for (args, expected) in [
        (&[][..], "no command"),
        (&["start"], "the first argument is no command"),
        (&["--run"], "the first argument is no command"),
        (&["run", "--listen_port", "1"], "unknown option --listen"),
        (&["run", "--target", "a"], "unknown option --target"),
        (&["doctor", "--target"], "--target needs a value"),
        (&["check", "--shell"], "unknown option --shell"),
        (&["run", "--json"], "unknown option --json"),
        (&["block", "--leave-blocked"], "unknown option --leave-blocked"),
        (&["run", "--mut=1"], "unknown option --mut"),
        (&["run", "--upstreamhttp://u:hunter2@a"], "unknown option --upstreamhttp"),
        (&["run", "--"], "unknown option --"),
        (&["run", "--mtu"], "--mtu needs a value"),
        (&["run", "--mtu", "--tun"], "--mtu needs a value"),
        (&["run", "--config"], "--config needs a value"),
        (&["pause"], NO_DURATION),
        (&["pause", "61m"], NO_DURATION),
        (&["pause", "9999999999h"], NO_DURATION),
        (&["pause", "m"], NO_DURATION),
        (&["pause", "0s"], NO_DURATION),
        (&["pause", "10m", "--client"], "--client needs a value"),
        (&["resume", "10m"], "argument 2 is not an option"),
        (&["run", "http://u:hunter2@a"], "argument 2 is not an option"),
        (&["run", "--mtu", "1", "2"], "argument 4 is not an option"),
    ] {
        match parsed(args) {
            Err(error) => assert_eq!(error, expected, "{args:?}"),
            Ok(_) => panic!("{args:?}"),
        }
    }
    let latin1 = OsString::from_vec(b"--tun=\xe9".to_vec());
    let args = [OsString::from("run"), latin1];
    assert!(matches!(parse(args.into_iter(), None), Err(error) if error == "an argument is not UTF-8"));
}

/// The man page, in the words of `--help` and the table of options.
fn man() -> String {
    let mut page = format!(
        ".TH TCP-OVER-HTTP 8
.SH NAME
tcp-over-http - carry a network's TCP through an HTTP proxy
.SH SYNOPSIS
.nf
{COMMANDS}
.fi
.SH DESCRIPTION
{WHAT}
Clients need no settings: their connections succeed, fail and take as long as they really do.
.SH OPTIONS
Each replaces the option of the same name, with _ for -, of the section
.B config tcp-over-http 'main'
in the file.
.TP
.B --config FILE ({DEFAULT_FILE})
the file
"
    );
    for spec in OPTIONS {
        page += &format!(".TP\n.B {}\n{}\n", Usage(spec), spec.help);
    }
    page += &format!(".PP\n{NOTES}\n.SH UPSTREAMS\nOptions of a section\n.B config upstream\n");
    for spec in UPSTREAM_OPTIONS {
        page += &format!(".TP\n.B {}\n{}\n", spec.name, spec.help);
    }
    page += ".SH RULES\nOptions of a section\n.BR \"config rule\" ,\nof which the first that matches a connection counts:\n";
    for spec in RULE_OPTIONS {
        page += &format!(".TP\n.B {}\n{}\n", spec.name, spec.help);
    }
    page += &format!(
        ".SH SIGNALS
SIGHUP reloads the configuration; SIGUSR1 logs the status; SIGTERM drains connections, removes all that was set up,
and ends the daemon; a second one ends it at once.
.SH FILES
.B {DEFAULT_FILE}
"
    );
    page.replace('-', "\\-")
}

#[test]
fn the_man_page_says_what_help_does() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/tcp-over-http.8");
    if env::var_os("UPDATE").is_some() {
        fs::write(path, man()).unwrap();
    }
    assert!(fs::read_to_string(path).unwrap() == man(), "{path}: UPDATE=1 cargo test man_page");
}
