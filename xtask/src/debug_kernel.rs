//! A kernel that checks itself (KASAN, lockdep, kmemleak), built from Debian's source and kept in the cache.

use anyhow::{Result, bail};

use crate::lab::deps::KernelTree;

/// The built debug kernel.
pub fn tree() -> Result<KernelTree> {
    bail!("there is no debug kernel yet: run `cargo xtask debug-kernel` (takes up to an hour)")
}
