//! Mechanisms switched at random while a guest runs (`docs/control.md`): nothing that the guest sees may hang on it.

use std::sync::Arc;
use std::time::Duration;

use exitless_chooser::Set;
use exitless_control_abi::{EXITLESS_SWITCH, Switch};

use crate::harness::Outcome;
use crate::kvm::Errno;
use crate::machine::Machine;

/// Starts a thread that moves all switches of the VM until its test is over. Stock KVM has none: there it ends at once.
pub fn storm(m: &Arc<Machine>) {
    let m = m.clone();
    std::thread::spawn(move || {
        let exitless = std::path::Path::new("/sys/module/exitless").exists();
        // Marsaglia's xorshift: the same switches in each run.
        let mut x = 0x9e37_79b9_7f4a_7c15_u64;
        while !m.is_over() {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            // All off and all on more often than chance would have it.
            let on = match x >> 60 {
                0 => 0,
                1 => Set::ALL.0,
                _ => x & Set::ALL.0,
            };
            match m.vm.set(EXITLESS_SWITCH, &Switch { vm: 0, on, off: Set::ALL.0 & !on, reserved: 0 }) {
                Ok(_) => std::thread::sleep(Duration::from_micros(x >> 32 & 0x7ff)),
                Err(Errno(libc::ENOTTY)) if !exitless => return,
                Err(e) => return m.end(Outcome::Failed(format!("switching: {e}"))),
            }
        }
    });
}
