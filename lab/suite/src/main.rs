//! Placeholder until the first guest runs.
fn main() {}
