//! What the operating system knows of a process, and how to take something from it: files, or the use of its threads.

use std::{
    fs,
    path::Path,
    process::Command,
    sync::mpsc::{self, RecvTimeoutError},
    thread::{self, JoinHandle},
    time::Duration,
};

use nix::{
    sys::{
        ptrace,
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::Pid as Thread,
};
use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};

use super::ms;

/// Processor time used so far.
pub(crate) fn cpu_time(pid: Pid) -> Duration {
    // Fields 14 and 15 of the file, in hundredths of a second on every Linux; the second may hold spaces.
    let stat = read(pid, "stat");
    let fields = stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace();
    let ticks: u64 = fields.skip(11).take(2).map(|field| field.parse().unwrap_or(0)).sum();
    ms(ticks * 10)
}

/// Bytes of it in memory.
pub(crate) fn resident(pid: Pid) -> u64 {
    let status = read(pid, "status");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    kib.unwrap_or_else(|| panic!("no VmRSS in {status}")) * 1024
}

/// How many files it has open.
pub(crate) fn open_files(pid: Pid) -> u64 {
    fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, |files| files.count() as u64)
}

/// Lets it open so many files in all, and returns how many it could before.
pub(crate) fn limit_open_files(pid: Pid, files: u64) -> u64 {
    // A child has its parent's hard limit, which only some may raise.
    let limit = Rlimit { current: Some(files), ..getrlimit(Resource::Nofile) };
    let old = prlimit(Some(pid), Resource::Nofile, limit).expect("it is our own");
    old.current.unwrap_or(u64::MAX)
}

fn read(pid: Pid, file: &str) -> String {
    fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_else(|error| panic!("{file} of {pid}: {error}"))
}

/// Threads of a process that stand still while its others run: as if each were in a call that does not return. They
/// are stopped as a debugger does it, which a process may do to its children, and go on when this is dropped.
#[derive(Debug)]
pub(crate) struct Halted {
    release: mpsc::Sender<()>,
    tracer: Option<JoinHandle<()>>,
}

impl Halted {
    /// Halts every thread of this name, of which there must be one. Not for the first thread of a process, whose
    /// waiter would be told of it.
    pub(crate) fn threads(pid: Pid, name: &str) -> Self {
        let threads = named(pid, name);
        assert!(!threads.is_empty(), "no thread of {pid} is named {name}");
        let ((release, released), (halted, all_halted)) = (mpsc::channel(), mpsc::channel());
        // Only the thread that began to trace another may go on with it.
        let tracer = thread::spawn(move || {
            for thread in &threads {
                halt(*thread);
            }
            let _ = halted.send(());
            hold(threads, &released);
        });
        all_halted.recv().expect("its threads can be halted");
        Self { release, tracer: Some(tracer) }
    }
}

impl Drop for Halted {
    fn drop(&mut self) {
        let _ = self.release.send(());
        if let Some(tracer) = self.tracer.take() {
            let _ = tracer.join();
        }
    }
}

fn named(pid: Pid, name: &str) -> Vec<Thread> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let ours = tasks.filter(|task| fs::read_to_string(task.path().join("comm")).is_ok_and(|comm| comm.trim() == name));
    ours.filter_map(|task| Some(Thread::from_raw(task.file_name().to_str()?.parse().ok()?))).collect()
}

fn halt(thread: Thread) {
    ptrace::seize(thread, ptrace::Options::empty()).expect("a child may be traced");
    ptrace::interrupt(thread).expect("it is traced");
    waitpid(thread, Some(WaitPidFlag::__WALL)).expect("it stops");
}

/// Holds them until they are released, or have ended with their process, which waits for us to take note.
fn hold(mut threads: Vec<Thread>, released: &mpsc::Receiver<()>) {
    while !threads.is_empty() {
        if released.recv_timeout(ms(10)) != Err(RecvTimeoutError::Timeout) {
            break;
        }
        let look = WaitPidFlag::__WALL | WaitPidFlag::WNOHANG;
        threads.retain(|thread| {
            !matches!(waitpid(*thread, Some(look)), Ok(WaitStatus::Exited(..) | WaitStatus::Signaled(..)) | Err(_))
        });
    }
    for thread in threads {
        let _ = ptrace::detach(thread, None);
    }
}

/// A library that the loader puts before the system's own.
pub(crate) fn library(folder: &Path, code: &str) -> String {
    let (source, library) = (folder.join("library.c"), folder.join("library.so"));
    fs::write(&source, code).expect("the folder is ours");
    // the linker of every Rust program
    let built = Command::new("cc").args(["-shared", "-fPIC", "-o"]).args([&library, &source]).status();
    assert!(built.expect("cc is there").success());
    library.display().to_string()
}
