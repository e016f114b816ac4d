//! What happened, as lines for a person and as a hash for comparing two runs.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;

/// Lines that are kept for a report.
const KEPT_LINES: usize = 5000;

/// A handle on the trace of one run.
#[derive(Clone, Debug, Default)]
pub struct Trace {
    inner: Rc<RefCell<Inner>>,
}

#[derive(Debug)]
struct Inner {
    hash: u64,
    lines: u64,
    last: VecDeque<String>,
}

impl Default for Inner {
    fn default() -> Inner {
        // The offset basis of FNV-1a.
        Inner { hash: 0xCBF2_9CE4_8422_2325, lines: 0, last: VecDeque::new() }
    }
}

impl Trace {
    pub fn line(&self, at_us: u64, text: std::fmt::Arguments<'_>) {
        let line = format!("{at_us:>10} {text}");
        let mut inner = self.inner.borrow_mut();
        for byte in line.bytes() {
            inner.hash = (inner.hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01B3);
        }
        inner.lines += 1;
        if inner.last.len() == KEPT_LINES {
            inner.last.pop_front();
        }
        inner.last.push_back(line);
    }

    /// FNV-1a over every line so far.
    pub fn hash(&self) -> u64 {
        self.inner.borrow().hash
    }

    /// Number of lines so far.
    pub fn lines(&self) -> u64 {
        self.inner.borrow().lines
    }

    /// The last `count` lines.
    pub fn tail(&self, count: usize) -> String {
        let inner = self.inner.borrow();
        let skipped = inner.last.len().saturating_sub(count);
        inner.last.iter().skip(skipped).flat_map(|line| [line.as_str(), "\n"]).collect()
    }
}
