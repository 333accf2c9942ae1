//! Fake memory, the bit layouts of the manuals, single stories, random histories against a model, and a thread that
//! plays the CPU's page walker.

mod formats;
mod frames;
mod hardware;
mod histories;
mod stories;
