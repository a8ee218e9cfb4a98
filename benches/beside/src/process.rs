//! The servers that are measured: each a process of its own, killed when dropped.

use std::{
    env,
    fs::{self, File},
    net::{SocketAddr, TcpListener},
    process::Stdio,
    sync::atomic::{AtomicU16, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use tokio::{
    process::{Child, Command},
    time::sleep,
};

use crate::clients;

const LONGEST_START: Duration = Duration::from_secs(20);

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Program {
    /// Bare hyper.
    Hyper,
    /// `axum::serve` and nothing around it.
    Serve,
    /// A service made of stock parts.
    Stock,
    /// This project's service.
    Ours,
}

impl Program {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Hyper => "bare hyper",
            Self::Serve => "axum::serve",
            Self::Stock => "stock",
            Self::Ours => "this service",
        }
    }

    fn file(self) -> anyhow::Result<String> {
        let (folder, name) = match self {
            Self::Hyper => ("BESIDE", "hyper"),
            Self::Serve => ("BESIDE", "serve"),
            Self::Stock => ("BESIDE", "stock"),
            Self::Ours => ("SERVICE", "service"),
        };
        Ok(format!("{}/{name}", env::var(folder).with_context(|| format!("{folder} is not set"))?))
    }
}

/// A server that answers.
#[derive(Debug)]
pub(crate) struct Server {
    /// The public port.
    pub(crate) address: SocketAddr,
    /// From exec to ready.
    pub(crate) took: Duration,
    child: Child,
}

impl Server {
    /// Starts the program with its log in a file, and waits until it is ready.
    pub(crate) async fn start(program: Program) -> anyhow::Result<Self> {
        let (address, admin) = (free_address()?, free_address()?);
        let file = program.file()?;
        let log = File::create(format!("{}/{}.log", env::var("BESIDE")?, program.name().replace(':', "")))?;
        let mut command = Command::new(&file);
        command
            .env("ADDRESS", address.to_string())
            .env("APP__HTTP__ADDRESS", address.to_string())
            .env("APP__ADMIN__ADDRESS", admin.to_string())
            .env("APP__HTTP__MAX_CONNECTIONS", "10000")
            .env("RUST_LOG", "info")
            .stdin(Stdio::null())
            .stdout(log)
            .kill_on_drop(true);
        let began = Instant::now();
        let mut child = command.spawn().with_context(|| file.clone())?;
        let (probed, path) =
            if program == Program::Ours { (admin, "/readyz") } else { (address, "/v1/products/SKU-1") };
        while !clients::get(probed, path).await.is_ok_and(|answer| answer.status == 200) {
            if let Some(status) = child.try_wait()? {
                bail!("{file} ended with {status}");
            }
            if began.elapsed() > LONGEST_START {
                bail!("{file} is not ready");
            }
            sleep(Duration::from_millis(1)).await;
        }
        let took = began.elapsed();
        // ready is said a moment before the public port listens
        while clients::get(address, "/").await.is_err() && began.elapsed() < LONGEST_START {
            sleep(Duration::from_millis(1)).await;
        }
        Ok(Self { address, took, child })
    }

    fn read(&self, file: &str) -> anyhow::Result<String> {
        let pid = self.child.id().context("the server has ended")?;
        fs::read_to_string(format!("/proc/{pid}/{file}")).context("the server has ended")
    }

    /// The CPU time that the process has used, in ticks of 10 ms.
    pub(crate) fn cpu(&self) -> anyhow::Result<Duration> {
        let stat = self.read("stat")?;
        // the second field is a name in brackets, which may hold spaces
        let (_, fields) = stat.rsplit_once(')').context("/proc/PID/stat")?;
        let fields: Vec<&str> = fields.split_whitespace().collect();
        let ticks: u64 = fields[11].parse::<u64>()? + fields[12].parse::<u64>()?;
        Ok(Duration::from_millis(ticks * 10))
    }

    /// Resident memory in KiB.
    pub(crate) fn resident(&self) -> anyhow::Result<f64> {
        let status = self.read("status")?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
        Ok(line.trim_end_matches("kB").trim().parse()?)
    }
}

/// An address that nobody has. Its port is below those that systems give to outgoing connections.
fn free_address() -> anyhow::Result<SocketAddr> {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let first = 20_000 + (std::process::id() % 10_000) as u16;
    for _ in 0..1000 {
        let address = SocketAddr::from(([127, 0, 0, 1], first + NEXT.fetch_add(1, Ordering::Relaxed) % 2000));
        if TcpListener::bind(address).is_ok() {
            return Ok(address);
        }
    }
    bail!("no port is free")
}
