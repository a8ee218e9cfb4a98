//! The contract for people and machines: `/openapi.json`, and Swagger UI at `/docs` where the feature `docs` is on.

use axum::Router;
use axum::routing::get;
use utoipa::openapi::{InfoBuilder, OpenApi};
use utoipa_axum::router::OpenApiRouter;

/// One contract of several, under this service's name.
pub fn openapi(parts: impl IntoIterator<Item = OpenApi>) -> OpenApi {
    named(parts.into_iter().fold(OpenApi::default(), OpenApi::merge_from))
}

/// The routes, and their contract beside them.
pub fn documented(api: OpenApiRouter) -> Router {
    let (router, openapi) = api.split_for_parts();
    let json = axum::Json(named(openapi));
    let router = router.route("/openapi.json", get(async move || json.clone()));
    #[cfg(feature = "docs")]
    let router = {
        let config = utoipa_swagger_ui::Config::from("/openapi.json").validator_url("none");
        router.merge(utoipa_swagger_ui::SwaggerUi::new("/docs").config(config))
    };
    router
}

fn named(mut openapi: OpenApi) -> OpenApi {
    let info = InfoBuilder::new().title(env!("CARGO_PKG_NAME")).version(env!("CARGO_PKG_VERSION"));
    openapi.info = info.description(Some(env!("CARGO_PKG_DESCRIPTION"))).build();
    openapi
}
