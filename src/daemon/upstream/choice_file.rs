//! The file that keeps the chosen upstream across a restart. Written only when it changes, since it may be on flash.

use std::cell::{Cell, RefCell};
use std::fs;
use std::io::{self, ErrorKind};

use super::Upstreams;
use crate::sys;

/// The word for no upstream in particular.
pub const AUTO: &str = "auto";

/// The folder in which OpenWrt takes every file for a configuration.
const UCI: &str = "/etc/config/";

/// The file, which does not exist while nothing is chosen.
pub struct ChoiceFile {
    /// `None`: there is no configuration file that it could belong to.
    path: Option<String>,
    /// Its contents; empty if it does not exist.
    written: RefCell<String>,
    has_failed: Cell<bool>,
}

impl ChoiceFile {
    /// Reads the file that belongs to a configuration: `/etc/NAME/upstream` for `/etc/config/NAME`, else beside it.
    pub fn new(config: Option<&str>) -> Self {
        let path = config.map(|config| match config.strip_prefix(UCI) {
            Some(name) => format!("/etc/{name}/upstream"),
            None => format!("{config}.upstream"),
        });
        if let Some(path) = &path {
            _ = fs::create_dir(sys::folder(path)); // now, before Landlock forbids it
        }
        let text = path.as_deref().map(sys::read_text).unwrap_or_default();
        let written = text.trim_ascii().to_owned();
        Self { path, written: RefCell::new(written), has_failed: Cell::new(false) }
    }

    /// Its path, if it has one.
    pub fn path(&self) -> Option<&str> {
        self.path.as_deref()
    }

    /// Applies the choice to the proxies.
    pub fn apply(&self, upstreams: &Upstreams) {
        let name = self.written.borrow();
        if name.is_empty() {
        } else if upstreams.choice().choose(Some(&name), upstreams.now()) {
            info!("upstream {name}: chosen");
        } else {
            warn!("no upstream is named '{name}', which was chosen");
        }
    }

    /// Saves another choice. If that fails, a warning is logged once; the choice then lasts until the daemon ends.
    pub fn save(&self, chosen: Option<&str>) {
        let name = chosen.unwrap_or_default();
        let Some(path) = self.path.as_ref().filter(|_| *self.written.borrow() != name) else { return };
        match write(path, name) {
            Ok(()) => _ = self.written.replace(name.to_owned()),
            Err(error) if self.has_failed.replace(true) => debug!("{path}: {error}"),
            Err(error) => {
                warn!("{path}: {error}: the choice of an upstream holds until the end");
            }
        }
    }
}

fn write(path: &str, name: &str) -> io::Result<()> {
    if name.is_empty() {
        return match fs::remove_file(path) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        };
    }
    sys::replace(path, [name, "\n"].concat().as_bytes())
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
        let file = ChoiceFile::new(Some(&config));
        file.save(None);
        assert_eq!(kept(), None);
        file.save(Some("corp"));
        assert_eq!(kept().as_deref(), Some("corp\n"));
        assert_eq!(*ChoiceFile::new(Some(&config)).written.borrow(), "corp");
        fs::remove_file(format!("{config}.upstream")).unwrap();
        file.save(Some("corp"));
        assert_eq!(kept(), None, "nothing has changed");
        file.save(Some("home"));
        file.save(None);
        assert_eq!((kept(), fs::read_dir(&directory).unwrap().count()), (None, 0));
        fs::remove_dir(&directory).unwrap();

        let openwrt = ChoiceFile::new(Some("/etc/config/tcp-over-http"));
        assert_eq!(openwrt.path.as_deref(), Some("/etc/tcp-over-http/upstream"));
        let nowhere = ChoiceFile::new(Some("/dev/null/config"));
        nowhere.save(Some("corp"));
        assert!(nowhere.has_failed.get());
    }
}
