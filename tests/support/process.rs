//! A child process: what it writes, how it ends, and that it does end.

use std::{
    io::{BufRead, BufReader, Read},
    os::unix::process::ExitStatusExt,
    process::{Child, ChildStdout, Command, Stdio},
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

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
    lines: Arc<Mutex<Vec<Line>>>,
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

        let lines = Arc::new(Mutex::new(Vec::new()));
        let mut readers = vec![read(stderr, true, &lines)];
        let mut unread = None;
        match output {
            Output::Collected => readers.push(read(stdout, false, &lines)),
            Output::Unread => unread = Some(stdout),
            Output::Closed => drop(stdout),
        }
        let pid = Pid::from_child(&child);
        let exit = Arc::new(OnceLock::new());
        let waiter = Some(wait(child, readers, Arc::clone(&exit)));
        Self { name: name.to_owned(), pid, started, lines, exit, waiter, unread }
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

    /// What it has written so far.
    pub(crate) fn lines(&self) -> Vec<Line> {
        locked(&self.lines).clone()
    }

    /// What it has written to one of its outputs so far, as one text.
    pub(crate) fn text(&self, stderr: bool) -> String {
        let lines = locked(&self.lines);
        let wanted = lines.iter().filter(|line| line.stderr == stderr);
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
            for Line { at, stderr, text } in locked(&self.lines).iter() {
                let mark = if *stderr { '!' } else { '|' };
                println!("{:>8.3} {mark} {text}", (*at - self.started).as_secs_f64());
            }
        }
    }
}

/// A thread that collects lines: a test that is busy must not stop the service's pipe from being emptied.
fn read(pipe: impl Read + Send + 'static, stderr: bool, lines: &Arc<Mutex<Vec<Line>>>) -> JoinHandle<()> {
    let lines = Arc::clone(lines);
    thread::spawn(move || {
        let mut pipe = BufReader::new(pipe);
        let mut line = Vec::new();
        while pipe.read_until(b'\n', &mut line).is_ok_and(|read| read > 0) {
            let text = String::from_utf8_lossy(&line).trim_end().to_owned();
            locked(&lines).push(Line { at: Instant::now(), stderr, text });
            line.clear();
        }
    })
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
