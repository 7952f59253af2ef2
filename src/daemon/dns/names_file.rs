//! The file that keeps names and their addresses across a restart. On flash it is written rarely. In memory it is
//! written soon after each change, so that even after a crash the next run knows the addresses that dnsmasq still hands
//! out.

use std::cell::Cell;
use std::io::ErrorKind;

use tcp_over_http::dns::FakeIp;
use tcp_over_http::time::Instant;

use crate::sys;

/// The shortest time between two writes, in ms; the one at exit does not wait.
const INTERVAL: u32 = 120_000;
/// The same for a file in memory.
const INTERVAL_IN_MEMORY: u32 = 500;
/// The longest file that is read, in bytes; none that we write is longer.
const MAX_FILE: u64 = 16 << 20;

/// The file, and how much of the table it has.
pub struct NamesFile {
    path: String,
    /// The table's count of changes when the file was last written.
    written: Cell<u32>,
    written_at: Cell<Instant>,
    interval: u32,
    has_failed: Cell<bool>,
}

impl NamesFile {
    /// Reads the file into a new table. Names that a missing or damaged file does not have are lost.
    pub fn load(path: &str, fake: &mut FakeIp, now: Instant) -> Self {
        match sys::read_file(path, MAX_FILE) {
            Ok(text) => {
                let names = fake.load(&text, now); // whether or not that is logged
                info!("{path}: {names} names");
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => warn!("{path}: {error}"),
        }
        let interval = if sys::is_in_memory(sys::folder(path)) { INTERVAL_IN_MEMORY } else { INTERVAL };
        Self {
            path: path.to_owned(),
            written: Cell::new(fake.changes()),
            written_at: Cell::new(now),
            interval,
            has_failed: Cell::default(),
        }
    }

    /// Writes the file if the table has changed and the last write is long enough ago.
    pub fn save_at_times(&self, fake: &FakeIp, now: Instant) {
        if now.since(self.written_at.get()) >= self.interval && fake.changes() != self.written.get() {
            self.save(fake, now);
        }
    }

    /// Writes a new file and replaces the old one. Must be called at exit even if no name is new: the file also says
    /// which names are in use.
    pub fn save(&self, fake: &FakeIp, now: Instant) {
        self.written_at.set(now);
        let mut text = Vec::new();
        fake.save(now, &mut text);
        // It may be lost in a power cut; clients then ask again.
        match sys::replace(&self.path, &text) {
            Ok(()) => {
                self.written.set(fake.changes());
                self.has_failed.set(false);
            }
            // Warn only once, since a disk may stay full for long.
            Err(error) if !self.has_failed.replace(true) => warn!("{}: {error}", self.path),
            Err(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;
    use tcp_over_http::dns::Ranges;
    use tcp_over_http::net::Ipv4Net;

    const DAY: u64 = 86_400_000;

    fn at(ms: u64) -> Instant {
        Instant::from_millis(ms)
    }

    fn table() -> FakeIp {
        FakeIp::new(Ranges { v4: Ipv4Net { addr: [198, 18, 0, 0].into(), prefix: 30 }, v6: None }, 9, [1, 2])
    }

    #[test]
    fn the_file_is_written_rarely_but_always_at_the_end() {
        let directory = std::env::temp_dir().join(format!("toh-names-{}", std::process::id()));
        fs::create_dir(&directory).unwrap();
        let path = directory.join("names");
        let read = || fs::read_to_string(&path).unwrap_or_default();
        let mut fake = table();
        let mut file = NamesFile::load(path.to_str().unwrap(), &mut fake, at(0));
        file.interval = INTERVAL;

        fake.assign("a.example", 1, at(0)).unwrap();
        file.save_at_times(&fake, at(u64::from(INTERVAL) - 1));
        assert_eq!(read(), "");
        file.save_at_times(&fake, at(u64::from(INTERVAL)));
        assert_eq!(read(), "198.18.0.1 a.example #idle\n");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);

        fs::remove_file(&path).unwrap();
        let late = u64::from(INTERVAL) * 9;
        file.save_at_times(&fake, at(late));
        assert_eq!(read(), "", "nothing is new");
        fake.assign("a.example", 60, at(late)).unwrap();
        file.save(&fake, at(late));
        assert_eq!(read(), "198.18.0.1 a.example\n", "in use again");

        for day in 1..30 {
            file.save_at_times(&fake, at(late + day * DAY));
        }
        let later = late + 30 * DAY;
        fake.assign("b.example", 60, at(later)).unwrap();
        file.save_at_times(&fake, at(later));
        assert!(read().contains("b.example"), "after quiet weeks");

        // What could not be written is written later, also if nothing more has changed.
        fs::rename(&directory, directory.with_extension("away")).unwrap();
        fake.assign("c.example", 60, at(later)).unwrap();
        file.save_at_times(&fake, at(later + DAY));
        assert!(file.has_failed.get());
        fs::rename(directory.with_extension("away"), &directory).unwrap();
        file.save_at_times(&fake, at(later + 2 * DAY));
        assert!(read().contains("c.example") && !file.has_failed.get());

        let mut next = table();
        NamesFile::load(path.to_str().unwrap(), &mut next, at(0));
        assert!(next.find([198, 18, 0, 1].into()).is_some());
        fs::remove_dir_all(&directory).unwrap();
    }
}
