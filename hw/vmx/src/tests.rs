//! The backend without a CPU: `fake` is a VMCS in a map, VMX instructions that keep the rules of active and current, and
//! exits from a script.

mod caps;
mod entry;
mod events;
mod exits;
mod fake;
mod hands;
mod lend;
mod log;
mod pmu;
mod registers;
mod residence;
mod send;
mod vapic;

/// The run loop's fakes, as far as a backend can use them.
#[path = "../../../vcpu/tests/fake/bare.rs"]
mod bare;
#[path = "../../../vcpu/tests/fake/os.rs"]
#[allow(dead_code)]
mod os;
#[path = "../../../vcpu/tests/fake/world.rs"]
#[allow(dead_code)]
mod world;
