//! The adversary: a guest in ring 3 that does to each virtio device, and to the ports, what no driver may do.
//!
//! - [`memory`], [`window`], [`ring`]: guest RAM, a device's registers, a virtqueue: whatever is wanted can be written there;
//! - [`serial`]: the conversation with the host; [`second`]: the second processor;
//! - [`machine`]: the devices that are there, sound requests to them, and the run of a group of attacks;
//! - [`attacks`]: the attacks, a table for each group of the checklist.
//!
//! An attack is made on all devices at the same time but one, a disk that has to serve on: the witness. Then the host looks for
//! what it has done to the monitor; then each device is reset, and has to work again. What devices there are, it finds out itself.
#![no_std]

pub mod attacks;
pub mod machine;
pub mod memory;
pub mod ring;
pub mod second;
pub mod serial;
pub mod window;
