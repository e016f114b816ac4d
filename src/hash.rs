//! Maps whose keys a client chooses: with a known hash it could choose such as collide,
//! and each look into the map would be a walk through all of it.
//!
//! The hash is SipHash-1-3 (Aumasson and Bernstein, 2012) with a key of the process. It is
//! the same in every run unless the process [chooses](choose_key) one, so that what is
//! simulated can be repeated.

use std::collections::HashMap;
use std::hash::BuildHasher;
use std::sync::OnceLock;

use siphasher::sip::SipHasher13;

static KEY: OnceLock<(u64, u64)> = OnceLock::new();

/// A map by what clients choose.
pub type ByChoice<K, V> = HashMap<K, V, Keyed>;

/// The hash of this process.
#[derive(Clone, Copy, Default, Debug)]
pub struct Keyed;

impl BuildHasher for Keyed {
    type Hasher = SipHasher13;

    #[inline]
    fn build_hasher(&self) -> SipHasher13 {
        let (first, second) = *KEY.get_or_init(|| (0, 0));
        SipHasher13::new_with_keys(first, second)
    }
}

/// Sets the key of this process, which nobody is to guess. Returns false, and changes
/// nothing, if it has one already, or has hashed without one.
pub fn choose_key(key: (u64, u64)) -> bool {
    KEY.set(key).is_ok()
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::hash::BuildHasherDefault;

    use super::*;

    /// The inverse of the odd number that `rustc-hash` multiplies by.
    fn inverse(odd: u64) -> u64 {
        // Newton: each step doubles the bits that are right, of which there are three.
        (0..5).fold(odd, |x, _| x.wrapping_mul(2u64.wrapping_sub(odd.wrapping_mul(x))))
    }

    #[test]
    fn keys_that_collide_where_the_hash_is_known_do_not_here() {
        let fx = BuildHasherDefault::<rustc_hash::FxHasher>::default();
        let one = fx.hash_one(1u64).rotate_right(26);
        let back = inverse(one);
        let chosen: Vec<u64> =
            (0..50_000u64).map(|i| (i << 32).rotate_right(26).wrapping_mul(back)).collect();
        let places = |hash: &dyn Fn(u64) -> u64| {
            chosen.iter().map(|key| hash(*key) & 0xffff_ffff).collect::<HashSet<_>>().len()
        };
        assert_eq!(places(&|key| fx.hash_one(key)), 1, "they were chosen for that");
        assert!(places(&|key| Keyed.hash_one(key)) > 49_900);
    }
}
