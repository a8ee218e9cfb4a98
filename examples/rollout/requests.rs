//! The clients that ask and get an answer, on a connection that they keep or one for each request.

use std::sync::Arc;

use serde_json::Value;
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;

use crate::{
    client::{Call, Connection, Failure, Lost, Unanswered, Version},
    load::Shop,
    report::Kind,
};

/// A client that keeps its connection, or does not. The requests of one HTTP/2 client share it.
#[derive(Debug)]
pub(crate) struct Client {
    kind: Kind,
    kept: Mutex<Option<Connection>>,
}

/// A stream may be refused by one server after another; by so many, something is wrong.
const TRIES: usize = 10;

impl Client {
    pub(crate) fn new(kind: Kind) -> Arc<Self> {
        Arc::new(Self { kind, kept: Mutex::default() })
    }

    fn version(&self) -> Version {
        match self.kind {
            Kind::Http2 | Kind::Http2PerRequest => Version::Http2,
            Kind::KeepAlive | Kind::PerRequest | Kind::WebSocket | Kind::Sse => Version::Http1,
        }
    }

    fn keeps(&self) -> bool {
        matches!(self.kind, Kind::KeepAlive | Kind::Http2)
    }

    /// A connection to use, and whether it has been used before.
    async fn connection(&self, shop: &Shop) -> Result<(Connection, bool), Lost> {
        let mut kept = self.kept.lock().await;
        if let Some(mut connection) = kept.take()
            && connection.usable().await
        {
            *kept = connection.share();
            return Ok((connection, true));
        }
        let connection = Connection::open(shop.address, self.version()).await?;
        if self.keeps() {
            *kept = connection.share();
        }
        Ok((connection, false))
    }

    async fn ask(&self, shop: &Shop, call: &Call) -> Result<Value, Lost> {
        for _ in 0..TRIES {
            let (mut connection, used) = self.connection(shop).await?;
            match connection.ask(call).await {
                Ok(answer) => {
                    if self.kind == Kind::KeepAlive {
                        *self.kept.lock().await = Some(connection);
                    }
                    return Ok(answer);
                }
                Err(Unanswered::Unsent) if used => shop.recorder.unsent(),
                Err(Unanswered::Unsent) => {
                    return Err(Lost::new(Failure::Cut, "a new connection was closed at once"));
                }
                Err(Unanswered::Refused) => {
                    shop.recorder.refused();
                    *self.kept.lock().await = None;
                }
                Err(Unanswered::Lost(lost)) => return Err(lost),
            }
        }
        Err(Lost::new(Failure::Cut, "refused over and over"))
    }

    /// Asks, checks the answer, thinks, until told to stop.
    pub(crate) async fn work(self: Arc<Self>, shop: Shop, stop: CancellationToken) {
        while !stop.is_cancelled() {
            let (call, expected) = shop.next();
            let at = shop.recorder.now();
            let outcome = self.ask(&shop, &call).await.and_then(|answer| shop.check(&expected, &answer));
            shop.recorder.ended(self.kind, call.method == "POST", at, outcome);
            shop.think().await;
        }
    }
}
