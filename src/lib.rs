//! A service that may be stopped, moved, overloaded or cut off from what it depends on at any moment, and no caller
//! loses a request. `app` is where to begin to read.

pub mod admin;
pub mod app;
pub mod config;
pub mod grpc;
pub mod lifecycle;
pub mod orders;
pub mod postgres;
pub mod server;
pub mod telemetry;
