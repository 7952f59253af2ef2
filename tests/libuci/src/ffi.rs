//! What is used of libuci's `uci.h`.

use std::ffi::{c_char, c_int};

/// `struct uci_context`, which only libuci looks into.
#[repr(C)]
pub struct Context([u8; 0]);

/// `struct uci_list`: a ring through what it is the first field of, and its head.
#[repr(C)]
pub struct List {
    pub next: *const List,
    prev: *const List,
}

/// `struct uci_element`.
#[repr(C)]
pub struct Element {
    list: List,
    kind: c_int,
    pub name: *const c_char,
}

/// `struct uci_package`, as far as it is read; libuci makes it.
#[repr(C)]
pub struct Package {
    e: Element,
    pub sections: List,
}

/// `struct uci_section`.
#[repr(C)]
pub struct Section {
    pub e: Element,
    pub options: List,
    package: *const Package,
    pub anonymous: bool,
    pub kind: *const c_char,
}

/// `struct uci_option`.
#[repr(C)]
pub struct Opt {
    pub e: Element,
    section: *const Section,
    /// `UCI_TYPE_STRING` or `UCI_TYPE_LIST`.
    pub kind: c_int,
    pub v: Value,
}

/// The value of an option: which one its kind says.
#[repr(C)]
pub union Value {
    pub list: std::mem::ManuallyDrop<List>,
    pub string: *const c_char,
}

/// `enum uci_option_type`.
pub const UCI_TYPE_STRING: c_int = 0;

unsafe extern "C" {
    pub fn uci_alloc_context() -> *mut Context;
    pub fn uci_free_context(context: *mut Context);
    /// `package` gets what was read from the stream; not 0 if it was refused.
    pub fn uci_import(
        context: *mut Context,
        stream: *mut libc::FILE,
        name: *const c_char,
        package: *mut *mut Package,
        single: bool,
    ) -> c_int;
}
