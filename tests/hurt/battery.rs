//! All of it at once, while twenty clients that mean no harm lose nothing and hardly notice; then the stop, in the middle
//! of it. Ten seconds, or `BATTERY_SECONDS`.

use std::{
    collections::BTreeSet,
    fs,
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use serde_json::json;
use tokio::{task::JoinSet, time::sleep};

use crate::{
    CHEAP, MIB, attacks, many_sockets,
    support::{Connection, Failure, Output, Reply, Signal, Sse, World, get, ms, os, post, s},
};

/// A pod's.
const MEMORY: u64 = 256 * MIB;

/// What the well-behaved saw.
#[derive(Debug, Default)]
struct Seen {
    took: Vec<Duration>,
    ordered: BTreeSet<String>,
    failures: Vec<String>,
}

type Notes = Arc<Mutex<Seen>>;

/// Keeps its connection, leaves when it is told to, and ends when nobody listens any more.
async fn behaves(address: SocketAddr, notes: Notes, posts: bool) {
    while let Ok(mut connection) = Connection::h1(address).await {
        loop {
            let order = json!({ "sku": "SKU-1", "quantity": 1 });
            let (asked, request) = (Instant::now(), if posts { post("/v1/orders", &order) } else { get(CHEAP) });
            let answer = connection.send(request).await;
            if note(&mut notes.lock().expect("nobody panics"), asked.elapsed(), answer, posts) {
                break;
            }
            sleep(ms(50)).await;
        }
    }
}

/// Whether its connection has ended.
fn note(seen: &mut Seen, took: Duration, answer: Result<Reply, Failure>, posts: bool) -> bool {
    match answer {
        Ok(reply) if reply.status == if posts { 201 } else { 200 } => {
            seen.took.push(took);
            if posts {
                seen.ordered.insert(reply.json()["id"].as_str().expect("an id").to_owned());
            }
            reply.header("connection") == "close"
        }
        other => {
            seen.failures.push(format!("after {took:?}: {other:?}"));
            true
        }
    }
}

/// Reads events, and comes back where the stream ended, until nobody listens any more: the orders it has seen.
async fn listens(address: SocketAddr) -> BTreeSet<String> {
    let (mut orders, mut position) = (BTreeSet::new(), None::<String>);
    while let Ok(connection) = Connection::h1(address).await {
        let mut events = Sse::open_on(connection, "/v1/orders/events", position.as_deref()).await;
        while let Some(event) = events.next().await {
            orders.insert(event.json()["id"].as_str().expect("an id").to_owned());
        }
        position = Some(events.position.clone());
    }
    orders
}

/// A control group of the kernel's with that much memory, if this machine lets us make one.
struct Group(PathBuf);

impl Group {
    fn new() -> Option<Self> {
        let name = format!("battery-{}", std::process::id());
        [("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), ("/sys/fs/cgroup", "memory.max")].iter().find_map(
            |(root, limit)| {
                let group = Self(PathBuf::from(root).join(&name));
                fs::create_dir(&group.0).ok()?;
                fs::write(group.0.join(limit), MEMORY.to_string()).ok()?;
                Some(group)
            },
        )
    }

    /// Whatever is started under this is in the group.
    fn script(&self) -> String {
        format!("echo $$ >{}/cgroup.procs && exec \"$0\" \"$@\"", self.0.display())
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_battery_costs_the_well_behaved_nothing() {
    many_sockets();
    let seconds = std::env::var("BATTERY_SECONDS").map_or(10, |text| text.parse().expect("a number"));
    let world = World::new().await;
    let group = Group::new();
    let launch = world.service().unset("lifecycle.drain_http").set("database.max_connections", 10);
    let launch = match &group {
        Some(group) => launch.under(["sh", "-c", &group.script()]),
        None => launch,
    };
    // nobody reads its log
    let service = launch.stdout(Output::Unread).ready().await;
    let (public, admin) = (service.http().await, service.admin().await);
    let notes = Notes::default();
    let (mut clients, mut listeners) = (JoinSet::new(), JoinSet::new());
    for number in 0..14 {
        clients.spawn(behaves(public, Arc::clone(&notes), number % 2 == 0));
    }
    for _ in 0..6 {
        listeners.spawn(listens(public));
    }
    let attacks = attacks::begin(public, admin);
    let (began, mut largest, mut probes) = (Instant::now(), 0, Vec::new());
    let (mut failed, mut repeated, mut worst) = (0, 0, 0);
    while began.elapsed() < s(seconds) {
        for path in ["/livez", "/readyz"] {
            let asked = Instant::now();
            let answer = service.try_probe(path).await;
            // a connection that has sent nothing for 100 ms makes room for the next: a kubelet asks three times
            repeated = if answer.is_ok_and(|reply| reply.status == 200) { 0 } else { repeated + 1 };
            (failed, worst) = (failed + usize::from(repeated > 0), worst.max(repeated));
            probes.push(asked.elapsed());
        }
        largest = largest.max(os::resident(service.pid()));
        sleep(ms(100)).await;
    }
    let asked = Instant::now();
    service.signal(Signal::TERM);
    let exit = service.exit(s(25)).await;
    let stopped = asked.elapsed();
    assert_eq!(exit.code, Some(0), "{exit:?} after {stopped:?}");
    clients.join_all().await;
    drop(attacks);
    let mut seen = std::mem::take(&mut *notes.lock().expect("nobody panics"));
    seen.took.sort_unstable();
    probes.sort_unstable();
    let p99 = seen.took[seen.took.len() * 99 / 100];
    let (answers, orders, largest) = (seen.took.len(), seen.ordered.len(), largest / MIB);
    println!(
        "{answers} answers, p99 {p99:?}; slowest of {} probes {:?}, {failed} failed; at most {largest} MiB; stopped in {stopped:?}",
        probes.len(),
        probes.last()
    );
    assert_eq!(seen.failures, Vec::<String>::new());
    assert!(orders > 0 && p99 < ms(100), "p99 {p99:?}");
    assert!(worst < 3, "{worst} probes failed one after the other");
    assert!(probes.last() < Some(&s(1)), "{:?}", probes.last());
    assert!(largest < MEMORY / MIB, "{largest} MiB");
    for heard in listeners.join_all().await {
        assert_eq!(seen.ordered.difference(&heard).count(), 0, "an order that a listener has not heard of");
    }
}
