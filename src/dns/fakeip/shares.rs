//! How much of the table each client uses: a name belongs to the client that connects to it, so that each gives up its
//! own.

use alloc::vec::Vec;

use crate::net::ClientKey;

/// The owner of a name that nobody has connected to yet.
pub(super) const NOBODY: u16 = u16::MAX;

/// The clients that have names.
#[derive(Default)]
pub(super) struct Shares(Vec<Share>);

struct Share {
    client: ClientKey,
    /// The weight of the client's names; 0: the place is free.
    all: u32,
    /// Weight of those that its flows hold.
    held: u32,
}

impl Shares {
    /// The place of a client, which it keeps as long as it has names.
    pub(super) fn place(&mut self, client: ClientKey) -> u16 {
        let found = self.0.iter().position(|share| share.all > 0 && share.client == client);
        let place = found.or_else(|| self.0.iter().position(|share| share.all == 0));
        let place = place.unwrap_or_else(|| {
            self.0.push(Share { client, all: 0, held: 0 });
            self.0.len() - 1
        });
        if let Some(share) = self.0.get_mut(place) {
            share.client = client;
        }
        place as u16
    }

    /// Weight of the names of the client in a place.
    pub(super) fn all(&self, place: u16) -> u32 {
        self.0.get(usize::from(place)).map_or(0, |share| share.all)
    }

    /// Weight of those that its flows hold.
    pub(super) fn held(&self, place: u16) -> u32 {
        self.0.get(usize::from(place)).map_or(0, |share| share.held)
    }

    /// Adds the weight of a name that becomes the client's, or a negative one when it ceases to be.
    pub(super) fn add(&mut self, place: u16, weight: i32) {
        if let Some(share) = self.0.get_mut(usize::from(place)) {
            share.all = share.all.saturating_add_signed(weight);
        }
    }

    /// Likewise for a name that a flow of the client holds.
    pub(super) fn hold(&mut self, place: u16, weight: i32) {
        if let Some(share) = self.0.get_mut(usize::from(place)) {
            share.held = share.held.saturating_add_signed(weight);
        }
    }

    /// The place of the client with the most names that no flow holds.
    pub(super) fn largest(&self) -> Option<u16> {
        let idle = |share: &Share| share.all.saturating_sub(share.held);
        let places = self.0.iter().enumerate().filter(|(_, share)| idle(share) > 0);
        places.max_by_key(|(_, share)| share.all).map(|(place, _)| place as u16)
    }
}
