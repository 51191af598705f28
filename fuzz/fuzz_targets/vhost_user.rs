#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| iovirt_fuzz::vhost_user::run(data));
