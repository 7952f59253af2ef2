//! The rooms of the house: their maps name each of them, and what a room uses lies below it, so no two use each other.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

type Arrows = BTreeMap<String, BTreeSet<String>>;

/// The rooms below a folder, each with those that it uses: by `crate::`, outside of tests.
fn arrows(folder: &Path, skip: &[&str]) -> Arrows {
    let mut arrows = Arrows::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let room = path.file_stem().unwrap().to_str().unwrap().to_owned();
        if !skip.contains(&&*room) {
            read(&path, &mut |name| _ = arrows.entry(room.clone()).or_default().insert(name.to_owned()));
        }
    }
    for (room, used) in &mut arrows {
        used.remove(room);
    }
    arrows
}

fn read(path: &Path, found: &mut dyn FnMut(&str)) {
    if path.is_dir() {
        fs::read_dir(path).unwrap().for_each(|entry| read(&entry.unwrap().path(), found));
    } else if path.extension().is_some_and(|it| it == "rs") && !path.to_str().unwrap().contains("tests") {
        let text = fs::read_to_string(path).unwrap();
        let code = text.lines().take_while(|line| *line != "mod tests {");
        for line in code.filter(|line| !line.trim_start().starts_with("//")) {
            for used in line.split("crate::").skip(1) {
                let names = used.strip_prefix('{').map_or(vec![used], |used| used.split(", ").collect());
                names.iter().for_each(|name| found(word(name)));
            }
        }
    }
}

fn word(text: &str) -> &str {
    text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').next().unwrap()
}

/// The modules that a file declares for the program, not for tests.
fn modules(code: &str) -> BTreeSet<&str> {
    let mut lines = code.lines();
    let mut found = BTreeSet::new();
    while let Some(line) = lines.next() {
        if line == "#[cfg(test)]" {
            lines.next();
        } else if let Some(name) = line.trim_start_matches("pub ").strip_prefix("mod ") {
            found.extend(name.split_once(';').map(|(name, _)| name));
        }
    }
    found
}

/// The rows of a file's map, a table of rooms or files: the modules that each names first.
fn map(code: &str) -> Vec<BTreeSet<&str>> {
    let is_head = |line: &&str| line.starts_with("//! | room |") || line.starts_with("//! | file |");
    let rows = code.lines().skip_while(|line| !is_head(line)).skip(2);
    let cells = rows.map_while(|line| line.strip_prefix("//! |")?.split('|').next());
    cells.map(|cell| cell.split('`').skip(1).step_by(2).collect()).collect()
}

#[test]
fn maps_name_each_module_and_nothing_else() {
    let mut maps = 0;
    visit(Path::new("src"), &mut |path| {
        let code = fs::read_to_string(path).unwrap();
        let map = map(&code);
        if !map.is_empty() {
            let named: BTreeSet<_> = map.into_iter().flatten().collect();
            assert_eq!(named, modules(&code), "{}", path.display());
            maps += 1;
        }
    });
    assert!(maps >= 6, "{maps}");
}

/// Checks that rooms use only those below them on the map of `front`.
fn check_arrows(arrows: &Arrows, front: &str) {
    let code = fs::read_to_string(front).unwrap();
    let map = map(&code);
    let place = |room: &str| map.iter().position(|row| row.contains(room));
    for (room, used) in arrows {
        for used in used {
            assert!(place(room) < place(used), "{room} uses {used}, which is not below it in {front}");
        }
    }
}

#[test]
fn rooms_use_only_those_below_them() {
    let library = arrows(Path::new("src"), &["lib", "daemon"]);
    assert!(library["rewrite"].contains("flow") && library["flow"].contains("packet"));
    let below = |room: &str| library.get(room).cloned().unwrap_or_default().into_iter().collect::<Vec<_>>();
    assert_eq!(below("packet"), ["net"]);
    assert_eq!(below("dns"), ["net", "siphash", "slots", "time"]);
    check_arrows(&library, "src/lib.rs");

    let daemon = arrows(Path::new("src/daemon"), &["main", "fixture"]);
    assert_eq!(daemon["relay"].iter().collect::<Vec<_>>(), ["sys"]);
    assert!(!daemon["dns"].contains("gateway"));
    check_arrows(&daemon, "src/daemon/main.rs");
}

#[test]
#[should_panic(expected = "forward uses rewrite")]
fn an_arrow_that_points_up_is_found() {
    let arrows = Arrows::from([("forward".to_owned(), BTreeSet::from(["rewrite".to_owned()]))]);
    check_arrows(&arrows, "src/lib.rs");
}

fn visit(path: &Path, each: &mut dyn FnMut(&Path)) {
    match path.is_dir() {
        true => fs::read_dir(path).unwrap().for_each(|entry| visit(&entry.unwrap().path(), each)),
        false => each(path),
    }
}
