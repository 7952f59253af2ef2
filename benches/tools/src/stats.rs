//! Figures and how they are printed.

/// Times of many connections, in nanoseconds.
#[derive(Default)]
pub struct Times(Vec<u64>);

impl Times {
    /// Adds one.
    pub fn add(&mut self, ns: u64) {
        self.0.push(ns);
    }

    /// The middle one and the one that 1 in 100 are above, as a JSON object, in microseconds.
    pub fn json(mut self) -> String {
        self.0.sort_unstable();
        let at = |percent: usize| match self.0.get(self.0.len() * percent / 100) {
            Some(&ns) => format!("{:.1}", ns as f64 / 1e3),
            None => "null".to_owned(),
        };
        format!("{{\"p50\": {}, \"p99\": {}}}", at(50), at(99))
    }
}
