//! The table as a text, so that addresses keep their names across a restart.

use alloc::vec::Vec;
use core::fmt::{self, Write};
use core::net::{IpAddr, Ipv4Addr};

use super::{Entry, FAKE_TTL, FakeIp, NIL, Slot, is_fresh};
use crate::dns::wire::name::Name;
use crate::time::Instant;

/// Behind a name that nobody used when it was saved.
const IDLE: &str = " #idle";

impl FakeIp {
    /// Appends the table in the format of a hosts file, those names first whose use is the longest ago:
    ///
    /// ```text
    /// 198.18.0.2 www.example.com #idle
    /// 198.18.0.1 www.example.net
    /// ```
    pub fn save(&self, now: Instant, out: &mut Vec<u8>) {
        let mut at = self.oldest;
        while let Some(slot) = self.slots.get(usize::from(at)) {
            self.save_line(at, if is_fresh(slot, now) { "" } else { IDLE }, out);
            at = slot.next;
        }
        for (at, slot) in self.slots.iter().enumerate() {
            if slot.holds > 0 {
                self.save_line(at as u16, "", out);
            }
        }
    }

    /// Fills a table that has just been made with what was [saved](Self::save), as far as it is understood and
    /// there is room; returns the number of names. All that had not been idle counts as told to a client just now.
    pub fn load(&mut self, text: &[u8], now: Instant) -> usize {
        let before = self.live;
        // The names used last come first, in case there is no room for all.
        for line in text.rsplit(|&byte| byte == b'\n') {
            let mut words = str::from_utf8(line).unwrap_or_default().split_ascii_whitespace();
            if let (Some(address), Some(name)) = (words.next(), words.next())
                && let Ok(address) = address.parse::<Ipv4Addr>()
            {
                self.load_name(address, name, words.next() == Some(IDLE.trim_ascii()), now);
            }
        }
        // What is left between the slots that have a name now.
        self.vacant = NIL;
        for (at, slot) in self.slots.iter_mut().enumerate() {
            if !slot.has_name {
                slot.next = core::mem::replace(&mut self.vacant, at as u16);
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
        let is_taken = self.slots.get(usize::from(at)).is_some_and(|slot| slot.has_name);
        if is_taken || self.find_name(&host).is_some() || !self.names.has_room(host.len()) {
            return None;
        }
        while self.slots.len() < usize::from(at) {
            self.slots.push(Slot {
                name_at: 0,
                expires: now,
                turn: self.first_turn,
                holds: 0,
                has_name: false,
                chain: NIL,
                previous: NIL,
                next: NIL,
            });
        }
        let expires = if is_idle { now } else { now.plus(1000 * FAKE_TTL) };
        self.fill(at, turn as u16, &host, expires);
        self.link_oldest(at);
        Some(())
    }

    fn link_oldest(&mut self, at: u16) {
        let next = core::mem::replace(&mut self.oldest, at);
        match self.slots.get_mut(usize::from(next)) {
            Some(slot) => slot.previous = at,
            None => self.newest = at,
        }
        if let Some(slot) = self.slots.get_mut(usize::from(at)) {
            slot.next = next;
        }
    }

    fn save_line(&self, at: u16, mark: &str, out: &mut Vec<u8>) {
        let entry = Entry(at);
        // A vector takes all.
        let _ = writeln!(Text(out), "{} {}{mark}", self.v4(entry), self.name(entry));
    }
}

struct Text<'a>(&'a mut Vec<u8>);

impl Write for Text<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0.extend_from_slice(text.as_bytes());
        Ok(())
    }
}
