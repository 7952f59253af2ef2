//! A set of domains: each covers itself and all names below it.

use alloc::string::String;
use alloc::vec::Vec;

use super::wire::name::{BadName, MAX_NAME, Name, NameRef};

/// The set. A domain takes 4 bytes more than on the wire.
#[derive(Default)]
pub struct Domains {
    /// Domains [reversed](NameRef::reversed), each followed by a 0.
    bytes: Vec<u8>,
    /// Offsets of the domains, sorted. No domain is a prefix of another.
    order: Vec<u32>,
}

impl Domains {
    /// A set of these domains.
    ///
    /// # Errors
    /// The index of one that is not a domain name.
    pub fn new(domains: &[String]) -> Result<Self, usize> {
        let mut set = Self::default();
        for (index, domain) in domains.iter().enumerate() {
            set.insert(domain).map_err(|BadName| index)?;
        }
        Ok(set)
    }

    /// Adds a domain: `example.com`, with or without a dot at the end.
    ///
    /// # Errors
    /// [`BadName`]
    pub fn insert(&mut self, domain: &str) -> Result<(), BadName> {
        let name = Name::new(domain)?;
        let mut buffer = [0; MAX_NAME];
        let key = name.as_ref().reversed(&mut buffer);
        if self.covers(key) {
            return Ok(());
        }
        let at = self.order.partition_point(|&other| self.get(other) < key);
        // Those below it follow right after it, and are not needed any more.
        while self.order.get(at).is_some_and(|&other| self.get(other).starts_with(key)) {
            self.order.remove(at);
        }
        self.order.insert(at, self.bytes.len() as u32);
        self.bytes.extend_from_slice(key);
        self.bytes.push(0);
        Ok(())
    }

    /// Whether a name is one of the domains, or below one.
    pub fn contains(&self, name: NameRef<'_>) -> bool {
        let mut buffer = [0; MAX_NAME];
        self.covers(name.reversed(&mut buffer))
    }

    /// Whether the set is empty.
    pub const fn is_empty(&self) -> bool {
        self.order.is_empty()
    }

    /// Whatever sorts between a domain and a name below it starts with the domain, too. The set has nothing like that, so
    /// only the last domain that does not sort after the name needs a look.
    fn covers(&self, key: &[u8]) -> bool {
        let behind = self.order.partition_point(|&other| self.get(other) <= key);
        let last = behind.checked_sub(1).and_then(|last| self.order.get(last));
        last.is_some_and(|&last| key.starts_with(self.get(last)))
    }

    fn get(&self, at: u32) -> &[u8] {
        let domain = self.bytes.get(at as usize..).unwrap_or_default();
        let mut end = 0;
        while let Some(&length) = domain.get(end)
            && length > 0
        {
            end += 1 + usize::from(length);
        }
        domain.get(..end).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn set(domains: &[&str]) -> Domains {
        Domains::new(&domains.iter().map(|&domain| domain.into()).collect::<Vec<_>>()).unwrap()
    }

    fn contains(set: &Domains, name: &str) -> bool {
        set.contains(Name::new(name).unwrap().as_ref())
    }

    #[test]
    fn a_domain_is_itself_and_what_is_below() {
        let set = set(&["Example.com", "co.uk.", "net"]);
        for name in ["example.com", "WWW.example.COM", "a.b.example.com", "co.uk", "x.co.uk", "net", "x.net"]
        {
            assert!(contains(&set, name), "{name}");
        }
        for name in
            ["com", "notexample.com", "example.com.x", "uk", "o.uk", "example", "x.org", "example.comm"]
        {
            assert!(!contains(&set, name), "{name}");
        }
        assert!(!set.contains(NameRef::parse(b"\0", 0).unwrap().0));
        assert!(!Domains::default().contains(Name::new("x").unwrap().as_ref()));
    }

    #[test]
    fn what_is_covered_is_not_kept() {
        let mut set = set(&["a.example", "b.a.example", "c.example", "x.c.example", "z.example"]);
        assert_eq!(set.order.len(), 3);
        set.insert("example").unwrap();
        assert_eq!(set.order.len(), 1);
        assert!(contains(&set, "q.example"));
        assert_eq!(set.insert("a..b"), Err(BadName));
        assert_eq!(set.insert(""), Err(BadName));
        assert_eq!(Domains::new(&["a".into(), "b".into(), "c d".into()]).err(), Some(2));
    }

    #[test]
    fn bytes_in_labels_are_no_dots() {
        let set = set(&["example.com"]);
        for wire in [&b"\x0bexample.com\0"[..], b"\x0bcom\x07example\0", b"\x0bcom\0example\0"] {
            let (name, _) = NameRef::parse(wire, 0).unwrap();
            assert!(!set.contains(name), "{name}");
        }
    }

    proptest! {
        #[test]
        fn sets_are_what_a_list_would_be(
            domains in proptest::collection::vec("[a-c]{1,2}(\\.[a-cA-C]){0,3}", 0..30),
            names in proptest::collection::vec("[a-cA-C]{1,2}(\\.[a-c]){0,4}", 1..30),
        ) {
            let mut set = Domains::default();
            domains.iter().for_each(|domain| set.insert(domain).unwrap());
            for name in &names {
                let below = |domain: &String| {
                    let (name, domain) = (name.to_lowercase(), domain.to_lowercase());
                    name == domain || name.ends_with(&std::format!(".{domain}"))
                };
                prop_assert_eq!(contains(&set, name), domains.iter().any(below), "{}", name);
            }
        }
    }
}
