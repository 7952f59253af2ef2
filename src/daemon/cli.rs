//! The command line.

use std::ffi::OsString;
use std::fmt;

use crate::report::document::Form;
use crate::sources::{DEFAULT_FILE, Sources};
use tcp_over_http::capture::pause::MAX_PAUSE;
use tcp_over_http::config::{OPTIONS, RULE_OPTIONS, Spec, UPSTREAM_OPTIONS, Unit, ValueType};

/// What the doctor asks the proxies to connect to.
const TARGET: &str = "example.com";

const NO_DURATION: &str = "pause needs a duration of at most 1h, such as 90s or 10m";

/// A command as given on the command line.
pub enum Command {
    /// Run in the foreground; whether to leave what is captured refused after the end.
    Run(Sources, bool),
    /// Load the configuration and say what is wrong with it.
    Check(Sources),
    /// Refuse what the daemon would capture, until it runs.
    Block(Sources),
    /// Remove everything that refuses or captures traffic.
    Unblock(Sources),
    /// Send the running daemon this request.
    Ask(Sources, String, Form),
    /// Look for what is wrong, and try CONNECT to this target.
    Doctor(Sources, String),
    /// Print the configuration's values for a shell.
    Shell(Sources),
    /// Print all options as JSON.
    Options,
    /// Print `Help`.
    Help,
    /// Print `Version`.
    Version,
}

/// Reads the arguments after the program's name, and the variable.
///
/// # Errors
/// What can't be understood. Never contains a value: it may be a secret.
pub fn parse(args: impl Iterator<Item = OsString>, upstreams: Option<OsString>) -> Result<Command, String> {
    let utf8 = |text: OsString| text.into_string().map_err(|_| "an argument is not UTF-8".to_owned());
    let mut texts = Vec::new();
    for arg in args {
        texts.push(utf8(arg)?);
    }
    let mut args = texts.into_iter().enumerate().peekable();
    let (_, word) = args.next().ok_or("no command")?;
    let is_request = match word.as_str() {
        "run" | "check" | "block" | "unblock" | "doctor" | "config" => false,
        "status" | "upstreams" | "clients" | "use" | "pause" | "resume" | "uplinks" => true,
        "--help" | "-h" | "help" => return Ok(Command::Help),
        "--version" | "-V" => return Ok(Command::Version),
        _ => return Err("the first argument is no command".to_owned()),
    };
    let mut target = TARGET.to_owned();
    let mut request = word.clone();
    let (mut leave_blocked, mut reset, mut json, mut shell) = (false, false, false, false);
    if word == "use" {
        match args.next_if(|(_, name)| !name.is_empty() && (!name.starts_with('-') || is_help(name))) {
            Some((_, name)) if is_help(&name) => return Ok(Command::Help),
            Some((_, name)) => request = ["use ", &name].concat(),
            None => return Err("use needs an upstream's name, or auto".to_owned()),
        }
    }
    if word == "pause" {
        match args.next() {
            Some((_, text)) if is_help(&text) => return Ok(Command::Help),
            duration => {
                let seconds = duration.and_then(|(_, text)| seconds(&text)).ok_or(NO_DURATION)?;
                request = format!("pause {seconds}");
            }
        }
    }
    let mut client = None;
    let mut sources = Sources::new(upstreams.map(utf8).transpose()?);
    while let Some((index, arg)) = args.next() {
        let Some(flag) = arg.strip_prefix("--") else {
            return match arg.as_str() {
                "-h" => Ok(Command::Help),
                _ => Err(format!("argument {} is not an option", index + 1)),
            };
        };
        let (name, value) = match flag.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (flag, None),
        };
        if name == "help" {
            return Ok(Command::Help);
        }
        let mut is_switch = true;
        match (word.as_str(), flag) {
            ("run", "leave-blocked") => leave_blocked = true,
            ("upstreams", "history") => request = flag.to_owned(),
            ("use", "keep" | "reset") => reset = flag == "reset",
            ("config", "json" | "shell") => (json, shell) = (flag == "json", flag == "shell"),
            (_, "json") if is_request => json = true,
            _ => is_switch = false,
        }
        if is_switch {
            continue;
        }
        let option = OPTIONS.iter().find(|spec| is_flag(spec, name));
        let is_target = name == "target" && word == "doctor";
        let is_client = name == "client" && matches!(word.as_str(), "pause" | "resume");
        if option.is_none() && name != "config" && !is_target {
            let shown = |c: &char| c.is_ascii_alphanumeric() || *c == '-';
            // Cut off where a value might begin.
            return Err(format!("unknown option --{}", name.chars().take_while(shown).collect::<String>()));
        }
        let value = value.or_else(|| {
            let next = args.next_if(|(_, next)| !next.starts_with("--"))?;
            Some(next.1)
        });
        match (option, value) {
            (_, Some(value)) if is_client => client = Some(value),
            (Some(spec), Some(value)) => sources.give(spec, value),
            (None, Some(value)) if is_target => target = value,
            (None, Some(value)) => sources.file = Some(value),
            (Some(spec), None) if is_bool(spec) => sources.give(spec, "1".to_owned()),
            (_, None) => return Err(format!("--{name} needs a value")),
        }
    }
    if reset {
        request.push_str(" reset");
    }
    if let Some(client) = client {
        request = [&request, " ", client.split_ascii_whitespace().next().unwrap_or("?")].concat();
    }
    Ok(match word.as_str() {
        "run" => Command::Run(sources, leave_blocked),
        "check" => Command::Check(sources),
        "block" => Command::Block(sources),
        "unblock" => Command::Unblock(sources),
        "doctor" => Command::Doctor(sources, target),
        "config" if json => Command::Options,
        "config" if shell => Command::Shell(sources),
        "config" => Command::Help,
        _ => Command::Ask(sources, request, if json { Form::Json } else { Form::Text }),
    })
}

