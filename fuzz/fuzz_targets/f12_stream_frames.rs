//! Hands the bytes of libFuzzer to [`weft_fuzz::f12_stream_frames`].

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| weft_fuzz::f12_stream_frames(data));
