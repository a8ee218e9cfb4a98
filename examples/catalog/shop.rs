//! `catalog.v1.Catalog`, whose products say by their names how calls about them go.
//!
//! | sku | `GetProduct` | `Reserve` |
//! |---|---|---|
//! | `SKU-1` … `SKU-100` | the product; only these does `ListProducts` name | accepted up to 900 pieces, else `out of stock` |
//! | `SLOW-<ms>` | the product, that many milliseconds later | the same answer, as much later |
//! | `SLOW-RESERVE-<ms>` | the product | later |
//! | `FAIL-<code>` | that gRPC code, by name (`UNAVAILABLE`) or number (`14`) | that code |
//! | `FAIL-RESERVE-<code>` | the product | that code |
//! | `ODD-<any>` | the product | not accepted, with a reason of 10,000 characters, a NUL among them |
//! | anything else | `NOT_FOUND` | not accepted: `unknown sku` |
//!
//! `FAIL-…<code>-<times>` fails so many times (counted by sku in `GetProduct`, by order in `Reserve`), then works. A
//! reservation is made before its slow answer is sent: who gives up and asks again for the same order gets the same
//! answer, and gets it at once.
//!
//! Each `GetProduct` and each `Reserve` is one more line on standard output, so that a test can count them and see
//! what came with them: `Reserve order_id=… sku=SKU-1 quantity=1 answer=accepted grpc-timeout=900m traceparent=-`.

use std::{collections::HashMap, sync::Mutex, time::Duration};

use tokio::time::sleep;
use tonic::{Code, Request, Response, Status, metadata::MetadataMap};

use super::say;
use contract::catalog_server::{Catalog, CatalogServer};
use contract::{GetProductRequest, ListProductsRequest, Product, ReserveRequest, ReserveResponse};

#[allow(missing_docs, unreachable_pub, reason = "generated")]
mod contract {
    tonic::include_proto!("catalog.v1");
}

/// So much there is of every product.
const STOCK: i32 = 900;

/// The catalog, to be added to a server.
pub(super) fn service() -> CatalogServer<impl Catalog> {
    CatalogServer::new(Shop::default())
}

/// How a call about a product goes: so late, and with this error so many times.
#[derive(Clone, Copy, Debug, Default)]
struct Behaviour {
    late: Duration,
    fail: Option<(Code, u32)>,
}

/// How `GetProduct` and `Reserve` go for this sku; `None` where there is no such product.
fn behaviour(sku: &str) -> Option<(Behaviour, Behaviour)> {
    let mut behaviour = Behaviour::default();
    if listed().any(|listed| listed == sku) {
        return Some((behaviour, behaviour));
    }
    let (kind, rest) = sku.split_once('-')?;
    let rule = rest.strip_prefix("RESERVE-").unwrap_or(rest);
    match kind {
        "SLOW" => behaviour.late = Duration::from_millis(rule.parse().ok()?),
        "FAIL" => behaviour.fail = Some(failure(rule)?),
        "ODD" => return Some((behaviour, behaviour)),
        _ => return None,
    }
    let lookup = if rule == rest { behaviour } else { Behaviour::default() };
    Some((lookup, behaviour))
}

/// `UNAVAILABLE` and `14` are for ever, `UNAVAILABLE-2` is twice.
fn failure(rule: &str) -> Option<(Code, u32)> {
    let (code, times) = match rule.split_once('-') {
        Some((code, times)) => (code, times.parse().ok()?),
        None => (rule, u32::MAX),
    };
    let name = code.replace('_', "");
    let named = |known: &Code| name.eq_ignore_ascii_case(&format!("{known:?}"));
    let numbered = |known: &Code| code == (*known as i32).to_string();
    let found = (1..=16).map(Code::from_i32).find(|known| named(known) || numbered(known))?;
    Some((found, times))
}

fn listed() -> impl Iterator<Item = String> {
    (1..=100).map(|number| format!("SKU-{number}"))
}

