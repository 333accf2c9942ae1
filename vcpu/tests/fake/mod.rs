//! A machine made of plain memory: one guest CPU that follows a script, one operating system, one user space.
//!
//! Vocabulary: an *operation* ([`Op`]) is what the guest does next; a *happening* ([`Env`]) is what the rest of the world does:
//! a device's interrupt, a signal, a move to another CPU. Happenings strike at *points*: wherever the run loop asks the host
//! something, inside a slice or out of it. Everything the loop must never do is asserted where it would do it.
//!
//! ```text
//!  script ─▶ Cpu (Backend) ─ exits ─▶ run loop ─ services ─▶ Os (Host) ─ points ─▶ happenings ─ requests, kicks ─▶ run loop
//! ```
#![allow(dead_code)] // Each test binary uses its part.

pub(crate) mod bare;
pub(crate) mod cpu;
pub(crate) mod guest;
pub(crate) mod machine;
pub(crate) mod os;
pub(crate) mod vapic;
pub(crate) mod world;

pub(crate) use cpu::Op;
pub(crate) use machine::Machine;
pub(crate) use world::Env;
