//! The second port, for the platform and the people who run it: probes, metrics, the drain, the status page. It is
//! served by the control thread from what is already known, so it answers however busy the service is, and to its end.

mod status;

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::response::{Html, IntoResponse, Response};
use axum::routing::{get, post};
use http::StatusCode;
use http::header::{CACHE_CONTROL, CONTENT_TYPE};
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
struct Probe {
    /// `ok`, or `unavailable`.
    status: &'static str,
    phase: Phase,
    checks: BTreeMap<&'static str, CheckReport>,
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    vitals: Option<Vitals>,
}

fn probe(
    ok: bool,
    lifecycle: &Lifecycle,
    checks: BTreeMap<&'static str, CheckReport>,
    vitals: Option<Vitals>,
) -> Response {
    let (code, status) = if ok { (StatusCode::OK, "ok") } else { (StatusCode::SERVICE_UNAVAILABLE, "unavailable") };
    let body = Probe { status, phase: lifecycle.phase(), checks, vitals };
    (code, [(CACHE_CONTROL, "no-store")], axum::Json(body)).into_response()
}

/// 200 in every phase unless the process itself is beyond help.
async fn live(State(admin): State<Admin>) -> Response {
    let vitals = admin.lifecycle.liveness().vitals();
    probe(vitals.error.is_none(), &admin.lifecycle, BTreeMap::new(), Some(vitals))
}

/// 200 while traffic is welcome.
async fn ready(State(admin): State<Admin>) -> Response {
    probe(admin.lifecycle.is_ready(), &admin.lifecycle, admin.lifecycle.readiness().report(), None)
}

/// 200 once the process runs. It waits for no dependency: a startup probe that fails restarts the pod.
async fn startup(State(admin): State<Admin>) -> Response {
    probe(admin.lifecycle.liveness().has_started(), &admin.lifecycle, BTreeMap::new(), None)
}

async fn metrics(State(admin): State<Admin>) -> impl IntoResponse {
    (admin.gauges)();
    ([(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], admin.metrics.render())
}

/// Begins the stop. For the pod's own preStop hook alone: whoever else can reach the port cannot stop the service.
async fn drain(State(admin): State<Admin>, connection: Connection) -> Result<Response, Problem> {
    if !connection.peer().ip().to_canonical().is_loopback() {
        return Err(Problem::new(StatusCode::FORBIDDEN, "only a process on the same host may drain this one"));
    }
    admin.lifecycle.stop(Trigger::PreStop);
    Ok(axum::Json(serde_json::json!({ "phase": admin.lifecycle.phase() })).into_response())
}

async fn page(State(admin): State<Admin>) -> Html<String> {
    Html(status::page(&admin.lifecycle))
}
