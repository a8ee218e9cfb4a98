//! Two instances behind a plain TCP balancer on this machine, one of them stopped under load.
//!
//! Needs `DATABASE_URL`; finds the service and the catalog where cargo has put them, beside this program.

use std::{env, net::SocketAddr, path::Path, process::Stdio, time::Duration};

use anyhow::{Context as _, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt as _, BufReader, Lines},
    process::{Child, ChildStdout, Command},
    task::JoinHandle,
    time::{sleep, timeout},
};

use crate::{
    balancer::{Backend, Balancer},
    load::{Load, Sizes},
    report::{Promise, Recorder, Step},
};

/// 64 clients that keep their connection and 64 that open one for each request; half of each speak HTTP/2.
const SIZES: Sizes = Sizes { clients: 32, streams_each: 1, feeds: 2, think: Duration::from_millis(25), orders: 50 };

/// Nothing here takes as long: an instance is ready in a second and gone 25 s after SIGTERM at the latest.
const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) async fn run(requests: usize) -> anyhow::Result<bool> {
    let examples = env::current_exe()?.parent().context("this program is in a folder")?.to_owned();
    let binary = examples.parent().context("cargo's folder")?.join("service");

    let mut catalog = Command::new(examples.join("catalog"));
    let mut catalog =
        catalog.arg("127.0.0.1:0").stdout(Stdio::piped()).kill_on_drop(true).spawn().context("the catalog")?;
    let mut lines = BufReader::new(catalog.stdout.take().context("stdout is piped")?).lines();
    let first = lines.next_line().await?.context("the catalog says where it is")?;
    let catalog = first.rsplit(' ').next().context("an address")?.to_owned();
    let _catalog_log = tokio::spawn(read_on(lines));

    ensure!(
        command(&binary, &catalog).arg("migrate").stdout(Stdio::null()).status().await?.success(),
        "`service migrate` failed"
    );
    let mut first = Instance::start(&binary, &catalog).await?;
    let second = Instance::start(&binary, &catalog).await?;
    let (leaving, staying) = (Backend::new(first.http, first.admin), Backend::new(second.http, second.admin));
    let balancer = Balancer::start(vec![leaving, staying]).await?;

    let recorder = Recorder::new();
    let load = Load::start(balancer.address, recorder.clone(), SIZES).await?;
    let begin = recorder.now();
    reached(&recorder, requests * 2 / 5).await;
    let stop = recorder.now();
    let code = first.stop().await?;
    let gone = recorder.now();
    println!("SIGTERM after {} requests, exit {code:?} after {:.1?}", requests * 2 / 5, gone - stop);
    reached(&recorder, requests).await;
    let audit = load.finish().await?;

    let step = |name: &str, from, to| Step { name: name.to_owned(), from, to, promise: Promise::NoneLost };
    let report = recorder.report(vec![
        step("two instances", begin, stop),
        step("SIGTERM to exit", stop, gone),
        step("one instance", gone, Duration::MAX),
    ]);
    println!("\n{}\n{}", report.table(), audit.summary);
    audit.faults.iter().for_each(|fault| println!("{fault}"));
    let (answered, failed) = report.totals();
    println!("{failed} of {} requests failed", answered + failed);
    Ok(failed == 0 && audit.faults.is_empty() && code == Some(0))
}

async fn reached(recorder: &Recorder, requests: usize) {
    while recorder.count() < requests {
        sleep(Duration::from_millis(20)).await;
    }
}

async fn read_on(mut lines: Lines<BufReader<ChildStdout>>) {
    while let Ok(Some(_)) = lines.next_line().await {}
}

fn command(binary: &Path, catalog: &str) -> Command {
    let mut command = Command::new(binary);
    command.kill_on_drop(true).envs([
        ("APP__HTTP__ADDRESS", "127.0.0.1:0"),
        ("APP__ADMIN__ADDRESS", "127.0.0.1:0"),
        ("APP__TELEMETRY__LOG_FORMAT", "json"),
        // A machine that has other things to do may be slow. That is not the question here, and 503 is not the answer.
        ("APP__DATABASE__ACQUIRE_TIMEOUT", "8s"),
        ("APP__CATALOG__TIMEOUT", "8s"),
    ]);
    command.env("APP__CATALOG__ENDPOINT", format!("http://{catalog}"));
    command
}

#[derive(Debug)]
struct Instance {
    process: Child,
    http: SocketAddr,
    admin: SocketAddr,
    log: JoinHandle<()>,
}

impl Instance {
    async fn start(binary: &Path, catalog: &str) -> anyhow::Result<Self> {
        let mut process = command(binary, catalog).stdout(Stdio::piped()).spawn().context("the service")?;
        let mut lines = BufReader::new(process.stdout.take().context("stdout is piped")?).lines();
        let (mut http, mut admin) = (None, None);
        while http.is_none() || admin.is_none() {
            let line = timeout(PATIENCE, lines.next_line()).await.context("the service does not get ready")??;
            let Some(line) = line else { bail!("the service ended") };
            let Ok(line) = serde_json::from_str::<Value>(&line) else {
                continue;
            };
            let address = || line["address"].as_str().and_then(|address| address.parse::<SocketAddr>().ok());
            match (line["message"].as_str(), line["server"].as_str()) {
                (Some("listening"), Some("http")) => http = address(),
                (Some("listening"), Some("admin")) => admin = address(),
                _ => {}
            }
        }
        let log = tokio::spawn(show_steps(lines));
        Ok(Self { process, http: http.context("an address")?, admin: admin.context("an address")?, log })
    }

    /// SIGTERM, and the exit code.
    async fn stop(&mut self) -> anyhow::Result<Option<i32>> {
        let pid = self.process.id().and_then(|id| Pid::from_raw(id.cast_signed())).context("it runs")?;
        kill_process(pid, Signal::TERM)?;
        let status = timeout(PATIENCE, self.process.wait()).await.context("it does not stop")??;
        (&mut self.log).await?;
        Ok(status.code())
    }
}

/// Shows the steps of the stop as the service logs them.
async fn show_steps(mut lines: Lines<BufReader<ChildStdout>>) {
    while let Ok(Some(line)) = lines.next_line().await {
        let line: Value = serde_json::from_str(&line).unwrap_or_default();
        if line["message"] == "step" {
            let text = |name: &str| line[name].as_str().unwrap_or_default().to_owned();
            println!(
                "  {:<16} {:<8} {:>7.3} s",
                text("step"),
                text("outcome"),
                line["took"].as_f64().unwrap_or_default()
            );
        }
    }
}
