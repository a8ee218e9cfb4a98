//! Clients that know what they were promised, and how long each answer took.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use serde_json::json;
use tokio::task::JoinHandle;

use crate::{
    model::{Dice, Replicas},
    support::{Failure, Outgoing, Reply, With, get, ms, post, s, send},
};

/// Three for each replica.
const CLIENTS: usize = 9;

/// Then a client gives up, and asks again later.
const PATIENCE: Duration = s(3);

/// An order that a client means to have, by its key.
#[derive(Clone, Debug)]
pub(crate) struct Wish {
    sku: &'static str,
    quantity: u64,
    /// Its id, once it has been accepted.
    pub(crate) id: Option<String>,
}

impl Wish {
    fn new(dice: &mut Dice) -> Self {
        let (sku, quantity) = match dice.below(12) {
            0 => ("SKU-2", 901), // more than there is
            1 => ("SLOW-RESERVE-200", 1),
            2 => ("FAIL-RESERVE-UNAVAILABLE-1", 1),
            3 => ("ODD-1", 1), // declined, for a reason that PostgreSQL does not store
            _ => ("SKU-1", 1 + dice.below(5)),
        };
        Self { sku, quantity, id: None }
    }

    /// What becomes of it.
    pub(crate) fn end(&self) -> &'static str {
        if self.quantity > 900 || self.sku.starts_with("ODD") { "rejected" } else { "confirmed" }
    }
}

/// Orders by their keys.
pub(crate) type Wishes = BTreeMap<String, Wish>;

/// When which replica was asked, and how long its answer took, or was waited for.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    pub(crate) replica: usize,
    /// Whether it needs no database.
    pub(crate) cached: bool,
    pub(crate) asked: Instant,
    pub(crate) took: Duration,
}

/// Clients that place orders with keys, ask again where they got no answer, or did, and read in between.
#[derive(Debug)]
pub(crate) struct Clients {
    stop: Arc<AtomicBool>,
    answers: Arc<Mutex<Vec<Answer>>>,
    tasks: Vec<JoinHandle<Wishes>>,
}

impl Clients {
    /// Starts them.
    pub(crate) fn start(replicas: &Replicas, dice: &mut Dice) -> Self {
        let (stop, answers) = (Arc::new(AtomicBool::new(false)), Arc::default());
        let client = |number| {
            let (replicas, answers) = (Arc::clone(replicas), Arc::clone(&answers));
            let dice = Dice::new(dice.below(u64::MAX));
            tokio::spawn(Client { number, replicas, dice, answers, wishes: Wishes::new() }.run(Arc::clone(&stop)))
        };
        Self { tasks: (0..CLIENTS).map(client).collect(), answers, stop }
    }

    /// Ends them once each has an answer to all that it asked, and returns what was accepted, and every answer.
    pub(crate) async fn stop(self) -> (Wishes, Vec<Answer>) {
        self.stop.store(true, Ordering::Relaxed);
        let mut all = Wishes::new();
        for task in self.tasks {
            all.extend(task.await.expect("what a client was told holds"));
        }
        let answers = self.answers.lock().expect("no client panics").clone();
        (all, answers)
    }
}

struct Client {
    number: usize,
    replicas: Replicas,
    dice: Dice,
    answers: Arc<Mutex<Vec<Answer>>>,
    wishes: Wishes,
}

impl Client {
    async fn run(mut self, stop: Arc<AtomicBool>) -> Wishes {
        while !stop.load(Ordering::Relaxed) {
            // whatever went wrong is asked again at the end
            let _ = match self.dice.below(8) {
                0 => self.read("/v1/orders?limit=5", false).await,
                1 => self.read("/v1/products/SKU-1", true).await,
                2 | 3 if !self.wishes.is_empty() => {
                    let place = self.dice.below(self.wishes.len() as u64) as usize;
                    let key = self.wishes.keys().nth(place).cloned().unwrap_or_default();
                    // on whichever replica
                    self.place(&key, None).await
                }
                _ => {
                    let key = format!("{}-{:06}", self.number, self.wishes.len());
                    let wish = Wish::new(&mut self.dice);
                    self.wishes.insert(key.clone(), wish);
                    self.place(&key, Some(self.number)).await
                }
            };
            tokio::time::sleep(ms(10 + self.dice.below(60))).await;
        }
        // all is well by now: whoever has no answer gets one, and some get theirs again
        let again = self.wishes.len() / 20 + 1;
        let unanswered = |(number, (_, wish)): &(usize, (&String, &Wish))| wish.id.is_none() || number % again == 0;
        let keys = self.wishes.iter().enumerate().filter(unanswered).map(|(_, (key, _))| key.clone());
        for key in keys.collect::<Vec<_>>() {
            // not `eventually`: a future with an async closure in it cannot be spawned
            let deadline = Instant::now() + s(60);
            while let Err(error) = self.place(&key, None).await {
                assert!(Instant::now() < deadline, "the order {key}: {error}");
                tokio::time::sleep(ms(50)).await;
            }
        }
        self.wishes
    }

    async fn read(&mut self, path: &str, cached: bool) -> Result<(), Failure> {
        let reply = self.ask(get(path), Some(self.number), cached).await?;
        match reply.status {
            200 => Ok(()),
            503 if !cached => Err("503".into()),
            _ => panic!("{path}: {reply:?}"),
        }
    }

    /// Places an order, and holds the replica to what was said before.
    async fn place(&mut self, key: &str, at: Option<usize>) -> Result<(), Failure> {
        let Wish { sku, quantity, .. } = self.wishes[key];
        let request = post("/v1/orders", &json!({ "sku": sku, "quantity": quantity })).with("idempotency-key", key);
        let reply = self.ask(request, at, false).await?;
        match reply.status {
            201 => {
                let order = reply.json();
                let id = order["id"].as_str().expect("an order has an id");
                let wish = self.wishes.get_mut(key).expect("it is wished for");
                let first = wish.id.get_or_insert_with(|| id.to_owned());
                assert_eq!(*first, id, "the key {key} has its order for ever");
                assert_eq!((&order["sku"], &order["quantity"]), (&json!(sku), &json!(quantity)), "{key}");
                Ok(())
            }
            503 | 504 => Err(format!("{}", reply.status).into()),
            _ => panic!("{key}: {reply:?}"),
        }
    }

    /// Asks this replica, or any, and notes how long that took.
    async fn ask(&mut self, request: Outgoing, at: Option<usize>, cached: bool) -> Result<Reply, Failure> {
        let (replica, address) = {
            let replicas = self.replicas.lock().expect("no holder panics");
            let number = at.unwrap_or_else(|| self.dice.below(replicas.len() as u64) as usize) % replicas.len();
            (number, replicas[number].ok_or("it is not there")?)
        };
        let asked = Instant::now();
        let reply = tokio::time::timeout(PATIENCE, send(address, request)).await;
        // a connection that is refused or breaks is no answer
        if !matches!(reply, Ok(Err(_))) {
            let answer = Answer { replica, cached, asked, took: asked.elapsed() };
            self.answers.lock().expect("no client panics").push(answer);
        }
        reply?
    }
}
