//! Any `Idempotency-Key`.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|key: &[u8]| {
    if let Some(request) = fuzz::order(key, br#"{"sku":"SKU-1","quantity":1}"#) {
        fuzz::send(request);
    }
});
