//! A child process: what it writes, how it ends, and that it does end.

use std::{
    fs::File,
    io::Read,
    os::{
        fd::{AsFd, OwnedFd},
        unix::process::ExitStatusExt,
    },
    path::PathBuf,
    process::{Child, ChildStdout, Command, Stdio},
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustix::process::{Pid, Signal, kill_process};

use super::eventually;

/// What becomes of a process's standard output.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) enum Output {
    /// It is read line by line.
    #[default]
    Collected,
    /// It is a pipe that nobody reads, and that is soon full.
    Unread,
    /// It is a pipe whose reader has gone: writing to it fails.
    Closed,
}

/// How a process ended: with an exit code, or by a signal.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Exit {
    /// Its exit code, unless a signal ended it.
    pub(crate) code: Option<i32>,
    /// The signal that ended it.
    pub(crate) signal: Option<i32>,
    /// When.
    pub(crate) at: Instant,
}

/// A line that a process wrote.
#[derive(Clone, Debug)]
pub(crate) struct Line {
    /// When it was read.
    pub(crate) at: Instant,
    /// Whether it came from standard error.
    pub(crate) stderr: bool,
    /// The line, without its end.
    pub(crate) text: String,
}

/// A child process. Dropping it kills it, and prints what it wrote if the test is failing.
#[derive(Debug)]
pub(crate) struct Process {
    name: String,
    pid: Pid,
    /// When it was started.
    pub(crate) started: Instant,
    written: Arc<Mutex<Written>>,
    exit: Arc<OnceLock<Exit>>,
    waiter: Option<JoinHandle<()>>,
    /// Held open and never read, where the output is [`Output::Unread`].
    unread: Option<ChildStdout>,
}

impl Process {
    /// Starts `command`; `name` is what a failing test calls it.
    pub(crate) fn spawn(name: &str, mut command: Command, output: Output) -> Self {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let started = Instant::now();
        let mut child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let stdout = child.stdout.take().expect("it is piped");
        let stderr = child.stderr.take().expect("it is piped");

        let written = Arc::default();
        let mut readers = vec![collect(stderr.into(), true, &written)];
        let mut unread = None;
        match output {
            Output::Collected => readers.push(collect(stdout.into(), false, &written)),
            Output::Unread => unread = Some(stdout),
            Output::Closed => drop(stdout),
        }
        let pid = Pid::from_child(&child);
        let exit = Arc::new(OnceLock::new());
        let waiter = Some(wait(child, readers, Arc::clone(&exit)));
        Self { name: name.to_owned(), pid, started, written, exit, waiter, unread }
    }

    /// Its process id.
    pub(crate) fn pid(&self) -> Pid {
        self.pid
    }

    /// Sends a signal; one to a process that has ended is lost.
    pub(crate) fn signal(&self, signal: Signal) {
        if self.exit.get().is_none() {
            let _ = kill_process(self.pid, signal);
        }
    }

    /// How it ended, if it has. Everything it wrote has been read by then.
    pub(crate) fn ended(&self) -> Option<Exit> {
        self.exit.get().copied()
    }

    /// Waits for its end.
    pub(crate) async fn exit(&self, within: Duration) -> Exit {
        eventually(&format!("{} ends", self.name), within, async || self.ended()).await
    }

    /// What it has written so far, to the last line.
    pub(crate) fn lines(&self) -> Vec<Line> {
        let mut written = locked(&self.written);
        written.read();
        written.lines.clone()
    }

    /// What it has written to one of its outputs so far, as one text.
    pub(crate) fn text(&self, stderr: bool) -> String {
        let wanted = self.lines().into_iter().filter(|line| line.stderr == stderr);
        wanted.fold(String::new(), |text, line| text + &line.text + "\n")
    }

