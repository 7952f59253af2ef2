//! What the daemon does when it is asked on the status socket.

use std::fmt::Write;
use std::net::IpAddr;

use super::EventLoop;
use crate::pause::EVERYBODY;
use crate::report::document::Document;
use crate::report::status;
use crate::sys;
use crate::upstream::choice_file::AUTO;
use crate::upstream::{DIRECT, PAUSED};
use tcp_over_http::capture::pause::MAX_PAUSE;

const NO_ADDRESS: &str = "the client is no IP address";

impl EventLoop {
    /// The answer to a request, once what it asks for is done.
    pub(super) fn answer(&mut self, request: &str) -> Document {
        match request.split_ascii_whitespace().collect::<Vec<_>>()[..] {
            [] | ["status"] => {
                // So that the next request has a fresh result.
                self.gateway.self_test().begin(self.gateway.tun());
                status::status(&self.gateway, &self.config)
            }
            ["upstreams"] => status::upstreams(&self.gateway),
            ["history"] => status::history(&self.gateway),
            ["clients"] => status::clients(&self.gateway),
            ["pause", seconds] => self.pause(seconds, None),
            ["pause", seconds, client] => self.pause(seconds, Some(client)),
            ["resume"] => self.resume(None),
            ["resume", client] => self.resume(Some(client)),
            ["uplinks"] => self.read_uplinks(),
            ["use", name] => self.use_upstream(name, false),
            ["use", name, "reset"] => self.use_upstream(name, true),
            _ => Document::reply(false, "unknown request".to_owned()),
        }
    }

    /// Reads which uplinks are up, which a script of the system writes beside the status socket.
    pub(super) fn read_uplinks(&self) -> Document {
        let up = sys::read_text(&[&self.config.status_socket, ".uplinks"].concat());
        let upstreams = self.gateway.upstreams();
        let is_other = upstreams.set_uplinks(&up);
        let first = upstreams.choice().first();
        let name = first.map(|first| &*upstreams.proxies()[first].account.name).unwrap_or_default();
        let message = ["new connections use ", name, " first"].concat();
        if is_other {
            info!("the uplinks have changed: {message}");
        }
        Document::reply(true, message)
    }

    /// Sends new connections through this upstream from now on; `auto`: through the best one.
    fn use_upstream(&self, name: &str, reset: bool) -> Document {
        let upstreams = self.gateway.upstreams();
        let chosen = (name != AUTO).then_some(name);
        if !upstreams.choice().choose(chosen, upstreams.now()) {
            let mut message = ["no upstream is named '", name, "'; there are"].concat();
            for (index, proxy) in upstreams.proxies().iter().enumerate() {
                message.push_str(if index == 0 { ": " } else { ", " });
                message.push_str(&proxy.account.name);
            }
            return Document::reply(false, message);
        }
        self.choice_file.save(chosen);
        let mut message = ["new connections use ", name].concat();
        if reset && let Some(first) = upstreams.choice().first() {
            let kept = &upstreams.proxies()[first].account.name;
            let count = self.gateway.reset_through(&|upstream| ![DIRECT, PAUSED, kept].contains(&upstream));
            _ = write!(message, "; {count} others reset");
        }
        Document::reply(true, message)
    }

    /// Lets one client, or everybody, out directly for a while.
    fn pause(&mut self, seconds: &str, client: Option<&str>) -> Document {
        let refuse = |why: &str| Document::reply(false, why.to_owned());
        let Some(seconds) = seconds.parse().ok().filter(|seconds| (1..=MAX_PAUSE).contains(seconds)) else {
            return refuse("a pause lasts an hour at most");
        };
        let Ok(client) = client.map(str::parse).transpose() else { return refuse(NO_ADDRESS) };
        if !self.config.may_pause() {
            return refuse("nothing may go directly (on_failure 'block'): to pause, set option pause '1'");
        }
        if !self.capture.can_pause() {
            return refuse("nothing is captured by the firewall's tables");
        }
        let until = self.gateway.now().plus(seconds * 1000);
        if !self.gateway.paused().change(|pauses| pauses.begin(client, until)) {
            return refuse("there are too many pauses");
        }
        self.pause_changed(false);
        Document::reply(true, format!("{} directly for {seconds} s", who(client)))
    }

    /// Ends one client's pause, or all.
    fn resume(&mut self, client: Option<&str>) -> Document {
        let Ok(client) = client.map(str::parse).transpose() else {
            return Document::reply(false, NO_ADDRESS.to_owned());
        };
        if !self.gateway.paused().change(|pauses| pauses.end(client)) {
            return Document::reply(false, "there is no such pause".to_owned());
        }
        self.pause_changed(true);
        Document::reply(true, format!("{} through the proxy again", who(client)))
    }

    /// Tells the kernel which clients pause now. Direct connections of a pause end with it.
    pub(super) fn pause_changed(&mut self, has_ended: bool) {
        if has_ended {
            self.gateway.reset_through(&|upstream| upstream == PAUSED);
        }
        let config = self.reload.as_ref().map_or(&self.config, |reload| &reload.new);
        self.capture.pause(config, has_ended);
    }
}

fn who(client: Option<IpAddr>) -> String {
    client.map_or_else(|| EVERYBODY.to_owned(), |client| client.to_string())
}
