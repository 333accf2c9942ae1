//! Memory slots: the rules of KVM_SET_USER_MEMORY_REGION, lookup and dirty log.
#![no_std]
#![forbid(unsafe_code)]
