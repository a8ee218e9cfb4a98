//! Clients that go on whatever happens, and what they were told.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use serde_json::json;
use tokio::task::JoinHandle;

use crate::support::{Service, get, ms, post, send};

/// An answer.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    asked: Instant,
    took: Duration,
    status: u16,
    retry_after: bool,
}

/// Eight clients: half of what they ask reads, half writes.
#[derive(Debug)]
pub(crate) struct Load {
    stop: Arc<AtomicBool>,
    answers: Arc<Mutex<Vec<Answer>>>,
    clients: Vec<JoinHandle<()>>,
}

impl Load {
    /// Starts them.
    pub(crate) async fn on(service: &Service) -> Self {
        let address = service.http().await;
        let (stop, answers) = (Arc::new(AtomicBool::new(false)), Arc::default());
        let client = |number| tokio::spawn(client(address, number, Arc::clone(&stop), Arc::clone(&answers)));
        let clients = (0..8).map(client).collect();
        Self { stop, answers, clients }
    }

    /// Every answer to what was asked since.
    fn since(&self, since: Instant) -> Vec<Answer> {
        let answers = self.answers.lock().expect("no client panics");
        answers.iter().filter(|answer| answer.asked >= since).cloned().collect()
    }

    /// Whether both a read and a write asked since then went well.
    pub(crate) fn serves(&self, since: Instant) -> bool {
        [200, 201].iter().all(|wanted| self.since(since).iter().any(|answer| answer.status == *wanted))
    }

    /// Checks that since then each answer was given within `bound`, and was well or a 503 with `Retry-After`, of which
    /// there was at least one.
    pub(crate) fn only_503s(&self, since: Instant, bound: Duration) {
        let answers = self.since(since);
        let mut counts = BTreeMap::new();
        answers.iter().for_each(|answer| *counts.entry(answer.status).or_insert(0) += 1);
        let slowest = answers.iter().map(|answer| answer.took).max().unwrap_or_default();
        println!("answers by status: {counts:?}, the slowest after {slowest:?}");
        for answer in &answers {
            assert!(matches!(answer.status, 200 | 201 | 503), "{answer:?}");
            assert!(answer.status != 503 || answer.retry_after, "{answer:?}");
            assert!(answer.took < bound, "{answer:?}");
        }
        assert!(counts.contains_key(&503), "nobody noticed: {counts:?}");
    }

    /// Checks that everything asked since then went well.
    pub(crate) fn went_well(&self, since: Instant) {
        let answers = self.since(since);
        assert!(answers.len() > 20, "hardly anything was asked: {answers:?}");
        for answer in answers {
            assert!(matches!(answer.status, 200 | 201), "{answer:?}");
        }
    }

    /// Ends them, and returns how many orders were accepted.
    pub(crate) async fn stop(self) -> usize {
        self.stop.store(true, Ordering::Relaxed);
        for client in self.clients {
            client.await.expect("a client does not panic");
        }
        let answers = self.answers.lock().expect("no client panics");
        answers.iter().filter(|answer| answer.status == 201).count()
    }
}

async fn client(address: SocketAddr, number: usize, stop: Arc<AtomicBool>, answers: Arc<Mutex<Vec<Answer>>>) {
    for turn in number.. {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        let request = match turn % 2 {
            0 => get("/v1/orders?limit=5"),
            _ => post("/v1/orders", &json!({ "sku": "SKU-1", "quantity": 1 })),
        };
        let asked = Instant::now();
        let reply = send(address, request).await.expect("the service answers");
        let retry_after = reply.header("retry-after").parse::<u32>().is_ok();
        let answer = Answer { asked, took: asked.elapsed(), status: reply.status, retry_after };
        answers.lock().expect("no client panics").push(answer);
        tokio::time::sleep(ms(20)).await;
    }
}
