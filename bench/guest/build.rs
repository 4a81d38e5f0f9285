//! How the program is linked.

fn main() {
    bare_programs::link_for_ring3("../..");
}
