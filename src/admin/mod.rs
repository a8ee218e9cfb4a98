//! The second port, for the platform and the people who run it: probes, metrics, the drain, the status page. It is
//! served by the control thread from what is already known, so it answers however busy the service is, and to its end.

mod client;
mod status;

pub use client::{Answer, AskError, ask};

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::response::{Html, IntoResponse, Response};
use axum::routing::{get, post};
use http::header::{CACHE_CONTROL, CONTENT_TYPE, ORIGIN};
use http::{HeaderMap, StatusCode};
use serde::Serialize;

use crate::lifecycle::{CheckReport, Lifecycle, Phase, Trigger, Vitals};
use crate::server::{Connection, Problem};
use crate::telemetry::metrics::Metrics;

/// What the port shows.
#[derive(Clone)]
pub struct Admin {
    lifecycle: Lifecycle,
    metrics: Metrics,
    /// Reads the gauges that are read when somebody asks.
    gauges: Arc<dyn Fn() + Send + Sync>,
}

impl Admin {
    /// Of that service.
    pub fn new(lifecycle: &Lifecycle, metrics: Metrics, gauges: impl Fn() + Send + Sync + 'static) -> Self {
        Self { lifecycle: lifecycle.clone(), metrics, gauges: Arc::new(gauges) }
    }

    /// The port's routes.
    pub fn router(self) -> Router {
        Router::new()
            .route("/", get(page))
            .route("/livez", get(live))
            .route("/readyz", get(ready))
            .route("/startupz", get(startup))
            .route("/metrics", get(metrics))
            .route("/drain", post(drain))
            .with_state(self)
    }
}

impl std::fmt::Debug for Admin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Admin").finish_non_exhaustive()
    }
}

/// What a probe is told.
#[derive(Serialize)]
struct Verdict {
    /// `ok`, or `unavailable`.
    status: &'static str,
    phase: Phase,
    /// Why it is unavailable.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    checks: BTreeMap<&'static str, CheckReport>,
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    vitals: Option<Vitals>,
}

impl Verdict {
    fn new(ok: bool, phase: Phase) -> Self {
        let status = if ok { "ok" } else { "unavailable" };
        Self { status, phase, reason: None, checks: BTreeMap::new(), vitals: None }
    }
}

impl IntoResponse for Verdict {
    fn into_response(self) -> Response {
        let code = if self.status == "ok" { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        (code, [(CACHE_CONTROL, "no-store")], axum::Json(self)).into_response()
    }
}

/// 200 in every phase unless the process itself is beyond help.
async fn live(State(admin): State<Admin>) -> Verdict {
    let vitals = admin.lifecycle.liveness().vitals();
    let verdict = Verdict::new(vitals.error.is_none(), admin.lifecycle.phase());
    Verdict { vitals: Some(vitals), ..verdict }
}

/// 200 while traffic is welcome.
async fn ready(State(admin): State<Admin>) -> Verdict {
    let reason = admin.lifecycle.unready_reason();
    let verdict = Verdict::new(reason.is_none(), admin.lifecycle.phase());
    Verdict { reason, checks: admin.lifecycle.readiness().report(), ..verdict }
}

/// 200 once the process runs. It waits for no dependency: a startup probe that fails restarts the pod.
async fn startup(State(admin): State<Admin>) -> Verdict {
    Verdict::new(admin.lifecycle.liveness().has_started(), admin.lifecycle.phase())
}

async fn metrics(State(admin): State<Admin>) -> impl IntoResponse {
    (admin.gauges)();
    ([(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], admin.metrics.render())
}

/// Begins the stop, for the pod's own preStop hook alone. Nobody else who can reach the port may stop the service.
async fn drain(State(admin): State<Admin>, connection: Connection, headers: HeaderMap) -> Result<Response, Problem> {
    if !(is_own(connection.peer()) && is_own(connection.local())) {
        return Err(Problem::new(StatusCode::FORBIDDEN, "only a process on the same host may drain this one"));
    }
    // any page in a browser can post to a port that is forwarded to localhost
    if headers.contains_key(ORIGIN) || headers.contains_key("sec-fetch-site") {
        return Err(Problem::new(StatusCode::FORBIDDEN, "a browser may not drain this process"));
    }
    admin.lifecycle.stop(Trigger::PreStop);
    Ok(axum::Json(serde_json::json!({ "phase": admin.lifecycle.phase() })).into_response())
}

/// Whether an end of a connection is this host's own. The rest of 127.0.0.0/8 is not enough: a mesh's sidecar passes the
/// network's requests on from 127.0.0.6.
fn is_own(end: SocketAddr) -> bool {
    [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)].contains(&end.ip().to_canonical())
}

async fn page(State(admin): State<Admin>) -> Html<String> {
    Html(status::page(&admin.lifecycle))
}
