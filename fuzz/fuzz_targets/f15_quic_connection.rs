//! Hands the bytes of libFuzzer to [`weft_fuzz::f15_quic_connection`].

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| weft_fuzz::f15_quic_connection(data));
