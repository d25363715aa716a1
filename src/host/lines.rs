// SPDX-License-Identifier: MIT OR Apache-2.0
//! Lines with secrets in them: reading and writing leave no copy in memory.
//!
//! Buffers are wiped before they go back to the allocator, also when they have become too small. Does
//! not know the content of the lines. Called by a host for its clients, and by a client for its
//! requests; a host's lines contain no secrets.

use std::io;

use bytes::BufMut;
use serde::Serialize;
use tokio::io::{AsyncRead, AsyncReadExt};
use zeroize::{Zeroize, Zeroizing};

use super::protocol::MAX_LINE;

/// The lines of a connection.
pub(super) struct Lines<R> {
    reader: R,
    bytes: Wiped,
    /// The number of bytes in which no newline was found.
    searched: usize,
}

impl<R: AsyncRead + Unpin> Lines<R> {
    pub(super) fn new(reader: R) -> Self {
        Self {
            reader,
            bytes: Wiped::default(),
            searched: 0,
        }
    }

    /// The next line, with its newline; `None` at the end. Cancel safe.
    ///
    /// # Errors
    /// More than [`MAX_LINE`] without a newline, an end in the middle of a line, or an error of the
    /// kernel.
    pub(super) async fn next(&mut self) -> io::Result<Option<Zeroizing<Vec<u8>>>> {
        loop {
            let bytes = &mut self.bytes.0;
            let new = &bytes[self.searched..];
            if let Some(at) = new.iter().position(|&byte| byte == b'\n') {
                let len = self.searched + at + 1;
                self.searched = 0;
                return Ok(Some(self.bytes.take_front(len)));
            }
            self.searched = bytes.len();
            if bytes.len() >= MAX_LINE {
                let error = "too long a line";
                return Err(io::Error::new(io::ErrorKind::InvalidData, error));
            }
            // The capacity doubles, and `MAX_LINE` is a power of two.
            self.bytes.reserve(1);
            // Never grows a buffer with room. Reads little at a time, as bytes behind a line have
            // to be moved.
            let mut room = (&mut *self.bytes.0).limit(PART_BYTES);
            if self.reader.read_buf(&mut room).await? == 0 {
                return match self.searched {
                    0 => Ok(None),
                    _ => Err(io::ErrorKind::UnexpectedEof.into()),
                };
            }
        }
    }
}

/// A line to write, newline included.
pub(super) fn wiped_line(message: &impl Serialize) -> Zeroizing<Vec<u8>> {
    let mut line = Wiped::default();
    serde_json::to_writer(&mut line, message).expect("messages hold nothing that JSON lacks");
    line.extend(b"\n");
    line.0
}

/// A buffer that grows without leaving copies.
#[derive(Default)]
struct Wiped(Zeroizing<Vec<u8>>);

/// The size of one read; enough for most lines.
const PART_BYTES: usize = 4096;

impl Wiped {
    fn reserve(&mut self, room: usize) {
        let needed = self.0.len() + room;
        if needed > self.0.capacity() {
            let capacity = needed.max(PART_BYTES).next_power_of_two();
            let mut larger = Zeroizing::new(Vec::with_capacity(capacity));
            larger.extend_from_slice(&self.0);
            self.0 = larger;
        }
    }

    fn extend(&mut self, more: &[u8]) {
        self.reserve(more.len());
        self.0.extend_from_slice(more);
    }

    fn take_front(&mut self, len: usize) -> Zeroizing<Vec<u8>> {
        let front = Zeroizing::new(self.0[..len].to_vec());
        let left = self.0.len() - len;
        self.0.copy_within(len.., 0);
        self.0[left..].zeroize();
        self.0.truncate(left);
        front
    }
}

impl io::Write for Wiped {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;

    use super::*;

    fn lines(chunks: &[&[u8]]) -> (Vec<Zeroizing<Vec<u8>>>, io::Result<()>) {
        let runtime = tokio::runtime::Builder::new_current_thread().build();
        runtime.unwrap().block_on(async {
            let (reader, mut writer) = tokio::io::duplex(4 * MAX_LINE);
            for chunk in chunks {
                writer.write_all(chunk).await.unwrap();
            }
            drop(writer);
            let (mut lines, mut read) = (Lines::new(reader), Vec::new());
            loop {
                match lines.next().await {
                    Ok(Some(line)) => read.push(line),
                    Ok(None) => return (read, Ok(())),
                    Err(error) => return (read, Err(error)),
                }
            }
        })
    }

    #[test]
    fn lines_are_the_same_however_they_arrive() {
        let all = [&b"one\n\ntwo\n"[..], &[b'x'; 20_000], b"\nend\n"].concat();
        let expected: Vec<_> = all.split_inclusive(|&byte| byte == b'\n').collect();
        for chunk_len in [1, 3, 4096, all.len()] {
            let (read, end) = lines(&all.chunks(chunk_len).collect::<Vec<_>>());
            let read: Vec<_> = read.iter().map(|line| line.as_slice()).collect();
            assert_eq!(read, expected, "in parts of {chunk_len}");
            assert!(end.is_ok());
        }
    }

    #[test]
    fn a_line_has_an_end_and_a_bound() {
        let longest = [&vec![b'x'; MAX_LINE - 1][..], b"\n"].concat();
        let (read, end) = lines(&[b"{}\n", &longest]);
        assert_eq!((read.len(), end.is_ok()), (2, true));
        for (chunks, kind) in [
            ([&b"{}\n"[..], b"{"], io::ErrorKind::UnexpectedEof),
            ([b"{}\nx", &longest], io::ErrorKind::InvalidData),
        ] {
            let (read, end) = lines(&chunks);
            assert_eq!((read.len(), end.unwrap_err().kind()), (1, kind));
        }
    }
}
