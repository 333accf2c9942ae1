//! Hits and fallbacks of the mechanisms here.

use crate::outcome::Fast;
use crate::shared::VcpuShared;
use exitless_chooser::{Fallback, Mechanism};

/// What an active mechanism made of a case of its own.
pub(super) fn counted(sh: &VcpuShared, m: Mechanism, done: Result<(), Fallback>) -> Fast {
    match done {
        Ok(()) => {
            sh.count_hit(m);
            Fast::Reenter
        }
        Err(why) => {
            sh.count_fallback(m, why);
            Fast::Slow
        }
    }
}
