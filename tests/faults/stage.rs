//! What chaos plays on: three replicas, their database, their peer, and who is to blame for what is late.

use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use sqlx::AssertSqlSafe;
use tempfile::TempDir;

use crate::{
    clients::Answer,
    cluster::Cluster,
    credentials::{mount, with_roles},
    model::{Dice, Replicas},
    support::{Catalog, Launch, Proxy, Service, eventually, ms, s},
};

pub(crate) const REPLICAS: usize = 3;

/// Answers of whoever has no part in a fault are to be there by then, but for one in a hundred.
const IN_TIME: Duration = ms(500);

/// After a fault, for connections to be made anew.
const AFTERMATH: Duration = s(3);

/// Everything that can be broken.
pub(crate) struct Stage {
    pub(crate) cluster: Cluster,
    pub(crate) database: Proxy,
    pub(crate) peer: Proxy,
    pub(crate) catalog: Catalog,
    pub(crate) services: Vec<Service>,
    pub(crate) replicas: Replicas,
    pub(crate) spans: Spans,
    /// Where the database's URL is.
    secret: TempDir,
    passwords: u32,
    /// To blame for itself until it listens.
    starting: [Option<Blame>; REPLICAS],
}

impl Stage {
    /// With all of it running; `None` if PostgreSQL's programs are not on this machine.
    pub(crate) async fn new() -> Option<Self> {
        let (cluster, _) = with_roles().await?;
        let catalog = Catalog::start().await;
        let database = Proxy::before(cluster.address());
        let peer = Proxy::before(("127.0.0.1".to_owned(), catalog.address.port()));
        let replicas = Arc::new(Mutex::new(vec![None; REPLICAS]));
        let secret = tempfile::tempdir().expect("a folder");
        let (services, spans) = (Vec::new(), Spans::default());
        let mut stage = Self {
            cluster,
            database,
            peer,
            catalog,
            services,
            replicas,
            spans,
            secret,
            passwords: 0,
            starting: Default::default(),
        };
        stage.publish("one");
        for _ in 0..REPLICAS {
            let service = stage.launch().ready().await;
            stage.services.push(service);
        }
        stage.look();
        Some(stage)
    }

    fn launch(&self) -> Launch {
        Launch::new()
            .env("APP__DATABASE__URL_FILE", self.secret.path().join("url").display())
            .set("catalog.endpoint", format!("http://{}", self.peer.address))
            // a peer that is away makes no answer late
            .set("catalog.timeout", "300ms")
            .set("database.max_connections", 4)
            .set("database.acquire_timeout", "1s")
            .set("database.statement_timeout", "1s")
            .set("readiness.interval", "200ms")
            .set("worker.poll_interval", "100ms")
            .set("worker.concurrency", 2)
            .set("lifecycle.drain_delay", "200ms")
            .set("lifecycle.drain_http", "5s")
    }

    /// From now until what it returns is dropped, and a little longer, a replica or the database may make answers late.
    pub(crate) fn blame(&self, culprit: Option<usize>) -> Blame {
        Blame { spans: self.spans.clone(), culprit, begun: Instant::now() }
    }

    /// Replaces a replica that has ended. It need not become ready before the next fault.
    pub(crate) async fn replace(&mut self, number: usize) {
        self.replicas.lock().expect("no holder panics")[number] = None;
        self.starting[number] = Some(self.blame(Some(number)));
        self.services[number] = self.launch().spawn();
    }

    /// Tells the clients where the replicas listen.
    pub(crate) fn look(&mut self) {
        let mut replicas = self.replicas.lock().expect("no holder panics");
        for (number, service) in self.services.iter().enumerate() {
            if replicas[number].is_none() {
                let line = service.logged("listening").into_iter().find(|line| line["server"] == "http");
                replicas[number] = line.and_then(|line| line["address"].as_str()?.parse().ok());
            }
            if replicas[number].is_some() {
                self.starting[number] = None;
            }
        }
    }

