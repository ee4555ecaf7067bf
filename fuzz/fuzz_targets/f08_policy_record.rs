//! Hands the bytes of libFuzzer to [`weft_fuzz::f08_policy_record`].

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| weft_fuzz::f08_policy_record(data));
