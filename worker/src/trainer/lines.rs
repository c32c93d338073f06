//! Lines from a pipe, of bounded length.

use std::io;

use tokio::io::{AsyncBufReadExt as _, AsyncRead, BufReader};

/// Splits what a pipe brings into lines.
#[derive(Debug)]
pub struct Lines<R> {
    reader: BufReader<R>,
    /// The line so far, at most `bytes_max` long.
    line: Vec<u8>,
    /// The line so far is longer than allowed; the rest of it is skipped.
    is_too_long: bool,
    bytes_max: usize,
}

/// One line, without its end.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Line {
    /// What it says, at most as many bytes as allowed; what is not UTF-8 is replaced.
    pub text: String,
    /// Whether the line was longer and has lost its end.
    pub is_too_long: bool,
    /// Whether the line ended in a line feed, not with the pipe.
    pub is_terminated: bool,
}

impl<R: AsyncRead + Unpin> Lines<R> {
    /// Reads lines of at most `bytes_max` bytes from `pipe`.
    pub fn new(pipe: R, bytes_max: usize) -> Self {
        Self { reader: BufReader::new(pipe), line: Vec::new(), is_too_long: false, bytes_max }
    }

    /// Returns the next line, or none at the end. Nothing is lost when the returned future is dropped.
    ///
    /// # Errors
    ///
    /// When the pipe cannot be read.
    pub async fn next(&mut self) -> io::Result<Option<Line>> {
        loop {
            let bytes = self.reader.fill_buf().await?;
            if bytes.is_empty() {
                let is_over = self.line.is_empty() && !self.is_too_long;
                return Ok((!is_over).then(|| self.take(false)));
            }
            let end = bytes.iter().position(|byte| *byte == b'\n');
            let piece = &bytes[..end.unwrap_or(bytes.len())];
            let room = self.bytes_max - self.line.len();
            self.is_too_long |= piece.len() > room;
            self.line.extend_from_slice(&piece[..piece.len().min(room)]);
            let used = piece.len() + usize::from(end.is_some());
            self.reader.consume(used);
            if end.is_some() {
                return Ok(Some(self.take(true)));
            }
        }
    }

    fn take(&mut self, is_terminated: bool) -> Line {
        let text = String::from_utf8_lossy(&self.line).trim_end_matches('\r').to_owned();
        let line = Line { text, is_too_long: self.is_too_long, is_terminated };
        self.line.clear();
        self.is_too_long = false;
        line
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn check(input: &[u8], bytes_max: usize, expected: &[(&str, bool, bool)]) {
        let mut lines = Lines::new(input, bytes_max);
        let mut found = Vec::new();
        while let Some(line) = lines.next().await.unwrap() {
            found.push((line.text, line.is_too_long, line.is_terminated));
        }
        let expected: Vec<_> = expected.iter().map(|(text, long, end)| ((*text).to_owned(), *long, *end)).collect();
        assert_eq!(found, expected);
    }

    #[tokio::test]
    async fn lines_end_at_line_feeds_and_at_the_end_of_the_pipe() {
        check(
            b"one\ntwo\r\n\nthree",
            100,
            &[("one", false, true), ("two", false, true), ("", false, true), ("three", false, false)],
        )
        .await;
        check(b"", 100, &[]).await;
    }

    #[tokio::test]
    async fn a_long_line_is_cut_and_the_next_one_is_whole() {
        check(b"123456\nab\n", 4, &[("1234", true, true), ("ab", false, true)]).await;
        check(b"1234\n12345", 4, &[("1234", false, true), ("1234", true, false)]).await;
        let mut long = vec![b'x'; 100_000];
        long.extend_from_slice(b"\nnext\n");
        check(&long, 4, &[("xxxx", true, true), ("next", false, true)]).await;
    }

    #[tokio::test]
    async fn bytes_that_are_no_text_are_replaced() {
        check(b"\xff\n", 4, &[("\u{fffd}", false, true)]).await;
    }
}
