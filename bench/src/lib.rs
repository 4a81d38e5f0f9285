//! The benchmark as a library that the CLI calls.
//!
//! | module | what it does |
//! |---|---|
//! | [`null`] | the cost of a machine that does nothing: process start, one port write, process exit |
//! | [`restore`] | a machine that goes on from a snapshot: process start to the guest's first instruction |
//! | [`run`] | `bulkhead run`, booting and from a template |
//! | [`process`] | monitor processes, started and timed |
//! | [`stats`] | percentiles |
//! | [`guest`] | the guest programs it boots: a few instructions in an ELF file |
//!
//! Every figure stands beside a floor from the same run. It does not print: the CLI does.
#![forbid(unsafe_code)]

pub mod guest;
pub mod null;
pub mod process;
pub mod restore;
pub mod run;
pub mod stats;
