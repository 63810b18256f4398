#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| damselfly_fuzzing::run("join_token", bytes));
