//! The contract for people and machines: `/openapi.json`, and Swagger UI at `/docs` where the feature `docs` is on.

use axum::Router;
use axum::routing::get;
use utoipa::openapi::{InfoBuilder, OpenApi};
use utoipa_axum::router::OpenApiRouter;

/// The contract of these routes, under this service's name.
pub fn openapi<S: Clone + Send + Sync + 'static>(api: OpenApiRouter<S>) -> OpenApi {
    split(api).1
}

/// The routes, and their contract beside them.
pub fn documented<S: Clone + Send + Sync + 'static>(api: OpenApiRouter<S>) -> Router<S> {
    let (router, openapi) = split(api);
    let json = axum::Json(openapi);
    let router = router.route("/openapi.json", get(async move || json.clone()));
    #[cfg(feature = "docs")]
    let router = {
        let config = utoipa_swagger_ui::Config::from("/openapi.json").validator_url("none");
        router.merge(utoipa_swagger_ui::SwaggerUi::new("/docs").config(config))
    };
    router
}

fn split<S: Clone + Send + Sync + 'static>(api: OpenApiRouter<S>) -> (Router<S>, OpenApi) {
    let (router, mut openapi) = api.split_for_parts();
    let info = InfoBuilder::new().title(env!("CARGO_PKG_NAME")).version(env!("CARGO_PKG_VERSION"));
    openapi.info = info.description(Some(env!("CARGO_PKG_DESCRIPTION"))).build();
    (router, openapi)
}
