//! A set of domains: each covers itself and all names below it, or only itself.

use alloc::vec::Vec;

use super::wire::name::{BadName, MAX_NAME, Name, NameRef};

/// The set. A domain takes 6 bytes more than its text.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Domains {
    /// Domains [reversed](NameRef::reversed), each followed by a 0.
    bytes: Vec<u8>,
    /// Offsets of the domains that cover what is below them, sorted once sealed; then none is a prefix of another.
    order: Vec<u32>,
    /// The same for those that cover only themselves.
    exact: Vec<u32>,
}

impl Domains {
    /// Adds `example.com`, with or without a dot at the end: `only` the name itself, or also what is below it. It
    /// counts once the set is [sealed](Self::seal).
    ///
    /// # Errors
    /// [`BadName`]
    pub fn add(&mut self, name: &str, only: bool) -> Result<(), BadName> {
        let order = if only { &mut self.exact } else { &mut self.order };
        let name = Name::new(name)?;
        let mut buffer = [0; MAX_NAME];
        order.push(self.bytes.len() as u32);
        self.bytes.extend_from_slice(name.as_ref().reversed(&mut buffer));
        self.bytes.push(0);
        Ok(())
    }

    /// Sorts what was added.
    pub fn seal(&mut self) {
        let bytes = &self.bytes;
        for order in [&mut self.order, &mut self.exact] {
            order.sort_unstable_by(|&a, &b| key(bytes, a).cmp(key(bytes, b)));
            order.shrink_to_fit();
        }
        // Domains below another one follow right after it and are not needed.
        self.order.dedup_by(|&mut domain, &mut before| key(bytes, domain).starts_with(key(bytes, before)));
        self.bytes.shrink_to_fit();
    }

    /// Whether a name is one of the domains, or below one.
    pub fn contains(&self, name: NameRef<'_>) -> bool {
        let mut buffer = [0; MAX_NAME];
        self.covers(name.reversed(&mut buffer))
    }

    /// Whether the set is empty.
    pub const fn is_empty(&self) -> bool {
        self.order.is_empty() && self.exact.is_empty()
    }

    /// Like [`contains`](Self::contains), for a [reversed](NameRef::reversed) name.
    ///
    /// Whatever sorts between a domain and a name below it starts with the domain, too. The set has no such domain, so
    /// only the last one that does not sort after the name has to be compared.
    pub(crate) fn covers(&self, name: &[u8]) -> bool {
        self.last(&self.order, name).is_some_and(|last| name.starts_with(last))
            || self.last(&self.exact, name) == Some(name)
    }

    /// The last domain that does not sort after the name.
    fn last(&self, order: &[u32], name: &[u8]) -> Option<&[u8]> {
        let behind = order.partition_point(|&other| key(&self.bytes, other) <= name);
        Some(key(&self.bytes, *order.get(behind.checked_sub(1)?)?))
    }
}

fn key(bytes: &[u8], at: u32) -> &[u8] {
    let domain = bytes.get(at as usize..).unwrap_or_default();
    let mut end = 0;
    while let Some(&length) = domain.get(end)
        && length > 0
    {
        end += 1 + usize::from(length);
    }
    domain.get(..end).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::String;
    use proptest::prelude::*;

    impl Domains {
        /// A set of these domains, each as in a configuration.
        ///
        /// # Errors
        /// The index of one that is not a domain name.
        pub fn new(domains: &[String]) -> Result<Self, usize> {
            let mut set = Self::default();
            for (index, domain) in domains.iter().enumerate() {
                set.insert(domain).map_err(|BadName| index)?;
            }
            set.seal();
            Ok(set)
        }

        /// Adds `example.com` or `=example.com`.
        pub fn insert(&mut self, domain: &str) -> Result<(), BadName> {
            let name = domain.strip_prefix('=');
            self.add(name.unwrap_or(domain), name.is_some())
        }

        /// How many bytes of memory it takes.
        pub const fn size(&self) -> usize {
            self.bytes.capacity() + 4 * (self.order.capacity() + self.exact.capacity())
        }
    }

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
        set.seal();
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
            domains in proptest::collection::vec("=?[a-c]{1,2}(\\.[a-cA-C]){0,3}", 0..30),
            names in proptest::collection::vec("[a-cA-C]{1,2}(\\.[a-c]){0,4}", 1..30),
        ) {
            let mut set = Domains::default();
            domains.iter().for_each(|domain| set.insert(domain).unwrap());
            set.seal();
            for name in &names {
                let below = |domain: &String| {
                    let (name, domain) = (name.to_lowercase(), domain.to_lowercase());
                    if let Some(domain) = domain.strip_prefix('=') {
                        return name == domain;
                    }
                    name == domain || name.ends_with(&std::format!(".{domain}"))
                };
                prop_assert_eq!(contains(&set, name), domains.iter().any(below), "{}", name);
            }
        }
    }
}
