//! Chance, at the price of a multiplication.

/// How likely something is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Chance(u64);

impl Chance {
    /// A probability from 0 to 1.
    pub fn new(probability: f64) -> Chance {
        // As of Rust's casts the ends are met exactly.
        Chance((probability * u64::MAX as f64) as u64)
    }

    /// Whether it can happen at all.
    pub fn is_possible(self) -> bool {
        self.0 > 0
    }

    /// Whether it happens now.
    #[inline]
    pub fn happens(self, dice: &mut Dice) -> bool {
        self.0 > 0 && dice.roll() <= self.0
    }
}

/// Random numbers.
#[derive(Clone, Debug)]
pub struct Dice(u64);

impl Dice {
    /// The same seed gives the same numbers.
    pub fn new(seed: u64) -> Dice {
        Dice(seed)
    }

    /// The next number.
    #[inline]
    pub fn roll(&mut self) -> u64 {
        crate::payload::splitmix64(&mut self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_to_be_likely_happens_so_often() {
        for (probability, least, most) in
            [(0.0, 0, 0), (0.1, 900, 1100), (0.5, 4800, 5200), (1.0, 10_000, 10_000)]
        {
            let (chance, mut dice) = (Chance::new(probability), Dice::new(7));
            let happened = (0..10_000).filter(|_| chance.happens(&mut dice)).count();
            assert!((least..=most).contains(&happened), "{probability}: {happened}");
            assert_eq!(chance.is_possible(), probability > 0.0);
        }
    }
}
