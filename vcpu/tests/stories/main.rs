//! The run loop, one story at a time, against a guest, an operating system and a user space made of memory.

#[path = "../fake/mod.rs"]
mod fake;

mod async_pf;
mod avic;
mod debug;
mod events;
mod fast;
mod io;
mod ipiv;
mod l1d;
mod lazy;
mod life;
mod mechanisms;
mod passthrough;
mod pv;
mod raw;
mod registers;
mod rewritten;
mod tasks;
mod timer;
mod times;
mod trace;
mod vapic;
