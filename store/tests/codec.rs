//! What is remembered and how it is written: keys, their ranges, and records.

#[path = "codec/arbitrary.rs"]
mod arbitrary;
#[path = "codec/keys.rs"]
mod keys;
