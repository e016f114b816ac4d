//! Reads a ledger back, up to a tail that was torn by a crash.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use super::format::{BLOCK_HEADER_LEN, BadBlock, Codec, MAGIC, MAX_BODY_LEN, open};
use super::{Entry, LedgerError};

/// How a ledger ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Tail {
    /// Bytes of whole blocks.
    pub valid_len: u64,
    /// Bytes after them, of a block that was being written when the load
    /// generator was killed.
    pub torn_len: u64,
}

/// Reads the entries of a ledger in order, holding one block at a time.
pub struct LedgerReader {
    path: PathBuf,
    file: File,
    /// Bytes read from the file and not yet decoded start at `start`.
    buffer: Vec<u8>,
    start: usize,
    /// Where `buffer[start]` lies in the file.
    at: u64,
    eof: bool,
    codec: Codec,
}

impl LedgerReader {
    /// Opens the ledger at `path`.
    pub fn open(path: &Path) -> Result<LedgerReader, LedgerError> {
        let io = |source| LedgerError::Io { path: path.to_owned(), source };
        let file = File::open(path).map_err(io)?;
        Ok(LedgerReader {
            path: path.to_owned(),
            file,
            buffer: Vec::new(),
            start: 0,
            at: 0,
            eof: false,
            codec: Codec::default(),
        })
    }

    /// Hands every entry to `each`, and tells how the file ends.
    ///
    /// # Errors
    /// [`LedgerError::Damaged`] if a block is not whole although a later one
    /// is: that is no torn tail.
    pub fn for_each(mut self, mut each: impl FnMut(Entry)) -> Result<Tail, LedgerError> {
        loop {
            self.fill(BLOCK_HEADER_LEN + MAX_BODY_LEN)?;
            let rest = &self.buffer[self.start..];
            if rest.is_empty() {
                return Ok(Tail { valid_len: self.at, torn_len: 0 });
            }
            let mut body = match open(rest) {
                Ok(body) => body,
                Err(BadBlock::Short) => return self.torn("the block is cut short"),
                Err(BadBlock::Damaged(what)) => return self.torn(what),
            };
            let len = BLOCK_HEADER_LEN + body.len();
            while !body.is_empty() {
                let entry = self.codec.decode(&mut body);
                each(entry.ok_or(LedgerError::Damaged {
                    path: self.path.clone(),
                    at: self.at,
                    what: "an entry makes no sense",
                })?);
            }
            self.start += len;
            self.at += len as u64;
        }
    }

    /// Sees to it that `want` bytes are in the buffer, or all that are left.
    fn fill(&mut self, want: usize) -> Result<(), LedgerError> {
        if self.eof || self.buffer.len() - self.start >= want {
            return Ok(());
        }
        self.buffer.drain(..self.start);
        self.start = 0;
        let missing = 4 * want - self.buffer.len();
        let got = self.file.by_ref().take(missing as u64).read_to_end(&mut self.buffer);
        let got = got.map_err(|source| LedgerError::Io { path: self.path.clone(), source })?;
        self.eof = got < missing;
        Ok(())
    }

    /// The bytes from here on are no block: a torn tail, unless a whole block
    /// follows.
    fn torn(mut self, what: &'static str) -> Result<Tail, LedgerError> {
        let damaged_at = self.at;
        loop {
            self.fill(BLOCK_HEADER_LEN + MAX_BODY_LEN)?;
            let rest = &self.buffer[self.start..];
            if rest.is_empty() {
                return Ok(Tail { valid_len: damaged_at, torn_len: self.at - damaged_at });
            }
            if self.at > damaged_at && open(rest).is_ok() {
                return Err(LedgerError::Damaged { path: self.path, at: damaged_at, what });
            }
            let step = rest[1..].windows(MAGIC.len()).position(|w| w == MAGIC);
            // Without a magic in sight the last few bytes may still begin one.
            let keep = if self.eof { 0 } else { MAGIC.len() - 1 };
            let step = step.map_or((rest.len() - keep).max(1), |i| i + 1);
            self.start += step;
            self.at += step as u64;
        }
    }
}
