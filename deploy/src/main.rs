//! The kinesin program.
fn main() {}