    /// Runs it as the database's owner.
    pub(crate) async fn execute(&self, sql: &str) {
        let mut connection = self.cluster.connect().await;
        let done = sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut connection).await;
        done.unwrap_or_else(|error| panic!("{sql}: {error}"));
    }

    /// Another type for a column that everybody reads and writes.
    pub(crate) async fn change_schema(&self, dice: &mut Dice) {
        let length = 64 + dice.below(1000);
        let sql = format!("SET lock_timeout = '100ms'; ALTER TABLE orders ALTER sku TYPE varchar({length})");
        let mut connection = self.cluster.connect().await;
        eventually("the lock is had", s(20), async || {
            sqlx::raw_sql(AssertSqlSafe(&*sql)).execute(&mut connection).await.map(drop)
        })
        .await;
    }

    /// Another password, which the file has before the database or after it.
    pub(crate) async fn rotate_password(&mut self, dice: &mut Dice, pause: Duration) {
        self.passwords += 1;
        let password = format!("password-{}", self.passwords);
        let sql = format!("ALTER ROLE blue PASSWORD '{password}'");
        if dice.below(2) == 0 {
            self.publish(&password);
            tokio::time::sleep(pause).await;
            self.execute(&sql).await;
        } else {
            // new connections are refused until the file is read
            let _bad = self.blame(None);
            self.execute(&sql).await;
            tokio::time::sleep(pause / 4).await;
            self.publish(&password);
        }
    }

    fn publish(&self, password: &str) {
        let url = Cluster::url_at(self.database.address.port()).replace("postgres@", &format!("blue:{password}@"));
        mount(self.secret.path(), self.passwords, &url);
    }

    /// A standby takes over; the old primary is there for a while, and takes no writes.
    pub(crate) async fn hand_over(&mut self, pause: Duration) {
        let standby = self.cluster.standby().await;
        self.cluster.fail_over_to(&standby).await;
        tokio::time::sleep(pause).await;
        self.database.redirect(standby.address());
        let old = std::mem::replace(&mut self.cluster, standby);
        tokio::time::sleep(pause).await;
        drop(old);
    }

    pub(crate) async fn restart_catalog(&mut self, pause: Duration) {
        let address = self.catalog.address.to_string();
        self.catalog.kill().await;
        tokio::time::sleep(pause).await;
        self.catalog = Catalog::start_at(&address).await;
    }
}

/// Breaks it, in one way or another, and heals it.
pub(crate) async fn disturb(proxy: &Proxy, dice: &mut Dice, pause: Duration) {
    match dice.below(4) {
        0 => proxy.refuse(),
        1 => proxy.reset(),
        2 => proxy.blackhole(),
        _ => proxy.slow(ms(100 + dice.below(400))),
    }
    tokio::time::sleep(pause).await;
    proxy.pass();
}

/// When who was to blame. `None` is the database.
#[derive(Clone, Debug, Default)]
pub(crate) struct Spans(Arc<Mutex<Vec<Span>>>);

/// The culprit, the beginning and the end.
type Span = (Option<usize>, Instant, Instant);

/// A span that has not ended.
#[must_use = "it ends when it is dropped"]
pub(crate) struct Blame {
    spans: Spans,
    culprit: Option<usize>,
    begun: Instant,
}

impl Drop for Blame {
    fn drop(&mut self) {
        let span = (self.culprit, self.begun, Instant::now() + AFTERMATH);
        self.spans.0.lock().expect("no holder panics").push(span);
    }
}

impl Spans {
    /// Whether any of the spans that `counts` overlaps this answer.
    fn overlap(&self, answer: &Answer, counts: impl Fn(Option<usize>) -> bool) -> bool {
        let spans = self.0.lock().expect("no holder panics");
        let end = answer.asked + answer.took;
        spans.iter().any(|(culprit, from, to)| counts(*culprit) && answer.asked < *to && *from < end)
    }

    /// What was asked of a replica that had no part in a fault was answered in time, whatever befell the others.
    pub(crate) fn judge(&self, answers: &[Answer], seed: u64) {
        let own = |answer: &Answer| self.overlap(answer, |culprit| culprit == Some(answer.replica));
        let database = |answer: &Answer| self.overlap(answer, |culprit| culprit.is_none());
        let healthy: Vec<_> = answers.iter().filter(|answer| !own(answer)).collect();
        let (cached, asked): (Vec<_>, Vec<_>) = healthy.into_iter().partition(|answer| answer.cached);
        let calm: Vec<_> = asked.into_iter().filter(|answer| !database(answer)).collect();
        let beside = calm.iter().copied().filter(|answer| self.overlap(answer, |culprit| culprit.is_some()));
        let beside: Vec<_> = beside.collect();
        for (what, answers) in
            [("cached, at any time", cached), ("with the database there", calm), ("beside a replica's fault", beside)]
        {
            let mut took: Vec<_> = answers.iter().map(|answer| answer.took).collect();
            took.sort();
            let at = |share: usize| took.get(took.len() * share / 100).copied().unwrap_or_default();
            println!(
                "CHAOS_SEED={seed}: {} answers {what}: p50 {:?}, p99 {:?}, all within {:?}",
                took.len(),
                at(50),
                at(99),
                took.last()
            );
            assert!(at(99) < IN_TIME, "CHAOS_SEED={seed}: p99 {:?} of answers {what}", at(99));
        }
    }
}
