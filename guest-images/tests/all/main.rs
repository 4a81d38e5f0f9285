//! The crate's tests from outside, in one program: each program more is linked once more.

mod commit;
mod found;
mod images;
mod kernel;
mod layers;
mod merge;
mod round_trip;
mod save;
mod store;
mod support;
mod unpack;
