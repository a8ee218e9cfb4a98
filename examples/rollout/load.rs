//! The clients: so many of each kind, at work until they are told to stop.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::Context as _;
use serde_json::Value;
use tokio::{task::JoinSet, time::sleep};
use tokio_util::sync::CancellationToken;

use crate::{
    audit::{self, Audit},
    client::{Call, Failure, Lost, Version},
    report::{Kind, Recorder},
    requests::Client,
    streams::Feed,
};

/// How many clients of each kind, and how busy they are.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sizes {
    /// Of each kind that sends requests: kept alive or not, HTTP/1.1 or HTTP/2.
    pub(crate) clients: usize,
    /// Requests that one HTTP/2 connection carries at once.
    pub(crate) streams_each: usize,
    /// Of each kind that follows the orders: WebSocket, SSE over HTTP/1.1, SSE over HTTP/2.
    pub(crate) feeds: usize,
    /// Between an answer and the next request, on average. Idle connections are the hard part of a stop.
    pub(crate) think: Duration,
    /// One request in so many makes an order.
    pub(crate) orders: u64,
}

/// What all clients share.
#[derive(Clone, Debug)]
pub(crate) struct Shop {
    pub(crate) address: SocketAddr,
    pub(crate) recorder: Recorder,
    /// The orders that were answered with 201, by id.
    pub(crate) made: Arc<Mutex<Vec<String>>>,
    sizes: Sizes,
    turn: Arc<AtomicU64>,
    /// Tells this run's idempotency keys from those of any other.
    run: u128,
}

impl Shop {
    fn turn(&self) -> u64 {
        self.turn.fetch_add(1, Ordering::Relaxed)
    }

    pub(crate) fn order(&self) -> Call {
        let turn = self.turn();
        let call = Call::get("/v1/orders")
            .header("content-type", "application/json")
            .header("idempotency-key", format!("{}-{turn}", self.run));
        Call { method: "POST", body: format!(r#"{{"sku":"SKU-{}","quantity":1}}"#, turn % 100 + 1), ..call }
    }

    /// The next request of the mix: mostly reads from the cache, some from the database, some that write.
    pub(crate) fn next(&self) -> (Call, Expected) {
        let turn = self.turn();
        match turn % self.sizes.orders {
            0 => return (self.order(), Expected::New),
            1 | 2 => {
                let made = self.made.lock().expect("no writer panics");
                if let Some(id) = made.get(scatter(turn) as usize % made.len().max(1)) {
                    return (Call::get(format!("/v1/orders/{id}")), Expected::Field("id", id.clone()));
                }
            }
            _ => {}
        }
        let sku = format!("SKU-{}", turn % 100 + 1);
        (Call::get(format!("/v1/products/{sku}")), Expected::Field("sku", sku))
    }

    /// Notes an order's id, or checks that the answer belongs to the question.
    pub(crate) fn check(&self, expected: &Expected, answer: &Value) -> Result<(), Lost> {
        match expected {
            Expected::New => {
                let id = answer["id"].as_str().ok_or_else(|| Lost::new(Failure::Wrong, answer))?;
                self.made.lock().expect("no writer panics").push(id.to_owned());
            }
            Expected::Field(name, value) => {
                if answer[*name] != **value {
                    return Err(Lost::new(Failure::Wrong, answer));
                }
            }
        }
        Ok(())
    }

    /// The time that a person would take, or the next caller.
    pub(crate) async fn think(&self) {
        let twice = self.sizes.think.as_micros() as u64 * 2;
        sleep(Duration::from_micros(scatter(self.turn()) % twice.max(1))).await;
    }
}

/// What an answer has to say to be the right one.
#[derive(Debug)]
pub(crate) enum Expected {
    New,
    Field(&'static str, String),
}

/// Spreads counted numbers evenly (splitmix64): a run needs variety, not chance.
pub(crate) fn scatter(number: u64) -> u64 {
    let mixed = number.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    mixed ^ (mixed >> 31)
}

/// All clients of a run.
#[derive(Debug)]
pub(crate) struct Load {
    pub(crate) shop: Shop,
    pub(crate) feeds: Vec<Arc<Feed>>,
    work: JoinSet<()>,
    stop_work: CancellationToken,
    following: JoinSet<()>,
    stop_following: CancellationToken,
}

impl Load {
    /// Opens the feeds, waits until each has shown its first event, then starts the rest: from here on no feed may miss one.
    pub(crate) async fn start(address: SocketAddr, recorder: Recorder, sizes: Sizes) -> anyhow::Result<Self> {
        let run = std::time::UNIX_EPOCH.elapsed().context("the clock")?.as_millis();
        let shop = Shop { address, recorder, made: Arc::default(), sizes, turn: Arc::default(), run };
        let (stop_work, stop_following) = (CancellationToken::new(), CancellationToken::new());

        let kinds = [(Kind::WebSocket, Version::Http1), (Kind::Sse, Version::Http1), (Kind::Sse, Version::Http2)];
        let feeds: Vec<_> = kinds
            .iter()
            .flat_map(|&(kind, version)| (0..sizes.feeds).map(move |_| Arc::new(Feed::new(kind, version))))
            .collect();
        let mut following = JoinSet::new();
        for feed in &feeds {
            following.spawn(Arc::clone(feed).follow(shop.clone(), stop_following.clone()));
        }
        audit::prime(&shop, &feeds).await?;

        let mut work = JoinSet::new();
        for kind in [Kind::KeepAlive, Kind::PerRequest, Kind::Http2, Kind::Http2PerRequest] {
            for _ in 0..sizes.clients {
                let client = Client::new(kind);
                for _ in 0..if kind == Kind::Http2 { sizes.streams_each } else { 1 } {
                    work.spawn(Arc::clone(&client).work(shop.clone(), stop_work.clone()));
                }
            }
        }
        Ok(Self { shop, feeds, work, stop_work, following, stop_following })
    }

    /// Lets every request end, then holds what the feeds have shown against the list of orders.
    pub(crate) async fn finish(mut self) -> anyhow::Result<Audit> {
        self.stop_work.cancel();
        while let Some(ended) = self.work.join_next().await {
            ended.context("a client panicked")?;
        }
        let audit = audit::audit(&self.shop, &self.feeds).await;
        self.stop_following.cancel();
        while let Some(ended) = self.following.join_next().await {
            ended.context("a feed panicked")?;
        }
        audit
    }
}
