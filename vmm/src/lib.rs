//! The monitor: everything that touches KVM.
//!
//! | module | what it does |
//! |---|---|
//! | [`config`] | what a machine is made of: plain data, checked before anything is built |
//! | [`host`] | what this host's KVM is and can do |
//! | [`memory`] | guest RAM |
//! | [`slots`] | guest RAM as KVM's memory slots |
//! | [`windows`] | memory that devices show the guest besides RAM |
//! | [`waiting`] | threads that are there before there is something for them to do |
//! | [`elsewhere`] | one of those, which begins on another processor |
//! | [`pager`] | guest RAM that is read when it is asked for |
//! | [`irq`] | interrupt lines (irqfd) and message routing for the userspace IOAPIC |
//! | [`cpuid`] | what each vCPU says it is |
//! | [`cpuid_cache`] | what KVM offers of that, kept from one machine to the next |
//! | [`vcpu`] | vCPU threads: run loop, pause/resume, exits |
//! | [`complete`] | instructions that a software-nested KVM cannot emulate |
//! | [`machine`] | the one assembly recipe, and the event loop |
//! | [`snapshot`] | a machine's state and memory, into files and back |
//! | [`events`] | what a machine tells the process around it |
//! | [`api`] | the control socket |
//! | [`page_cache`] | its program's file, where its process is started |
//! | [`process`] | the start of a machine's process |
//! | [`sandbox`] | what each thread may still do while the guest runs |
//! | [`session`] | a machine's process: configuration, control socket, machine, signals |
//!
//! It does not parse command lines, know about container images, or talk to a terminal.

pub mod api;
pub mod birth;
mod chores;
pub mod complete;
pub mod config;
mod console;
pub mod cpuid;
mod cpuid_cache;
mod elsewhere;
pub mod events;
#[cfg(feature = "testing")]
pub mod fuzzing;
#[cfg(target_env = "musl")]
pub mod heap;
pub mod host;
pub mod irq;
pub mod machine;
pub mod memory;
mod open;
mod page_cache;
mod pager;
pub mod process;
pub mod sandbox;
pub mod session;
mod signals;
mod slots;
pub mod snapshot;
pub mod vcpu;
mod waiting;
mod windows;

pub use config::VmConfig;
pub use devices::virtio::net::{Link as NetworkLink, LinkRates as NetworkRates};
pub use devices::virtio::net::{descriptors as network_descriptors, passt as user_network};
pub use devices::virtio::net::{egress, tap};
pub use devices::virtio::trace;
pub use events::{Event, ExitReason};
pub use machine::{Console, Handle, Machine, VmmError};
