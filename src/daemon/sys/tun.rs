//! The TUN device, and network devices in general.

use std::ffi::c_int;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, IntoRawFd};

use super::check;

/// Takes over a TUN's descriptor.
pub fn into_file(device: tun::Device) -> File {
    // SAFETY: the device gives up its descriptor, which is open.
    unsafe { File::from_raw_fd(device.into_raw_fd()) }
}

/// Sets the length of a TUN's virtio header in bytes, `TUNSETVNETHDRSZ` (<linux/if_tun.h>).
pub fn set_vnet_header_size(tun: &File, bytes: c_int) -> io::Result<()> {
    // SAFETY: the request reads one int.
    check(unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETVNETHDRSZ, &raw const bytes) }).map(drop)
}

/// Makes a TUN's virtio header little-endian on every machine, `TUNSETVNETLE`.
pub fn set_vnet_little_endian(tun: &File) -> io::Result<()> {
    let yes: c_int = 1;
    // SAFETY: the request reads one int.
    check(unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETVNETLE, &raw const yes) }).map(drop)
}

/// Tells the kernel which offloads the reader of a TUN handles (`TUN_F_*`), `TUNSETOFFLOAD`.
pub fn set_offload(tun: &File, features: u32) -> io::Result<()> {
    // SAFETY: the request takes a plain number.
    check(unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETOFFLOAD, features as libc::c_ulong) }).map(drop)
}

/// Sets the MTU of a network device in bytes; any socket will do: `SIOCSIFMTU` (netdevice(7)).
pub fn set_mtu(socket: impl AsFd, name: &str, bytes: u16) -> io::Result<()> {
    set_device(socket, libc::SIOCSIFMTU, name, bytes.into())
}

/// Sets the length of a network device's queue; any socket will do: `SIOCSIFTXQLEN` (netdevice(7)).
pub fn set_queue_length(socket: impl AsFd, name: &str, packets: c_int) -> io::Result<()> {
    set_device(socket, libc::SIOCSIFTXQLEN, name, packets)
}

/// Sets a numeric property of a network device.
fn set_device(socket: impl AsFd, request: libc::c_ulong, name: &str, number: c_int) -> io::Result<()> {
    let ifr_ifru = libc::__c_anonymous_ifr_ifru { ifru_mtu: number };
    let mut device = libc::ifreq { ifr_name: [0; libc::IFNAMSIZ], ifr_ifru };
    let room = device.ifr_name.len() - 1; // the name ends with a NUL
    for (to, from) in device.ifr_name.iter_mut().take(room).zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    // SAFETY: both requests read one struct.
    check(unsafe { libc::ioctl(socket.as_fd().as_raw_fd(), request as libc::Ioctl, &raw const device) })
        .map(drop)
}
