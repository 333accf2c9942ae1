//! See the head of the crate.