    /// Reads what an [`Output::Unread`] process has put into its pipe, after it ended.
    pub(crate) fn drain(&mut self) -> String {
        let mut text = Vec::new();
        if let Some(mut pipe) = self.unread.take() {
            let _ = pipe.read_to_end(&mut text);
        }
        String::from_utf8_lossy(&text).into_owned()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.signal(Signal::KILL);
        if let Some(waiter) = self.waiter.take() {
            let _ = waiter.join();
        }
        if thread::panicking() {
            println!("---- what {} ({}) wrote; {:?} ----", self.name, self.pid, self.ended());
            for Line { at, stderr, text } in &self.lines() {
                let mark = if *stderr { '!' } else { '|' };
                println!("{:>8.3} {mark} {text}", (*at - self.started).as_secs_f64());
            }
        }
    }
}

/// A program that cargo builds along with the tests, `target/<profile>/examples/…`: beside the folder of the test that
/// runs.
pub(crate) fn example(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("a process knows its program");
    let profile = test.ancestors().nth(2).expect("a test is in target/<profile>/deps");
    let binary = profile.join("examples").join(name);
    assert!(
        binary.exists(),
        "{} is missing: cargo test builds it unless it was told to build single tests; cargo build --examples does",
        binary.display()
    );
    binary
}

/// What a process wrote. Its pipes are read by threads, for a test that is busy must not stop them from being emptied,
/// and by whoever looks, so that what was written before the look is seen.
#[derive(Debug, Default)]
struct Written {
    pipes: Vec<Pipe>,
    lines: Vec<Line>,
}

#[derive(Debug)]
struct Pipe {
    end: Arc<File>,
    stderr: bool,
    /// A line whose end has not been read.
    begun: Vec<u8>,
    closed: bool,
}

impl Written {
    /// Reads what is in the pipes, and waits for nothing.
    fn read(&mut self) {
        for pipe in &mut self.pipes {
            while !pipe.closed && is_readable(&pipe.end, PollTimeout::ZERO) {
                let mut bytes = [0; 8192];
                let count = pipe.end.as_ref().read(&mut bytes).unwrap_or(0);
                pipe.closed = count == 0;
                pipe.begun.extend_from_slice(&bytes[..count]);
                while let Some(end) = pipe.begun.iter().position(|byte| *byte == b'\n') {
                    let line: Vec<u8> = pipe.begun.drain(..=end).collect();
                    self.lines.push(Line::new(&line, pipe.stderr));
                }
            }
            if pipe.closed && !pipe.begun.is_empty() {
                self.lines.push(Line::new(&std::mem::take(&mut pipe.begun), pipe.stderr));
            }
        }
    }
}

impl Line {
    fn new(bytes: &[u8], stderr: bool) -> Self {
        Self { at: Instant::now(), stderr, text: String::from_utf8_lossy(bytes).trim_end().to_owned() }
    }
}

/// A thread that reads a pipe until the other end is closed.
fn collect(pipe: OwnedFd, stderr: bool, written: &Arc<Mutex<Written>>) -> JoinHandle<()> {
    let (end, written) = (Arc::new(File::from(pipe)), Arc::clone(written));
    locked(&written).pipes.push(Pipe { end: Arc::clone(&end), stderr, begun: Vec::new(), closed: false });
    thread::spawn(move || {
        let is_closed = || locked(&written).pipes.iter().any(|pipe| pipe.stderr == stderr && pipe.closed);
        while !is_closed() {
            is_readable(&end, PollTimeout::NONE);
            locked(&written).read();
        }
    })
}

/// Whether there is something to read, or the other end is closed; waits so long for it, or until a signal comes.
fn is_readable(pipe: &File, within: PollTimeout) -> bool {
    poll(&mut [PollFd::new(pipe.as_fd(), PollFlags::POLLIN)], within).is_ok_and(|ready| ready > 0)
}

fn wait(mut child: Child, readers: Vec<JoinHandle<()>>, exit: Arc<OnceLock<Exit>>) -> JoinHandle<()> {
    thread::spawn(move || {
        let status = child.wait().expect("it is our child");
        let at = Instant::now();
        for reader in readers {
            let _ = reader.join();
        }
        let _ = exit.set(Exit { code: status.code(), signal: status.signal(), at });
    })
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
