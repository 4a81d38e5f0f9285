//! The crate's tests from outside, in one program: each program more is linked once more.

mod machine;
mod session;
mod snapshot;
mod support;
