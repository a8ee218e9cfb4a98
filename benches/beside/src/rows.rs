//! The rows: what each measures, and the bound it has.

use std::time::Duration;

use anyhow::Context;
use sqlx::{Connection, PgConnection};
use tokio::time::sleep;

use crate::{
    clients::{self, EVENTS, PRODUCT, WEBSOCKET},
    load::{self, Load, Request, wrk},
    process::{Program, Server},
    report::{
        Bound::{AtLeast, AtMost},
        Report,
        Unit::{KiB, MiB, Micros, Millis, PerSecond, Percent, Times},
    },
};
use Program::{Hyper, Ours, Serve, Stock};

pub(crate) const ROWS: [&str; 11] = [
    "cached",
    "round-trip",
    "by-id",
    "create",
    "crowd",
    "connection",
    "websocket",
    "events",
    "idle-cpu",
    "fan-out",
    "idle",
];

const ROUNDS: usize = 3;

/// One run of wrk, and before the first one's warm-up.
const SECONDS: u32 = 4;
const WARM_UP: u32 = 1;

/// wrk's connections.
const CLIENTS: usize = 64;

/// The other connections, which do nothing.
const CROWD: usize = 5_000;

const STREAMS: usize = 1_000;
const ORDERS: usize = 20;

/// An allocator gives memory back, and a server its connections, a moment later.
const SETTLE: Duration = Duration::from_secs(1);

pub(crate) async fn measure(row: &str, report: &mut Report) -> anyhow::Result<()> {
    match row {
        "cached" => cached(report).await,
        "round-trip" => round_trip(report).await,
        "by-id" => by_id(report).await,
        "create" => create(report).await,
        "crowd" => crowd(report).await,
        "connection" => connection(report).await,
        "websocket" => stream(report, "memory of an idle WebSocket", WEBSOCKET, 101).await,
        "events" => stream(report, "memory of an SSE stream", EVENTS, 200).await,
        "idle-cpu" => idle_cpu(report).await,
        "fan-out" => fan_out(report).await,
        _ => idle(report).await,
    }
}

async fn cached(report: &mut Report) -> anyhow::Result<()> {
    let request = Request::Get("/v1/products/SKU-1".to_owned());
    let [hyper, stock, ours] = side_by_side([Hyper, Stock, Ours], &request, CLIENTS, ROUNDS, SECONDS).await?;
    let cpu = |loads: &[Load]| loads.iter().map(|load| load.cpu).collect::<Vec<_>>();
    report.bound("cached read, CPU against bare hyper", AtMost(2.5), Times, ratios(&cpu(&ours), &cpu(&hyper)));
    report.bound("cached read, CPU against stock", AtMost(0.7), Times, ratios(&cpu(&ours), &cpu(&stock)));
    for (program, loads) in [(Hyper, hyper), (Stock, stock), (Ours, ours)] {
        report.context(format!("cached read, CPU a request: {}", program.name()), Micros, cpu(&loads));
        report.context(format!("cached read, requests/s: {}", program.name()), PerSecond, rates(&loads));
    }
    Ok(())
}

async fn round_trip(report: &mut Report) -> anyhow::Result<()> {
    let request = Request::Get("/v1/products/SKU-1".to_owned());
    // short runs in turn, because the machine's speed drifts more than the servers differ
    let [serve, ours] = side_by_side([Serve, Ours], &request, 1, 2 * ROUNDS, SECONDS / 2).await?;
    let micros = |loads: &[Load]| loads.iter().map(|load| 1e6 / load.requests_per_second).collect::<Vec<_>>();
    let (serve, ours) = (micros(&serve), micros(&ours));
    report.bound("round trip on one connection against axum::serve", AtMost(1.1), Times, ratios(&ours, &serve));
    report.context("round trip: axum::serve", Micros, serve);
    report.context("round trip: this service", Micros, ours);
    Ok(())
}

