//! The feeds held against the truth: the list of orders that the API itself gives once all is quiet.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use serde_json::Value;
use tokio::time::sleep;

use crate::{
    client::{Call, Connection, Unanswered, Version},
    load::{Expected, Shop},
    streams::Feed,
};

/// How long the last orders may take to be settled, and their events to be shown.
const SETTLED: Duration = Duration::from_secs(60);

#[derive(Debug)]
pub(crate) struct Audit {
    pub(crate) summary: String,
    pub(crate) faults: Vec<String>,
}

/// Makes orders until every feed has shown one. From then on each of them has a place to resume from.
pub(crate) async fn prime(shop: &Shop, feeds: &[Arc<Feed>]) -> anyhow::Result<()> {
    let deadline = Instant::now() + SETTLED;
    while feeds.iter().any(|feed| feed.orders().is_empty()) {
        if Instant::now() > deadline {
            bail!("not every feed has shown an order within {SETTLED:?}");
        }
        let answer = ask(shop, &shop.order()).await?;
        if let Err(lost) = shop.check(&Expected::New, &answer) {
            bail!("{lost:?}");
        }
        sleep(Duration::from_millis(200)).await;
    }
    // These are not part of the truth: a feed need not have been there for all of them.
    shop.made.lock().expect("no writer panics").clear();
    Ok(())
}

pub(crate) async fn audit(shop: &Shop, feeds: &[Arc<Feed>]) -> anyhow::Result<Audit> {
    let made: BTreeSet<String> = shop.made.lock().expect("no writer panics").iter().cloned().collect();
    let Some(first) = made.first() else { bail!("no order was made") };
    let deadline = Instant::now() + SETTLED;

    // An order whose answer was lost is in the list all the same. Ids rise with time, so the list from the first one on
    // holds all of this run but for those of the same millisecond, which nobody will miss.
    let mut orders = list(shop, first).await?;
    while orders.values().any(|status| status == "pending") && Instant::now() < deadline {
        sleep(Duration::from_millis(500)).await;
        orders = list(shop, first).await?;
    }
    let whole = |feed: &Feed| {
        let seen: BTreeSet<_> = feed.seen().into_iter().map(|event| (event.order, event.status)).collect();
        orders.iter().all(|(id, status)| seen.contains(&(id.clone(), status.clone())))
    };
    while !feeds.iter().all(|feed| whole(feed)) && Instant::now() < deadline {
        sleep(Duration::from_millis(200)).await;
    }

    let mut faults: Vec<String> = Vec::new();
    let unsettled = orders.values().filter(|status| *status == "pending").count();
    if unsettled > 0 {
        faults.push(format!("{unsettled} orders are still pending"));
    }
    let lost = made.iter().filter(|id| *id != first && !orders.contains_key(*id)).count();
    if lost > 0 {
        faults.push(format!("{lost} orders were answered with 201 and are not in the list"));
    }
    faults.extend(feeds.iter().filter_map(|feed| fault(feed, &orders)));
    let connections: usize = feeds.iter().map(|feed| feed.opened()).sum();
    let summary = format!(
        "{} orders, so {} events due on each of {} feeds, over {connections} connections: {}",
        orders.len(),
        2 * orders.len(),
        feeds.len(),
        if faults.is_empty() { "each shown exactly once, in order" } else { "NOT AS IT SHOULD BE" }
    );
    Ok(Audit { summary, faults })
}

/// What is wrong with a feed: for each order it must have shown `pending` and the outcome, each once, in rising order.
fn fault(feed: &Feed, orders: &BTreeMap<String, String>) -> Option<String> {
    let seen = feed.seen();
    let mut shown: BTreeMap<(&str, &str), usize> = BTreeMap::new();
    for event in &seen {
        *shown.entry((&event.order, &event.status)).or_default() += 1;
    }
    let due = orders.iter().flat_map(|(id, status)| [(id.as_str(), "pending"), (id.as_str(), status.as_str())]);
    let missed: BTreeSet<_> = due.filter(|event| !shown.contains_key(event)).collect();
    let doubled = shown.values().filter(|count| **count > 1).count();
    let disorder = seen.windows(2).filter(|pair| pair[0].sequence >= pair[1].sequence).count();
    let example = missed.first().map(|event| format!(", such as {event:?}")).unwrap_or_default();
    let fault =
        format!("{}: {} events missed{example}, {doubled} doubled, {disorder} out of order", feed.name(), missed.len());
    (missed.len() + doubled + disorder > 0).then_some(fault)
}

/// Every order later than `first`, and its status.
async fn list(shop: &Shop, first: &str) -> anyhow::Result<BTreeMap<String, String>> {
    let mut orders = BTreeMap::new();
    let mut after = first.to_owned();
    loop {
        let page = ask(shop, &Call::get(format!("/v1/orders?after={after}&limit=100"))).await?;
        let page = page["orders"].as_array().or(page.as_array()).context("a list of orders")?.clone();
        let Some(last) = page.last() else {
            return Ok(orders);
        };
        after = last["id"].as_str().context("an id")?.to_owned();
        let pair = |order: &Value| Some((order["id"].as_str()?.to_owned(), order["status"].as_str()?.to_owned()));
        orders.extend(page.iter().filter_map(pair));
    }
}

/// A question outside the load. It is asked until it is answered, because it is about the orders and not about the way to them.
async fn ask(shop: &Shop, call: &Call) -> anyhow::Result<Value> {
    let mut why = String::new();
    for _ in 0..20 {
        let answer = match Connection::open(shop.address, Version::Http1).await {
            Ok(mut connection) => connection.ask(call).await,
            Err(lost) => Err(Unanswered::Lost(lost)),
        };
        match answer {
            Ok(answer) => return Ok(answer),
            Err(unanswered) => why = format!("{unanswered:?}"),
        }
        sleep(Duration::from_millis(500)).await;
    }
    bail!("{} {}: {why}", call.method, call.path)
}
