//! The table as a text, so that addresses keep their names across a restart.

use alloc::format;
use alloc::vec::Vec;
use core::net::{IpAddr, Ipv4Addr};

use super::names::NO_NAME;
use super::{Entry, FAKE_TTL, FakeIp, HELD, IDLE, NEW, VACANT, is_fresh};
use crate::dns::wire::name::Name;
use crate::time::Instant;

/// Marks a name that nobody used when it was saved.
const IDLE_MARK: &str = " #idle";

impl FakeIp {
    /// Appends the table in the format of a hosts file, the least recently used names first:
    ///
    /// ```text
    /// 198.18.0.2 www.example.com #idle
    /// 198.18.0.1 www.example.net
    /// ```
    pub fn save(&self, now: Instant, out: &mut Vec<u8>) {
        for list in [NEW, IDLE, HELD] {
            let mut next = self.links.first(list);
            while let Some(at) = next
                && let Some(slot) = self.slots.get(usize::from(at))
            {
                let is_used = list == HELD || is_fresh(slot, now);
                let (entry, mark) = (Entry(at), if is_used { "" } else { IDLE_MARK });
                let line = format!("{} {}{mark}\n", self.v4(entry), self.name(entry));
                out.extend_from_slice(line.as_bytes());
                next = self.links.next(at);
            }
        }
    }

    /// Fills a new table with what was [saved](Self::save), as far as it can be parsed and there is room; returns the
    /// number of names. Names that were not idle count as just told to a client.
    pub fn load(&mut self, text: &[u8], now: Instant) -> usize {
        let before = self.live;
        // Begin with the most recently used names, in case there is no room for all.
        for line in text.rsplit(|&byte| byte == b'\n') {
            let mut words = str::from_utf8(line).unwrap_or_default().split_ascii_whitespace();
            if let (Some(address), Some(name)) = (words.next(), words.next())
                && let Ok(address) = address.parse::<Ipv4Addr>()
            {
                self.load_name(address, name, words.next() == Some(IDLE_MARK.trim_ascii()), now);
            }
        }
        usize::from(self.live - before)
    }

    fn load_name(&mut self, address: Ipv4Addr, name: &str, is_idle: bool, now: Instant) -> Option<()> {
        let host = Name::new(name).ok()?.as_ref().host()?;
        let number = self.ranges.number(IpAddr::V4(address))?;
        let (turn, at) = (number / u32::from(self.limit), (number % u32::from(self.limit)) as u16);
        if turn >= u32::from(self.turns) {
            return None;
        }
        let is_taken = self.slots.get(usize::from(at)).is_some_and(|slot| slot.name_at != NO_NAME);
        if is_taken || self.find_name(&host).is_some() || !self.names.has_room(host.len()) {
            return None;
        }
        while self.links.len() < at {
            let between = self.add_slot();
            self.links.move_to_front(between, VACANT);
        }
        let expires = if is_idle { now } else { now.plus(1000 * FAKE_TTL) };
        self.fill(at, turn as u16, &host, expires);
        self.links.move_to_front(at, NEW);
        Some(())
    }
}
