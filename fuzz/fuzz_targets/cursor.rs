#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| damselfly_fuzzing::run("cursor", bytes));
