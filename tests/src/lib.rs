//! Harness, scenarios, faults and benchmarks on real parts.

pub mod kube;
