//! Compiles libuci from the sources that the crate libuci-sys carries; see Cargo.toml.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

fn main() {
    let sources = libuci_sys().join("uci");
    let out = PathBuf::from(env::var_os("OUT_DIR").unwrap());
    // What cmake would make: no debugging support.
    fs::write(out.join("uci_config.h"), "").unwrap();
    cc::Build::new()
        .files(["libuci.c", "file.c", "util.c", "delta.c", "parse.c"].map(|name| sources.join(name)))
        .include(&sources)
        .include(out)
        .define("UCI_PREFIX", "\"/usr\"")
        .std("gnu99")
        .warnings(false)
        .compile("uci");
    println!("cargo:rerun-if-changed=build.rs");
}

/// Where cargo has unpacked that crate, which it downloads if it must.
fn libuci_sys() -> PathBuf {
    let output = Command::new(env::var_os("CARGO").unwrap())
        .args(["metadata", "--locked", "--all-features", "--format-version", "1"])
        .output()
        .unwrap();
    let metadata = String::from_utf8(output.stdout).unwrap();
    let manifest = metadata
        .split("\"manifest_path\":\"")
        .filter_map(|rest| rest.split('"').next())
        .find(|path| path.contains("/libuci-sys-"))
        .unwrap_or_else(|| panic!("no libuci-sys: {}", String::from_utf8_lossy(&output.stderr)));
    Path::new(manifest).parent().unwrap().to_owned()
}
