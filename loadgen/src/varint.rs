//! Numbers in as few bytes as they need.

/// Appends a number as LEB128: 7 bits a byte, the lowest first.
pub fn put(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Takes a LEB128 number off.
pub fn get(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        let bits = u64::from(byte & 0x7f);
        if shift == 63 && bits > 1 {
            return None;
        }
        value |= bits << shift;
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}

/// Appends `value` as its signed distance from `expected`, the sign in the
/// lowest bit.
pub fn put_delta(out: &mut Vec<u8>, value: u64, expected: u64) {
    let delta = value.wrapping_sub(expected) as i64;
    put(out, (delta << 1 ^ delta >> 63) as u64);
}

/// Takes off what [`put_delta`] appended.
pub fn get_delta(bytes: &mut &[u8], expected: u64) -> Option<u64> {
    let coded = get(bytes)?;
    Some(expected.wrapping_add((coded >> 1) ^ (coded & 1).wrapping_neg()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn numbers_and_differences_come_back(values in prop::collection::vec(any::<(u64, u64)>(), 0..50)) {
            let mut bytes = Vec::new();
            for &(value, expected) in &values {
                put(&mut bytes, value);
                put_delta(&mut bytes, value, expected);
            }
            let mut rest = bytes.as_slice();
            for &(value, expected) in &values {
                prop_assert_eq!(get(&mut rest), Some(value));
                prop_assert_eq!(get_delta(&mut rest, expected), Some(value));
            }
            prop_assert!(rest.is_empty());
        }

        #[test]
        fn any_bytes_decode_or_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..20)) {
            let mut rest = bytes.as_slice();
            while get(&mut rest).is_some() {}
        }
    }
}
