//! The kernel's settings below /proc/sys.

use std::fs;
use std::path::Path;

use log::warn;

const ROOT: &str = "/proc/sys";
const IPV4_DEVICES: &str = "/proc/sys/net/ipv4/conf";
const IPV6: &str = "/proc/sys/net/ipv6/conf";

/// Sets one, unless it is so already. It may be read-only (in a jail) or absent: that is only warned of.
pub fn set(name: &str, value: &str) {
    let path = Path::new(ROOT).join(name);
    let is_set = fs::read_to_string(&path).is_ok_and(|text| text.trim_ascii_end() == value);
    if !is_set && let Err(error) = fs::write(&path, value) {
        warn!("set {} to {value}: {error}", path.display());
    }
}

/// The first and the last port that the kernel gives to connections, as text; empty if it can't be read.
pub fn local_ports() -> String {
    fs::read_to_string(Path::new(ROOT).join("net/ipv4/ip_local_port_range")).unwrap_or_default()
}

/// Whether the kernel can do IPv6 at all, be it switched off.
pub fn has_ipv6() -> bool {
    Path::new(IPV6).exists()
}

/// The devices on which the kernel drops a packet if the way back is through another one (RFC 3704's
/// strict filter; the setting in `all` counts if it is higher).
pub fn strict_devices() -> Vec<String> {
    let filter = |device: &str| -> u8 {
        fs::read_to_string(Path::new(IPV4_DEVICES).join(device).join("rp_filter"))
            .ok()
            .and_then(|text| text.trim_ascii_end().parse().ok())
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
