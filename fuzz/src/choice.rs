//! Bytes read as decisions: the fuzzer changes a byte and one choice changes with it.
//!
//! An exhausted input chooses zero for ever, and zero is always the legal choice; so a short input is a legal case with
//! a few things bent.

/// The rest of an input.
pub(crate) struct Choice<'a> {
    rest: &'a [u8],
}

impl<'a> Choice<'a> {
    pub(crate) const fn new(rest: &'a [u8]) -> Self {
        Self { rest }
    }

    /// The next byte, zero at the end.
    pub(crate) fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.rest.split_first() else { return 0 };
        self.rest = rest;
        *first
    }

    /// One of `0..most`.
    pub(crate) fn below(&mut self, most: usize) -> usize {
        usize::from(self.byte()) % most
    }

    /// Big-endian.
    pub(crate) fn short(&mut self) -> u16 {
        u16::from_be_bytes([self.byte(), self.byte()])
    }

    /// Up to `most` bytes; their number comes first.
    pub(crate) fn slice(&mut self, most: usize) -> &'a [u8] {
        let length = usize::from(self.short()).min(most).min(self.rest.len());
        let (slice, rest) = self.rest.split_at(length);
        self.rest = rest;
        slice
    }

    /// Everything that is left.
    pub(crate) fn rest(self) -> &'a [u8] {
        self.rest
    }

    pub(crate) const fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }
}
