#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| iovirt_fuzz::nbd_replies::run(data));
