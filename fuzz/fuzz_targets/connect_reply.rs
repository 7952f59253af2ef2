//! Any bytes, cut anywhere: the cuts change nothing, and a reply ends where it ends whatever follows.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tcp_over_http::http::{MAX_REPLY, ReplyError, ReplyParser, Status};

fuzz_target!(|input: &[u8]| {
    let [size, bytes @ ..] = input else { return };
    let whole = feed(std::iter::once(bytes));
    assert_eq!(feed(bytes.chunks(usize::from(*size).max(1))), whole);
    if let Ok((Status::Done { status, consumed }, _)) = whole {
        assert!((200..1000).contains(&status));
        assert!(consumed <= MAX_REPLY as usize);
        let (reply, _) = bytes.split_at(consumed);
        // A blank line may come first, and the version's letters be small (see the table of `http/reply.rs`).
        let version = reply.trim_ascii_start().get(..7).unwrap_or_default();
        assert!(version.eq_ignore_ascii_case(b"HTTP/1.") && reply.ends_with(b"\n"));
        assert_eq!(feed(std::iter::once(reply)), whole);
        let (cut, _) = reply.split_at(consumed - 1);
        assert!(matches!(
            feed(std::iter::once(cut)),
            Ok((Status::Partial, _))
        ));
    }
});

/// The outcome, with the bytes consumed in all, and the lines of a 407.
fn feed<'a>(pieces: impl Iterator<Item = &'a [u8]>) -> Result<(Status, Vec<u8>), ReplyError> {
    let mut parser = ReplyParser::new();
    let mut before = 0;
    for piece in pieces {
        match parser.feed(piece)? {
            Status::Partial => before += piece.len(),
            Status::Done { status, consumed } => {
                let consumed = before + consumed;
                return Ok((Status::Done { status, consumed }, parser.lines().to_vec()));
            }
        }
    }
    Ok((Status::Partial, parser.lines().to_vec()))
}
