//! The parts that the tests of meta-proxy share: stand-in servers, real ZooKeeper, real processes, a faulty network.
#![forbid(unsafe_code)]

pub mod admin_rpc;
pub mod client;
pub mod cluster;
pub mod freeze;
pub mod greed;
pub mod http;
mod listener;
pub mod meta_server;
pub mod names;
mod peer;
pub mod pegasus;
pub mod process;
pub mod proxy;
pub mod rdsn;
pub mod relay;
pub mod replica_server;
pub mod rng;
pub mod scratch;
pub mod wait;
pub mod wild_cluster;
pub mod wire;
pub mod zookeeper;
