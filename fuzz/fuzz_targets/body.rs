//! Any body of a request.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|body: &[u8]| {
    if let Some(request) = fuzz::order(b"key", body) {
        fuzz::send(request);
    }
});
