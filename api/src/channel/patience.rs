//! How long a connection may keep its place without earning it (API-10).
//!
//! A handshake costs a stranger little, and a place that is taken by nobody is one that an agent does not get. So the
//! client must begin to speak HTTP/2 within the time of a handshake, and one without a certificate, which can only join
//! or fetch the bundle, is let go after a while.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use tokio::time::{Sleep, sleep};

/// The first bytes of HTTP/2 from a client: the preface and the header of its SETTINGS (RFC 9113 §3.4).
const OPENING_BYTES: usize = 24 + 9;

/// The deadlines of one connection.
#[derive(Debug)]
pub(super) struct Patience {
    opening: Option<Opening>,
    stay: Option<Pin<Box<Sleep>>>,
}

#[derive(Debug)]
struct Opening {
    missing: usize,
    end: Pin<Box<Sleep>>,
}

impl Patience {
    /// From now on: `opening` until HTTP/2 has begun, and `stay` in all, if there is such a bound.
    pub(super) fn new(opening: Duration, stay: Option<Duration>) -> Self {
        let opening = Opening { missing: OPENING_BYTES, end: Box::pin(sleep(opening)) };
        Self { opening: Some(opening), stay: stay.map(|stay| Box::pin(sleep(stay))) }
    }

    /// # Errors
    ///
    /// `TimedOut` when a deadline has passed; until then the task of `cx` is woken for the next.
    pub(super) fn check(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        let opening = self.opening.as_mut().map(|opening| opening.end.as_mut().poll(cx));
        let stay = self.stay.as_mut().map(|stay| stay.as_mut().poll(cx));
        if opening == Some(Poll::Ready(())) || stay == Some(Poll::Ready(())) {
            return Err(io::ErrorKind::TimedOut.into());
        }
        Ok(())
    }

    /// Notes that the client sent `bytes`.
    pub(super) fn heard(&mut self, bytes: usize) {
        if let Some(opening) = &mut self.opening {
            opening.missing = opening.missing.saturating_sub(bytes);
            if opening.missing == 0 {
                self.opening = None;
            }
        }
    }
}
