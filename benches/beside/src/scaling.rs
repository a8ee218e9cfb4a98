//! `beside scaling [REPLICAS…]`: so many replicas on one database, 1, 3 and 10 if none are named. What they do together,
//! and what they ask of the database while nothing is asked of them. Prints rows of the table in `docs/scaling.md`.

use std::{
    cell::RefCell,
    collections::HashMap,
    env,
    rc::Rc,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use sqlx::{Connection, PgConnection};
use tokio::{
    io::AsyncReadExt,
    net::TcpStream,
    task::{LocalSet, spawn_local},
    time::{interval, sleep},
};

use crate::{
    clients::{self, EVENTS},
    load::{Request, wrk},
    process::{Program, Server},
};

/// wrk's connections, over all replicas.
const CLIENTS: usize = 60;

const SECONDS: u32 = 4;

/// For the database to count what a backend has done, which it does after a second of silence.
const SETTLE: Duration = Duration::from_secs(3);

const IDLE: Duration = Duration::from_secs(8);

/// Orders a second, and how many, while the delay of their events is measured.
const RATE: u64 = 50;
const ORDERS: usize = 250;

pub(crate) async fn run(counts: &[String]) -> anyhow::Result<()> {
    let counts =
        if counts.is_empty() { vec![1, 3, 10] } else { counts.iter().map(|n| n.parse()).collect::<Result<_, _>>()? };
    println!(
        "| replicas | reads/s | orders/s | connections idle, loaded | queries/s idle | with a stream each | event delay p50, p99 |"
    );
    println!("|---|---|---|---|---|---|---|");
    for count in counts {
        println!("{}", row(count).await?);
    }
    Ok(())
}

async fn row(count: usize) -> anyhow::Result<String> {
    let mut database = PgConnection::connect(&env::var("DATABASE_URL")?).await?;
    let mut servers = Vec::new();
    for _ in 0..count {
        servers.push(Server::start(Program::Ours).await?);
    }
    clients::create(servers[0].address).await?;
    sleep(SETTLE).await;
    let connections = connected(&mut database).await?;
    let idle = queries(&mut database).await?;

    let (streamed, mut delays) = LocalSet::new().run_until(delays(&mut database, &servers)).await?;
    delays.sort_unstable();
    let at = |share: usize| delays[delays.len() * share / 100].as_secs_f64() * 1e3;

    let id = clients::create(servers[0].address).await?;
    let reads = together(&servers, &Request::Get(format!("/v1/orders/{id}"))).await?;
    let orders = together(&servers, &Request::Order).await?;
    let loaded = connected(&mut database).await?;
    Ok(format!(
        "| {count} | {reads:.0} | {orders:.0} | {connections}, {loaded} | {idle:.0} | {streamed:.0} | {:.0} ms, {:.0} ms |",
        at(50),
        at(99)
    ))
}

/// The requests a second of all replicas, each with its share of the clients.
async fn together(servers: &[Server], request: &Request) -> anyhow::Result<f64> {
    let each = (CLIENTS / servers.len()).max(1);
    let loads = servers.iter().map(|server| wrk(server, request, each, SECONDS));
    let loads = futures_util::future::try_join_all(loads).await?;
    Ok(loads.iter().map(|load| load.requests_per_second).sum())
}

/// How many connections there are but this one.
async fn connected(database: &mut PgConnection) -> anyhow::Result<i64> {
    let sql = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()";
    Ok(sqlx::query_scalar(sql).fetch_one(database).await?)
}

/// Transactions a second that nobody has asked for: outside a transaction each query is one.
async fn queries(database: &mut PgConnection) -> anyhow::Result<f64> {
    let sql = "SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = current_database()";
    let (began, before): (_, i64) = (Instant::now(), sqlx::query_scalar(sql).fetch_one(&mut *database).await?);
    sleep(IDLE).await;
    let after: i64 = sqlx::query_scalar(sql).fetch_one(database).await?;
    Ok((after - before) as f64 / began.elapsed().as_secs_f64())
}

/// When a stream has shown which order as pending.
type Seen = Rc<RefCell<Vec<HashMap<String, Instant>>>>;

/// With a stream on each replica: queries a second while nothing happens; then orders on one replica after the other,
/// and the time from each answer to its event on each stream.
async fn delays(database: &mut PgConnection, servers: &[Server]) -> anyhow::Result<(f64, Vec<Duration>)> {
    let seen: Seen = Rc::new(RefCell::new(vec![HashMap::new(); servers.len()]));
    for (number, server) in servers.iter().enumerate() {
        for stream in clients::hold(server.address, 1, EVENTS, 200).await?.into_streams() {
            spawn_local(follow(stream, number, Rc::clone(&seen)));
        }
    }
    sleep(SETTLE).await;
    let idle = queries(database).await?;
    let mut ticks = interval(Duration::from_secs(1) / RATE as u32);
    let mut answered = Vec::new();
    for turn in 0..ORDERS {
        ticks.tick().await;
        let id = clients::create(servers[turn % servers.len()].address).await?;
        answered.push((id, Instant::now()));
    }
    sleep(SETTLE).await;
    let mut delays = Vec::new();
    for seen in &*seen.borrow() {
        for (id, at) in &answered {
            let shown = seen.get(id).with_context(|| format!("no event of the order {id}"))?;
            delays.push(shown.saturating_duration_since(*at));
        }
    }
    ensure!(!delays.is_empty(), "no orders");
    Ok((idle, delays))
}

async fn follow(mut stream: TcpStream, number: usize, seen: Seen) {
    let mut read = Vec::with_capacity(4096);
    while stream.read_buf(&mut read).await.is_ok_and(|count| count > 0) {
        while let Some(end) = read.windows(2).position(|bytes| bytes == b"\n\n") {
            let block = String::from_utf8_lossy(&read[..end]);
            let id = block.split_once(r#""id":""#).and_then(|(_, rest)| rest.split('"').next());
            if let Some(id) = id.filter(|_| block.contains("event: pending")) {
                seen.borrow_mut()[number].entry(id.to_owned()).or_insert_with(Instant::now);
            }
            drop(read.drain(..end + 2));
        }
    }
}
