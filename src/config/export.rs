//! The configuration for other programs: its values for the router's scripts, its options for a page.

use alloc::string::{String, ToString};
use core::fmt;

use super::options::{Spec, ValueType};
use super::values::{boolean, number};
use super::{Config, table};
use crate::json::Json;

/// Assignments for a shell to evaluate, such as `tun='toh0'`: a variable for each option of the main section that is
/// not a secret. Booleans are 0 or 1, numbers are decimal, and a list has one value per line.
pub struct Shell<'a>(pub &'a Config);

impl fmt::Display for Shell<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for spec in table::MAIN.iter().filter(|spec| !spec.is_secret()) {
            f.write_str(spec.name)?;
            f.write_str("='")?;
            for (index, text) in self.0.given.texts(spec).into_iter().enumerate() {
                f.write_str(if index == 0 { "" } else { "\n" })?;
                match spec.value {
                    ValueType::Bool(_) => f.write_str(if boolean(text) == Some(true) { "1" } else { "0" })?,
                    ValueType::Number(..) => number(text).unwrap_or_default().fmt(f)?,
                    // A quote in the text: end the string, write an escaped quote, begin another string.
                    _ => text.split('\'').enumerate().try_for_each(|(index, part)| {
                        f.write_str(if index == 0 { "" } else { "'\\''" })?;
                        f.write_str(part)
                    })?,
                }
            }
            f.write_str("'\n")?;
        }
        Ok(())
    }
}

/// The options of all sections as JSON: `{"main":[...],"upstream":[...],"rule":[...]}`, each an object with `name`, `type`
/// (`bool`, `number`, `port`, `choice` or `text`), `default` (text; of a list with spaces between), `help`, whether
/// it is `secret`, a `list`, or applies `live`; of a number `min`, `max` and `unit`; of a choice `choices`.
pub fn options_as_json() -> String {
    let mut json = Json::default();
    json.open('{');
    for (section, specs) in [("main", table::MAIN), ("upstream", table::UPSTREAM), ("rule", table::RULE)] {
        json.key(section).open('[');
        specs.iter().for_each(|spec| option(&mut json, spec));
        json.close(']');
    }
    json.close('}');
    json.finish()
}

fn option(json: &mut Json, spec: &Spec) {
    json.open('{');
    json.key("name").string(spec.name);
    json.key("default").string(spec.default);
    json.key("help").string(spec.help);
    json.key("live").literal(&spec.live);
    json.key("secret").literal(&spec.is_secret());
    json.key("list").literal(&spec.is_list());
    let kind = match spec.value {
        ValueType::Bool(_) => "bool",
        ValueType::Number(..) => "number",
        ValueType::Port(_) => "port",
        ValueType::Choice(..) => "choice",
        _ => "text",
    };
    json.key("type").string(kind);
    match &spec.value {
        ValueType::Number(min, max, unit, _) => {
            json.key("min").literal(min);
            json.key("max").literal(max);
            json.key("unit").string(&unit.to_string());
        }
        ValueType::Choice(words, _) => {
            json.key("choices").open('[');
            words.iter().for_each(|word| json.string(word));
            json.close(']');
        }
        _ => {}
    }
    json.close('}');
}

#[cfg(test)]
mod tests {
    use std::format;

    use super::*;

    fn shell(lines: &str) -> String {
        let text = format!("config tcp-over-http main\nlist upstream http://u:hunter2@a\n{lines}");
        Shell(&Config::from_uci(&text).unwrap()).to_string()
    }

    #[test]
    fn values_for_a_shell() {
        let text = shell("");
        for line in ["tun='toh0'", "ipv6='1'", "route=''", "dns_server='1.1.1.1\n9.9.9.9'"] {
            assert!(text.contains(&format!("\n{line}\n")), "{line}");
        }
        assert!(!text.contains("upstream") && !text.contains("hunter2"));
        let text = shell(
            "option zone \"it's\"\noption ipv6 off\noption max_flows 0x40\nlist port 80\nlist port 8000-8999\noption mark 0",
        );
        for line in ["zone='it'\\''s'", "ipv6='0'", "max_flows='64'", "port='80\n8000-8999'"] {
            assert!(text.contains(&format!("\n{line}\n")), "{line}");
        }
    }

    #[test]
    fn options_for_a_page() {
        let text = options_as_json();
        for part in [
            r#"{"main":[{"name":"upstream","default":"","help":"a proxy, "#,
            r#","live":true,"secret":true,"list":true,"type":"text"},{"#,
            r#"{"name":"mtu","default":"1500","help":"MTU of the TUN device","live":false,"secret":false,"list":false,"type":"number","min":1280,"max":65535,"unit":"bytes"},"#,
            r#""type":"choice","choices":["honest","early"]},"#,
            r#"}],"upstream":[{"name":"enabled","#,
        ] {
            assert!(text.contains(part), "{part}");
        }
        assert!(text.ends_with("}]}\n"));
    }
}