fn product(sku: &str) -> Product {
    let number = sku.strip_prefix("SKU-").map_or(Ok(1), str::parse);
    let price_cents = 100 * number.unwrap_or(1);
    Product { sku: sku.to_owned(), name: format!("Product {sku}"), price_cents }
}

/// What a caller should send along: the time it has left, and the trace it is part of.
fn carried(metadata: &MetadataMap) -> String {
    let value = |name: &str| metadata.get(name).and_then(|value| value.to_str().ok()).unwrap_or("-");
    format!("grpc-timeout={} traceparent={}", value("grpc-timeout"), value("traceparent"))
}

#[derive(Debug, Default)]
struct Shop {
    /// How often each product or order was made to fail.
    failures: Mutex<HashMap<String, u32>>,
    /// The answer each order got.
    reservations: Mutex<HashMap<String, ReserveResponse>>,
}

impl Shop {
    /// Fails as often as `behaviour` wants it; `key` is what that is counted by.
    fn fail(&self, behaviour: Behaviour, key: &str) -> Result<(), Status> {
        let (code, times) = behaviour.fail.unwrap_or((Code::Ok, 0));
        let mut failures = self.failures.lock().expect("no holder panics");
        let failed = failures.entry(key.to_owned()).or_default();
        if *failed >= times {
            return Ok(());
        }
        *failed += 1;
        Err(Status::new(code, "as the sku says"))
    }

    /// The answer for an order, and how late it is to be given.
    fn reservation(&self, order: &ReserveRequest) -> Result<(ReserveResponse, Duration), Status> {
        let known = self.reservations.lock().expect("no holder panics").get(&order.order_id).cloned();
        if let Some(answer) = known {
            return Ok((answer, Duration::ZERO));
        }
        let behaviour = behaviour(&order.sku).map(|(_, reserve)| reserve);
        self.fail(behaviour.unwrap_or_default(), &order.order_id)?;
        let reason = match behaviour {
            None => "unknown sku",
            Some(_) if order.quantity > STOCK => "out of stock",
            Some(_) => "",
        };
        let reason = match order.sku.starts_with("ODD-") {
            true => format!("out\0of stock{}", "!".repeat(10_000)),
            false => reason.to_owned(),
        };
        let answer = ReserveResponse { accepted: reason.is_empty(), reason };
        let mut reservations = self.reservations.lock().expect("no holder panics");
        reservations.insert(order.order_id.clone(), answer.clone());
        Ok((answer, behaviour.unwrap_or_default().late))
    }
}

type Answer<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl Catalog for Shop {
    type ListProductsStream = tokio_stream::Iter<std::vec::IntoIter<Result<Product, Status>>>;

    async fn get_product(&self, request: Request<GetProductRequest>) -> Answer<Product> {
        let sku = &request.get_ref().sku;
        say(&format!("GetProduct sku={sku} {}", carried(request.metadata())));
        let (behaviour, _) = behaviour(sku).ok_or_else(|| Status::not_found("unknown sku"))?;
        self.fail(behaviour, sku)?;
        sleep(behaviour.late).await;
        Ok(Response::new(product(sku)))
    }

    async fn list_products(&self, _: Request<ListProductsRequest>) -> Answer<Self::ListProductsStream> {
        let products: Vec<_> = listed().map(|sku| Ok(product(&sku))).collect();
        Ok(Response::new(tokio_stream::iter(products)))
    }

    async fn reserve(&self, request: Request<ReserveRequest>) -> Answer<ReserveResponse> {
        let order = request.get_ref();
        let outcome = self.reservation(order);
        let answer = match &outcome {
            Ok((answer, _)) if answer.accepted => "accepted".to_owned(),
            Ok(_) => "refused".to_owned(),
            Err(status) => format!("{:?}", status.code()),
        };
        let ReserveRequest { order_id, sku, quantity } = order;
        let order = format!("order_id={order_id} sku={sku} quantity={quantity}");
        say(&format!("Reserve {order} answer={answer} {}", carried(request.metadata())));
        let (answer, late) = outcome?;
        sleep(late).await;
        Ok(Response::new(answer))
    }
}
