//! What must be true of orders at the end, whatever happened; and the clients that know what they were promised.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

use serde_json::{Value, json};
use tokio::task::JoinHandle;

use crate::{
    cluster::Cluster,
    support::{Connection, Failure, Sse, With, bounded, eventually, get, ms, post, s, send},
};

/// How many orders have not become pending once and then, once, what they are now.
pub(crate) const WRONG_HISTORIES: &str = "SELECT count(*) FROM orders WHERE status NOT IN ('confirmed', 'rejected')
    OR (SELECT array_agg(event.status ORDER BY event.id) FROM order_events event WHERE event.order_id = orders.id)
       IS DISTINCT FROM ARRAY['pending', status]";

/// Where the replicas are; `None` while one is not there.
pub(crate) type Replicas = Arc<Mutex<Vec<Option<SocketAddr>>>>;

/// Numbers that depend on nothing but a seed (splitmix64).
#[derive(Clone, Debug)]
pub(crate) struct Dice(u64);

impl Dice {
    /// The same seed gives the same numbers.
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// A number from 0 up to this one, which is left out.
    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % limit
    }
}

/// An order that a client means to have, by its key.
#[derive(Clone, Debug)]
pub(crate) struct Wish {
    sku: &'static str,
    quantity: u64,
    /// Its id, once it has been accepted.
    id: Option<String>,
}

/// Orders by their keys.
type Wishes = BTreeMap<String, Wish>;

/// Clients that place orders with keys, and ask again where they got no answer, or did.
#[derive(Debug)]
pub(crate) struct Clients {
    stop: Arc<AtomicBool>,
    tasks: Vec<JoinHandle<Wishes>>,
}

impl Clients {
    /// Starts six of them.
    pub(crate) fn start(replicas: &Replicas, dice: &mut Dice) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let client = |number| {
            let dice = Dice::new(dice.below(u64::MAX));
            tokio::spawn(client(number, Arc::clone(replicas), dice, Arc::clone(&stop)))
        };
        Self { tasks: (0..6).map(client).collect(), stop }
    }

    /// Ends them once each has an answer to all that it asked, and returns what was accepted.
    pub(crate) async fn stop(self) -> Wishes {
        self.stop.store(true, Ordering::Relaxed);
        let mut all = Wishes::new();
        for task in self.tasks {
            all.extend(task.await.expect("what a client was told holds"));
        }
        all
    }
}

async fn client(number: usize, replicas: Replicas, mut dice: Dice, stop: Arc<AtomicBool>) -> Wishes {
    let mut wishes = Wishes::new();
    while !stop.load(Ordering::Relaxed) {
        let again = dice.below(4) == 0 && !wishes.is_empty();
        let place = if again { dice.below(wishes.len() as u64) as usize } else { wishes.len() };
        let key = wishes.keys().nth(place).cloned().unwrap_or_else(|| format!("{number}-{place:06}"));
        let (sku, quantity) = match dice.below(10) {
            0 => ("SKU-2", 901), // more than there is
            1 => ("SLOW-RESERVE-200", 1),
            2 => ("FAIL-RESERVE-UNAVAILABLE-1", 1),
            _ => ("SKU-1", 1 + dice.below(5)),
        };
        let wish = wishes.entry(key.clone()).or_insert(Wish { sku, quantity, id: None });
        let _ = ask(&replicas, &mut dice, &key, wish).await;
        tokio::time::sleep(ms(10 + dice.below(60))).await;
    }
    // all is well by now: whoever has no answer gets one, and some get theirs again
    let again = wishes.len() / 20 + 1;
    let unanswered = |(number, wish): (usize, &Wish)| wish.id.is_none() || number % again == 0;
    let asked: Vec<bool> = wishes.values().enumerate().map(unanswered).collect();
    for ((key, wish), _) in wishes.iter_mut().zip(asked).filter(|(_, asked)| *asked) {
        // not `eventually`: a future with an async closure in it cannot be spawned
        let deadline = Instant::now() + s(60);
        while let Err(error) = ask(&replicas, &mut dice, key, wish).await {
            assert!(Instant::now() < deadline, "the order {key}: {error}");
            tokio::time::sleep(ms(50)).await;
        }
    }
    wishes
}

/// Asks one of the replicas, and holds it to what was said before.
async fn ask(replicas: &Replicas, dice: &mut Dice, key: &str, wish: &mut Wish) -> Result<(), Failure> {
    let known: Vec<_> = replicas.lock().expect("no holder panics").iter().flatten().copied().collect();
    if known.is_empty() {
        return Err("no replica is there".into());
    }
    let address = known[dice.below(known.len() as u64) as usize];
    let body = json!({ "sku": wish.sku, "quantity": wish.quantity });
    let request = post("/v1/orders", &body).with("idempotency-key", key);
    let reply = tokio::time::timeout(s(12), send(address, request)).await??;
    match reply.status {
        201 => {
            let order = reply.json();
            let id = order["id"].as_str().expect("an order has an id").to_owned();
            let first = wish.id.get_or_insert_with(|| id.clone());
            assert_eq!(*first, id, "the key {key} has its order for ever");
            assert_eq!((&order["sku"], &order["quantity"]), (&json!(wish.sku), &json!(wish.quantity)), "{key}");
            Ok(())
        }
        503 | 504 => Err(format!("{}", reply.status).into()),
        _ => panic!("{key}: {reply:?}"),
    }
}