async fn by_id(report: &mut Report) -> anyhow::Result<()> {
    let id = {
        let server = Server::start(Ours).await?;
        clients::create(server.address).await?
    };
    let request = Request::Get(format!("/v1/orders/{id}"));
    let [stock, ours] = side_by_side([Stock, Ours], &request, CLIENTS, ROUNDS, SECONDS).await?;
    report.bound("read by id, requests/s against stock", AtLeast(1.4), Times, ratios(&rates(&ours), &rates(&stock)));
    report.context("read by id, requests/s: stock", PerSecond, rates(&stock));
    report.context("read by id, requests/s: this service", PerSecond, rates(&ours));
    let statement = format!("SELECT id, sku, quantity, total_cents, status, created_at FROM orders WHERE id = '{id}';");
    let mut selects = Vec::new();
    for _ in 0..ROUNDS {
        selects.extend(load::pgbench(&statement, SECONDS).await?);
    }
    report.context("read by id, that select/s: pgbench -M prepared -c10", PerSecond, selects);
    Ok(())
}

/// Each server alone and on empty tables: the worker of one would settle the orders of the other.
///
/// Stock has no worker. So ours is measured with nothing for its worker to do as well: its orders are settled from the
/// beginning.
async fn create(report: &mut Report) -> anyhow::Result<()> {
    let mut database = PgConnection::connect(&std::env::var("DATABASE_URL")?).await?;
    let (mut stock, mut ours, mut working) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        for (program, status, loads) in
            [(Stock, "confirmed", &mut stock), (Ours, "confirmed", &mut ours), (Ours, "pending", &mut working)]
        {
            let sql = format!("TRUNCATE orders, order_outbox CASCADE; ALTER TABLE orders ALTER status SET DEFAULT '{status}'");
            sqlx::raw_sql(sqlx::AssertSqlSafe(sql)).execute(&mut database).await?;
            let server = Server::start(program).await?;
            wrk(&server, &Request::Order, CLIENTS, WARM_UP).await?;
            loads.push(wrk(&server, &Request::Order, CLIENTS, SECONDS).await?);
        }
    }
    // what is still to be settled would be in the way of the next rows
    sqlx::raw_sql("TRUNCATE orders, order_outbox CASCADE").execute(&mut database).await?;
    report.bound(
        "POST /v1/orders, requests/s against stock",
        AtLeast(1.2),
        Times,
        ratios(&rates(&ours), &rates(&stock)),
    );
    report.context("POST /v1/orders, requests/s: stock", PerSecond, rates(&stock));
    report.context("POST /v1/orders, requests/s: this service", PerSecond, rates(&ours));
    report.context(
        "POST /v1/orders, requests/s: this service while its worker settles them",
        PerSecond,
        rates(&working),
    );
    Ok(())
}

async fn crowd(report: &mut Report) -> anyhow::Result<()> {
    let server = Server::start(Ours).await?;
    let request = Request::Get("/v1/products/SKU-1".to_owned());
    wrk(&server, &request, CLIENTS, WARM_UP).await?;
    let (mut alone, mut among) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        alone.push(wrk(&server, &request, CLIENTS, SECONDS).await?);
        let held = clients::hold(server.address, CROWD, PRODUCT, 200).await?;
        among.push(wrk(&server, &request, CLIENTS, SECONDS).await?);
        drop(held);
        sleep(SETTLE).await;
    }
    let name = "cached read, requests/s with 5,000 other connections idle against without";
    report.bound(name, AtLeast(0.95), Times, ratios(&rates(&among), &rates(&alone)));
    Ok(())
}

async fn connection(report: &mut Report) -> anyhow::Result<()> {
    let (mut hyper, mut stock, mut ours) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        for (program, found) in [(Hyper, &mut hyper), (Stock, &mut stock), (Ours, &mut ours)] {
            found.push(memory(program, 2_000, PRODUCT, 200).await?);
        }
    }
    report.bound("memory of an idle HTTP connection", AtMost(14.0), KiB, ours);
    report.context("memory of an idle HTTP connection: bare hyper", KiB, hyper);
    report.context("memory of an idle HTTP connection: stock", KiB, stock);
    Ok(())
}

