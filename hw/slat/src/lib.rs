//! Second-level page tables: walk, map, zap, dirty; NPT and EPT formats.
#![no_std]

