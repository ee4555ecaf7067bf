//! Bytes on their way through a pump: whole buffers in a row, never copied.

use std::{collections::VecDeque, io::IoSlice};

use bytes::{Buf, Bytes};

/// A row of buffers; the front goes first. None is empty.
#[derive(Debug, Default)]
pub(super) struct Chunks {
    row: VecDeque<Bytes>,
    bytes: usize,
}

impl Chunks {
    pub(super) fn starting_with(first: Bytes) -> Self {
        let mut chunks = Self::default();
        chunks.push(first);
        chunks
    }

    pub(super) fn push(&mut self, chunk: Bytes) {
        if !chunk.is_empty() {
            self.bytes += chunk.len();
            self.row.push_back(chunk);
        }
    }

    /// Takes every buffer out, in order.
    pub(super) fn empty_out(&mut self) -> std::collections::vec_deque::IntoIter<Bytes> {
        self.bytes = 0;
        std::mem::take(&mut self.row).into_iter()
    }

    /// The row as one slice, for a writer that advances its buffers in place; then [`Chunks::written`].
    pub(super) fn as_mut_slice(&mut self) -> &mut [Bytes] {
        self.row.make_contiguous()
    }

    /// `bytes` were taken from the slice, which emptied the first `whole` buffers.
    pub(super) fn written(&mut self, bytes: usize, whole: usize) {
        self.bytes -= bytes;
        self.row.drain(..whole);
    }

    /// Gives the row's own memory back while nothing is on its way.
    pub(super) fn release(&mut self) {
        if self.row.is_empty() && self.row.capacity() > 0 {
            self.row = VecDeque::new();
        }
    }
}

impl Buf for Chunks {
    fn remaining(&self) -> usize {
        self.bytes
    }

    fn chunk(&self) -> &[u8] {
        self.row.front().map_or(&[], |chunk| chunk)
    }

    fn chunks_vectored<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        let mut count = 0;
        for (slice, chunk) in slices.iter_mut().zip(&self.row) {
            *slice = IoSlice::new(chunk);
            count += 1;
        }
        count
    }

    fn advance(&mut self, mut count: usize) {
        self.bytes -= count;
        while let Some(front) = self.row.front_mut()
            && count > 0
        {
            let taken = count.min(front.len());
            front.advance(taken);
            count -= taken;
            if front.is_empty() {
                self.row.pop_front();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_leave_in_order_whatever_the_steps() {
        for step in 1..10 {
            let mut chunks = Chunks::default();
            for chunk in ["abc", "", "de", "fghi"] {
                chunks.push(Bytes::from_static(chunk.as_bytes()));
            }
            let mut seen = Vec::new();
            while chunks.has_remaining() {
                let mut slices = [IoSlice::new(&[]); 4];
                let count = chunks.chunks_vectored(&mut slices);
                let all: Vec<u8> = slices[..count].iter().flat_map(|slice| slice.to_vec()).collect();
                assert_eq!(all.len(), chunks.remaining());
                let taken = step.min(all.len());
                seen.extend_from_slice(&all[..taken]);
                chunks.advance(taken);
            }
            assert_eq!(seen, b"abcdefghi");
        }
    }

    #[test]
    fn what_a_writer_took_in_place_is_gone() {
        let mut chunks = Chunks::starting_with(Bytes::from_static(b"abc"));
        chunks.push(Bytes::from_static(b"def"));
        let slice = chunks.as_mut_slice();
        slice[0].clear();
        slice[1].advance(1);
        chunks.written(4, 1);
        assert_eq!((chunks.remaining(), chunks.chunk()), (2, &b"ef"[..]));
    }
}
