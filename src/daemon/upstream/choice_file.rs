//! The file that keeps the chosen upstream over a restart. Written only when it changes, as it may be on flash.

use std::cell::{Cell, RefCell};
use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use log::{info, warn};

use super::Upstreams;

/// What stands for no upstream in particular.
pub const AUTO: &str = "auto";

/// Where OpenWrt reads every file as a configuration.
const UCI: &str = "/etc/config/";

/// The file, which is not there while nothing is chosen.
pub struct ChoiceFile {
    path: PathBuf,
    /// What it has; empty: nothing.
    written: RefCell<String>,
    has_failed: Cell<bool>,
}

impl ChoiceFile {
    /// Reads the file that belongs to a configuration: `/etc/NAME/upstream` for `/etc/config/NAME`, else beside it.
    pub fn new(config: &str) -> Self {
        let path = match config.strip_prefix(UCI) {
            Some(name) => format!("/etc/{name}/upstream"),
            None => format!("{config}.upstream"),
        };
        let written = fs::read_to_string(&path).unwrap_or_default().trim().to_owned();
        Self { path: path.into(), written: RefCell::new(written), has_failed: Cell::new(false) }
    }

    /// Has the proxies know the choice.
    pub fn apply(&self, upstreams: &Upstreams) {
        let name = self.written.borrow();
        if name.is_empty() {
        } else if upstreams.choice().choose(Some(&name), upstreams.now()) {
            info!("upstream {name}: chosen");
        } else {
            warn!("{}: no upstream is named '{name}'", self.path.display());
        }
    }

    /// Keeps another choice. That it cannot is said once: the choice holds until the end.
    pub fn save(&self, chosen: Option<&str>) {
        let name = chosen.unwrap_or_default();
        if *self.written.borrow() == name {
            return;
        }
        match write(&self.path, name) {
            Ok(()) => _ = self.written.replace(name.to_owned()),
            Err(error) if self.has_failed.replace(true) => log::debug!("{}: {error}", self.path.display()),
            Err(error) => {
                warn!("{}: {error}: the choice of an upstream holds until the end", self.path.display());
            }
        }
    }
}

/// In one piece: a new file replaces the old one.
fn write(path: &Path, name: &str) -> io::Result<()> {
    if name.is_empty() {
        return match fs::remove_file(path) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        };
    }
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory)?;
    }
    let new = path.with_extension("new");
    let written = fs::write(&new, format!("{name}\n")).and_then(|()| fs::rename(&new, path));
    written.inspect_err(|_| _ = fs::remove_file(&new))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_choice_is_kept_beside_the_configuration() {
        let directory = std::env::temp_dir().join(format!("toh-choice-{}", std::process::id()));
        fs::create_dir(&directory).unwrap();
        let config = directory.join("config").to_str().unwrap().to_owned();
        let kept = || fs::read_to_string(format!("{config}.upstream")).ok();
        let file = ChoiceFile::new(&config);
        file.save(None);
        assert_eq!(kept(), None);
        file.save(Some("corp"));
        assert_eq!(kept().as_deref(), Some("corp\n"));
        assert_eq!(*ChoiceFile::new(&config).written.borrow(), "corp");
        fs::remove_file(format!("{config}.upstream")).unwrap();
        file.save(Some("corp"));
        assert_eq!(kept(), None, "nothing has changed");
        file.save(Some("home"));
        file.save(None);
        assert_eq!((kept(), fs::read_dir(&directory).unwrap().count()), (None, 0));
        fs::remove_dir(&directory).unwrap();

        let openwrt = ChoiceFile::new("/etc/config/tcp-over-http");
        assert_eq!(openwrt.path, Path::new("/etc/tcp-over-http/upstream"));
        let nowhere = ChoiceFile::new("/dev/null/config");
        nowhere.save(Some("corp"));
        assert!(nowhere.has_failed.get());
    }
}
