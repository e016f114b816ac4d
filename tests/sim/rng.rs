//! Random numbers that are the same for a seed on every machine and with every
//! version of every crate: SplitMix64 (Steele, Lea, Flood 2014), written out.

/// A stream of numbers that its seed decides.
#[derive(Clone, Debug)]
pub struct Rng {
    state: u64,
}

impl Rng {
    pub fn new(seed: u64) -> Rng {
        Rng { state: seed }
    }

    pub fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A stream of its own, so that one part's appetite for numbers does not
    /// change what another part gets.
    pub fn fork(&mut self) -> Rng {
        Rng::new(self.next())
    }

    /// Below `bound`, which is not 0. The bias of a plain remainder is far
    /// below anything that a test could see.
    pub fn below(&mut self, bound: u64) -> u64 {
        assert!(bound > 0);
        self.next() % bound
    }

    /// From `low` to `high`, both included.
    pub fn between(&mut self, low: u64, high: u64) -> u64 {
        assert!(low <= high);
        low + self.below(high - low + 1)
    }

    /// True in `percent` of a hundred cases.
    pub fn percent(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    /// True in one of `n` cases.
    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    /// One of `choices`, which are not empty.
    pub fn pick<T: Clone>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len() as u64) as usize].clone()
    }
}

#[test]
fn the_numbers_are_those_of_the_published_algorithm() {
    // The first outputs for seed 1234567 of the reference implementation.
    let mut rng = Rng::new(1_234_567);
    assert_eq!(rng.next(), 6_457_827_717_110_365_317);
    assert_eq!(rng.next(), 3_203_168_211_198_807_973);
}
