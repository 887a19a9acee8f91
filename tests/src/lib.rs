//! Harness, scenarios, faults and benchmarks on real parts.

pub mod bench;
pub mod budget;
pub mod disk;
pub mod etcd;
pub mod history;
pub mod kube;
pub mod node;
pub mod otlp;
pub mod process;
pub mod proxy;
