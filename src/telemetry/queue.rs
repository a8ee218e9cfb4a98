//! The way of log lines to standard output: a buffer with a bound in bytes that every thread appends to, and one thread
//! that writes. Nobody but that thread ever waits for the reader.

use std::fs::File;
use std::io::{self, ErrorKind, Write};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// Bytes that may wait while as many again are being written: 1 MiB in all.
const BOUND: usize = 512 * 1024;

/// Bytes at which the thread no longer pauses.
const URGENT: usize = BOUND / 4;

/// Bytes of memory that a buffer keeps when it is empty.
const KEPT: usize = 16 * 1024;

/// The thread pauses after a write, so that the lines of a busy service go out together. A line that follows a longer
/// silence goes out at once.
const PAUSE: Duration = Duration::from_millis(5);

/// Lines on their way out.
#[derive(Debug, Default)]
pub(super) struct Queue {
    state: Mutex<State>,
    wake: Condvar,
    ended: Condvar,
    /// Lines that found the queue full.
    pub(super) queue_full: AtomicU64,
    /// Lines that standard output refused.
    pub(super) cannot_write: AtomicU64,
}

#[derive(Debug, Default)]
struct State {
    lines: Vec<u8>,
    is_asleep: bool,
    is_closed: bool,
    has_ended: bool,
}

impl Queue {
    /// Adds a line, or counts it if there is no room.
    pub(super) fn push(&self, line: &[u8]) {
        let mut state = self.lock();
        let before = state.lines.len();
        let after = before + line.len();
        if after > BOUND {
            self.queue_full.fetch_add(1, Ordering::Relaxed);
            return;
        }
        if after > state.lines.capacity() {
            state.lines.reserve_exact((2 * after).min(BOUND) - before);
        }
        state.lines.extend_from_slice(line);
        let wake = std::mem::take(&mut state.is_asleep) || (before < URGENT && after >= URGENT);
        drop(state);
        if wake {
            self.wake.notify_one();
        }
    }

    /// Has everything written, for at most `timeout`. Later lines are lost.
    pub(super) fn close(&self, timeout: Duration) {
        let mut state = self.lock();
        state.is_closed = true;
        self.wake.notify_one();
        drop(self.ended.wait_timeout_while(state, timeout, |state| !state.has_ended));
    }

    /// Writes lines until the queue is closed and empty.
    pub(super) fn run(&self, mut out: File) {
        let mut batch = Vec::new();
        loop {
            let mut state = self.lock();
            state.is_asleep = true;
            let idle = |state: &mut State| state.lines.is_empty() && !state.is_closed;
            state = self.wake.wait_while(state, idle).unwrap_or_else(PoisonError::into_inner);
            state.is_asleep = false;
            if state.lines.is_empty() {
                state.has_ended = true;
                return self.ended.notify_all();
            }
            std::mem::swap(&mut state.lines, &mut batch);
            drop(state);

            if write_all(&mut out, &batch).is_err() {
                let lines = batch.iter().filter(|&&byte| byte == b'\n').count();
                self.cannot_write.fetch_add(lines as u64, Ordering::Relaxed);
            }
            batch.clear();
            batch.shrink_to(KEPT);
            let calm = |state: &mut State| state.lines.len() < URGENT && !state.is_closed;
            drop(self.wake.wait_timeout_while(self.lock(), PAUSE, calm));
        }
    }

    /// What waits to be written.
    #[cfg(test)]
    pub(super) fn take(&self) -> Vec<u8> {
        std::mem::take(&mut self.lock().lines)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Writes to an output that may be set not to block: others may share it.
fn write_all(out: &mut File, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match out.write(bytes) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(written) => bytes = &bytes[written..],
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                poll(&mut [PollFd::new(out.as_fd(), PollFlags::POLLOUT)], PollTimeout::NONE)?;
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::sync::Arc;
    use std::time::Instant;

    use super::*;

    fn pipe() -> (io::PipeReader, Arc<Queue>) {
        let (reader, writer) = io::pipe().expect("a file descriptor");
        let queue = Arc::new(Queue::default());
        let running = Arc::clone(&queue);
        std::thread::spawn(move || running.run(File::from(std::os::fd::OwnedFd::from(writer))));
        (reader, queue)
    }

    #[test]
    fn every_line_is_written_in_order_and_most_of_them_together() {
        let (mut reader, queue) = pipe();
        let lines: Vec<String> = (0..2000).map(|number| format!("line {number}\n")).collect();
        lines.iter().for_each(|line| queue.push(line.as_bytes()));
        let (mut read, mut reads) = (Vec::new(), 0);
        let mut buffer = vec![0; BOUND];
        while read.len() < lines.concat().len() {
            let count = reader.read(&mut buffer).expect("the writer is there");
            read.extend_from_slice(&buffer[..count]);
            reads += 1;
        }
        assert_eq!(String::from_utf8_lossy(&read), lines.concat());
        assert!(reads < 20, "{reads}");
        queue.close(Duration::from_secs(5));
        assert_eq!(reader.read(&mut buffer).expect("it has ended"), 0);
    }

    #[test]
    fn a_full_pipe_holds_nobody_up_and_takes_no_more_than_its_bound() {
        let (reader, queue) = pipe();
        let line = [b"x".repeat(999), b"\n".to_vec()].concat();
        let began = Instant::now();
        for _ in 0..3 * BOUND / line.len() {
            queue.push(&line);
        }
        assert!(queue.queue_full.load(Ordering::Relaxed) > 0);
        assert!(queue.lock().lines.capacity() <= BOUND);
        queue.close(Duration::from_millis(50));
        assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
        drop(reader);
    }

    #[test]
    fn lines_that_nobody_can_be_given_are_counted() {
        let (reader, queue) = pipe();
        drop(reader);
        queue.push(b"one\ntwo\n");
        queue.close(Duration::from_secs(5));
        assert_eq!(queue.cannot_write.load(Ordering::Relaxed), 2);
    }
}
