//! Hands the bytes of libFuzzer to [`weft_fuzz::f14_store_events`].

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| weft_fuzz::f14_store_events(data));
