//! The backend without a CPU: `fake` is a VMCS in a map, VMX instructions that keep the rules of active and current, and
//! exits from a script.

mod caps;
mod entry;
mod events;
mod exits;
mod fake;
mod registers;
mod residence;
