//! Hands the bytes of libFuzzer to [`weft_fuzz::f13_registry_record`].

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| weft_fuzz::f13_registry_record(data));
