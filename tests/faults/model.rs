//! What must be true of orders at the end, whatever happened; and the reader that has seen all of it.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use serde_json::Value;
use tokio::task::JoinHandle;

use crate::{
    clients::Wishes,
    cluster::Cluster,
    support::{Connection, Failure, Sse, With, bounded, eventually, get, ms, s},
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

    let sql = "SELECT idempotency_key, id::text, status FROM orders ORDER BY idempotency_key";
    let orders: Vec<(String, String, String)> =
        sqlx::query_as(sql).fetch_all(&mut connection).await.expect("it answers");
    assert_eq!(orders.len(), accepted.len(), "CHAOS_SEED={seed}: an order for each key, and no other");
    for (key, id, status) in &orders {
        let wish = accepted.get(key).unwrap_or_else(|| panic!("nobody placed {key}"));
        assert_eq!(wish.id.as_ref(), Some(id), "{key}");
        assert_eq!(status, wish.end(), "{key}");
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
