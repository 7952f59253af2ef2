//! What the daemon tells about itself: its log, its status, and what `doctor` finds.

#[macro_use]
pub mod logger; // first, since its macros are known only below it

pub mod control;
pub mod doctor;
pub mod document;
pub mod status;