/// `90`, `90s`, `10m` or `1h` in seconds, if a pause may last that long.
fn seconds(text: &str) -> Option<u32> {
    let unit = match text.as_bytes().last()? {
        b's' => 1,
        b'm' => 60,
        b'h' => 3600,
        _ => 0,
    };
    let number = if unit == 0 { text } else { text.get(..text.len() - 1)? };
    let seconds = number.parse::<u32>().ok()?.checked_mul(unit.max(1))?;
    (1..=MAX_PAUSE).contains(&seconds).then_some(seconds)
}

fn is_help(text: &str) -> bool {
    matches!(text, "-h" | "--help")
}

/// Whether `name` is the option's, with `-` for `_`.
fn is_flag(spec: &Spec, name: &str) -> bool {
    let flag = spec.name.bytes().map(|c| if c == b'_' { b'-' } else { c });
    flag.eq(name.bytes())
}

fn is_bool(spec: &Spec) -> bool {
    matches!(spec.value, ValueType::Bool(_))
}

/// What the program is, for `--help`.
const WHAT: &str = "Carries a network's TCP through an upstream HTTP proxy.";

/// Its commands, for `--help`.
const COMMANDS: &str = "tcp-over-http COMMAND [OPTION]...

  run [--leave-blocked]
        run in the foreground; logs to stdout, warnings and errors to stderr;
        --leave-blocked: refuse captured traffic after the end
  check
        validate the configuration
  block
        refuse what would be captured, until the daemon runs
  unblock
        remove what the daemon or `block` has left
  status [--json]
        the status of the running daemon
  upstreams [--history] [--json]
        the state of its proxies, or how that has changed
  use NAME|auto [--keep|--reset] [--json]
        new connections go through this proxy; --reset: others end
  uplinks [--json]
        check again which uplinks are up
  pause DURATION [--client IP] [--json]
        let all clients, or one, out directly for a while: 90s, 10m, 1h (at most)
  resume [--client IP] [--json]
        end that client's pause, or all
  clients [--json]
        its clients' connections and bytes
  doctor [--target HOST]
        what is wrong, and what to do
  config --shell
        the options' values, as assignments for a shell
  config --json
        the options themselves, as JSON
  config --help
        the same for people
  --version | --help";

/// What applies to all options.
const NOTES: &str = "\
Options marked ... repeat. Other users can see an upstream's password in the arguments: give it in
the file, or in the variable TCP_OVER_HTTP_UPSTREAM (URLs separated by spaces).";

/// What `--version` prints.
pub struct Version;

/// What `--help` prints.
pub struct Help;

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(concat!("tcp-over-http ", env!("CARGO_PKG_VERSION")))
    }
}

impl fmt::Display for Help {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{WHAT}\n\n{COMMANDS}\n\nOptions; each replaces what the file says:\n  --config FILE ({DEFAULT_FILE})\n"
        )?;
        for spec in OPTIONS {
            writeln!(f, "  {}\n        {}", Usage(spec), spec.help)?;
        }
        let sections = [
            ("upstream` of the file", UPSTREAM_OPTIONS),
            ("rule`, of which the first that matches a connection counts", RULE_OPTIONS),
        ];
        for (section, options) in sections {
            writeln!(f, "\nOptions of a section `config {section}:")?;
            for spec in options {
                writeln!(f, "  {}\n        {}", spec.name, spec.help)?;
            }
        }
        write!(f, "\n{NOTES}\n")
    }
}

/// A flag, the values it takes, and its default: `--mtu 1280-65535 bytes (1500)`.
struct Usage<'a>(&'a Spec);

impl fmt::Display for Usage<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Spec { name, default, value, .. } = self.0;
        f.write_str("--")?;
        for (index, word) in name.split('_').enumerate() {
            f.write_str(if index == 0 { "" } else { "-" })?;
            f.write_str(word)?;
        }
        match value {
            ValueType::Bool(_) => f.write_str(" [0|1]")?,
            _ => write!(f, " {value}")?,
        }
        if let ValueType::Number(_, _, unit, _) = value
            && !matches!(unit, Unit::One)
        {
            write!(f, " {unit}")?;
        }
        if self.0.is_list() {
            f.write_str(" ...")?;
        }
        if default.is_empty() { Ok(()) } else { write!(f, " ({default})") }
    }
}

#[cfg(test)]
mod tests;
