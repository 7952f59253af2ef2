use std::future::poll_fn;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener};

use super::*;

const SLOT: Slot = Slot::from_number(7);

/// A relay, and what its client and its proxy have at the other end.
struct Rig {
    resources: Resources,
    relay: Relay,
    client: TcpStream,
    upstream: TcpStream,
}

impl Rig {
    fn new(leftover: &[u8], pipes: usize) -> Self {
        let resources = Resources { pipes: Pipes::new(pipes, 1 << 16), poller: Poller::new().unwrap() };
        let ((client, near), (upstream, far)) = (pair(), pair());
        let relay = Relay::new(SLOT, near, far, leftover, &resources).unwrap();
        Self { resources, relay, client, upstream }
    }

    /// Runs the relay at each event until it goes on with something else than events or with `reached`.
    async fn run_until(&mut self, reached: impl Fn(&Relay) -> bool) -> Next {
        loop {
            let next = self.relay.run(&self.resources).unwrap();
            if next != Next::Event || reached(&self.relay) {
                return next;
            }
            for event in poll_fn(|cx| self.resources.poller.poll(cx)).await {
                assert_eq!(event.key.slot, SLOT);
                self.relay.note(event);
            }
        }
    }
}

fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let far = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (near, _) = listener.accept().unwrap();
    near.set_nonblocking(true).unwrap();
    (far, near)
}

fn run(test: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(test);
}

#[test]
fn one_that_can_not_be_made_keeps_no_pipe() {
    run(async {
        let resources = Resources { pipes: Pipes::new(1, 1 << 16), poller: Poller::new().unwrap() };
        let ((client, _near), (upstream, _far)) = (pair(), pair());
        assert!(Relay::new(SLOT, client, upstream, &[0; 1 << 20], &resources).is_err());
        assert!(resources.pipes.take().unwrap().is_some());
    });
}

#[test]
fn bytes_and_ends_are_passed_on() {
    run(async {
        let mut rig = Rig::new(b"early", 2);
        rig.client.write_all(b"question").unwrap();
        rig.client.shutdown(Shutdown::Write).unwrap();
        assert_eq!(rig.run_until(|relay| relay.up.ended).await, Next::Event);
        let mut got = Vec::new();
        rig.upstream.read_to_end(&mut got).unwrap();
        assert_eq!(got, b"question");

        rig.upstream.write_all(b"answer").unwrap();
        rig.upstream.shutdown(Shutdown::Write).unwrap();
        assert_eq!(rig.run_until(|_| false).await, Next::End);
        assert_eq!(rig.relay.moved(), Moved { up: 8, down: 11 });
        drop(rig.relay);
        got.clear();
        rig.client.read_to_end(&mut got).unwrap();
        assert_eq!(got, b"earlyanswer");
    });
}

#[test]
fn a_receiver_that_is_slow_is_waited_for() {
    run(async {
        let mut rig = Rig::new(b"", 2);
        let sent = 16 << 20;
        let mut client = rig.client.try_clone().unwrap();
        let writer = std::thread::spawn(move || client.write_all(&vec![1; sent]));
        rig.run_until(|relay| relay.up.buffered > 0).await;
        let mut upstream = rig.upstream.try_clone().unwrap();
        let reader = std::thread::spawn(move || upstream.read_exact(&mut vec![0; sent]));
        while rig.relay.moved().up < sent as u64 {
            rig.run_until(|relay| relay.up.moved == sent as u64).await;
        }
        writer.join().unwrap().unwrap();
        reader.join().unwrap().unwrap();
    });
}

#[test]
fn pipes_are_waited_for() {
    run(async {
        let mut rig = Rig::new(b"", 1);
        let taken = rig.resources.pipes.take().unwrap().unwrap();
        rig.client.write_all(b"?").unwrap();
        assert_eq!(rig.run_until(|_| false).await, Next::Later);
        assert!(!rig.resources.pipes.have_been_freed());
        rig.resources.pipes.give_back(taken);
        assert!(rig.resources.pipes.have_been_freed());
        assert_eq!(rig.run_until(|relay| relay.up.moved == 1).await, Next::Event);
    });
}
