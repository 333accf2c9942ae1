//! The few helpers that tests run against, on the test program's own heap.
