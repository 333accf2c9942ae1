//! One privileged instruction each, with its contract.
#![no_std]

