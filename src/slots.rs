//! The links between a table's slots: lists and a hash by slot number, without pointers and without an allocation per
//! slot.
//!
//! The table itself holds the contents of a slot; here a slot is only a number. Every slot is in one of a few doubly
//! linked lists, each a ring through its head, and may be in one chain of the hash as well.

use alloc::{vec, vec::Vec};

/// How many lists a table may have.
const LISTS: u16 = 6;
/// The most slots a table may have.
const MAX_SLOTS: u16 = NONE - LISTS;
/// The end of a chain.
const NONE: u16 = u16::MAX;

/// Lists and a hash of slots. Six bytes per slot and two to four more for the hash, reserved at once and touched when
/// needed.
pub struct Slots {
    /// The heads of the lists, then the slots.
    links: Vec<Links>,
    /// The first slot of each chain; the length is a power of two.
    buckets: Vec<u16>,
}

/// A slot's neighbours in its list: indices in `Slots::links`; and the next slot of its chain.
#[derive(Clone, Copy)]
struct Links {
    previous: u16,
    next: u16,
    chain: u16,
}

impl Slots {
    /// Room for `limit` slots, but no slot yet.
    pub fn new(limit: u16) -> Self {
        let limit = usize::from(limit.min(MAX_SLOTS));
        let mut links = Vec::with_capacity(usize::from(LISTS) + limit);
        links.extend((0..LISTS).map(Links::alone));
        Self { links, buckets: vec![NONE; limit.next_power_of_two()] }
    }

    /// How many slots there are.
    pub const fn len(&self) -> u16 {
        self.links.len() as u16 - LISTS
    }

    /// Adds a slot, which is in no list yet and not in the hash, and returns its number.
    pub fn add(&mut self) -> u16 {
        let slot = self.len();
        self.links.push(Links::alone(LISTS + slot));
        slot
    }

    /// The first slot of a list.
    pub fn first(&self, list: u16) -> Option<u16> {
        self.links[usize::from(list)].next.checked_sub(LISTS)
    }

    /// The slot after `slot` in its list.
    pub fn next(&self, slot: u16) -> Option<u16> {
        self.first(LISTS + slot)
    }

    /// Moves a slot out of its list to the end of `list`.
    pub fn move_to_back(&mut self, slot: u16, list: u16) {
        self.unlink(slot);
        self.link(self.links[usize::from(list)].previous, slot, list);
    }

    /// Moves a slot out of its list to the front of `list`.
    pub fn move_to_front(&mut self, slot: u16, list: u16) {
        self.unlink(slot);
        self.link(list, slot, self.links[usize::from(list)].next);
    }

    /// The slot with this hash for which `is_it` is true.
    pub fn find(&self, hash: u32, mut is_it: impl FnMut(u16) -> bool) -> Option<u16> {
        let mut at = self.buckets[self.bucket(hash)];
        while at != NONE {
            if is_it(at) {
                return Some(at);
            }
            at = self.links[usize::from(LISTS + at)].chain;
        }
        None
    }

    /// Puts a slot in the hash, where it must not be yet; it is found before older ones.
    pub fn hash(&mut self, slot: u16, hash: u32) {
        let bucket = self.bucket(hash);
        self.links[usize::from(LISTS + slot)].chain = self.buckets[bucket];
        self.buckets[bucket] = slot;
    }

    /// Takes a slot out of the hash, where it must be.
    pub fn unhash(&mut self, slot: u16, hash: u32) {
        let bucket = self.bucket(hash);
        let behind = self.links[usize::from(LISTS + slot)].chain;
        let mut at = self.buckets[bucket];
        if at == slot {
            self.buckets[bucket] = behind;
            return;
        }
        while at != NONE {
            let chain = &mut self.links[usize::from(LISTS + at)].chain;
            if *chain == slot {
                *chain = behind;
                return;
            }
            at = *chain;
        }
    }

    fn unlink(&mut self, slot: u16) {
        let Links { previous, next, .. } = self.links[usize::from(LISTS + slot)];
        self.links[usize::from(previous)].next = next;
        self.links[usize::from(next)].previous = previous;
    }

    /// Puts a slot between two places.
    fn link(&mut self, previous: u16, slot: u16, next: u16) {
        let at = LISTS + slot;
        self.links[usize::from(previous)].next = at;
        self.links[usize::from(next)].previous = at;
        let links = &mut self.links[usize::from(at)];
        (links.previous, links.next) = (previous, next);
    }

    const fn bucket(&self, hash: u32) -> usize {
        hash as usize & (self.buckets.len() - 1)
    }
}

impl Links {
    const fn alone(at: u16) -> Self {
        Self { previous: at, next: at, chain: NONE }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::VecDeque;

    #[derive(Clone, Debug)]
    enum Op {
        Add,
        Move { slot: u16, list: u16, is_front: bool },
        Hash { slot: u16, hash: u32 },
    }

    fn ops() -> impl Strategy<Value = Vec<Op>> {
        let op = prop_oneof![
            Just(Op::Add),
            (0..20u16, 0..LISTS, any::<bool>()).prop_map(|(slot, list, is_front)| Op::Move {
                slot,
                list,
                is_front
            }),
            (0..20u16, 0..5u32).prop_map(|(slot, hash)| Op::Hash { slot, hash }),
        ];
        proptest::collection::vec(op, 0..200)
    }

    proptest! {
        /// Vectors beside it, too simple to be wrong in the same way.
        #[test]
        fn lists_and_chains_are_those_of_a_model(ops in ops()) {
            let mut slots = Slots::new(20);
            let mut lists: [VecDeque<u16>; LISTS as usize] = Default::default();
            let mut hashes: Vec<Option<u32>> = vec![];
            for op in ops {
                match op {
                    Op::Add if slots.len() < 20 => {
                        prop_assert_eq!(usize::from(slots.add()), hashes.len());
                        hashes.push(None);
                    }
                    Op::Move { slot, list, is_front } if slot < slots.len() => {
                        lists.iter_mut().for_each(|list| list.retain(|&other| other != slot));
                        let model = &mut lists[usize::from(list)];
                        match is_front {
                            true => { slots.move_to_front(slot, list); model.push_front(slot); }
                            false => { slots.move_to_back(slot, list); model.push_back(slot); }
                        }
                    }
                    // Once more takes it out.
                    Op::Hash { slot, hash } if slot < slots.len() => match hashes[usize::from(slot)].take() {
                        Some(hash) => slots.unhash(slot, hash),
                        None => { slots.hash(slot, hash); hashes[usize::from(slot)] = Some(hash); }
                    },
                    _ => {}
                }
                for (list, model) in lists.iter().enumerate() {
                    let found = core::iter::successors(slots.first(list as u16), |&slot| slots.next(slot));
                    prop_assert!(found.eq(model.iter().copied()), "{list}: {model:?}");
                }
                for (slot, hash) in hashes.iter().enumerate() {
                    let slot = slot as u16;
                    let found = |hash| slots.find(hash, |other| other == slot);
                    for other in 0..5 {
                        prop_assert!(found(other).is_some() == (*hash == Some(other)), "{slot}: {hash:?}");
                    }
                }
            }
        }
    }
}
