//! The TUN device.

use std::cell::Cell;
use std::fs::File;
use std::io::{self, Write};
use std::task::{Context, Poll};

use tcp_over_http::packet::builder::MAX_LEN;
use tcp_over_http::packet::vnet;
use tokio::io::unix::AsyncFd;

use crate::sys;

/// Bytes of the longest frame: virtio header and super-packet.
pub const MAX_FRAME: usize = vnet::LEN + 65_535;

/// The TUN accepts and delivers packets without checksums and larger than the MTU (TSO); the next device
/// completes them.
const OFFLOADS: u32 = libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6 | libc::TUN_F_TSO_ECN;

/// A TUN device. A frame is a virtio header ([`vnet::Header`]) and one packet or super-packet.
pub struct Tun {
    file: AsyncFd<File>,
    write_errors: Cell<u64>,
}

impl Tun {
    /// Creates the device `name`, with offloads if `offload` is set and the kernel supports them. The device
    /// is down, and has no addresses.
    pub fn open(name: &str, offload: bool) -> Result<Self, String> {
        let mut configuration = tun::Configuration::default();
        configuration.tun_name(name);
        configuration.platform_config(|platform| {
            platform.vnet_hdr(true).ensure_root_privileges(false);
        });
        let device = tun::create(&configuration).map_err(not_created)?;
        device.set_nonblock().map_err(|error| format!("watch it: {error}"))?;
        let file = sys::into_file(device);
        sys::set_vnet_header_size(&file, vnet::LEN as i32)
            .and_then(|()| sys::set_vnet_little_endian(&file))
            .map_err(|error| format!("set its virtio header: {error}"))?;
        if offload && let Err(error) = sys::set_offload(&file, OFFLOADS) {
            warn!("{name}: no super-packets, the kernel refuses offload: {error}");
        }
        Ok(Self {
            file: sys::watch(file).map_err(|error| format!("watch it: {error}"))?,
            write_errors: Cell::default(),
        })
    }

    /// Reads one frame.
    pub fn poll_read(&self, cx: &mut Context, frame: &mut [u8]) -> Poll<io::Result<usize>> {
        sys::poll_read(&self.file, cx, frame)
    }

    /// Writes one frame. If the kernel does not take it, it is lost and counted.
    pub fn write(&self, frame: &[u8]) {
        if let Err(error) = self.try_write(frame) {
            trace!("a frame of {} bytes was not taken: {error}", frame.len());
            self.write_errors.set(self.write_errors.get() + 1);
        }
    }

    /// Writes one frame. The kernel takes it at once or not at all: it never asks to wait.
    pub fn try_write(&self, frame: &[u8]) -> io::Result<()> {
        self.file.get_ref().write(frame).map(drop)
    }

    /// Writes the packet that `make` builds. `make` returns its length; 0 if there is none.
    pub fn write_made(&self, make: &dyn Fn(&mut [u8; MAX_LEN]) -> usize) {
        let mut frame = [0; vnet::LEN + MAX_LEN];
        let length = frame.last_chunk_mut().map_or(0, make);
        if length > 0 {
            self.write(&frame[..vnet::LEN + length]);
        }
    }

    /// The number of frames that the kernel has not taken.
    pub const fn write_errors(&self) -> u64 {
        self.write_errors.get()
    }
}

fn not_created(error: tun::Error) -> String {
    let advice = match &error {
        tun::Error::Io(error) => match error.raw_os_error() {
            Some(libc::EBUSY) => {
                " (another program has it, or another tcp-over-http: give this one other names and numbers)"
            }
            Some(libc::EPERM | libc::EACCES) => " (needs root)",
            Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => " (is /dev/net/tun there? kmod-tun)",
            _ => "",
        },
        _ => "",
    };
    format!("create it: {error}{advice}")
}
