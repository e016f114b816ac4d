//! Bounds-checked reading and writing of the variable parts of messages.

use crate::message::{MessageError, check_reserved};

/// Reads little-endian fields from the front of a slice.
pub(crate) struct Reader<'a>(pub &'a [u8]);

impl<'a> Reader<'a> {
    pub fn bytes(&mut self, len: usize) -> Result<&'a [u8], MessageError> {
        if self.0.len() < len {
            return Err(MessageError::Truncated { wanted: len, left: self.0.len() });
        }
        let (head, tail) = self.0.split_at(len);
        self.0 = tail;
        Ok(head)
    }

    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], MessageError> {
        let mut out = [0; N];
        out.copy_from_slice(self.bytes(N)?);
        Ok(out)
    }

    pub fn u8(&mut self) -> Result<u8, MessageError> {
        Ok(self.array::<1>()?[0])
    }

    pub fn u16(&mut self) -> Result<u16, MessageError> {
        Ok(u16::from_le_bytes(self.array()?))
    }

    pub fn u32(&mut self) -> Result<u32, MessageError> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    pub fn u64(&mut self) -> Result<u64, MessageError> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    /// A number that travels as `u32` and is a `u16`.
    pub fn small_u16(&mut self, field: &'static str) -> Result<u16, MessageError> {
        let value = self.u32()?;
        u16::try_from(value).map_err(|_| MessageError::OutOfRange { field, value: u64::from(value) })
    }

    /// Bytes that must be 0.
    pub fn reserved(&mut self, len: usize) -> Result<(), MessageError> {
        check_reserved(self.bytes(len)?)
    }

    /// Bytes that are left.
    pub fn left(&self) -> usize {
        self.0.len()
    }

    /// All bytes that are left.
    pub fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.0)
    }

    /// A `u16` length and that many bytes of UTF-8.
    pub fn string(&mut self) -> Result<&'a str, MessageError> {
        let len = self.u16()? as usize;
        std::str::from_utf8(self.bytes(len)?).map_err(|_| MessageError::NotUtf8)
    }

    /// A `u32` count of items of at least `item_len` bytes each: refused when
    /// the bytes that are left cannot hold them, so the count may size an
    /// allocation.
    pub fn count(&mut self, item_len: usize) -> Result<usize, MessageError> {
        let count = self.u32()? as usize;
        match count.checked_mul(item_len) {
            Some(wanted) if wanted <= self.0.len() => Ok(count),
            _ => Err(MessageError::Truncated { wanted: count.saturating_mul(item_len), left: self.0.len() }),
        }
    }

    pub fn finish(self) -> Result<(), MessageError> {
        if self.0.is_empty() { Ok(()) } else { Err(MessageError::TrailingBytes(self.0.len())) }
    }
}

/// Appends little-endian fields.
pub(crate) trait Put {
    fn put_u8(&mut self, v: u8);
    fn put_u16(&mut self, v: u16);
    fn put_u32(&mut self, v: u32);
    fn put_u64(&mut self, v: u64);
    /// A `u16` length and the bytes. Longer strings are cut at a character
    /// boundary: of what a broker sends only an error's text could be that
    /// long, and of what a client sends, what is left is still refused.
    fn put_string(&mut self, v: &str);
}

impl Put for Vec<u8> {
    fn put_u8(&mut self, v: u8) {
        self.push(v);
    }
    fn put_u16(&mut self, v: u16) {
        self.extend_from_slice(&v.to_le_bytes());
    }
    fn put_u32(&mut self, v: u32) {
        self.extend_from_slice(&v.to_le_bytes());
    }
    fn put_u64(&mut self, v: u64) {
        self.extend_from_slice(&v.to_le_bytes());
    }
    fn put_string(&mut self, v: &str) {
        let mut len = v.len().min(usize::from(u16::MAX));
        while !v.is_char_boundary(len) {
            len -= 1;
        }
        self.put_u16(len as u16);
        self.extend_from_slice(&v.as_bytes()[..len]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_count_is_refused_before_an_item_is_read_when_the_bytes_cannot_hold_them() {
        let count = |count: u32, items: usize, item_len| {
            let bytes = [&count.to_le_bytes()[..], &vec![0; items]].concat();
            Reader(&bytes).count(item_len)
        };
        assert_eq!(count(3, 30, 10), Ok(3));
        assert_eq!(count(0, 0, 10), Ok(0));
        assert_eq!(count(3, 29, 10), Err(MessageError::Truncated { wanted: 30, left: 29 }));
        assert!(count(u32::MAX, 30, 10).is_err());
        // What would overflow is refused, not wrapped.
        assert!(count(u32::MAX, 30, usize::MAX / 2).is_err());
    }

    #[test]
    fn a_string_that_is_too_long_is_cut_between_two_characters() {
        let mut out = Vec::new();
        // 65,535 is no multiple of 2: the last character would be halved.
        out.put_string(&"ä".repeat(40_000));
        let mut r = Reader(&out);
        assert_eq!(r.string(), Ok("ä".repeat(32_767).as_str()));
        assert_eq!(r.finish(), Ok(()));
    }
}
