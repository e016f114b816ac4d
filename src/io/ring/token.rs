//! The 64 bits that go into the kernel with an operation and come back.
//!
//! ```text
//!   63     62         61..56   55..0
//!   owned  uncounted  class    whatever the class makes of it
//!
//!   owned: 55..32 generation, 31..0 place among the operations in flight;
//!          the token is kept there
//! ```

/// The operation's memory is in the ring's keeping.
pub(super) const OWNED: u64 = 1 << 63;

/// The ring does not wait for a completion of this.
pub(super) const UNCOUNTED: u64 = 1 << 62;

const CLASS_SHIFT: u32 = 56;
const CLASS_MASK: u64 = 0x3f;
const VALUE_MASK: u64 = (1 << CLASS_SHIFT) - 1;

/// Who is to be told of a completion.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u8)]
pub enum Class {
    /// Nobody; the ring swallows the completion.
    Ignored,
    /// A shard's disk.
    Disk,
    /// The listeners and connections.
    Net,
    /// This core's mailbox: somebody has put a message into it.
    Mailbox,
    /// A timer.
    Timer,
}

impl Class {
    const ALL: [Class; 5] = [Class::Ignored, Class::Disk, Class::Net, Class::Mailbox, Class::Timer];
}

/// Names an operation towards the one who asked for it: a class, and 56 bits
/// that only the class understands.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Token(u64);

impl Token {
    /// A token of `class`.
    ///
    /// # Panics
    /// If `value` has more than 56 bits.
    #[inline]
    pub fn new(class: Class, value: u64) -> Token {
        assert!(value <= VALUE_MASK, "a token's value has 56 bits");
        Token((class as u64) << CLASS_SHIFT | value)
    }

    /// Who is to be told.
    #[inline]
    pub fn class(self) -> Class {
        // In range: a token is made from a class, or by `from_user_data` from
        // one that was.
        Class::ALL[(self.0 >> CLASS_SHIFT) as usize]
    }

    /// The 56 bits.
    #[inline]
    pub fn value(self) -> u64 {
        self.0 & VALUE_MASK
    }

    #[inline]
    pub(super) fn user_data(self) -> u64 {
        self.0
    }

    /// What another ring must send so that this token arrives here.
    #[inline]
    pub(super) fn message(self) -> u64 {
        self.0 | UNCOUNTED
    }

    #[inline]
    pub(super) fn from_user_data(user_data: u64) -> Token {
        debug_assert!((user_data >> CLASS_SHIFT & CLASS_MASK) < Class::ALL.len() as u64);
        Token(user_data & !(OWNED | UNCOUNTED))
    }
}

/// Names an operation towards the kernel, for cancelling it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct OpId(pub(super) u64);

impl OpId {
    pub(super) const GENERATION_MASK: u32 = (1 << 24) - 1;

    pub(super) fn owned(index: usize, generation: u32) -> OpId {
        let index = u32::try_from(index).expect("fewer than 2^32 operations fit in memory");
        OpId(OWNED | u64::from(generation) << 32 | u64::from(index))
    }

    #[inline]
    pub(super) fn index(self) -> usize {
        self.0 as u32 as usize
    }

    #[inline]
    pub(super) fn generation(self) -> u32 {
        (self.0 >> 32) as u32 & Self::GENERATION_MASK
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn token_comes_back_from_the_kernel(class in 0..Class::ALL.len(), value in 0..=VALUE_MASK) {
            let token = Token::new(Class::ALL[class], value);
            prop_assert_eq!(token.class(), Class::ALL[class]);
            prop_assert_eq!(token.value(), value);
            prop_assert_eq!(Token::from_user_data(token.user_data()), token);
            prop_assert_eq!(Token::from_user_data(token.message()), token);
        }

        #[test]
        fn op_id_keeps_place_and_generation(index in 0..u32::MAX, generation in 0..=OpId::GENERATION_MASK) {
            let id = OpId::owned(index as usize, generation);
            prop_assert_eq!((id.index(), id.generation()), (index as usize, generation));
            prop_assert_ne!(id.0 & OWNED, 0);
            prop_assert_eq!(id.0 & UNCOUNTED, 0);
        }
    }
}
