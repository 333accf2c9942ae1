//! The hall: the run loop, exits and fast paths, generic over Backend and Host.
#![no_std]
#![forbid(unsafe_code)]
