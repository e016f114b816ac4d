//! Which partition a record goes to.

use ringbolt_wire::crc32c;

/// The partition of a record with this key: CRC32C (Castagnoli, as the frames
/// use it, so every client has it) of the key's bytes, modulo the number of
/// partitions. Other clients that follow this put equal keys into the same
/// partition.
///
/// ```
/// // CRC32C("123456789") = 0xe3069283, the usual check value.
/// assert_eq!(ringbolt_client::partition_for_key(b"123456789", 10), 3_808_858_755 % 10);
/// ```
///
/// # Panics
/// If `partitions` is 0.
pub fn partition_for_key(key: &[u8], partitions: u32) -> u32 {
    crc32c(key) % partitions
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_that_differ_in_a_digit_spread_evenly() {
        for partitions in [2, 3, 4, 7, 16, 100] {
            let mut counts = vec![0u32; partitions as usize];
            let keys = 10_000u32;
            for i in 0..keys {
                counts[partition_for_key(format!("user-{i}").as_bytes(), partitions) as usize] += 1;
            }
            let fair = keys / partitions;
            let (least, most) = (counts.iter().min().unwrap(), counts.iter().max().unwrap());
            assert!(*least > fair / 2 && *most < fair * 2, "{partitions}: {least} to {most}");
        }
    }
}
