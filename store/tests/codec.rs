//! What is remembered and how it is written: keys, their ranges, and records.

#[path = "codec/arbitrary.rs"]
mod arbitrary;
#[path = "codec/golden.rs"]
mod golden;
#[path = "codec/keys.rs"]
mod keys;
#[path = "codec/records.rs"]
mod records;
