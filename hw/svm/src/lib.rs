//! The SVM backend: VMCB, enter, exit, inject, intercepts.
#![no_std]

