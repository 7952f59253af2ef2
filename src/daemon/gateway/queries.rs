//! Queries to other resolvers, which ours answers.

use std::net::TcpStream;
use std::rc::Rc;

use tcp_over_http::flow::{Flow, NatSource, Slot};
use tcp_over_http::packet::datagram::Datagram;
use tcp_over_http::packet::{Packet, Tuple};

use super::Gateway;
use super::kept::Kept;
use crate::sys;
use crate::task::spawn;

impl Gateway {
    /// Answers the query in a captured datagram.
    pub(super) fn answer_query(&self, packet: &mut [u8]) {
        if let (Some(dns), Ok(packet)) = (&self.dns, Packet::parse(packet))
            && let Some(Datagram { tuple, payload }) = Datagram::of(&packet)
        {
            dns.ask_captured(payload, tuple);
        }
    }

    /// Answers the queries of a client that has connected to a resolver, any resolver.
    pub(super) fn serve_dns(self: &Rc<Self>, slot: Slot, client: TcpStream) {
        _ = sys::set_lingering(&client);
        // Not the peer that the listener sees: that may be a NAT source.
        let Flow { tuple: Tuple { source, .. }, nat, .. } = *self.rewriter.borrow().flow(slot);
        let task = DnsTask { slot, nat, gateway: Rc::clone(self) };
        let task = spawn(async move {
            if let (Some(dns), Ok(client)) = (task.gateway.dns(), tokio::net::TcpStream::from_std(client)) {
                dns.serve(client, Some(source)).await;
            }
            task.gateway.keep(task.slot, Kept::Nothing);
        });
        self.keep(slot, Kept::Served(task));
    }
}

/// A client's connection to our resolver, until its end.
struct DnsTask {
    slot: Slot,
    /// Tells its flow from a later one in the slot.
    nat: NatSource,
    gateway: Rc<Gateway>,
}

impl Drop for DnsTask {
    /// Also when the task is aborted: that takes effect later.
    fn drop(&mut self) {
        let mut rewriter = self.gateway.rewriter.borrow_mut();
        if rewriter.flow(self.slot).nat == self.nat {
            rewriter.close(self.slot, self.gateway.now());
        }
    }
}
