//! Everything at once, at random: what was accepted is there once, whatever happened.
//!
//! `CHAOS_SECONDS` says for how long (`make chaos` does), `CHAOS_SEED` which schedule; the seed of each run is printed.

use std::{
    env,
    sync::{Arc, Mutex},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use crate::{
    cluster::Cluster,
    model::{Clients, Dice, Reader, Replicas, check},
    support::{Catalog, Launch, Proxy, Service, Signal, eventually, ms, s},
};

const REPLICAS: usize = 2;

/// Everything that can be broken.
struct Stage {
    cluster: Cluster,
    database: Proxy,
    catalogue: Proxy,
    catalog: Catalog,
    services: Vec<Service>,
    replicas: Replicas,
}

impl Stage {
    async fn new() -> Option<Self> {
        let cluster = Cluster::start().await?;
        let catalog = Catalog::start().await;
        let database = Proxy::before(cluster.address());
        let catalogue = Proxy::before(("127.0.0.1".to_owned(), catalog.address.port()));
        let replicas = Arc::new(Mutex::new(vec![None; REPLICAS]));
        let mut stage = Self { cluster, database, catalogue, catalog, services: Vec::new(), replicas };
        for number in 0..REPLICAS {
            let service = stage.launch().ready().await;
            stage.announce(number, Some(&service)).await;
            stage.services.push(service);
        }
        Some(stage)
    }

    fn launch(&self) -> Launch {
        Launch::new()
            .set("database.url", crate::cluster::Cluster::url_at(self.database.address.port()))
            .set("catalog.endpoint", format!("http://{}", self.catalogue.address))
            .set("database.max_connections", 4)
            .set("database.acquire_timeout", "1s")
            .set("database.statement_timeout", "1s")
            .set("readiness.interval", "200ms")
            .set("worker.poll_interval", "100ms")
            .set("worker.concurrency", 2)
            .set("lifecycle.drain_delay", "200ms")
            .set("lifecycle.drain_http", "5s")
    }

    /// Tells the clients where a replica is, or that it is gone.
    async fn announce(&self, number: usize, service: Option<&Service>) {
        let address = match service {
            Some(service) => Some(service.http().await),
            None => None,
        };
        self.replicas.lock().expect("no holder panics")[number] = address;
    }

    /// Replaces a replica that has ended. It need not become ready before the next fault.
    async fn replace(&mut self, number: usize) {
        self.announce(number, None).await;
        let service = self.launch().spawn();
        self.services[number] = service;
    }

    /// Replicas that listen since the last look.
    fn look(&self) {
        let mut replicas = self.replicas.lock().expect("no holder panics");
        for (address, service) in replicas.iter_mut().zip(&self.services) {
            let line = service.logged("listening").into_iter().find(|line| line["server"] == "http");
            *address = line.and_then(|line| line["address"].as_str()?.parse().ok());
        }
    }

    /// One fault, from its beginning to its end.
    async fn fault(&mut self, dice: &mut Dice) -> &'static str {
        let number = dice.below(REPLICAS as u64) as usize;
        let pause = ms(200 + dice.below(1800));
        match dice.below(12) {
            0 | 1 => {
                self.services[number].kill().await;
                self.replace(number).await;
                "service killed"
            }
            2 => {
                self.services[number].stop().await;
                self.replace(number).await;
                "service restarted"
            }
            3 => {
                self.services[number].signal(Signal::STOP);
                tokio::time::sleep(pause).await;
                self.services[number].signal(Signal::CONT);
                "service frozen"
            }
            4 => {
                self.cluster.kill().await;
                tokio::time::sleep(pause).await;
                self.cluster.restart().await;
                "database killed"
            }
            5 => {
                self.cluster.freeze();
                tokio::time::sleep(pause * 2).await;
                self.cluster.thaw();
                "database frozen"
            }
            6 => {
                cut(&self.database, dice, pause).await;
                "database cut"
            }
            7 => {
                let sql = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()";
                let mut connection = self.cluster.connect().await;
                let ended = sqlx::raw_sql(sql).execute(&mut connection).await;
                ended.expect("it answers");
                "connections ended"
            }
            8 => {
                let address = self.catalog.address.to_string();
                self.catalog.kill().await;
                tokio::time::sleep(pause).await;
                self.catalog = Catalog::start_at(&address).await;
                "catalogue killed"
            }
            9 => {
                self.catalog.signal(Signal::STOP);
                tokio::time::sleep(pause).await;
                self.catalog.signal(Signal::CONT);
                "catalogue frozen"
            }
            10 => {
                cut(&self.catalogue, dice, pause).await;
                "catalogue cut"
            }
            _ => {
                tokio::time::sleep(pause).await;
                "nothing"
            }
        }
    }
}

async fn cut(proxy: &Proxy, dice: &mut Dice, pause: Duration) {
    match dice.below(4) {
        0 => proxy.refuse(),
        1 => proxy.reset(),
        2 => proxy.blackhole(),
        _ => proxy.slow(ms(100 + dice.below(400))),
    }
    tokio::time::sleep(pause).await;
    proxy.pass();
}

/// A number from the environment.
fn given(name: &str) -> Option<u64> {
    let text = env::var(name).ok().filter(|text| !text.is_empty())?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} is a number, not {text}")))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn chaos_loses_doubles_and_reorders_no_accepted_order() {
    let seed = given("CHAOS_SEED").unwrap_or_else(|| {
        SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |now| u64::from(now.subsec_nanos()) + now.as_secs())
    });
    let time = s(given("CHAOS_SECONDS").unwrap_or(30));
    println!("CHAOS_SEED={seed}, for {time:?}");
    let Some(mut stage) = Stage::new().await else { return };
    let mut dice = Dice::new(seed);
    let clients = Clients::start(&stage.replicas, &mut dice);
    let reader = Reader::start(&stage.replicas);
    let begun = Instant::now();
    let mut faults = std::collections::BTreeMap::new();
    while begun.elapsed() < time {
        let fault = stage.fault(&mut dice).await;
        *faults.entry(fault).or_insert(0) += 1;
        let calm = Instant::now() + ms(100 + dice.below(900));
        while Instant::now() < calm {
            stage.look();
            tokio::time::sleep(ms(20)).await;
        }
    }
    println!("CHAOS_SEED={seed}: {faults:?}");
    for service in &stage.services {
        assert!(service.ended().is_none(), "it ended by itself: {:?}", service.ended());
        service.ready_within(s(30)).await;
    }
    stage.look();
    let accepted = clients.stop().await;
    eventually("clients have had orders", s(1), async || !accepted.is_empty()).await;
    check(&stage.cluster, accepted, reader, seed).await;
    for service in &stage.services {
        let exit = service.stop().await;
        assert_eq!(exit.code, Some(0), "after all that it stops in order");
    }
}
