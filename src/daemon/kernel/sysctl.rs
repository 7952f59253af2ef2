//! Kernel settings below /proc/sys.

use std::fs;
use std::path::Path;

use crate::sys;

const IPV4_DEVICES: &str = "/proc/sys/net/ipv4/conf";
const IPV6: &str = "/proc/sys/net/ipv6/conf";

/// Sets a value, unless it is set already. If the file is read-only (in a jail) or missing, that is only
/// logged.
pub fn set(name: &str, value: &str) {
    let path = ["/proc/sys/", name].concat();
    let is_set = sys::read_text(&path).trim_ascii_end() == value;
    if !is_set && let Err(error) = fs::write(&path, value) {
        warn!("set {path} to {value}: {error}");
    }
}

/// The first and the last ephemeral port (`ip_local_port_range`), as text; empty if it can't be read.
pub fn local_ports() -> String {
    sys::read_text("/proc/sys/net/ipv4/ip_local_port_range")
}

/// Whether the kernel has IPv6, even if it is disabled.
pub fn has_ipv6() -> bool {
    Path::new(IPV6).exists()
}

/// The devices with a strict reverse path filter (RFC 3704): the kernel drops a packet whose source it would
/// route by another device. It uses the higher of the device's setting and that of `all`.
pub fn strict_devices() -> Vec<String> {
    let filter = |device: &str| -> u8 {
        sys::read_text(&[IPV4_DEVICES, "/", device, "/rp_filter"].concat())
            .trim_ascii_end()
            .parse()
            .unwrap_or(0)
    };
    let all = filter("all");
    let Ok(devices) = fs::read_dir(IPV4_DEVICES) else {
        return Vec::new();
    };
    devices
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| !matches!(name.as_str(), "all" | "default" | "lo"))
        .filter(|name| filter(name).max(all) == 1)
        .collect()
}
