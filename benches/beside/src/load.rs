//! Load from wrk and pgbench, each on one thread.

use std::{env, fs, process::Stdio};

use anyhow::{Context, ensure};
use tokio::process::Command;

use crate::{clients::NEW_ORDER, process::Server};

/// What one run of wrk has found.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Load {
    pub(crate) requests_per_second: f64,
    /// The server's CPU time a request, in µs.
    pub(crate) cpu: f64,
}

/// What is sent.
#[derive(Clone, Debug)]
pub(crate) enum Request {
    Get(String),
    /// `POST /v1/orders`.
    Order,
}

/// Sends the request over and over on `connections` for so many seconds. An answer other than 2xx is an error.
pub(crate) async fn wrk(server: &Server, request: &Request, connections: usize, seconds: u32) -> anyhow::Result<Load> {
    let mut command = Command::new("wrk");
    command.args(["-t1", &format!("-c{connections}"), &format!("-d{seconds}s")]);
    let path = match request {
        Request::Get(path) => path.clone(),
        Request::Order => {
            let script = format!("{}/order.lua", env::var("BESIDE")?);
            let lines = format!(
                "wrk.method = 'POST'\nwrk.body = '{NEW_ORDER}'\nwrk.headers['content-type'] = 'application/json'\n"
            );
            fs::write(&script, lines)?;
            command.args(["-s", &script]);
            "/v1/orders".to_owned()
        }
    };
    command.arg(format!("http://{}{path}", server.address));
    let before = server.cpu()?;
    let output = output(command).await?;
    let cpu = server.cpu()? - before;
    ensure!(!output.contains("Non-2xx") && !output.contains("Socket errors"), "{path}: wrk says\n{output}");
    let requests: f64 = number(&output, "requests in", -1)?;
    Ok(Load { requests_per_second: number(&output, "Requests/sec:", 1)?, cpu: cpu.as_secs_f64() * 1e6 / requests })
}

/// The same select without a server in front: transactions a second on ten connections. `None` without pgbench.
pub(crate) async fn pgbench(statement: &str, seconds: u32) -> anyhow::Result<Option<f64>> {
    let script = format!("{}/select.sql", env::var("BESIDE")?);
    fs::write(&script, statement)?;
    let mut command = Command::new("pgbench");
    command.args(["-n", "-M", "prepared", "-c10", "-j1", &format!("-T{seconds}"), "-f", &script]);
    match output(command.arg(env::var("DATABASE_URL")?)).await {
        Ok(output) => number(&output, "tps =", 1).map(Some),
        Err(error) if error.downcast_ref::<std::io::Error>().is_some() => Ok(None),
        Err(error) => Err(error),
    }
}

async fn output(mut command: impl std::borrow::BorrowMut<Command>) -> anyhow::Result<String> {
    let output = command.borrow_mut().stdin(Stdio::null()).kill_on_drop(true).output().await?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?)
}

/// The number beside that label: behind it, or before it with -1.
fn number(output: &str, label: &str, side: i32) -> anyhow::Result<f64> {
    let (before, after) = output.split_once(label).with_context(|| format!("no {label:?} in\n{output}"))?;
    let word = if side < 0 { before.split_whitespace().next_back() } else { after.split_whitespace().next() };
    Ok(word.context("no number")?.parse()?)
}