/// A reader of events that begins again after the last one it has seen, on whichever replica is there.
#[derive(Debug)]
pub(crate) struct Reader {
    seen: Arc<Mutex<Vec<(i64, String, String)>>>,
    task: JoinHandle<()>,
}

impl Reader {
    /// Starts it.
    pub(crate) fn start(replicas: &Replicas) -> Self {
        let (seen, replicas) = (Arc::new(Mutex::new(Vec::new())), Arc::clone(replicas));
        let task = tokio::spawn(read(replicas, Arc::clone(&seen)));
        Self { seen, task }
    }

    /// What it has seen: id, order and status of each event, in the order in which they came.
    fn seen(&self) -> Vec<(i64, String, String)> {
        self.seen.lock().expect("no holder panics").clone()
    }
}

async fn read(replicas: Replicas, seen: Arc<Mutex<Vec<(i64, String, String)>>>) {
    for turn in 0_usize.. {
        let known: Vec<_> = replicas.lock().expect("no holder panics").iter().flatten().copied().collect();
        let last = seen.lock().expect("no holder panics").last().map_or(0, |(id, ..)| *id);
        if let Some(address) = known.get(turn % known.len().max(1)) {
            let _ = follow(*address, last, &seen).await;
        }
        tokio::time::sleep(ms(50)).await;
    }
}

/// Reads until the stream ends or breaks, or says nothing for some seconds.
async fn follow(address: SocketAddr, last: i64, seen: &Mutex<Vec<(i64, String, String)>>) -> Result<(), Failure> {
    let last = last.to_string();
    let request = get("/v1/orders/events").with("last-event-id", &last);
    let mut connection = tokio::time::timeout(s(5), Connection::h1(address)).await??;
    let head = tokio::time::timeout(s(12), connection.open(request)).await??;
    let mut stream = Sse::of(head, connection)?;
    while let Some(event) = tokio::time::timeout(s(3), stream.try_next()).await?? {
        let order: Value = serde_json::from_str(&event.data)?;
        let id = event.id.parse()?;
        let order = order["id"].as_str().expect("an order has an id").to_owned();
        seen.lock().expect("no holder panics").push((id, order, event.event));
    }
    Ok(())
}

/// Every order that was accepted exists once and has come to one end, every event was written once and seen once.
pub(crate) async fn check(cluster: &Cluster, accepted: Wishes, reader: Reader, seed: u64) {
    let mut connection = cluster.connect().await;
    let pending = "SELECT count(*) FROM orders WHERE status = 'pending'";
    let none = async || {
        let pending: i64 = sqlx::query_scalar(pending).fetch_one(&mut connection).await.expect("it answers");
        if pending == 0 { Ok(()) } else { Err(pending) }
    };
    eventually("no order is pending", s(90), none).await;
    // events are numbered a moment after their commit
    let none = async || {
        let wrong: i64 = sqlx::query_scalar(WRONG_HISTORIES).fetch_one(&mut connection).await.expect("it answers");
        if wrong == 0 { Ok(()) } else { Err(wrong) }
    };
    eventually(&format!("CHAOS_SEED={seed}: each history is pending and then one end"), s(10), none).await;

    let sql = "SELECT idempotency_key, id::text, status, quantity FROM orders ORDER BY idempotency_key";
    let orders: Vec<(String, String, String, i32)> =
        sqlx::query_as(sql).fetch_all(&mut connection).await.expect("it answers");
    assert_eq!(orders.len(), accepted.len(), "CHAOS_SEED={seed}: an order for each key, and no other");
    for (key, id, status, quantity) in &orders {
        let wish = accepted.get(key).unwrap_or_else(|| panic!("nobody placed {key}"));
        assert_eq!(wish.id.as_ref(), Some(id), "{key}");
        assert_eq!(status, if *quantity > 900 { "rejected" } else { "confirmed" }, "{key}");
    }

    let sql = "SELECT id, order_id::text, status FROM order_events ORDER BY id";
    let events: Vec<(i64, String, String)> = sqlx::query_as(sql).fetch_all(&mut connection).await.expect("it answers");
    bounded("the reader has them all", s(30), async {
        while reader.seen().len() < events.len() {
            tokio::time::sleep(ms(50)).await;
        }
    })
    .await;
    reader.task.abort();
    assert!(reader.seen() == events, "CHAOS_SEED={seed}: what the reader saw is not what there is");
    println!("CHAOS_SEED={seed}: {} orders, {} events, none lost, none twice, in order", orders.len(), events.len());
}
