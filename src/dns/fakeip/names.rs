//! The names of a table, one after the other in one block of memory.

use alloc::vec::Vec;

/// Bytes before a name: its slot and its length.
const HEAD: usize = 3;
/// Average bytes reserved for each name.
const SHARE: usize = 32;
/// The bytes of even the smallest table, so that a long name fits.
const LEAST: usize = 1024;
/// The place of a slot's name if it has none.
pub(super) const NO_NAME: u32 = u32::MAX;
/// In place of the slot, for a name that is gone.
const GONE: [u8; 2] = [0xff; 2];

pub(super) struct Names {
    bytes: Vec<u8>,
    limit: usize,
    /// Bytes of the names that are not gone.
    live: usize,
}

impl Names {
    pub(super) fn new(names: u16) -> Self {
        let limit = LEAST.max(usize::from(names) * SHARE);
        Self { bytes: Vec::with_capacity(limit), limit, live: 0 }
    }

    /// Whether a name of `length` bytes may be added. A part of the memory stays free, so that each closing of gaps
    /// gains room for many names.
    pub(super) const fn has_room(&self, length: usize) -> bool {
        self.live + HEAD + length <= self.limit - self.limit / 16
    }

    /// Whether less than half of the memory has names in it.
    pub(super) const fn is_half_empty(&self) -> bool {
        self.live < self.limit / 2
    }

    /// Adds a slot's name of at most 255 bytes, for which there must be room, and returns its place. If other names
    /// have to move, calls `moved` with their slots and new places.
    pub(super) fn add(&mut self, slot: u16, name: &str, moved: impl FnMut(u16, u32)) -> u32 {
        if self.bytes.len() + HEAD + name.len() > self.limit {
            self.close_gaps(moved);
        }
        let at = self.bytes.len();
        self.bytes.extend_from_slice(&slot.to_ne_bytes());
        self.bytes.push(name.len() as u8);
        self.bytes.extend_from_slice(name.as_bytes());
        self.live += HEAD + name.len();
        at as u32
    }

    /// The name at a place that [`Names::add`] returned.
    pub(super) fn get(&self, at: u32) -> &str {
        let name = self.record(at as usize).and_then(|(_, name)| str::from_utf8(name).ok());
        name.unwrap_or_default()
    }

    pub(super) fn remove(&mut self, at: u32) {
        if let Some((_, name)) = self.record(at as usize) {
            self.live -= HEAD + name.len();
        }
        if let Some(slot) = self.bytes.get_mut(at as usize..).and_then(|bytes| bytes.first_chunk_mut()) {
            *slot = GONE;
        }
    }

    fn close_gaps(&mut self, mut moved: impl FnMut(u16, u32)) {
        let (mut from, mut to) = (0, 0);
        while let Some((slot, name)) = self.record(from) {
            let next = from + HEAD + name.len();
            if slot != GONE {
                self.bytes.copy_within(from..next, to);
                moved(u16::from_ne_bytes(slot), to as u32);
                to += next - from;
            }
            from = next;
        }
        self.bytes.truncate(to);
    }

    fn record(&self, at: usize) -> Option<([u8; 2], &[u8])> {
        let (&[high, low, length], rest) = self.bytes.get(at..)?.split_first_chunk()?;
        Some(([high, low], rest.get(..usize::from(length))?))
    }
}
