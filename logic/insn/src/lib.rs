//! Instruction length, guest page walk and the emulation of what hardware does not decode.
#![no_std]
#![forbid(unsafe_code)]
