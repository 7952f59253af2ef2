//! The file that keeps names and their addresses over a restart. Written rarely, since it may lie on flash.

use std::cell::Cell;
use std::fs::{self, File};
use std::io::{self, ErrorKind, Read, Write};
use std::path::Path;

use tcp_over_http::dns::FakeIp;
use tcp_over_http::time::Instant;

/// The least time between two writes, in ms, but for the one at the end.
const PAUSE: u32 = 120_000;
/// No table of ours is longer.
const MAX_FILE: u64 = 16 << 20;

/// The file, and what it has of a table.
pub struct NamesFile {
    path: String,
    /// The table's count of changes, when it was last written.
    written: Cell<u32>,
    written_at: Cell<Instant>,
}

impl NamesFile {
    /// Reads the file into a new table. One that is missing or damaged costs what it held.
    pub fn load(path: &str, fake: &mut FakeIp, now: Instant) -> Self {
        match read(path) {
            Ok(text) => log::info!("{path}: {} names", fake.load(&text, now)),
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => log::warn!("{path}: {error}"),
        }
        let (written, written_at) = (Cell::new(fake.changes()), Cell::new(now));
        Self { path: path.to_owned(), written, written_at }
    }

    /// Writes the file if the table has changed and it is time.
    pub fn save_at_times(&self, fake: &FakeIp, now: Instant) {
        if now.since(self.written_at.get()) >= PAUSE {
            self.written_at.set(now);
            self.save(fake, now);
        }
    }

    /// Writes the file if the table has changed: to another one that takes its place.
    pub fn save(&self, fake: &FakeIp, now: Instant) {
        if fake.changes() == self.written.get() {
            return;
        }
        self.written.set(fake.changes());
        let mut text = Vec::new();
        fake.save(now, &mut text);
        let new = [&self.path, ".new"].concat();
        if let Err(error) = write(&new, &text).and_then(|()| fs::rename(&new, &self.path)) {
            log::warn!("{}: {error}", self.path);
        }
    }
}

fn read(path: &str) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    File::open(Path::new(path))?.take(MAX_FILE).read_to_end(&mut text)?;
    Ok(text)
}

fn write(path: &str, text: &[u8]) -> io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(text)?;
    file.sync_all()
}
