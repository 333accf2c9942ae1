//! Safe Rust over the C helpers: files, user memory, timers, notifiers, tasks, pages, log.
#![no_std]

