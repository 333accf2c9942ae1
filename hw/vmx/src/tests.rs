//! The backend without a CPU.
