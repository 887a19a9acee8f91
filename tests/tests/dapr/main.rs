//! Dapr's lock API on a real etcd: its shapes and refusals, over HTTP and gRPC, and Dapr's own SDKs as apps use them.

mod grpc;
mod http;
mod sdk;
mod world;
