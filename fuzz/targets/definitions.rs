#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| xctl_fuzz::bodies::definitions(bytes));
