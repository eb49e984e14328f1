//! The promises of the whole, each test named as one: the program is started as a user starts it, and what it leaves is read
//! as a user's script reads it.

mod accuracy;
mod align;
mod bad_input;
mod conservation;
mod determinism;
mod faults;
mod governor;
mod harness;
mod hooks;
mod link;
mod memory;
mod offline;
mod restart;
mod retake;
mod schedules;
mod segment;
