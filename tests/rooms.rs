//! The rooms of the house: what a module uses lies below it, so no two rooms use each other.

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
                found(used.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').next().unwrap());
            }
        }
    }
}

/// Takes away rooms that use no others, again and again: what is left goes round in circles.
fn circles(mut arrows: Arrows) -> Arrows {
    loop {
        let rooms: BTreeSet<_> = arrows.keys().cloned().collect();
        arrows.values_mut().for_each(|used| used.retain(|room| rooms.contains(room)));
        arrows.retain(|_, used| !used.is_empty());
        if arrows.len() == rooms.len() {
            return arrows;
        }
    }
}

#[test]
fn no_room_is_used_by_what_it_uses() {
    let library = arrows(Path::new("src"), &["lib", "daemon"]);
    assert!(library["rewrite"].contains("flow") && library["flow"].contains("packet"));
    let below = |room: &str| library.get(room).cloned().unwrap_or_default().into_iter().collect::<Vec<_>>();
    assert_eq!(below("packet"), ["net"]);
    assert_eq!(below("dns"), ["net", "siphash", "slots", "time"]);
    assert_eq!(circles(library.clone()), Arrows::new());

    let daemon = arrows(Path::new("src/daemon"), &["main"]);
    assert_eq!(daemon["relay"].iter().collect::<Vec<_>>(), ["sys"]);
    assert!(!daemon["dns"].contains("gateway"));
    assert_eq!(circles(daemon), Arrows::new());
}

#[test]
fn a_circle_is_found() {
    let arrow = |from: &str, to: &str| (from.to_owned(), BTreeSet::from([to.to_owned()]));
    let arrows = Arrows::from([arrow("a", "b"), arrow("b", "c"), arrow("c", "b"), arrow("d", "e")]);
    assert_eq!(circles(arrows).into_keys().collect::<Vec<_>>(), ["a", "b", "c"]);
}
