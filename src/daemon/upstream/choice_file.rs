//! The file that keeps the chosen upstream over a restart. Written only when it changes, as it may be on flash.

use std::cell::{Cell, RefCell};
use std::fs;
use std::io::{self, ErrorKind};

use log::{info, warn};

use super::Upstreams;
use crate::sys;

/// What stands for no upstream in particular.
pub const AUTO: &str = "auto";

/// Where OpenWrt reads every file as a configuration.
const UCI: &str = "/etc/config/";

/// The file, which is not there while nothing is chosen.
pub struct ChoiceFile {
    /// `None`: there is no configuration that it could belong to.
    path: Option<String>,
    /// What it has; empty: nothing.
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
            _ = fs::create_dir(sys::folder(path)); // now: later it may not
        }
        let text = path.as_ref().and_then(|path| fs::read_to_string(path).ok());
        let written = text.unwrap_or_default().trim_ascii().to_owned();
        Self { path, written: RefCell::new(written), has_failed: Cell::new(false) }
    }

    /// Where it is, if anywhere.
    pub fn path(&self) -> Option<&str> {
        self.path.as_deref()
    }

    /// Has the proxies know the choice.
    pub fn apply(&self, upstreams: &Upstreams) {
        let name = self.written.borrow();
        if name.is_empty() {
        } else if upstreams.choice().choose(Some(&name), upstreams.now()) {
            info!("upstream {name}: chosen");
        } else {
            warn!("no upstream is named '{name}', which was chosen");
        }
    }

    /// Keeps another choice. That it cannot is said once: the choice holds until the end.
    pub fn save(&self, chosen: Option<&str>) {
        let name = chosen.unwrap_or_default();
        let Some(path) = self.path.as_ref().filter(|_| *self.written.borrow() != name) else { return };
        match write(path, name) {
            Ok(()) => _ = self.written.replace(name.to_owned()),
            Err(error) if self.has_failed.replace(true) => log::debug!("{path}: {error}"),
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
