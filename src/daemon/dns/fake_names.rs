//! The names that have fake addresses, in memory and in their file.

use std::cell::{RefCell, RefMut};
use std::io;
use std::net::IpAddr;
use std::rc::Rc;

use tcp_over_http::config::Config;
use tcp_over_http::dns::{Entry, FakeIp, Ranges};
use tcp_over_http::net::ClientKey;
use tcp_over_http::time::Instant;

use super::names_file::NamesFile;
use crate::sys;

/// The table and its file.
pub struct FakeNames {
    table: RefCell<FakeIp>,
    file: NamesFile,
}

/// What an address means when a client connects to it.
pub enum Meaning {
    /// The address itself.
    Address,
    /// A name, which keeps the address as long as the lease exists. `None`: the client holds too many names.
    Name(String, Option<AddressLease>),
    /// A fake address whose name is forgotten, or that never had one.
    Nothing,
}

/// A fake address in use: as long as this exists, no other name gets it.
pub struct AddressLease {
    names: Rc<FakeNames>,
    entry: Entry,
}

impl Drop for AddressLease {
    fn drop(&mut self) {
        self.names.table.borrow_mut().release(self.entry);
    }
}

impl FakeNames {
    /// Reads the file.
    pub fn load(config: &Config, now: Instant) -> io::Result<Self> {
        let ranges = Ranges { v4: config.dns.fakeip_range, v6: config.dns.fakeip_range6 };
        let mut table = FakeIp::new(ranges, config.dns.fakeip_names, sys::random_key()?);
        let file = NamesFile::load(&config.dns.fakeip_file, &mut table, now);
        Ok(Self { table: RefCell::new(table), file })
    }

    /// The table.
    pub fn table(&self) -> RefMut<'_, FakeIp> {
        self.table.borrow_mut()
    }

    /// What `client` means by connecting to this address.
    pub fn meaning(self: &Rc<Self>, address: IpAddr, client: ClientKey) -> Meaning {
        let mut table = self.table.borrow_mut();
        if !table.contains(address) {
            return Meaning::Address;
        }
        let Some(entry) = table.find(address) else {
            return Meaning::Nothing;
        };
        let is_held = table.hold(entry, client);
        let lease = is_held.then(|| AddressLease { names: Rc::clone(self), entry });
        Meaning::Name(table.name(entry).to_owned(), lease)
    }

    /// Writes the file if names have changed and it was not written lately.
    pub fn tick(&self, now: Instant) {
        self.file.save_at_times(&self.table.borrow(), now);
    }

    /// Writes the file.
    pub fn save(&self, now: Instant) {
        self.file.save(&self.table.borrow(), now);
    }
}