async fn stream(report: &mut Report, name: &str, request: &str, status: u16) -> anyhow::Result<()> {
    let mut found = Vec::new();
    for _ in 0..ROUNDS {
        found.push(memory(Ours, STREAMS, request, status).await?);
    }
    report.bound(name, AtMost(24.0), KiB, found);
    Ok(())
}

async fn idle_cpu(report: &mut Report) -> anyhow::Result<()> {
    const WINDOW: Duration = Duration::from_secs(20);
    let (mut crowded, mut empty) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let servers = [Server::start(Ours).await?, Server::start(Ours).await?];
        let held = clients::hold(servers[0].address, CROWD, PRODUCT, 200).await?;
        sleep(SETTLE).await;
        let before = [servers[0].cpu()?, servers[1].cpu()?];
        sleep(WINDOW).await;
        for (found, (server, before)) in [&mut crowded, &mut empty].into_iter().zip(servers.iter().zip(before)) {
            found.push((server.cpu()? - before).as_secs_f64() / WINDOW.as_secs_f64() * 100.0);
        }
        drop(held);
    }
    report.bound("CPU with 5,000 idle connections, of a core", AtMost(0.5), Percent, crowded);
    report.bound("CPU with no connection, of a core", AtMost(0.2), Percent, empty);
    Ok(())
}

async fn fan_out(report: &mut Report) -> anyhow::Result<()> {
    let (mut p99, mut median) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let server = Server::start(Ours).await?;
        let mut delays = clients::fan_out(server.address, STREAMS, ORDERS).await?;
        delays.sort_unstable();
        let at = |share: f64| delays[(delays.len() as f64 * share) as usize].as_secs_f64() * 1e3;
        p99.push(at(0.99));
        median.push(at(0.5));
    }
    report.bound("one event to 1,000 SSE clients, p99 from the POST's begin", AtMost(40.0), Millis, p99);
    report.context("one event to 1,000 SSE clients, median", Millis, median);
    Ok(())
}

async fn idle(report: &mut Report) -> anyhow::Result<()> {
    let (mut resident, mut ready) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let server = Server::start(Ours).await?;
        ready.push(server.took.as_secs_f64() * 1e3);
        // past the first rounds of every check
        sleep(3 * SETTLE).await;
        resident.push(server.resident()? / 1024.0);
    }
    report.bound("idle resident memory", AtMost(12.0), MiB, resident);
    report.context("from exec to ready", Millis, ready);
    Ok(())
}

/// All servers at once, measured in turn.
async fn side_by_side<const N: usize>(
    programs: [Program; N],
    request: &Request,
    connections: usize,
    rounds: usize,
    seconds: u32,
) -> anyhow::Result<[Vec<Load>; N]> {
    let mut servers = Vec::with_capacity(N);
    for program in programs {
        let server = Server::start(program).await?;
        wrk(&server, request, connections, WARM_UP).await.context(program.name())?;
        servers.push(server);
    }
    let mut found = programs.map(|_| Vec::new());
    for _ in 0..rounds {
        for (server, found) in servers.iter().zip(&mut found) {
            found.push(wrk(server, request, connections, seconds).await?);
        }
    }
    Ok(found)
}

/// What each of `count` connections adds to a new process, in KiB.
async fn memory(program: Program, count: usize, request: &str, status: u16) -> anyhow::Result<f64> {
    let server = Server::start(program).await?;
    // code that runs for the first time is memory too, and not a connection's
    clients::repeat(server.address, 200, PRODUCT).await?;
    drop(clients::hold(server.address, 10, request, status).await?);
    sleep(SETTLE).await;
    let before = server.resident()?;
    let held = clients::hold(server.address, count, request, status).await?;
    sleep(SETTLE).await;
    let after = server.resident()?;
    drop(held);
    Ok((after - before) / count as f64)
}

fn rates(loads: &[Load]) -> Vec<f64> {
    loads.iter().map(|load| load.requests_per_second).collect()
}

/// Round by round.
fn ratios(of: &[f64], to: &[f64]) -> Vec<f64> {
    of.iter().zip(to).map(|(of, to)| of / to).collect()
}
