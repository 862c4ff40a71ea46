//! The bytes of one message head as they arrive, whichever side sends it.

use crate::h1::find_head_end;
use crate::runtime::{Deadline, RecvBuf, Runtime, TimedOut};

use super::super::stream::Stream;

/// A head as its bytes arrive. Usually all of it is in the first buffer, and nothing is copied. While more is waited
/// for, the buffer is back in the pool and what came is kept in just the room it needs.
pub(in crate::proxy) struct HeadInput<'a> {
    runtime: &'a Runtime,
    /// What came before and with `last`, once one buffer was not enough.
    assembled: Vec<u8>,
    /// The latest buffer; `None` only while the next one is waited for.
    last: Option<RecvBuf>,
}

impl<'a> HeadInput<'a> {
    pub(in crate::proxy) const fn new(runtime: &'a Runtime, first: RecvBuf) -> Self {
        Self { runtime, assembled: Vec::new(), last: Some(first) }
    }

    pub(in crate::proxy) fn bytes(&self) -> &[u8] {
        match &self.last {
            Some(last) if self.assembled.is_empty() => last,
            _ => &self.assembled,
        }
    }

    /// Receives until the head may be whole: parsing it after every drip would cost quadratic work.
    pub(in crate::proxy) async fn more(
        &mut self,
        stream: &Stream,
        deadline: &Deadline,
        bytes_max: usize,
    ) -> Result<(), HeadError> {
        if let (true, Some(first)) = (self.assembled.is_empty(), self.last.take()) {
            self.append(&first);
        }
        self.last = None;
        loop {
            let scanned = self.assembled.len();
            let buf = match deadline.within(stream.recv()).await {
                Ok(Ok(buf)) if !buf.is_empty() => buf,
                Ok(Ok(_)) => return Err(HeadError::Ended),
                Ok(Err(_)) => return Err(HeadError::Broken),
                Err(TimedOut) => return Err(HeadError::TimedOut),
            };
            self.append(&buf);
            let long_enough = self.assembled.len() > bytes_max + 2;
            if long_enough || find_head_end(&self.assembled, scanned).is_some() {
                self.last = Some(buf);
                return Ok(());
            }
        }
    }

    fn append(&mut self, bytes: &[u8]) {
        let before = self.assembled.capacity();
        self.assembled.extend_from_slice(bytes);
        self.runtime.charge(self.assembled.capacity() - before);
    }

    /// What follows a head of `head_len` bytes.
    pub(in crate::proxy) fn rest(mut self, head_len: usize) -> RecvBuf {
        let mut last = self.last.take().unwrap_or_else(|| self.runtime.empty_buffer());
        let before_last = self.assembled.len().saturating_sub(last.len());
        last.advance(head_len.saturating_sub(before_last));
        last
    }
}

impl Drop for HeadInput<'_> {
    fn drop(&mut self) {
        self.runtime.discharge(self.assembled.capacity());
    }
}

/// Why no more of a head came.
pub(in crate::proxy) enum HeadError {
    Ended,
    Broken,
    TimedOut,
}
