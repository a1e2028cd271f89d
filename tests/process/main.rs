//! Tests of the real binary: real processes, real ZooKeeper, real clients, faults in between.

mod admin;
mod cli;
mod clients;
mod crowd;
mod docs;
mod golden;
mod holds;
mod host_ports;
mod hostile;
mod house;
mod interop;
mod life;
mod logs;
mod names;
mod overload;
mod package;
mod page;
mod pipeline;
mod rdsn;
mod routes;
mod run;
mod scrape;
mod support;
mod upstream;
mod wild;
mod zookeeper;
