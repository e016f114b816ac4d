//! Bytes to lines, in bounded memory. Knows no input: pieces of any size come
//! in, lines without their newline go out.

use bytes::{Bytes, BytesMut};

/// A line of the input.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Line {
    /// Its bytes, without the newline.
    Whole(Bytes),
    /// Longer than the limit; its length in bytes.
    TooLong(u64),
}

/// Cuts the input into lines of at most `limit` bytes.
#[derive(Debug)]
pub struct LineSplitter {
    limit: usize,
    /// Start of a line whose end has not come, while that is within the limit.
    partial: BytesMut,
    /// Bytes of the present line that were dropped.
    dropped: u64,
}

impl LineSplitter {
    /// Lines longer than `limit` bytes are not kept.
    pub fn new(limit: usize) -> Self {
        LineSplitter { limit, partial: BytesMut::new(), dropped: 0 }
    }

    /// Takes the next piece of the input; the lines that end in it are appended
    /// to `lines`, and share its memory.
    pub fn feed(&mut self, mut piece: Bytes, lines: &mut Vec<Line>) {
        while let Some(end) = piece.iter().position(|&byte| byte == b'\n') {
            let head = piece.split_to(end + 1).slice(..end);
            if self.partial.is_empty() && self.dropped == 0 && head.len() <= self.limit {
                lines.push(Line::Whole(head));
            } else {
                self.keep(&head);
                lines.push(self.take());
            }
        }
        self.keep(&piece);
    }

    /// The last line, if the input did not end with a newline.
    pub fn finish(mut self) -> Option<Line> {
        (!self.partial.is_empty() || self.dropped > 0).then(|| self.take())
    }

    fn keep(&mut self, bytes: &[u8]) {
        if self.dropped > 0 || self.partial.len() + bytes.len() > self.limit {
            self.dropped += (self.partial.len() + bytes.len()) as u64;
            self.partial = BytesMut::new();
        } else {
            self.partial.extend_from_slice(bytes);
        }
    }

    fn take(&mut self) -> Line {
        match std::mem::take(&mut self.dropped) {
            0 => Line::Whole(self.partial.split().freeze()),
            len => Line::TooLong(len),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn split(input: &[u8], piece: usize, limit: usize) -> Vec<Line> {
        let mut splitter = LineSplitter::new(limit);
        let mut lines = Vec::new();
        for piece in input.chunks(piece) {
            splitter.feed(Bytes::copy_from_slice(piece), &mut lines);
        }
        lines.extend(splitter.finish());
        lines
    }

    #[test]
    fn empty_lines_count_and_a_missing_last_newline_does_not_matter() {
        let whole = |text: &'static str| Line::Whole(Bytes::from_static(text.as_bytes()));
        assert_eq!(split(b"a\n\nb", 100, 10), [whole("a"), whole(""), whole("b")]);
        assert_eq!(split(b"a\n", 100, 10), [whole("a")]);
        assert_eq!(split(b"", 100, 10), []);
    }

    #[test]
    fn a_line_beyond_the_limit_is_told_with_its_length_and_not_kept() {
        let mut splitter = LineSplitter::new(4);
        let mut lines = Vec::new();
        for _ in 0..1000 {
            splitter.feed(Bytes::from_static(b"xx"), &mut lines);
            assert!(splitter.partial.len() <= 4);
        }
        splitter.feed(Bytes::from_static(b"\nok\n"), &mut lines);
        assert_eq!(lines, [Line::TooLong(2000), Line::Whole(Bytes::from_static(b"ok"))]);
    }

    proptest! {
        #[test]
        fn lines_do_not_depend_on_the_pieces(
            input in proptest::collection::vec(prop_oneof![Just(b'\n'), any::<u8>()], 0..200),
            piece in 1usize..50,
        ) {
            let mut expected: Vec<Line> = input
                .split(|&byte| byte == b'\n')
                .map(|line| match line.len() <= 20 {
                    true => Line::Whole(Bytes::copy_from_slice(line)),
                    false => Line::TooLong(line.len() as u64),
                })
                .collect();
            if input.is_empty() || input.ends_with(b"\n") {
                expected.pop();
            }
            prop_assert_eq!(split(&input, piece, 20), expected);
        }
    }
}
