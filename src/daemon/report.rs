//! What the daemon tells about itself: its log, its status, and what `doctor` finds.

pub mod control;
pub mod doctor;
pub mod document;
pub mod logger;
pub mod status;
